//! Processes that descend from another one: found by its process group, or wherever they are now by
//! a token in their environment (`proc_pid_environ(5)`).

mod search;

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::aside::{Aside, LeftBehind};
use search::{Memory, Stat};

/// The variable with the token.
pub const VARIABLE: &str = "TROOP_TREE";
/// Beginning of the variables that have the tokens of outer trees, where processes of a tree start
/// trees of their own: `TROOP_TREE_TOKEN=`.
pub const OUTER: &str = "TROOP_TREE_";

/// Maximum number of trees that are looked for in one search.
pub const MAX_TREES: usize = 400;

/// Length of a token's text.
const TOKEN_LENGTH: usize = 32;

/// A random text, which no other process tree has.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Returns a new token of 128 bits.
    ///
    /// # Errors
    /// If the kernel has no random numbers yet, as shortly after the system has started.
    pub fn random() -> io::Result<Token> {
        let mut bytes = [0_u8; 16];
        // SAFETY: `bytes` is valid for writes of its length.
        let length =
            unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        if length.cast_unsigned() < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut text = String::new();
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Token(text))
    }

    /// Returns the value of [`VARIABLE`].
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Returns the name of the variable that has the token of the tree in which this process runs, for
/// processes that begin trees of their own; `None` if it is in none.
#[must_use]
pub fn outer_variable(token: Option<&OsStr>) -> Option<String> {
    let token = token?.to_str()?;
    let is_token = token.len() == TOKEN_LENGTH && token.bytes().all(|b| b.is_ascii_hexdigit());
    is_token.then(|| format!("{OUTER}{token}"))
}

/// A process, and all that it has started and that is in its process group or has its token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessTree {
    /// The variable with the token.
    entry: Option<String>,
    leads_group: bool,
    leader: u32,
    uid: u32,
    since: u64,
}

impl ProcessTree {
    /// Returns the tree of a child that was started with a token, or leads a process group, or both,
    /// and that has not been reaped.
    ///
    /// # Errors
    /// If `/proc` does not show the child.
    pub fn of(
        child: u32,
        token: Option<&Token>,
        leads_group: bool,
        uid: u32,
    ) -> io::Result<ProcessTree> {
        let stat = Stat::of(&mut [0; 1024], child).ok_or(io::ErrorKind::NotFound)?;
        let entry = token.map(|token| format!("{VARIABLE}={}", token.0));
        Ok(ProcessTree { entry, leads_group, leader: child, uid, since: stat.start })
    }

    /// Returns the number of its first process.
    #[must_use]
    pub fn leader(&self) -> u32 {
        self.leader
    }

    /// The process group is empty: another one may have its number from now on.
    pub fn forget_group(&mut self) {
        self.leads_group = false;
    }

    /// Whether processes that have left the group are found, too.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.entry.is_some()
    }
}

/// A tree to look for, and the signal that its processes get.
#[derive(Debug, Clone)]
pub struct Search {
    /// The tree.
    pub tree: ProcessTree,
    /// The signal; with `None` the processes are only counted.
    pub signal: Option<i32>,
    /// Whether those get no signal that belong to a tree of their own within this one.
    pub spares_nested: bool,
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// The number of processes of each tree.
    pub counts: Vec<usize>,
    /// The number of the last process that was checked, if there was no time for all.
    pub stopped_after: Option<u32>,
}

/// A process that searches: the kernel may wait for the processes whose environments it reads, and
/// cannot be interrupted meanwhile. It ends with the thread that has started it.
#[derive(Debug)]
pub struct Searcher(Aside);

impl Searcher {
    /// Starts the process.
    ///
    /// # Errors
    /// Those of `socketpair(2)` and `clone(2)`.
    pub fn start() -> io::Result<Searcher> {
        Ok(Searcher(Aside::start(c"troop-strays", Memory::new(), search::answer)?))
    }

    /// Counts the running processes of trees, and sends them a signal: those that are in the group
    /// or have the token, run as the tree's user, and were started after its first process, so that
    /// it is neither another one with its number nor one of another user who has copied the token.
    /// Those of other users are left alone, whatever they have inherited. Trees beyond the first
    /// [`MAX_TREES`] are not looked for. Those in the group are only counted: a
    /// [`HeldGroup`](crate::process_group::HeldGroup) signals them.
    ///
    /// Walks all processes with numbers above `after`, in their order, for `limit` at most; one is
    /// checked in any case. Blocks for `timeout` at most.
    ///
    /// # Errors
    /// `TimedOut` if there was no answer, after which it must be [left](Searcher::leave); `NotFound`
    /// if there is no `/proc`; others if the searching process has ended.
    pub fn search(
        &self,
        searches: &[Search],
        after: u32,
        limit: Duration,
        timeout: Duration,
    ) -> io::Result<Found> {
        let searches = &searches[..searches.len().min(MAX_TREES)];
        let mut answer = vec![0; search::ANSWER];
        let length = self.0.ask(&search::request(searches, after, limit), &mut answer, timeout)?;
        search::found(&answer[..length], searches.len()).ok_or(io::ErrorKind::NotFound.into())
    }

    /// Kills it. Returns what is left of it, if it does not end within this time.
    #[must_use]
    pub fn leave(self, timeout: Duration) -> Option<LeftBehind> {
        self.0.leave(timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;
    use crate::process;

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleep(change: impl FnOnce(&mut Command) -> &mut Command) -> Killed {
        let mut command = Command::new("sleep");
        command.arg("1000");
        change(&mut command);
        Killed(command.spawn().unwrap())
    }

    fn search_for(limit: Duration, searches: &[Search]) -> Found {
        let searcher = Searcher::start().unwrap();
        let found = searcher.search(searches, 0, limit, Duration::from_secs(90)).unwrap();
        assert!(searcher.leave(Duration::from_secs(60)).is_none());
        found
    }

    fn count(tree: &ProcessTree, signal: Option<i32>) -> usize {
        let search = Search { tree: tree.clone(), signal, spares_nested: false };
        search_one(search)
    }

    fn search_one(one: Search) -> usize {
        let found = search_for(Duration::from_secs(60), &[one]);
        assert_eq!(found.stopped_after, None);
        found.counts[0]
    }

    #[test]
    fn processes_are_found_by_token_user_and_start_time() {
        let (token, own) = (Token::random().unwrap(), rustix::process::getuid().as_raw());
        assert_ne!(token, Token::random().unwrap());
        // One that is older than the tree.
        let _older = sleep(|command| command.env(VARIABLE, token.as_str()));
        let ticks = || Stat::of(&mut [0; 1024], std::process::id()).unwrap().start;
        let first = sleep(|command| command.env(VARIABLE, token.as_str()).process_group(0));
        let mut tree = ProcessTree::of(first.0.id(), Some(&token), false, own).unwrap();
        assert!(tree.since >= ticks());
        // The clock may be coarser than the time between the two.
        tree.since += 1;
        assert_eq!(count(&tree, None), 0, "they are older");
        tree.since -= 1;
        let before = count(&tree, None);
        assert!((1..=2).contains(&before));
        let _foreign = sleep(|command| command.env(VARIABLE, "another"));
        let _longer = sleep(|command| command.env(VARIABLE, format!("{}0", token.as_str())));
        let _other = sleep(|command| command.env("X", format!("{VARIABLE}={}", token.as_str())));
        assert_eq!(count(&tree, None), before);
        let another = ProcessTree { uid: own + 1, ..tree.clone() };
        assert_eq!(count(&another, Some(9)), 0);
        if own == 0 {
            let copied = sleep(|command| command.env(VARIABLE, token.as_str()).uid(65_534));
            assert_eq!(count(&tree, None), before);
            drop(copied);
        }
        // Its own group is spared, and another one is not.
        let led = ProcessTree { leads_group: true, ..tree.clone() };
        let spared = Search { tree: led, signal: Some(9), spares_nested: true };
        let mut second = sleep(|command| command.env(VARIABLE, token.as_str()).process_group(0));
        assert_eq!(search_one(spared), before + 1);
        assert!(!second.0.wait().unwrap().success());
        assert!(!process::has_ended(process::pidfd(first.0.id()).unwrap().as_fd()));
        assert!(search_for(Duration::ZERO, &[]).stopped_after.is_some(), "the time is over");
    }

    #[test]
    fn processes_of_a_tree_within_a_tree_are_left_to_their_own_at_first() {
        let (token, own) = (Token::random().unwrap(), rustix::process::getuid().as_raw());
        let first = sleep(|command| command.env(VARIABLE, token.as_str()));
        let tree = ProcessTree::of(first.0.id(), Some(&token), false, own).unwrap();
        let before = count(&tree, None);
        let outer = outer_variable(Some(token.as_str().as_ref())).unwrap();
        assert_eq!(outer_variable(Some("/etc".as_ref())), None);
        let inner = Token::random().unwrap();
        let mut nested = sleep(|command| command.env(VARIABLE, inner.as_str()).env(&outer, ""));
        let _foreign = sleep(|command| command.env(format!("{OUTER}{}", inner.as_str()), ""));
        assert_eq!(count(&tree, None), before + 1);
        let search = |signal| Search { tree: tree.clone(), signal, spares_nested: true };
        assert_eq!(search_one(search(Some(15))), before + 1);
        assert!(!process::has_ended(process::pidfd(nested.0.id()).unwrap().as_fd()));
        assert!((1..=before + 1).contains(&count(&tree, Some(9))));
        assert_eq!(nested.0.wait().unwrap().signal(), Some(9));
    }

    /// Ends its first thread; another one goes on.
    const WITHOUT_FIRST_THREAD: &str = "
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
ctypes.CDLL(None).syscall(60, 0)";

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_process_whose_first_thread_has_ended_is_found() {
        use std::io::Read as _;

        let (token, own) = (Token::random().unwrap(), rustix::process::getuid().as_raw());
        let first = sleep(|command| command.env(VARIABLE, token.as_str()));
        let tree = ProcessTree::of(first.0.id(), Some(&token), false, own).unwrap();
        let mut python = Command::new("python3");
        python.args(["-c", WITHOUT_FIRST_THREAD]).env(VARIABLE, token.as_str());
        let mut started = Killed(python.stdout(std::process::Stdio::piped()).spawn().unwrap());
        started.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let before = count(&tree, None);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !Stat::of(&mut [0; 1024], started.0.id()).unwrap().is_dead() {
            assert!(Instant::now() < deadline, "its first thread ends");
            std::thread::yield_now();
        }
        assert_eq!(count(&tree, Some(9)), before);
        assert_eq!(started.0.wait().unwrap().signal(), Some(9));
    }

    /// As for a root without `CAP_SYS_PTRACE`, in containers.
    #[test]
    fn processes_of_another_user_are_found_without_the_capability_to_trace_them() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let token = Token::random().unwrap();
        let as_other = |command: &mut Command| {
            command.env(VARIABLE, token.as_str()).uid(65_534).gid(65_534);
        };
        let first = sleep(|command| {
            as_other(command);
            command
        });
        let tree = ProcessTree::of(first.0.id(), Some(&token), false, 65_534).unwrap();
        let search = Search { tree, signal: None, spares_nested: false };
        // Capabilities are those of a thread, and the search inherits them.
        let found = std::thread::spawn(move || {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(rustix::thread::CapabilitySet::SYS_PTRACE);
            sets.permitted.remove(rustix::thread::CapabilitySet::SYS_PTRACE);
            rustix::thread::set_capabilities(None, sets).unwrap();
            search_for(Duration::from_secs(60), &[search]).counts[0]
        });
        assert!(found.join().unwrap() >= 1);
    }

    #[test]
    fn a_token_is_found_wherever_it_is_in_an_environment() {
        let (token, own) = (Token::random().unwrap(), rustix::process::getuid().as_raw());
        let entry = format!("{VARIABLE}={}", token.as_str());
        let root = sleep(|command| command.env(VARIABLE, token.as_str()));
        let tree = ProcessTree::of(root.0.id(), Some(&token), false, own).unwrap();
        // Around the end of what is read at a time.
        let lengths = (0..=entry.len() + 2).map(|more| 64 * 1024 - 3 - more);
        let _all: Vec<Killed> = lengths
            .map(|length| {
                sleep(|command| {
                    let command = command.env_clear().env("PATH", "/usr/bin:/bin");
                    command.env("A", "x".repeat(length)).env(VARIABLE, token.as_str())
                })
            })
            .collect();
        assert_eq!(count(&tree, None), 1 + entry.len() + 3);
    }

    #[test]
    fn more_trees_than_one_search_takes_are_cut() {
        let own = rustix::process::getuid().as_raw();
        let leader = sleep(|command| command.process_group(0));
        let tree = ProcessTree::of(leader.0.id(), None, true, own).unwrap();
        let search = Search { tree, signal: None, spares_nested: false };
        let found = search_for(Duration::from_secs(60), &vec![search; MAX_TREES + 1]);
        assert_eq!((found.counts.len(), found.counts[0]), (MAX_TREES, 1));
    }

    #[test]
    fn processes_of_a_group_are_found_without_a_token() {
        let own = rustix::process::getuid().as_raw();
        let mut leader = sleep(|command| command.process_group(0));
        let tree = ProcessTree::of(leader.0.id(), None, true, own).unwrap();
        assert_eq!(count(&tree, None), 1);
        let group = i32::try_from(leader.0.id()).unwrap();
        let mut member = sleep(|command| command.process_group(group));
        let _other = sleep(|command| command.process_group(0));
        assert_eq!(count(&tree, None), 2);
        let another = ProcessTree { uid: own + 1, ..tree.clone() };
        assert_eq!(count(&another, Some(9)), 0);
        // A signal for them is sent to the whole group.
        assert_eq!(count(&tree, Some(9)), 2);
        for running in [&mut leader, &mut member] {
            assert!(running.0.try_wait().unwrap().is_none());
        }
        let mut tree = tree;
        tree.forget_group();
        assert_eq!(count(&tree, None), 0);
    }

    #[test]
    fn a_search_without_time_goes_on_where_it_stopped() {
        let (token, own) = (Token::random().unwrap(), rustix::process::getuid().as_raw());
        let all: Vec<_> =
            (0..3).map(|_| sleep(|command| command.env(VARIABLE, token.as_str()))).collect();
        let tree = ProcessTree::of(all[0].0.id(), Some(&token), false, own).unwrap();
        let searches = [Search { tree, signal: None, spares_nested: false }];
        let searcher = Searcher::start().unwrap();
        let (mut after, mut count) = (0, 0);
        loop {
            let timeout = Duration::from_secs(60);
            let found = searcher.search(&searches, after, Duration::ZERO, timeout).unwrap();
            count += found.counts[0];
            let Some(last) = found.stopped_after else { break };
            assert!(last > after, "it gets on");
            after = last;
        }
        assert_eq!(count, all.len());
        assert!(searcher.leave(Duration::from_secs(60)).is_none());
    }
}
