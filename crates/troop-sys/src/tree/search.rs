//! The search itself. It allocates nothing after [`Memory::new`] (see [`aside`](crate::aside)).

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, RawDir};
use rustix::process::PidfdFlags;

use super::{Found, MAX_TREES, ProcessTree, Search};
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
    /// Whether its group was sent the signal in this search.
    is_group_signalled: bool,
    entry: [u8; MAX_ENTRY],
    /// 0 without a token.
    entry_length: u8,
    leads_group: bool,
    spares_group: bool,
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
            is_group_signalled: false,
            entry: bytes,
            entry_length: u8::try_from(length).unwrap_or(0),
            leads_group: *leads_group,
            spares_group: search.spares_group,
            signal: search.signal.unwrap_or(0),
            leader: *leader,
            uid: *uid,
            since: *since,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.entry);
        let flags = [self.leads_group, self.spares_group].map(u8::from);
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
            is_group_signalled: false,
            entry: *entry,
            entry_length: flags[0],
            leads_group: flags[1] != 0,
            spares_group: flags[2] != 0,
            signal: i32::from_ne_bytes(*signal),
            leader: u32::from_ne_bytes(*leader),
            uid: u32::from_ne_bytes(*uid),
            since: u64::from_ne_bytes(*since),
        })
    }

    fn entry(&self) -> &[u8] {
        &self.entry[..usize::from(self.entry_length).min(MAX_ENTRY)]
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
    trees: &mut [Sought],
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
        let stat = Stat::of(chunk, pid).filter(|stat| !stat.is_dead && stat.start >= first);
        if is_other && stat.is_some() {
            check(chunk, pid, trees, counts);
        }
    }
    Some(None)
}

/// Checks one process, which may end meanwhile.
fn check(chunk: &mut [u8], pid: u32, trees: &mut [Sought], counts: &mut [u32]) -> Option<()> {
    let number = rustix::process::Pid::from_raw(pid.try_into().ok()?)?;
    let held = rustix::process::pidfd_open(number, PidfdFlags::empty()).ok()?;
    let stat = Stat::of(chunk, pid)?;
    let uid = uid(chunk, pid)?;
    let is_member =
        |tree: &Sought| tree.may_have(uid, &stat) && tree.leads_group && stat.group == tree.leader;
    let at = match trees.iter().position(is_member) {
        Some(at) => at,
        None => {
            let may_have = |tree: &Sought| tree.entry_length > 0 && tree.may_have(uid, &stat);
            if !trees.iter().any(may_have) {
                return None;
            }
            find_entry(chunk, pid, |entry| {
                trees.iter().position(|tree| may_have(tree) && tree.entry() == entry)
            })?
        }
    };
    // It has had its number since it was held, so everything was read of this process.
    if process::has_ended(held.as_fd()) {
        return None;
    }
    counts[at] += 1;
    let tree = &mut trees[at];
    if tree.signal == 0 {
        return Some(());
    }
    if !tree.leads_group || stat.group != tree.leader {
        let is_spared = tree.spares_group && stat.group == tree.leader;
        let _ = (!is_spared).then(|| process::signal(held.as_fd(), tree.signal));
    } else if !tree.spares_group && !tree.is_group_signalled {
        // All of the group at once, as the others may be many. This one is in it and has not ended,
        // so the group's number was not reused.
        tree.is_group_signalled = process::signal_group(tree.leader, tree.signal).is_ok();
    }
    Some(())
}

/// Returns the first result for an entry of a process's environment. Longer entries than those with
/// a token are left out.
fn find_entry<T>(
    chunk: &mut [u8],
    pid: u32,
    mut find: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let file = Path::new(format_args!("/proc/{pid}/environ")).open(OFlags::RDONLY).ok()?;
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

/// Returns the user that a process runs as; `None` if its real and its effective one differ.
fn uid(chunk: &mut [u8], pid: u32) -> Option<u32> {
    let status = Path::new(format_args!("/proc/{pid}/status")).read(chunk).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut ids = words(line);
    let (real, effective) = (number::<u32>(ids.next()?)?, number(ids.next()?)?);
    (real == effective).then_some(real)
}

/// What `proc_pid_stat(5)` says of a process.
pub(super) struct Stat {
    is_dead: bool,
    group: u32,
    /// In clock ticks since the system has started.
    pub(super) start: u64,
}

impl Stat {
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
