//! Processes by pidfd: signals that cannot hit another process, and exits.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// Another part of the program reaped it, so how it ended is unknown.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => f.write_str("nobody knows how"),
        }
    }
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

/// Reaps the child behind a pidfd if it has ended; returns `None` while it runs. Never blocks.
///
/// # Errors
/// Unexpected failures of `waitid(2)`. A child that was reaped elsewhere is [`Exit::Unknown`], not
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

/// Returns how the process behind a pidfd ended, without reaping it; `None` while it runs. Never
/// blocks. Only the parent learns how: a process that is not a child, or was reaped, is
/// [`Exit::Unknown`]. Do not call this for another's process that still runs.
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

/// Waits for the process behind a pidfd to end, and reaps it if it is a child.
///
/// # Errors
/// Those of [`try_reap`].
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
        Ok(status) => Ok(status.map_or(Exit::Unknown, |status| exit_of(&status))),
        Err(rustix::io::Errno::CHILD) => {
            use rustix::event::{PollFd, PollFlags, poll};
            while poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)
                == Err(rustix::io::Errno::INTR)
            {}
            Ok(Exit::Unknown)
        }
        Err(e) => Err(e.into()),
    }
}

/// Whether the process behind a pidfd is stopped, as far as `/proc` shows it.
#[must_use]
pub fn is_stopped(pidfd: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let info = info.unwrap_or_default();
    let Some(pid) = info.lines().find_map(|line| line.strip_prefix("Pid:")) else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // The name of the program, which may contain anything, ends at the last parenthesis.
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with(['T', 't']))
}

/// Sends a signal to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` if it was reaped, `EPERM`, or `EINVAL` for an invalid signal number.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let signal = to_signal(signal)?;
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

/// Sends a signal to every process of a process group. The caller must know that the group is still
/// the same: its leader has not been reaped, or only just was, or one of its members is held by
/// pidfd and has not ended.
///
/// # Errors
/// `ESRCH`, `EPERM`, or `EINVAL` for an invalid signal number.
pub fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    let signal = to_signal(signal)?;
    Ok(rustix::process::kill_process_group(to_pid(leader)?, signal)?)
}

/// Whether a process executes a shell at the moment, as `/proc` shows it.
#[must_use]
pub fn is_shell(pid: u32) -> bool {
    const SHELLS: [&str; 9] =
        ["sh", "dash", "bash", "ash", "busybox", "zsh", "ksh", "mksh", "fish"];
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // Its file may have been replaced.
    SHELLS.contains(&name.strip_suffix(" (deleted)").unwrap_or(name))
}

/// Whether the process behind a pidfd has ended, reaped or not.
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Whether the process behind a pidfd has ended and was reaped, so that nobody tells of it any more.
#[must_use]
pub fn is_reaped(pidfd: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd as _;
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: signal 0 is sent to nobody; there is no information with it.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, no_info, 0) };
    sent < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// Returns the process group of a process.
#[must_use]
pub fn group_of(pid: u32) -> Option<u32> {
    let group = rustix::process::getpgid(Some(to_pid(pid).ok()?)).ok()?;
    u32::try_from(group.as_raw_pid()).ok()
}

/// The largest number of processes that are held at a time. Each takes a descriptor, and workers
/// may start any number of them.
pub const MAX_HELD: usize = 16;

/// Returns the processes in a list of the kernel's that are still in it once they are held, at most
/// [`MAX_HELD`].
pub fn open_all(list: impl Fn() -> Vec<u32>) -> Vec<OwnedFd> {
    let held: Vec<_> =
        list().into_iter().filter_map(|pid| Some((pid, pidfd(pid).ok()?))).take(MAX_HELD).collect();
    let still = if held.is_empty() { Vec::new() } else { list() };
    held.into_iter().filter(|(pid, _)| still.contains(pid)).map(|(_, fd)| fd).collect()
}

/// Sends a signal to all processes in a list of the kernel's that are still in it once they are
/// held.
pub fn signal_all(list: impl Fn() -> Vec<u32>, number: i32) {
    for some in list().chunks(MAX_HELD) {
        for held in open_all(|| list().into_iter().filter(|pid| some.contains(pid)).collect()) {
            let _ = signal(held.as_fd(), number);
        }
    }
}

/// Returns the parent of a process.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    Seen::of(pid).map(|seen| seen.parent)
}

/// Whether a process descends from another one through processes that still run.
#[must_use]
pub fn descends(pid: u32, ancestor: u32) -> bool {
    let line = std::iter::successors(parent(pid), |above| parent(*above));
    line.take(MAX_ANCESTORS).take_while(|above| *above > 1).any(|above| above == ancestor)
}

/// Sends a signal to the descendants of a process, but not to itself. Walks all processes, for about
/// `limit` at most. Descendants whose parents have ended are not found.
pub fn signal_descendants(pid: u32, number: i32, limit: Duration) {
    let until = Instant::now() + limit;
    let mut children: HashMap<u32, Vec<Seen>> = HashMap::new();
    for seen in all().take_while(|_| Instant::now() < until) {
        children.entry(seen.parent).or_default().push(seen);
    }
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        // Each process is removed, so the loop ends whatever the numbers are.
        for child in children.remove(&parent).unwrap_or_default() {
            if Instant::now() >= until {
                return;
            }
            if let Some(held) = child.hold() {
                let _ = signal(held.as_fd(), number);
            }
            parents.push(child.pid);
        }
    }
}

/// The largest number of ancestors that are checked.
const MAX_ANCESTORS: usize = 100;

/// A process, as `/proc` shows it.
struct Seen {
    pid: u32,
    parent: u32,
    group: u32,
}

impl Seen {
    fn of(pid: u32) -> Option<Seen> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The process name may contain anything and ends at the last parenthesis.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        // A process whose first thread has ended is shown as a zombie, though others may run.
        let is_gone = fields.next()? == "X";
        let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (!is_gone).then_some(Seen { pid, parent, group })
    }

    /// Returns a pidfd, if the process is still the one that was listed.
    fn hold(&self) -> Option<OwnedFd> {
        let held = pidfd(self.pid).ok()?;
        // The process is held before it is checked again, so its number cannot be reused in
        // between.
        Seen::of(self.pid)
            .filter(|now| (now.parent, now.group) == (self.parent, self.group))
            .filter(|_| !has_ended(held.as_fd()))
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

/// Returns a pidfd of a running process.
///
/// # Errors
/// `ESRCH` if there is none.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(to_pid(pid)?, rustix::process::PidfdFlags::empty())?)
}

/// Returns the children of this process that are not reaped, as far as `/proc` shows them.
pub(crate) fn children() -> Vec<u32> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let mut children = Vec::new();
    for list in lists {
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}

/// Returns the children of this process that have ended and are not reaped, as far as `/proc` shows
/// them.
#[must_use]
pub fn ended_children() -> Vec<u32> {
    let has_ended = |pid: &u32| pidfd(*pid).is_ok_and(|held| has_ended(held.as_fd()));
    children().into_iter().filter(has_ended).collect()
}

/// Reaps a child that has ended. Others are left alone.
pub fn reap_child(pid: u32) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    if let Ok(pid) = to_pid(pid) {
        let _ = rustix::process::waitid(WaitId::Pid(pid), options);
    }
}

/// Reaps ended children that `is_ours` does not claim, where `/proc` is that of another PID
/// namespace. Returns the number of reaped children.
///
/// The kernel reports one ended child at a time, and the same one until it is reaped. So a claimed
/// child ends the round: the caller must reap it and call again.
pub fn reap_orphans(mut is_ours: impl FnMut(u32) -> bool) -> usize {
    let mut reaped = 0;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        // rustix does not return the pid of the ended child; the siginfo of libc contains it.
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

/// Returns the pid of an ended child that is not reaped.
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

/// Whether `/proc` shows the PID namespace of this process.
#[must_use]
pub fn sees_itself() -> bool {
    let own = std::fs::read_link("/proc/self").ok();
    own.is_some_and(|own| own.to_str() == Some(std::process::id().to_string().as_str()))
}

/// Sets the name of the calling process in `ps` and `top`, which show at most 15 bytes.
pub fn set_name(name: &str) {
    let name: Vec<u8> = name.bytes().filter(|b| *b != 0).take(15).collect();
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// Raises the soft limit on descriptors to the hard one; returns the old soft limit.
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

/// Sets the soft limit on descriptors, which may be lower than what is open. `None` is no limit.
pub fn lower_descriptor_limit(limit: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit, ..getrlimit(Resource::Nofile) });
}

/// Returns this process's soft limit on descriptors.
#[must_use]
pub fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(i32::MAX as usize)
}

/// Returns the lowest unused descriptor number, which the next descriptor gets. `any` is an open
/// descriptor.
///
/// # Errors
/// `EMFILE` if there is none.
pub fn lowest_free_descriptor(any: BorrowedFd<'_>) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    let copy: OwnedFd = rustix::io::fcntl_dupfd_cloexec(any, 0)?;
    Ok(copy.as_raw_fd())
}

/// Ends this process without running anything more of it.
pub fn exit_at_once() -> ! {
    // SAFETY: the call does not return, and needs nothing.
    unsafe { libc::_exit(0) }
}
