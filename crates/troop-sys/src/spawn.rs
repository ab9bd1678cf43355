//! Starts a process without `fork`.
//!
//! `fork` copies page tables, which takes 18 to 74 ms in a parent of 0.5 to 2 GB; `posix_spawn` cannot change the user, the groups or
//! the limits. So this does what glibc's `posix_spawn` does inside: `clone(CLONE_VM | CLONE_VFORK)`, a child that borrows the parent's
//! memory until it executes the program, while the calling thread waits. The child's settings are made by system calls alone, and a
//! failure, with the step that failed, is written to the shared memory: the caller gets the real cause at once.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_char, c_int, c_void};

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
    /// A signal that the process gets when the thread that starts it ends (`PR_SET_PDEATHSIG`); 0 for none.
    pub death_signal: i32,
    /// Working directory; inherited if absent.
    pub cwd: Option<CString>,
    /// Which descriptor the child gets under which number. It gets no others.
    pub fds: Vec<(c_int, BorrowedFd<'a>)>,
    /// User to become.
    pub uid: Option<u32>,
    /// Group to become.
    pub gid: Option<u32>,
    /// Supplementary groups. When absent and `uid` or `gid` is given, a privileged parent's groups are dropped, as libuv does.
    pub groups: Option<Vec<u32>>,
    /// A process group of its own, so that a terminal's Ctrl-C does not reach it.
    pub own_group: bool,
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
    RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_MEMLOCK, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_STACK,
};

/// As a limit: none.
pub const NO_LIMIT: u64 = libc::RLIM_INFINITY;

/// The most CPUs that can be named.
pub const MOST_CPUS: usize = libc::CPU_SETSIZE as usize;

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
            Step::Descriptors => "give the process its descriptors",
            Step::Directory => "change to the working directory",
            Step::Limits => "set its limits",
            Step::Nice => "set its nice level",
            Step::Cpus => "set the CPUs that it runs on",
            Step::Groups => "set the supplementary groups",
            Step::Gid => "become the group",
            Step::Uid => "become the user",
            Step::Exec => "execute the program",
        })
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Everything the child needs, as plain pointers made before it exists: it must not allocate.
struct Plan {
    candidates: *const *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    cwd: *const c_char,
    /// Triples: the source, the target, and room for the moved source.
    fds: *mut [c_int; 3],
    fds_len: usize,
    max_target: c_int,
    /// Where the child writes its process id, as text with a NUL; room for 20 digits and that.
    pid_text: *mut u8,
    death_signal: c_int,
    uid: i64,
    gid: i64,
    groups: *const u32,
    /// -1: leave them alone.
    groups_len: isize,
    drop_groups: bool,
    /// -1: none.
    cgroup: c_int,
    own_group: bool,
    descriptor_limit: u64,
    limits: *const (u32, u64, u64),
    limits_len: usize,
    /// -1: leave it alone.
    umask: i64,
    nice: *const c_int,
    cpus: *const libc::cpu_set_t,
    step: c_int,
    errno: c_int,
}

const STACK: usize = 64 * 1024;

/// Starts the process. Blocks until the program has been executed or that has failed: some tenths of a millisecond, whatever the size
/// of the parent's memory.
///
/// # Errors
/// The step that failed and why; no process is left over.
pub fn spawn(command: &Command<'_>) -> Result<Child, SpawnError> {
    let pointers = |all: &[CString]| -> Vec<*const c_char> { all.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect() };
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
    for cpu in command.cpus.iter().filter(|cpu| **cpu < MOST_CPUS) {
        // SAFETY: the number is within the set.
        unsafe { libc::CPU_SET(*cpu, &mut cpus) };
    }
    let mut fds: Vec<[c_int; 3]> = command.fds.iter().map(|(target, fd)| [fd.as_raw_fd(), *target, -1]).collect();
    let mut plan = Plan {
        candidates: candidates.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        cwd: command.cwd.as_deref().map_or(std::ptr::null(), CStr::as_ptr),
        max_target: command.fds.iter().map(|(target, _)| *target).max().unwrap_or(2).max(2),
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
    let mut pidfd: c_int = -1;
    // SAFETY: sigset_t is a plain C struct; all of it is written by sigfillset before it is read.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above; written by pthread_sigmask before it is read.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` and `before` are valid. No signal handler may run in the child while it borrows this memory, so everything is
    // blocked here, inherited blocked, and unblocked by the child only after it has reset its handlers.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the stack is large enough, aligned, not used by anything else, and outlives the child's use of it, because CLONE_VFORK
    // stops this thread until the child has executed the program or exited. `plan` and everything it points to likewise. `child`
    // makes only async-signal-safe calls. The sixth argument receives the pidfd.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
        libc::clone(child, top, flags, (&raw mut plan).cast::<c_void>(), &raw mut pidfd)
    };
    let clone_error = io::Error::last_os_error();
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    if pid < 0 {
        return Err(SpawnError { step: Step::Clone, source: clone_error });
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: `plan` is alive; the child wrote these through a pointer, so they must be read anew.
    let (step, errno) = unsafe { ((&raw const plan.step).read_volatile(), (&raw const plan.errno).read_volatile()) };
    if step != 0 {
        use std::os::fd::AsFd;
        let _ = crate::process::reap(pidfd.as_fd());
        return Err(SpawnError { step: to_step(step), source: io::Error::from_raw_os_error(errno) });
    }
    Ok(Child { pid: pid.unsigned_abs(), pidfd })
}

fn to_step(step: c_int) -> Step {
    const STEPS: [Step; 12] = [
        Step::Clone,
        Step::Cgroup,
        Step::Group,
        Step::Descriptors,
        Step::Directory,
        Step::Limits,
        Step::Nice,
        Step::Cpus,
        Step::Groups,
        Step::Gid,
        Step::Uid,
        Step::Exec,
    ];
    STEPS.into_iter().find(|s| *s as c_int == step).unwrap_or(Step::Exec)
}

/// The child. Shares memory with the parent, whose thread waits: no allocation, no locks, no panics, only system calls.
extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: `spawn` passes a valid Plan and does not touch it until this process has gone or executed the program; `run` fulfils
    // the contract above.
    unsafe {
        let (step, errno) = run(plan);
        (*plan).errno = errno;
        (*plan).step = step as c_int;
        libc::_exit(127)
    }
}

/// Makes the settings and executes the program. Returns only if something failed.
///
/// # Safety
/// Only in a child as described at [`child`], with a valid `plan`.
unsafe fn run(plan: *mut Plan) -> (Step, c_int) {
    // SAFETY: all pointers in the plan were made by `spawn` from live vectors, null-terminated where the system calls want that; the
    // calls are async-signal-safe and work on this process's own descriptor table, signal table and credentials.
    unsafe {
        let plan = &mut *plan;
        reset_signals();
        // Before descriptors are placed, maybe over this one; 0 stands for the writer.
        if plan.cgroup >= 0 && libc::write(plan.cgroup, c"0".as_ptr().cast(), 1) != 1 {
            return (Step::Cgroup, errno());
        }
        if plan.own_group && libc::setpgid(0, 0) != 0 {
            return (Step::Group, errno());
        }
        if let Err(errno) = place_descriptors(plan) {
            return (Step::Descriptors, errno);
        }
        if !plan.pid_text.is_null() {
            write_pid(plan.pid_text);
        }
        if !plan.cwd.is_null() && libc::chdir(plan.cwd) != 0 {
            return (Step::Directory, errno());
        }
        if plan.descriptor_limit != u64::MAX {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
                return (Step::Limits, errno());
            }
            limit.rlim_cur = plan.descriptor_limit.min(limit.rlim_max);
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                return (Step::Limits, errno());
            }
        }
        for at in 0..plan.limits_len {
            let (resource, soft, hard) = *plan.limits.add(at);
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            if libc::setrlimit(resource as libc::__rlimit_resource_t, &raw const limit) != 0 {
                return (Step::Limits, errno());
            }
        }
        if plan.umask >= 0 {
            libc::umask(plan.umask as libc::mode_t);
        }
        if !plan.nice.is_null() && libc::setpriority(libc::PRIO_PROCESS, 0, *plan.nice) != 0 {
            return (Step::Nice, errno());
        }
        if !plan.cpus.is_null() && libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), plan.cpus) != 0 {
            return (Step::Cpus, errno());
        }
        // While it still may do all that.
        if let Err(failed) = change_identity(plan) {
            return failed;
        }
        // After the change of user, which takes it back.
        if plan.death_signal != 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, plan.death_signal);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut worst = libc::ENOENT;
        let mut candidate = plan.candidates;
        while !(*candidate).is_null() {
            libc::execve(*candidate, plan.argv, plan.envp);
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = libc::EACCES,
                other => return (Step::Exec, other),
            }
            candidate = candidate.add(1);
        }
        (Step::Exec, worst)
    }
}

/// Writes this process's id. (Not by the C library, which may remember the parent's.)
///
/// # Safety
/// There must be room for 21 bytes, all of them 0.
unsafe fn write_pid(text: *mut u8) {
    let mut digits = [0; 20];
    let mut count = 0;
    // SAFETY: a system call without arguments.
    let mut pid = unsafe { libc::syscall(libc::SYS_getpid) };
    while count == 0 || pid > 0 {
        digits[count] = b'0' + (pid % 10) as u8;
        pid /= 10;
        count += 1;
    }
    for (at, digit) in digits[..count].iter().rev().enumerate() {
        // SAFETY: at most 20 digits, so this is within the room that the caller has promised.
        unsafe { *text.add(at) = *digit };
    }
}

/// Handlers of the parent must not run here, and must not be inherited; what the parent ignores stays ignored, except `SIGPIPE`, which
/// Rust programs ignore for themselves.
unsafe fn reset_signals() {
    // SAFETY: sigaction on this process's own table; numbers that are no signals fail harmlessly.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        for signal in 1..65 {
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
                continue;
            }
            let handled = action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN;
            if handled || signal == libc::SIGPIPE {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
            }
        }
    }
}

/// Puts every descriptor under its number and closes all others at the exec.
unsafe fn place_descriptors(plan: &mut Plan) -> Result<(), c_int> {
    // SAFETY: `plan.fds` points to `fds_len` triples; the calls work on this process's own table, a copy of the parent's.
    unsafe {
        // Whatever the host program may have left inheritable stays here. Old kernels (before 5.11) do not know the flag; there the
        // descriptors' own close-on-exec flags must do.
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        // First out of the way of all targets, then to their places: a source may have a target's number.
        for i in 0..plan.fds_len {
            let entry = &mut *plan.fds.add(i);
            entry[2] = libc::fcntl(entry[0], libc::F_DUPFD_CLOEXEC, plan.max_target + 1);
            if entry[2] < 0 {
                return Err(errno());
            }
        }
        for i in 0..plan.fds_len {
            let entry = &*plan.fds.add(i);
            if libc::dup2(entry[2], entry[1]) < 0 {
                return Err(errno());
            }
        }
    }
    Ok(())
}

/// Groups, then group, then user: the other way round the right to change the first two would be gone. Raw system calls, because
/// glibc's wrappers would try to change all threads of the parent too. Afterwards the result is checked.
unsafe fn change_identity(plan: &Plan) -> Result<(), (Step, c_int)> {
    // SAFETY: plain system calls with valid pointers.
    unsafe {
        if plan.groups_len >= 0 {
            if libc::syscall(libc::SYS_setgroups, plan.groups_len, plan.groups) != 0 {
                return Err((Step::Groups, errno()));
            }
        } else if plan.drop_groups
            && libc::syscall(libc::SYS_getuid) == 0
            && libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) != 0
        {
            return Err((Step::Groups, errno()));
        }
        let mut ids = [0u32; 3];
        if plan.gid >= 0 {
            if libc::syscall(libc::SYS_setresgid, plan.gid, plan.gid, plan.gid) != 0 {
                return Err((Step::Gid, errno()));
            }
            libc::syscall(libc::SYS_getresgid, &raw mut ids[0], &raw mut ids[1], &raw mut ids[2]);
            if ids != [plan.gid as u32; 3] {
                return Err((Step::Gid, libc::EPERM));
            }
        }
        if plan.uid >= 0 {
            if libc::syscall(libc::SYS_setresuid, plan.uid, plan.uid, plan.uid) != 0 {
                return Err((Step::Uid, errno()));
            }
            libc::syscall(libc::SYS_getresuid, &raw mut ids[0], &raw mut ids[1], &raw mut ids[2]);
            if ids != [plan.uid as u32; 3] {
                return Err((Step::Uid, libc::EPERM));
            }
        }
    }
    Ok(())
}

fn errno() -> c_int {
    // SAFETY: always a valid pointer to this thread's errno (the parent's, which waits).
    unsafe { *libc::__errno_location() }
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
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn command(script: &str) -> Command<'static> {
        let text = |s: &str| CString::new(s).unwrap();
        Command {
            candidates: search(c"sh", Some("/nowhere:/usr/bin:/bin".as_ref())),
            argv: vec![text("sh"), text("-c"), text(script)],
            env: vec![text("A=b"), text("PATH=/usr/bin:/bin")],
            cwd: None,
            pid_variable: None,
            death_signal: 0,
            fds: Vec::new(),
            uid: None,
            gid: None,
            groups: None,
            own_group: false,
            descriptor_limit: None,
            limits: Vec::new(),
            umask: None,
            nice: None,
            cpus: Vec::new(),
            cgroup: None,
        }
    }

    #[test]
    fn limits_umask_niceness_and_cpus_are_the_childs() {
        let script = "ulimit -Sn; ulimit -Hn; ulimit -c; umask; nice; grep Cpus_allowed_list /proc/self/status";
        let limits = vec![(libc::RLIMIT_NOFILE, 100, 200), (libc::RLIMIT_CORE, 0, 0)];
        let (text, _) = output(Command { limits, umask: Some(0o027), nice: Some(5), cpus: vec![0], ..command(script) });
        let before: i32 =
            String::from_utf8(std::process::Command::new("nice").output().unwrap().stdout).unwrap().trim().parse().unwrap();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[..4], ["100", "200", "0", "0027"]);
        assert_eq!((lines[4], lines[5]), (5.max(before).to_string().as_str(), "Cpus_allowed_list:\t0"));
        let refused = spawn(&Command { cpus: vec![MOST_CPUS - 1], ..command("true") }).unwrap_err();
        assert_eq!(refused.step, Step::Cpus);
    }

    fn output(command: Command<'_>) -> (String, crate::process::Exit) {
        let (mut read, write) = std::io::pipe().unwrap();
        let fds = command.fds.iter().copied().chain([(1, write.as_fd())]).collect();
        let child = spawn(&Command { fds, ..command }).unwrap();
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        (text, crate::process::reap(child.pidfd.as_fd()).unwrap())
    }

    #[test]
    fn a_program_runs_with_its_own_environment_and_directory() {
        let mut c = command("echo $A; pwd; exit 3");
        c.cwd = Some(c"/tmp".to_owned());
        assert_eq!(output(c), ("b\n/tmp\n".to_owned(), crate::process::Exit::Code(3)));
    }

    #[test]
    fn no_descriptor_leaks_but_the_ones_meant_for_the_child() {
        // An inheritable descriptor, as a careless host program leaves them.
        let careless = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
        let mut c = command("ls /proc/$$/fd");
        c.fds.push((5, careless.as_fd()));
        assert_eq!(output(c).0, "1\n5\n");
    }

    #[test]
    fn sources_and_targets_may_overlap() {
        let (mut r1, w1) = std::io::pipe().unwrap();
        let (mut r2, w2) = std::io::pipe().unwrap();
        let (n1, n2) = (w1.as_raw_fd(), w2.as_raw_fd());
        let mut c = command(&format!("echo one >&{n2}; echo two >&{n1}"));
        c.fds.push((n2, w1.as_fd()));
        c.fds.push((n1, w2.as_fd()));
        let child = spawn(&c).unwrap();
        drop(c);
        drop((w1, w2));
        let (mut one, mut two) = (String::new(), String::new());
        r1.read_to_string(&mut one).unwrap();
        r2.read_to_string(&mut two).unwrap();
        crate::process::reap(child.pidfd.as_fd()).unwrap();
        assert_eq!((one.as_str(), two.as_str()), ("one\n", "two\n"));
    }

    #[test]
    fn failures_name_the_step_and_the_cause() {
        let mut c = command("true");
        c.cwd = Some(c"/nowhere".to_owned());
        let e = spawn(&c).unwrap_err();
        assert_eq!((e.step, e.source.raw_os_error()), (Step::Directory, Some(libc::ENOENT)));
        let mut c = command("true");
        c.candidates = search(c"no-such-program", Some("/usr/bin:/bin".as_ref()));
        let e = spawn(&c).unwrap_err();
        assert_eq!((e.step, e.source.raw_os_error()), (Step::Exec, Some(libc::ENOENT)));
        let mut c = command("true");
        c.candidates = vec![c"/etc/passwd".to_owned()];
        let e = spawn(&c).unwrap_err();
        assert_eq!((e.step, e.source.raw_os_error()), (Step::Exec, Some(libc::EACCES)));
    }

    #[test]
    fn privileges_are_dropped_in_full() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let mut c = command("id -u; id -g; id -G");
        (c.uid, c.gid) = (Some(65534), Some(65533));
        assert_eq!(output(c).0, "65534\n65533\n65533\n");
        let mut c = command("id -G");
        (c.uid, c.gid, c.groups) = (Some(65534), Some(65534), Some(vec![4, 5]));
        assert_eq!(output(c).0, "65534 4 5\n");
    }
}
