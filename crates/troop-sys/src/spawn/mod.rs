//! Starts a process without `fork`.
//!
//! `fork` copies page tables, which takes long in a large parent, and `posix_spawn` cannot change
//! the user, the groups or the limits. So [`spawn`] does what glibc's `posix_spawn` does inside:
//! `clone(CLONE_VM | CLONE_VFORK)` makes a child that borrows the parent's memory until it executes
//! the program, while the calling thread waits. The child applies its settings by system calls
//! only. On failure it writes the step and its errno to the shared memory, so that the caller gets
//! the cause at once.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use libc::{c_char, c_int, c_void};

mod child;
mod guard;
mod privileges;

use child::{Plan, child};

use crate::sandbox::Sandbox;

/// A process to start.
#[derive(Debug)]
pub struct Command<'a> {
    /// Paths of the program to try, in order, as `execvp(3)` does with `PATH`.
    pub candidates: Vec<CString>,
    /// Arguments, beginning with the program's name.
    pub argv: Vec<CString>,
    /// The whole environment, as `NAME=value`.
    pub env: Vec<CString>,
    /// Name of a variable that is set to the new process's id, such as `LISTEN_PID`.
    pub pid_variable: Option<&'a CStr>,
    /// Signal that the process gets when the thread that started it ends (`PR_SET_PDEATHSIG`); 0
    /// for none.
    pub death_signal: i32,
    /// Working directory; the parent's if absent.
    pub cwd: Option<CString>,
    /// The child's descriptors, by number. It inherits no others.
    pub fds: Vec<(c_int, BorrowedFd<'a>)>,
    /// User to become.
    pub uid: Option<u32>,
    /// Group to become.
    pub gid: Option<u32>,
    /// Supplementary groups. When absent and `uid` or `gid` is given, a privileged parent's groups
    /// are dropped, as libuv does.
    pub groups: Option<Vec<u32>>,
    /// Whether it gets its own process group, so that a terminal's Ctrl-C does not reach it.
    pub own_group: bool,
    /// Whether it gets its own session (`setsid(2)`), without a controlling terminal, and with that
    /// its own process group.
    pub own_session: bool,
    /// Whether to set `PR_SET_NO_NEW_PRIVS`, so that no executed program gains privileges, and to
    /// empty the capability bounding set, if this process may.
    pub no_new_privileges: bool,
    /// Restrictions of file access and system calls. Requires `no_new_privileges`.
    pub sandbox: Sandbox,
    /// Soft limit on open descriptors; the parent's if absent.
    pub descriptor_limit: Option<u64>,
    /// Resource limits: the `RLIMIT_…` number, the soft and the hard limit; [`NO_LIMIT`] for none.
    pub limits: Vec<(LimitNumber, u64, u64)>,
    /// File mode creation mask (`umask(2)`); the parent's if absent.
    pub umask: Option<u32>,
    /// Nice value, from -20 to 19; the parent's if absent.
    pub nice: Option<i32>,
    /// CPUs to run on; the parent's if empty.
    pub cpus: Vec<usize>,
    /// `cgroup.procs` of the control group to enter, open for writing.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it becomes a child of this process's parent (`CLONE_PARENT`), which then reaps it, and
    /// at whose end it gets its `death_signal`.
    pub is_sibling: bool,
}

pub use libc::{
    RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_MEMLOCK, RLIMIT_NOFILE,
    RLIMIT_NPROC, RLIMIT_STACK,
};

/// The type of `RLIMIT_…` numbers, in which the C libraries differ.
#[cfg(target_env = "musl")]
pub type LimitNumber = libc::c_int;
/// The type of `RLIMIT_…` numbers, in which the C libraries differ.
#[cfg(not(target_env = "musl"))]
pub type LimitNumber = libc::__rlimit_resource_t;

/// The value for no limit (`RLIM_INFINITY`).
pub const NO_LIMIT: u64 = libc::RLIM_INFINITY;

/// CPU numbers must be below this (`CPU_SETSIZE`).
pub const MAX_CPUS: usize = libc::CPU_SETSIZE as usize;

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Process id.
    pub pid: u32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
}

/// The step of a spawn that failed, in the order of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// Creating the process (`clone(2)`).
    Clone = 1,
    /// Entering the control group.
    Cgroup,
    /// Creating the process group.
    Group,
    /// Creating the session.
    Session,
    /// Placing the descriptors.
    Descriptors,
    /// Changing to the working directory.
    Directory,
    /// Setting a resource limit.
    Limits,
    /// Setting the nice value.
    Nice,
    /// Setting the CPUs.
    Cpus,
    /// Setting the supplementary groups.
    Groups,
    /// Setting the group.
    Gid,
    /// Setting the user.
    Uid,
    /// Dropping capabilities.
    Capabilities,
    /// Setting `PR_SET_NO_NEW_PRIVS`.
    Privileges,
    /// Restricting file access.
    Files,
    /// Filtering system calls.
    SystemCalls,
    /// Executing the program.
    Exec,
}

/// Why a process could not be started.
#[derive(Debug)]
pub struct SpawnError {
    /// The step that failed.
    pub step: Step,
    /// The error of the system call.
    pub source: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.step {
            Step::Clone => "create a process",
            Step::Cgroup => "enter its control group",
            Step::Group => "put the process in a group of its own",
            Step::Session => "put the process in a session of its own",
            Step::Descriptors => "give the process its descriptors",
            Step::Directory => "change to the working directory",
            Step::Limits => "set its limits",
            Step::Nice => "set its nice value",
            Step::Cpus => "set the CPUs that it runs on",
            Step::Groups => "set the supplementary groups",
            Step::Gid => "become the group",
            Step::Uid => "become the user",
            Step::Capabilities => "drop its capabilities",
            Step::Privileges => "keep it from new privileges",
            Step::Files => "restrict its access to files",
            Step::SystemCalls => "filter its system calls",
            Step::Exec => "execute the program",
        })
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

const STACK: usize = 64 * 1024;

thread_local! {
    /// The stack of the children that this thread starts, while it starts none. `u128` gives the alignment
    /// of 16 bytes that the ABI requires of a stack.
    static CHILD_STACK: Cell<Vec<u128>> = const { Cell::new(Vec::new()) };
}

/// How many children have copies of this process's descriptors.
static STARTING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// A child that has copies until this is dropped.
struct Starting;

impl Starting {
    fn begin() -> Starting {
        *STARTING.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Starting
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        *STARTING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        STARTING.1.notify_all();
    }
}

/// Waits until no process that is being started has copies of this process's sockets, some time at most:
/// who closes one then has the last copy here, and not there, where its start would wait for the close.
pub fn await_started(timeout: Duration) {
    let starting = STARTING.0.lock().unwrap_or_else(PoisonError::into_inner);
    // After the time it is closed all the same.
    let _ = STARTING.1.wait_timeout_while(starting, timeout, |starting| *starting > 0);
}

/// Starts a process. Blocks until the program has been executed or a step has failed: for less than
/// a millisecond unless a file system is slow, whatever the size of the parent's memory, and for at
/// most 30 s.
///
/// # Errors
/// The step that failed and its cause. No process remains.
pub fn spawn(command: &Command<'_>) -> Result<Child, SpawnError> {
    spawn_unless(command, &Arc::default())
}

/// Starts a process, as [`spawn`] does, but kills it if `is_cancelled` becomes true before it
/// executes the program.
///
/// # Errors
/// Those of [`spawn`]; `TimedOut` if it was cancelled.
pub fn spawn_unless(
    command: &Command<'_>,
    is_cancelled: &Arc<AtomicBool>,
) -> Result<Child, SpawnError> {
    let pointers = |all: &[CString]| -> Vec<*const c_char> {
        all.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let candidates = pointers(&command.candidates);
    let argv = pointers(&command.argv);
    let mut envp = pointers(&command.env);
    let mut pid_variable = Vec::new();
    let pid_text = match command.pid_variable {
        None => std::ptr::null_mut(),
        Some(name) => {
            pid_variable.extend_from_slice(name.to_bytes());
            pid_variable.push(b'=');
            let at = pid_variable.len();
            pid_variable.resize(at + 21, 0);
            envp.insert(0, pid_variable.as_ptr().cast());
            pid_variable[at..].as_mut_ptr()
        }
    };
    // SAFETY: `cpu_set_t` is an array of integers; all zeroes is the empty set.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in command.cpus.iter().filter(|cpu| **cpu < MAX_CPUS) {
        // SAFETY: `cpus` is a valid set, and the number is below `CPU_SETSIZE`.
        unsafe { libc::CPU_SET(*cpu, &mut cpus) };
    }
    let mut fds: Vec<[c_int; 3]> =
        command.fds.iter().map(|(target, fd)| [fd.as_raw_fd(), *target, -1]).collect();
    let max_target = command.fds.iter().map(|(target, _)| *target).max().unwrap_or(2).max(2);
    let ruleset = command
        .sandbox
        .ruleset_above(max_target)
        .map_err(|source| SpawnError { step: Step::Files, source })?;
    let filters = command.sandbox.programs();
    let sources = command.fds.iter().map(|(_, fd)| fd.as_raw_fd());
    let mut kept: Vec<c_int> = sources.chain(ruleset.as_ref().map(AsRawFd::as_raw_fd)).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut plan = Plan {
        candidates: candidates.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        cwd: command.cwd.as_deref().map_or(std::ptr::null(), CStr::as_ptr),
        max_target,
        fds: fds.as_mut_ptr(),
        fds_len: fds.len(),
        kept: kept.as_ptr(),
        kept_len: kept.len(),
        pid_text,
        death_signal: command.death_signal,
        parent: match command.is_sibling {
            true => rustix::process::getppid(),
            false => Some(rustix::process::getpid()),
        }
        .map_or(0, |parent| parent.as_raw_nonzero().get()),
        uid: command.uid.map_or(-1, i64::from),
        gid: command.gid.map_or(-1, i64::from),
        groups: command.groups.as_ref().map_or(std::ptr::null(), |g| g.as_ptr()),
        groups_len: command.groups.as_ref().map_or(-1, |g| g.len().cast_signed()),
        drop_groups: command.groups.is_none() && (command.uid.is_some() || command.gid.is_some()),
        cgroup: command.cgroup.map_or(-1, |fd| fd.as_raw_fd()),
        own_group: command.own_group,
        own_session: command.own_session,
        drop_capabilities: command.uid.is_some_and(|uid| uid != 0),
        no_new_privileges: command.no_new_privileges,
        ruleset: ruleset.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        filters: filters.as_ptr(),
        filters_len: filters.len(),
        descriptor_limit: command.descriptor_limit.unwrap_or(u64::MAX),
        limits: command.limits.as_ptr(),
        limits_len: command.limits.len(),
        umask: command.umask.map_or(-1, i64::from),
        nice: command.nice.as_ref().map_or(std::ptr::null(), |nice| nice),
        cpus: if command.cpus.is_empty() { std::ptr::null() } else { &raw const cpus },
        step: 0,
        errno: 0,
    };
    let mut stack = CHILD_STACK.take();
    stack.resize(STACK / 16, 0);
    let pidfd = Arc::new(AtomicI32::new(-1));
    // SAFETY: all zeroes is a valid `sigset_t`; `sigfillset` writes it before it is read.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: all zeroes is a valid `sigset_t`; `pthread_sigmask` writes it before it is read.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` and `before` are valid sets. All signals are blocked because no handler may run
    // in the child while it borrows this memory; the child inherits the mask and unblocks signals
    // only after it has reset its handlers.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let parent = if command.is_sibling { libc::CLONE_PARENT } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | parent | libc::SIGCHLD;
    let start = || {
        // SAFETY: `child` makes only async-signal-safe calls, for which the stack is large enough;
        // the stack is aligned and used by nothing else. The stack, `plan` and everything that it
        // points to outlive the child's use of them, because `CLONE_VFORK` suspends this thread
        // until the child has executed the program or exited. The fifth argument (`parent_tid`)
        // points to a valid integer, to which the kernel writes the pidfd before the child runs
        // (`CLONE_PIDFD`).
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
            libc::clone(child, top, flags, (&raw mut plan).cast::<c_void>(), pidfd.as_ptr())
        };
        (pid, io::Error::last_os_error())
    };
    // Only a child that becomes another user can be stopped by that user.
    let timeout =
        if command.uid.is_some() { guard::START_TIMEOUT } else { guard::OWN_START_TIMEOUT };
    let starting = Starting::begin();
    let ((pid, clone_error), is_killed) = guard::guarded(&pidfd, timeout, is_cancelled, start);
    drop(starting);
    CHILD_STACK.set(stack);
    // SAFETY: `pthread_sigmask` has filled `before` above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    if pid < 0 {
        return Err(SpawnError { step: Step::Clone, source: clone_error });
    }
    // SAFETY: `clone` has just created this descriptor (`CLONE_PIDFD`), and nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd.load(Ordering::Acquire)) };
    // SAFETY: `plan` is valid. The child wrote the fields through a raw pointer, so the reads must
    // be volatile.
    let (step, errno) = unsafe {
        ((&raw const plan.step).read_volatile(), (&raw const plan.errno).read_volatile())
    };
    if step != 0 || is_killed {
        use std::os::fd::AsFd;
        let _ = crate::process::reap(pidfd.as_fd());
        if is_killed {
            let reason = match is_cancelled.load(Ordering::Relaxed) {
                true => "the start was cancelled",
                false => {
                    "it was stopped repeatedly, or the file system of its directory or program did not answer"
                }
            };
            return Err(SpawnError {
                step: Step::Exec,
                source: io::Error::new(io::ErrorKind::TimedOut, reason),
            });
        }
        return Err(SpawnError {
            step: to_step(step),
            source: io::Error::from_raw_os_error(errno),
        });
    }
    Ok(Child { pid: pid.unsigned_abs(), pidfd })
}

fn to_step(step: c_int) -> Step {
    const STEPS: [Step; 17] = [
        Step::Clone,
        Step::Cgroup,
        Step::Group,
        Step::Session,
        Step::Descriptors,
        Step::Directory,
        Step::Limits,
        Step::Nice,
        Step::Cpus,
        Step::Groups,
        Step::Gid,
        Step::Uid,
        Step::Capabilities,
        Step::Privileges,
        Step::Files,
        Step::SystemCalls,
        Step::Exec,
    ];
    STEPS.into_iter().find(|s| *s as c_int == step).unwrap_or(Step::Exec)
}

/// Returns the paths that `execvp(3)` tries for a program name.
#[must_use]
pub fn search(program: &CStr, path: Option<&std::ffi::OsStr>) -> Vec<CString> {
    use std::os::unix::ffi::OsStrExt;
    let name = program.to_bytes();
    if name.contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = path.map_or(&b"/usr/local/bin:/bin:/usr/bin"[..], OsStrExt::as_bytes);
    path.split(|b| *b == b':')
        .filter_map(|directory| {
            let directory = if directory.is_empty() { &b"."[..] } else { directory };
            CString::new([directory, b"/", name].concat()).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests;
