//! Processes that descend from another one: found by its process group, or wherever they are now by
//! a token in their environment (`proc_pid_environ(5)`).

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::process;

/// The variable with the token.
pub const VARIABLE: &str = "TROOP_TREE";

/// Maximum length of an environment that is read, in bytes. The kernel's maximum is 6 MiB, unless
/// stacks are not limited.
const MAX_ENVIRONMENT: u64 = 8 * 1024 * 1024;

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

/// A process, and all that it has started and that is in its process group or has its token.
#[derive(Debug, Clone)]
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
        let stat = Stat::of(child).ok_or(io::ErrorKind::NotFound)?;
        let entry = token.map(|token| format!("{VARIABLE}={}", token.0));
        Ok(ProcessTree { entry, leads_group, leader: child, uid, since: stat.start })
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
    /// Whether those in the process group of the tree's first process get no signal.
    pub spares_group: bool,
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// The number of processes of each tree.
    pub counts: Vec<usize>,
    /// Whether all processes were checked in time.
    pub is_complete: bool,
}

/// Counts the running processes of trees, and sends them a signal: those that are in the group or
/// have the token, run as the tree's user, and were started after its first process, so that it is neither another one
/// with its number nor one of another user who has copied the token. Those of other users are left
/// alone, whatever they have inherited.
///
/// Walks all processes, and reads the environments of some, which their user can delay for ever:
/// call it in a thread of its own. After `limit` it returns what it has found so far.
///
/// # Errors
/// If there is no `/proc`.
pub fn search(searches: &[Search], limit: Duration) -> io::Result<Found> {
    let until = Instant::now() + limit;
    let mut found = Found { counts: vec![0; searches.len()], is_complete: true };
    let first = searches.iter().map(|search| search.tree.since).min().unwrap_or(u64::MAX);
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if Instant::now() > until {
            found.is_complete = false;
            break;
        }
        let is_candidate = Stat::of(pid).is_some_and(|stat| !stat.is_dead && stat.start >= first);
        if is_candidate && pid != std::process::id() {
            check(pid, searches, &mut found.counts);
        }
    }
    Ok(found)
}

/// Checks one process, which may end meanwhile.
fn check(pid: u32, searches: &[Search], counts: &mut [usize]) -> Option<()> {
    let held = process::pidfd(pid).ok()?;
    let stat = Stat::of(pid)?;
    let uid = uid(pid)?;
    let is_possible = |tree: &ProcessTree| tree.uid == uid && tree.since <= stat.start;
    if !searches.iter().any(|search| is_possible(&search.tree)) {
        return None;
    }
    let is_member = |search: &Search| {
        let tree = &search.tree;
        is_possible(tree) && tree.leads_group && stat.group == tree.leader
    };
    let at = match searches.iter().position(is_member) {
        Some(at) => at,
        None if searches.iter().any(|search| search.tree.has_token()) => {
            let mut environment = Vec::new();
            let file = File::open(format!("/proc/{pid}/environ")).ok()?;
            file.take(MAX_ENVIRONMENT).read_to_end(&mut environment).ok()?;
            searches.iter().position(|search| {
                let mut entries = environment.split(|byte| *byte == 0);
                let own = search.tree.entry.as_deref().map(str::as_bytes);
                is_possible(&search.tree)
                    && own.is_some()
                    && entries.any(|entry| Some(entry) == own)
            })?
        }
        None => return None,
    };
    // It has had its number since it was held, so everything was read of this process.
    if process::has_ended(held.as_fd()) {
        return None;
    }
    counts[at] += 1;
    let search = &searches[at];
    if let Some(signal) = search.signal
        && !(search.spares_group && stat.group == search.tree.leader)
    {
        let _ = process::signal(held.as_fd(), signal);
    }
    Some(())
}

/// Returns the user that a process runs as; `None` if its real and its effective one differ.
fn uid(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut ids = line.split_whitespace().map(str::parse::<u32>);
    let (real, effective) = (ids.next()?.ok()?, ids.next()?.ok()?);
    (real == effective).then_some(real)
}

/// What `proc_pid_stat(5)` says of a process.
struct Stat {
    is_dead: bool,
    group: u32,
    /// In clock ticks since the system has started.
    start: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Stat> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The process name may contain anything and ends at the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Stat {
            is_dead: matches!(fields.first(), Some(&("Z" | "X"))),
            group: number(2)?.try_into().ok()?,
            start: number(19)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    use super::*;

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

    fn count(tree: &ProcessTree, signal: Option<i32>) -> usize {
        let search = Search { tree: tree.clone(), signal, spares_group: false };
        search_one(search)
    }

    fn search_one(one: Search) -> usize {
        let found = search(&[one], Duration::from_secs(60)).unwrap();
        assert!(found.is_complete);
        found.counts[0]
    }

    #[test]
    fn processes_are_found_by_token_user_and_start_time() {
        let (token, own) = (Token::random().unwrap(), rustix::process::getuid().as_raw());
        assert_ne!(token, Token::random().unwrap());
        // One that is older than the tree.
        let _older = sleep(|command| command.env(VARIABLE, token.as_str()));
        let ticks = || Stat::of(std::process::id()).unwrap().start;
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
        assert_eq!(count(&tree, None), before);
        let another = ProcessTree { uid: own + 1, ..tree.clone() };
        assert_eq!(count(&another, Some(9)), 0);
        if own == 0 {
            let copied = sleep(|command| command.env(VARIABLE, token.as_str()).uid(65_534));
            assert_eq!(count(&tree, None), before);
            drop(copied);
        }
        // Its own group is spared, and another one is not.
        let spared = Search { tree: tree.clone(), signal: Some(9), spares_group: true };
        let mut second = sleep(|command| command.env(VARIABLE, token.as_str()).process_group(0));
        assert_eq!(search_one(spared), before + 1);
        assert!(!second.0.wait().unwrap().success());
        assert!(!process::has_ended(process::pidfd(first.0.id()).unwrap().as_fd()));
        assert!(!search(&[], Duration::ZERO).unwrap().is_complete, "the time is over");
    }

    #[test]
    fn processes_of_a_group_are_found_without_a_token() {
        let own = rustix::process::getuid().as_raw();
        let leader = sleep(|command| command.process_group(0));
        let tree = ProcessTree::of(leader.0.id(), None, true, own).unwrap();
        assert_eq!(count(&tree, None), 1);
        let group = i32::try_from(leader.0.id()).unwrap();
        let mut member = sleep(|command| command.process_group(group));
        let _other = sleep(|command| command.process_group(0));
        assert_eq!(count(&tree, None), 2);
        let another = ProcessTree { uid: own + 1, ..tree.clone() };
        assert_eq!(count(&another, Some(9)), 0);
        assert_eq!(count(&tree, Some(9)), 2);
        assert!(!member.0.wait().unwrap().success());
    }
}
