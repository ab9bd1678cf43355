//! Starts a process without `fork`.
//!
//! `fork` copies page tables, which takes 18 to 74 ms in a parent of 0.5 to 2 GB; `posix_spawn`
//! cannot change the user, the groups or the limits. So this does what glibc's `posix_spawn` does
//! inside: `clone(CLONE_VM | CLONE_VFORK)`, a child that borrows the parent's memory until it
//! executes the program, while the calling thread waits. The child's settings are made by system
//! calls alone, and a failure, with the step that failed, is written to the shared memory: the
//! caller gets the real cause at once.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use libc::{c_char, c_int, c_void};

mod child;
mod guard;
mod privileges;

use child::{Plan, child};

use crate::sandbox::Sandbox;

/// A process to start.
#[derive(Debug)]
pub struct Command<'a> {
    /// Paths to try, in order, as `execvp` does with `PATH`.
    pub candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub argv: Vec<CString>,
    /// `NAME=value` pairs; nothing else is inherited.
    pub env: Vec<CString>,
    /// A variable that is set to the new process's id, such as `LISTEN_PID`.
    pub pid_variable: Option<&'a CStr>,
    /// A signal that the process gets when the thread that starts it ends (`PR_SET_PDEATHSIG`); 0
    /// for none.
    pub death_signal: i32,
    /// Working directory; inherited if absent.
    pub cwd: Option<CString>,
    /// Which descriptor the child gets under which number. It gets no others.
    pub fds: Vec<(c_int, BorrowedFd<'a>)>,
    /// User to become.
    pub uid: Option<u32>,
    /// Group to become.
    pub gid: Option<u32>,
    /// Supplementary groups. When absent and `uid` or `gid` is given, a privileged parent's groups
    /// are dropped, as libuv does.
    pub groups: Option<Vec<u32>>,
    /// A process group of its own, so that a terminal's Ctrl-C does not reach it.
    pub own_group: bool,
    /// A session of its own without a controlling terminal, and so a process group of its own.
    pub own_session: bool,
    /// Nothing that the process executes gives it privileges (`PR_SET_NO_NEW_PRIVS`), and the
    /// capability bounding set is emptied as far as this process may.
    pub no_new_privileges: bool,
    /// What the process may do with files, and which system calls it cannot make. Needs
    /// `no_new_privileges`.
    pub sandbox: Sandbox,
    /// Soft limit on open descriptors, if it should differ from the parent's.
    pub descriptor_limit: Option<u64>,
    /// Limits on resources: `RLIMIT_…`, soft, hard; [`NO_LIMIT`] for none.
    pub limits: Vec<(u32, u64, u64)>,
    /// The mask of permissions that new files do not get.
    pub umask: Option<u32>,
    /// How nice to be to others, from -20 to 19.
    pub nice: Option<i32>,
    /// The CPUs to run on; empty for the parent's.
    pub cpus: Vec<usize>,
    /// `cgroup.procs` of the control group to go into, open for writing.
    pub cgroup: Option<BorrowedFd<'a>>,
}

pub use libc::{
    RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_MEMLOCK, RLIMIT_NOFILE,
    RLIMIT_NPROC, RLIMIT_STACK,
};

/// As a limit: none.
pub const NO_LIMIT: u64 = libc::RLIM_INFINITY;

/// The most CPUs that can be named.
pub const MAX_CPUS: usize = libc::CPU_SETSIZE as usize;

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Its id.
    pub pid: u32,
    /// A descriptor that stands for it, close-on-exec.
    pub pidfd: OwnedFd,
}

/// The step of a spawn that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// `clone(2)`: no process could be made.
    Clone = 1,
    /// The control group.
    Cgroup,
    /// The process group.
    Group,
    /// The session.
    Session,
    /// Placing the descriptors.
    Descriptors,
    /// The working directory.
    Directory,
    /// A limit on resources.
    Limits,
    /// The nice level.
    Nice,
    /// The CPUs.
    Cpus,
    /// The supplementary groups.
    Groups,
    /// The group.
    Gid,
    /// The user.
    Uid,
    /// The capabilities.
    Capabilities,
    /// That nothing gives it new privileges.
    Privileges,
    /// What it may do with files.
    Files,
    /// The system calls that it cannot make.
    SystemCalls,
    /// Executing the program.
    Exec,
}

/// Why a process could not be started.
#[derive(Debug)]
pub struct SpawnError {
    /// Where it failed.
    pub step: Step,
    /// The system's reason.
    pub source: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.step {
            Step::Clone => "start a process",
            Step::Cgroup => "go into its control group",
            Step::Group => "put the process in a group of its own",
            Step::Session => "put the process in a session of its own",
            Step::Descriptors => "give the process its descriptors",
            Step::Directory => "change to the working directory",
            Step::Limits => "set its limits",
            Step::Nice => "set its nice level",
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

/// Starts the process. Blocks until the program has been executed or that has failed: some tenths
/// of a millisecond, whatever the size of the parent's memory.
///
/// # Errors
/// The step that failed and why; no process is left over.
pub fn spawn(command: &Command<'_>) -> Result<Child, SpawnError> {
    spawn_unless(command, &AtomicBool::new(false))
}

/// As [`spawn`], but ends the process, before it executes the program, once it `is_cancelled`.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_unless(command: &Command<'_>, is_cancelled: &AtomicBool) -> Result<Child, SpawnError> {
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
    // SAFETY: cpu_set_t is a plain bit field; all zeroes is the empty set.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in command.cpus.iter().filter(|cpu| **cpu < MAX_CPUS) {
        // SAFETY: the number is within the set.
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
    let mut plan = Plan {
        candidates: candidates.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        cwd: command.cwd.as_deref().map_or(std::ptr::null(), CStr::as_ptr),
        max_target,
        fds: fds.as_mut_ptr(),
        fds_len: fds.len(),
        pid_text,
        death_signal: command.death_signal,
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
    // u128 for the alignment that the ABI wants of a stack.
    let mut stack = vec![0u128; STACK / 16];
    let pidfd = AtomicI32::new(-1);
    // SAFETY: sigset_t is a plain C struct; all of it is written by sigfillset before it is read.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above; written by pthread_sigmask before it is read.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` and `before` are valid. No signal handler may run in the child while it borrows
    // this memory, so everything is blocked here, inherited blocked, and unblocked by the child
    // only after it has reset its handlers.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let start = || {
        // SAFETY: the stack is large enough, aligned, not used by anything else, and outlives the
        // child's use of it, because CLONE_VFORK stops this thread until the child has executed the
        // program or exited. `plan` and everything it points to likewise. `child` makes only
        // async-signal-safe calls. The fifth argument (`parent_tid`) receives the pidfd, before the
        // child runs.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
            libc::clone(child, top, flags, (&raw mut plan).cast::<c_void>(), pidfd.as_ptr())
        };
        (pid, io::Error::last_os_error())
    };
    // Only processes of another user can have an interest in stopping it, or the right.
    let timeout =
        if command.uid.is_some() { guard::START_TIMEOUT } else { guard::OWN_START_TIMEOUT };
    let ((pid, clone_error), is_killed) = guard::guarded(&pidfd, timeout, is_cancelled, start);
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    if pid < 0 {
        return Err(SpawnError { step: Step::Clone, source: clone_error });
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd.into_inner()) };
    // SAFETY: `plan` is alive; the child wrote these through a pointer, so they must be read anew.
    let (step, errno) = unsafe {
        ((&raw const plan.step).read_volatile(), (&raw const plan.errno).read_volatile())
    };
    if step != 0 || is_killed {
        use std::os::fd::AsFd;
        let _ = crate::process::reap(pidfd.as_fd());
        if is_killed {
            let reason = match is_cancelled.load(Ordering::Relaxed) {
                true => "it is not wanted any more",
                false => "it was stopped all the time, or its directory or program did not answer",
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

/// The paths that `execvp` would try for a program name.
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
