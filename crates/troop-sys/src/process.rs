//! Processes by pidfd: signals that cannot hit a stranger, and exits.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Somebody else reaped it.
    Unknown,
}

fn exit_of(status: &WaitIdStatus) -> Exit {
    if let Some(code) = status.exit_status() {
        Exit::Code(code)
    } else if let Some(signal) = status.terminating_signal() {
        Exit::Signal(signal)
    } else {
        Exit::Unknown
    }
}

/// Reaps the child behind a pidfd if it has ended; `None` while it runs. Never blocks.
///
/// # Errors
/// Unexpected failures of `waitid(2)`. A child that somebody else reaped is [`Exit::Unknown`], not
/// an error.
pub fn try_reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    match rustix::process::waitid(
        WaitId::PidFd(pidfd),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(status) => Ok(status.map(|status| exit_of(&status))),
        Err(rustix::io::Errno::CHILD) => Ok(Some(Exit::Unknown)),
        Err(e) => Err(e.into()),
    }
}

/// How the process behind a pidfd has ended, without reaping it; `None` while it runs. Never
/// blocks. Only a parent learns how: for a process that is no child, or that has been reaped, it is
/// [`Exit::Unknown`]. Do not call this for a stranger that still runs.
///
/// # Errors
/// Unexpected failures of `waitid(2)`.
pub fn try_peek(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    match rustix::process::waitid(
        WaitId::PidFd(pidfd),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
    ) {
        Ok(status) => Ok(status.map(|status| exit_of(&status))),
        Err(rustix::io::Errno::CHILD) => Ok(Some(Exit::Unknown)),
        Err(e) => Err(e.into()),
    }
}

/// Waits for the child behind a pidfd to end, and reaps it.
///
/// # Errors
/// As [`try_reap`].
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
        Ok(status) => Ok(status.map_or(Exit::Unknown, |status| exit_of(&status))),
        Err(rustix::io::Errno::CHILD) => Ok(Exit::Unknown),
        Err(e) => Err(e.into()),
    }
}

/// Sends a signal to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` if it has been reaped, `EPERM`, or `EINVAL` for a number that is no signal.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let signal = to_signal(signal)?;
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

/// Sends a signal to every process of a process group. Only use a group that is known to be the
/// same still: because its leader has not been reaped, or was this moment, or because one of its
/// members is held and has not ended.
///
/// # Errors
/// `ESRCH`, `EPERM`, or `EINVAL` for a number that is no signal.
pub fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    let signal = to_signal(signal)?;
    Ok(rustix::process::kill_process_group(to_pid(leader)?, signal)?)
}

/// Whether the process behind a pidfd has ended, reaped or not.
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// The process group of a process.
#[must_use]
pub fn group_of(pid: u32) -> Option<u32> {
    let group = rustix::process::getpgid(Some(to_pid(pid).ok()?)).ok()?;
    u32::try_from(group.as_raw_pid()).ok()
}

/// The most processes that are held at a time: each takes a descriptor, and strangers may start as
/// many as they like.
pub const MAX_HELD: usize = 16;

/// The processes of a group that can be seen and have not ended, [`MAX_HELD`] at most. Looks at all
/// processes.
#[must_use]
pub fn group_members(group: u32) -> Vec<OwnedFd> {
    all().filter(|seen| seen.group == group).filter_map(|seen| seen.hold()).take(MAX_HELD).collect()
}

/// The processes that a list of the kernel's names, if it still does when they are held;
/// [`MAX_HELD`] at most.
pub fn open_all(list: impl Fn() -> Vec<u32>) -> Vec<OwnedFd> {
    let held: Vec<_> =
        list().into_iter().filter_map(|pid| Some((pid, pidfd(pid).ok()?))).take(MAX_HELD).collect();
    let still = if held.is_empty() { Vec::new() } else { list() };
    held.into_iter().filter(|(pid, _)| still.contains(pid)).map(|(_, fd)| fd).collect()
}

/// Sends a signal to all processes that a list of the kernel's names, if it still does when they
/// are held.
pub fn signal_all(list: impl Fn() -> Vec<u32>, number: i32) {
    use std::os::fd::AsFd;
    for some in list().chunks(MAX_HELD) {
        for held in open_all(|| list().into_iter().filter(|pid| some.contains(pid)).collect()) {
            let _ = signal(held.as_fd(), number);
        }
    }
}

/// The process that has started another one, or has taken it over.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    Seen::of(pid).map(|seen| seen.parent)
}

/// Whether a process descends from another one, as long as those in between live.
#[must_use]
pub fn descends(pid: u32, ancestor: u32) -> bool {
    let line = std::iter::successors(parent(pid), |above| parent(*above));
    line.take(MOST_ANCESTORS).take_while(|above| *above > 1).any(|above| above == ancestor)
}

/// Sends a signal to the processes that descend from a process, but not to itself, one after
/// another. Looks at all processes. Those whose parents have ended are not found.
pub fn signal_descendants(pid: u32, number: i32) {
    use std::os::fd::AsFd;
    let mut children: HashMap<u32, Vec<Seen>> = HashMap::new();
    for seen in all() {
        children.entry(seen.parent).or_default().push(seen);
    }
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        // Each is removed, so that this comes to an end whatever the numbers are.
        for child in children.remove(&parent).unwrap_or_default() {
            if let Some(held) = child.hold() {
                let _ = signal(held.as_fd(), number);
            }
            parents.push(child.pid);
        }
    }
}

/// How far up it is looked.
const MOST_ANCESTORS: usize = 100;

/// A process as `/proc` shows it.
struct Seen {
    pid: u32,
    parent: u32,
    group: u32,
}

impl Seen {
    fn of(pid: u32) -> Option<Seen> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Its name, which may contain anything, ends at the last parenthesis.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_dead = matches!(fields.next()?, "Z" | "X");
        let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (!is_dead).then_some(Seen { pid, parent, group })
    }

    /// A pidfd, if the process is the one that was seen.
    fn hold(&self) -> Option<OwnedFd> {
        let held = pidfd(self.pid).ok()?;
        // Held first, looked at again then: its number cannot have become another's in between.
        Seen::of(self.pid)
            .filter(|now| (now.parent, now.group) == (self.parent, self.group))
            .map(|_| held)
    }
}

fn all() -> impl Iterator<Item = Seen> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Seen::of(entry.file_name().to_str()?.parse().ok()?))
}

fn to_signal(signal: i32) -> io::Result<Signal> {
    Signal::from_named_raw(signal).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

fn to_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// A pidfd of a running process.
///
/// # Errors
/// `ESRCH` if there is none.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(to_pid(pid)?, rustix::process::PidfdFlags::empty())?)
}

/// Reaps ended children that `is_ours` does not claim: what a process with the duties of PID 1 does
/// for adopted orphans. Returns how many there were.
///
/// The kernel reports one ended child at a time, and the same one until it is reaped; a claimed one
/// therefore ends the round, and the caller has to reap it and call again.
pub fn reap_orphans(mut is_ours: impl FnMut(u32) -> bool) -> usize {
    let mut reaped = 0;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        // rustix does not tell the pid of the ended child, libc's siginfo does.
        let Some(pid) = ended_child() else { return reaped };
        if is_ours(pid) {
            return reaped;
        }
        let Ok(target) = to_pid(pid) else { return reaped };
        match rustix::process::waitid(WaitId::Pid(target), options) {
            Ok(Some(_)) => reaped += 1,
            _ => return reaped,
        }
    }
}

/// The pid of some ended, unreaped child.
fn ended_child() -> Option<u32> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C struct.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid siginfo_t to write to; WNOWAIT leaves the child as it is.
    let result = unsafe {
        libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    };
    if result != 0 {
        return None;
    }
    // SAFETY: waitid filled the SIGCHLD part of the union, or left it zero when no child has ended.
    let pid = unsafe { info.si_pid() };
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// Gives the calling process a name in `ps` and `top` (at most 15 bytes are shown).
pub fn set_name(name: &str) {
    let name: Vec<u8> = name.bytes().filter(|b| *b != 0).take(15).collect();
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// Raises the soft limit on descriptors to the hard one and returns the soft limit as it was.
#[must_use]
pub fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit { current: before.maximum, maximum: before.maximum },
        );
    }
    before.current
}

/// The soft limit on descriptors of this process.
#[must_use]
pub fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(i32::MAX as usize)
}

/// The lowest number that no descriptor of this process has, which the next one gets. `any` is one
/// that is open.
///
/// # Errors
/// `EMFILE` if there is none.
pub fn lowest_free_descriptor(any: BorrowedFd<'_>) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    let copy: OwnedFd = rustix::io::fcntl_dupfd_cloexec(any, 0)?;
    Ok(copy.as_raw_fd())
}
