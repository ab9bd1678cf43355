//! The search itself. It allocates nothing after [`Memory::new`] (see [`aside`](crate::aside)).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::PidfdFlags;

use super::{Found, MAX_TREES, OUTER, ProcessTree, Search, VARIABLE};
use crate::aside::MAX_LENGTH;
use crate::proc_file::{Path, number, words};
use crate::process;

/// Maximum length of an environment that is read, in bytes. The kernel's maximum is 6 MiB, unless
/// stacks are not limited.
const MAX_ENVIRONMENT: usize = 8 * 1024 * 1024;
/// Bytes of an environment that are read at a time.
const CHUNK: usize = 64 * 1024;
/// Maximum length of an entry with a token.
const MAX_ENTRY: usize = 48;
/// Length of what comes before the trees of a request: the limit and where to begin; and before the
/// counts of an answer: how it ended and where.
const HEAD: usize = 8;
/// Length of a tree in a request.
const TREE: usize = MAX_ENTRY + 24;
/// Maximum length of an answer.
pub(super) const ANSWER: usize = HEAD + 4 * MAX_TREES;
const _: () = assert!(HEAD + TREE * MAX_TREES <= MAX_LENGTH && ANSWER <= MAX_LENGTH);

/// The first byte of answers.
const COMPLETE: u8 = 1;
const INCOMPLETE: u8 = 2;
const FAILED: u8 = 3;

/// The memory of searches.
pub(super) struct Memory {
    directory: Vec<MaybeUninit<u8>>,
    chunk: Vec<u8>,
    trees: Vec<Sought>,
    counts: Vec<u32>,
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            directory: vec![MaybeUninit::uninit(); 32 * 1024],
            chunk: vec![0; CHUNK],
            trees: Vec::with_capacity(MAX_TREES),
            counts: Vec::with_capacity(MAX_TREES),
        }
    }
}

/// One tree of a request.
#[derive(Clone, Copy)]
struct Sought {
    entry: [u8; MAX_ENTRY],
    /// 0 without a token.
    entry_length: u8,
    leads_group: bool,
    spares_nested: bool,
    signal: i32,
    leader: u32,
    uid: u32,
    since: u64,
}

impl Sought {
    fn new(search: &Search) -> Sought {
        let ProcessTree { entry, leads_group, leader, uid, since } = &search.tree;
        let mut bytes = [0; MAX_ENTRY];
        let text = entry.as_deref().unwrap_or_default().as_bytes();
        let length = text.len().min(MAX_ENTRY);
        bytes[..length].copy_from_slice(&text[..length]);
        Sought {
            entry: bytes,
            entry_length: u8::try_from(length).unwrap_or(0),
            leads_group: *leads_group,
            spares_nested: search.spares_nested,
            signal: search.signal.unwrap_or(0),
            leader: *leader,
            uid: *uid,
            since: *since,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.entry);
        let flags = [self.leads_group, self.spares_nested].map(u8::from);
        out.extend_from_slice(&[self.entry_length, flags[0], flags[1], 0]);
        out.extend_from_slice(&self.signal.to_ne_bytes());
        out.extend_from_slice(&self.leader.to_ne_bytes());
        out.extend_from_slice(&self.uid.to_ne_bytes());
        out.extend_from_slice(&self.since.to_ne_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Sought> {
        let (entry, rest) = bytes.split_first_chunk::<MAX_ENTRY>()?;
        let (flags, rest) = rest.split_first_chunk::<4>()?;
        let (signal, rest) = rest.split_first_chunk::<4>()?;
        let (leader, rest) = rest.split_first_chunk::<4>()?;
        let (uid, rest) = rest.split_first_chunk::<4>()?;
        let (since, _) = rest.split_first_chunk::<8>()?;
        Some(Sought {
            entry: *entry,
            entry_length: flags[0],
            leads_group: flags[1] != 0,
            spares_nested: flags[2] != 0,
            signal: i32::from_ne_bytes(*signal),
            leader: u32::from_ne_bytes(*leader),
            uid: u32::from_ne_bytes(*uid),
            since: u64::from_ne_bytes(*since),
        })
    }

    fn entry(&self) -> &[u8] {
        &self.entry[..usize::from(self.entry_length).min(MAX_ENTRY)]
    }

    /// Whether an entry of an environment has the tree's token; if so, whether its process belongs to
    /// a tree of its own within this one.
    fn matches(&self, entry: &[u8]) -> Option<bool> {
        let own = self.entry();
        let (name, token) = own.split_at_checked(VARIABLE.len() + 1)?;
        if entry == own {
            return Some(false);
        }
        let outer = entry.strip_prefix(OUTER.as_bytes())?.strip_suffix(b"=")?;
        (!name.is_empty() && outer == token).then_some(true)
    }

    /// Whether a process of this user and start can be one of the tree.
    fn may_have(&self, uid: u32, stat: &Stat) -> bool {
        self.uid == uid && self.since <= stat.start
    }
}

/// Writes a request.
pub(super) fn request(searches: &[Search], after: u32, limit: Duration) -> Vec<u8> {
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let mut request = [limit.to_ne_bytes(), after.to_ne_bytes()].concat();
    searches.iter().for_each(|search| Sought::new(search).write(&mut request));
    request
}

/// Reads an answer; `None` if there is no `/proc`.
pub(super) fn found(answer: &[u8], trees: usize) -> Option<Found> {
    let (state, rest) = answer.split_first_chunk::<4>()?;
    let (last, counts) = rest.split_first_chunk::<4>()?;
    let counts = counts.chunks_exact(4).take(trees);
    let counts = counts.map(|count| count.try_into().map_or(0, u32::from_ne_bytes) as usize);
    let stopped_after = (state[0] != COMPLETE).then(|| u32::from_ne_bytes(*last));
    (state[0] != FAILED).then(|| Found { counts: counts.collect(), stopped_after })
}

/// Searches in the other process.
pub(super) fn answer(memory: &mut Memory, request: &[u8], answer: &mut [u8]) -> usize {
    let Memory { directory, chunk, trees, counts } = memory;
    let (head, rest) = request.split_at(request.len().min(HEAD));
    let (limit, after) = head.split_at(head.len().min(4));
    let limit = limit.try_into().map_or(0, u32::from_ne_bytes);
    let after = after.try_into().map_or(0, u32::from_ne_bytes);
    trees.clear();
    trees.extend(rest.chunks_exact(TREE).filter_map(Sought::read).take(MAX_TREES));
    counts.clear();
    counts.extend(trees.iter().map(|_| 0));
    let until = Instant::now() + Duration::from_millis(u64::from(limit));
    let (state, last) = match search(directory, chunk, trees, counts, after, until) {
        None => (FAILED, 0),
        Some(Some(last)) => (INCOMPLETE, last),
        Some(None) => (COMPLETE, 0),
    };
    answer[..HEAD].fill(0);
    answer[0] = state;
    answer[4..HEAD].copy_from_slice(&last.to_ne_bytes());
    for (place, count) in answer[HEAD..].chunks_exact_mut(4).zip(&*counts) {
        place.copy_from_slice(&count.to_ne_bytes());
    }
    HEAD + 4 * counts.len()
}

/// Walks the processes with numbers above `after`, which the kernel lists in their order. Returns the
/// last one that was checked if there was no time for all; `None` if there is no `/proc`.
fn search(
    directory: &mut [MaybeUninit<u8>],
    chunk: &mut [u8],
    trees: &[Sought],
    counts: &mut [u32],
    after: u32,
    until: Instant,
) -> Option<Option<u32>> {
    let all = Path::new(format_args!("/proc")).open(OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    let own = std::process::id();
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let first = trees.iter().map(|tree| tree.since).min().unwrap_or(u64::MAX);
    let mut names = RawDir::new(all, directory);
    let mut last = after;
    while let Some(entry) = names.next() {
        let Ok(entry) = entry else { return Some(Some(last)) };
        let Some(pid) = number::<u32>(entry.file_name().to_bytes()) else { continue };
        if pid <= after {
            continue;
        }
        // One process is checked at least, so that searches which are continued get on.
        if last != after && Instant::now() > until {
            return Some(Some(last));
        }
        last = pid;
        let is_other = pid != own && i32::try_from(pid) != Ok(parent);
        let stat = Stat::of(chunk, pid).filter(|stat| stat.start >= first);
        if is_other && stat.is_some() {
            check(chunk, pid, trees, counts);
        }
    }
    Some(None)
}

/// Checks one process, which may end meanwhile.
fn check(chunk: &mut [u8], pid: u32, trees: &[Sought], counts: &mut [u32]) -> Option<()> {
    let number = rustix::process::Pid::from_raw(pid.try_into().ok()?)?;
    let held = rustix::process::pidfd_open(number, PidfdFlags::empty()).ok()?;
    let stat = Stat::of(chunk, pid)?;
    // Its first thread may have ended before the others.
    if stat.is_dead && process::has_ended(held.as_fd()) {
        return None;
    }
    let ids = Ids::of(chunk, pid)?;
    let uid = ids.uid;
    let is_member =
        |tree: &Sought| tree.may_have(uid, &stat) && tree.leads_group && stat.group == tree.leader;
    let (at, is_nested) = match trees.iter().position(is_member) {
        Some(at) => (at, false),
        None => {
            let may_have = |tree: &Sought| tree.entry_length > 0 && tree.may_have(uid, &stat);
            if !trees.iter().any(may_have) {
                return None;
            }
            find_entry(chunk, pid, &stat, ids, |entry| {
                let trees = trees.iter().enumerate().filter(|(_, tree)| may_have(tree));
                let mut matches = trees.filter_map(|(at, tree)| Some((at, tree.matches(entry)?)));
                matches.next()
            })?
        }
    };
    // It has had its number since it was held, so everything was read of this process.
    if process::has_ended(held.as_fd()) {
        return None;
    }
    counts[at] += 1;
    let tree = &trees[at];
    if tree.signal == 0 {
        return Some(());
    }
    let is_member = tree.leads_group && stat.group == tree.leader;
    let is_spared = is_member || (tree.spares_nested && is_nested);
    let _ = (!is_spared).then(|| process::signal(held.as_fd(), tree.signal));
    Some(())
}

/// Returns the first result for an entry of a process's environment. Longer entries than those with
/// a token are left out.
fn find_entry<T>(
    chunk: &mut [u8],
    pid: u32,
    stat: &Stat,
    ids: Ids,
    mut find: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let file = open_environment(pid, stat, ids)?;
    let mut entry = [0; MAX_ENTRY];
    let (mut length, mut total) = (0, 0);
    while total < MAX_ENVIRONMENT {
        let read = rustix::io::read(&file, &mut *chunk).ok()?;
        total += read;
        if read == 0 {
            break;
        }
        for byte in &chunk[..read] {
            if *byte != 0 {
                if let Some(place) = entry.get_mut(length) {
                    *place = *byte;
                }
                length += 1;
                continue;
            }
            if let Some(found) = entry.get(..length).and_then(&mut find) {
                return Some(found);
            }
            length = 0;
        }
    }
    // The last one, if nothing ends it.
    entry.get(..length).and_then(&mut find)
}

/// Opens the environment of a process. The kernel shows it to those who may trace the process: also,
/// without the capability for that, to its own user.
fn open_environment(pid: u32, stat: &Stat, ids: Ids) -> Option<OwnedFd> {
    // A thread that has ended has no environment any more.
    let thread = if stat.is_dead { other_thread(pid)? } else { pid };
    let path = Path::new(format_args!("/proc/{pid}/task/{thread}/environ"));
    match path.open(OFlags::RDONLY) {
        Err(Errno::ACCESS | Errno::PERM) => ids.assumed(|| path.open(OFlags::RDONLY).ok()),
        file => file.ok(),
    }
}

/// Returns a thread of a process but the first one.
fn other_thread(pid: u32) -> Option<u32> {
    let path = Path::new(format_args!("/proc/{pid}/task"));
    let all = path.open(OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    let mut names = [MaybeUninit::uninit(); 1024];
    let mut names = RawDir::new(all, &mut names);
    while let Some(Ok(entry)) = names.next() {
        let thread = number::<u32>(entry.file_name().to_bytes());
        if let Some(thread) = thread.filter(|thread| *thread != pid) {
            return Some(thread);
        }
    }
    None
}

/// The user and group that a process runs as.
#[derive(Clone, Copy)]
struct Ids {
    uid: u32,
    gid: u32,
}

impl Ids {
    /// `None` if its real and its effective user differ.
    fn of(chunk: &mut [u8], pid: u32) -> Option<Ids> {
        let status = Path::new(format_args!("/proc/{pid}/status")).read(chunk).ok()?;
        let line = |name: &[u8]| {
            let mut lines = status.split(|byte| *byte == b'\n');
            lines.find_map(|line| line.strip_prefix(name)).map(words)
        };
        let mut users = line(b"Uid:")?;
        let (real, effective) = (number::<u32>(users.next()?)?, number(users.next()?)?);
        let gid = number(line(b"Gid:")?.nth(1)?)?;
        (real == effective).then_some(Ids { uid: real, gid })
    }

    /// Does something with the rights of this user to files (`setfsuid(2)`), which are this thread's
    /// own.
    fn assumed<T>(self, what: impl FnOnce() -> T) -> T {
        let own = Ids {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        // The user last, as it may have no right to change the group.
        set_fs_group(self.gid);
        set_fs_user(self.uid);
        let result = what();
        set_fs_user(own.uid);
        set_fs_group(own.gid);
        result
    }
}

/// Fails without a consequence where this process may not.
fn set_fs_user(uid: u32) {
    // SAFETY: changes an attribute of this thread, which decides about access to files.
    unsafe { libc::setfsuid(uid) };
}

/// As [`set_fs_user`].
fn set_fs_group(gid: u32) {
    // SAFETY: as in `set_fs_user`.
    unsafe { libc::setfsgid(gid) };
}

/// What `proc_pid_stat(5)` says of a process.
pub(super) struct Stat {
    /// Whether its first thread has ended; others may run.
    is_dead: bool,
    group: u32,
    /// In clock ticks since the system has started.
    pub(super) start: u64,
}

impl Stat {
    #[cfg(test)]
    pub(super) fn is_dead(&self) -> bool {
        self.is_dead
    }

    pub(super) fn of(buffer: &mut [u8], pid: u32) -> Option<Stat> {
        let stat = Path::new(format_args!("/proc/{pid}/stat")).read(buffer).ok()?;
        // The process name may contain anything and ends at the last parenthesis.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let field = |at: usize| words(&stat[end + 1..]).nth(at);
        Some(Stat {
            is_dead: matches!(field(0)?, b"Z" | b"X"),
            group: number(field(2)?)?,
            start: number(field(19)?)?,
        })
    }
}
