//! What happens in the child between `clone` and `execve`.

use libc::{c_char, c_int, c_void};

use super::{Step, privileges};

/// Everything the child needs, as plain pointers made before it exists: it must not allocate.
pub(super) struct Plan {
    pub(super) candidates: *const *const c_char,
    pub(super) argv: *const *const c_char,
    pub(super) envp: *const *const c_char,
    pub(super) cwd: *const c_char,
    /// Triples: the source, the target, and room for the moved source.
    pub(super) fds: *mut [c_int; 3],
    pub(super) fds_len: usize,
    pub(super) max_target: c_int,
    /// Where the child writes its process id, as text with a NUL; room for 20 digits and that.
    pub(super) pid_text: *mut u8,
    pub(super) death_signal: c_int,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) groups: *const u32,
    /// -1: leave them alone.
    pub(super) groups_len: isize,
    pub(super) drop_groups: bool,
    /// -1: none.
    pub(super) cgroup: c_int,
    pub(super) own_group: bool,
    pub(super) own_session: bool,
    /// Whether it becomes a user without capabilities.
    pub(super) drop_capabilities: bool,
    pub(super) no_new_privileges: bool,
    /// A landlock ruleset, above `max_target`; -1: none.
    pub(super) ruleset: c_int,
    pub(super) filters: *const libc::sock_fprog,
    pub(super) filters_len: usize,
    pub(super) descriptor_limit: u64,
    pub(super) limits: *const (u32, u64, u64),
    pub(super) limits_len: usize,
    /// -1: leave it alone.
    pub(super) umask: i64,
    pub(super) nice: *const c_int,
    pub(super) cpus: *const libc::cpu_set_t,
    pub(super) step: c_int,
    pub(super) errno: c_int,
}

/// The child. Shares memory with the parent, whose thread waits: no allocation, no locks, no
/// panics, only system calls.
pub(super) extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: `spawn` passes a valid Plan and does not touch it until this process has gone or
    // executed the program; `run` fulfils the contract above.
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
    // SAFETY: all pointers in the plan were made by `spawn` from live vectors, null-terminated
    // where the system calls want that; the calls are async-signal-safe and work on this process's
    // own descriptor table, signal table and credentials.
    unsafe {
        let plan = &mut *plan;
        reset_signals();
        // Before descriptors are placed, maybe over this one; 0 stands for the writer.
        if plan.cgroup >= 0 && libc::write(plan.cgroup, c"0".as_ptr().cast(), 1) != 1 {
            return (Step::Cgroup, errno());
        }
        if plan.own_session {
            if libc::setsid() < 0 {
                return (Step::Session, errno());
            }
        } else if plan.own_group && libc::setpgid(0, 0) != 0 {
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
        if !plan.cpus.is_null()
            && libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), plan.cpus) != 0
        {
            return (Step::Cpus, errno());
        }
        // While it still may do all that.
        if let Err(failed) = change_identity(plan).and_then(|()| privileges::drop_all(plan)) {
            return failed;
        }
        // After the change of user, which takes it back.
        if plan.death_signal != 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, plan.death_signal);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // Last: they could keep it from what comes before.
        if let Err(failed) = privileges::enter_sandbox(plan) {
            return failed;
        }
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

/// Handlers of the parent must not run here, and must not be inherited; what the parent ignores
/// stays ignored, except `SIGPIPE`, which Rust programs ignore for themselves.
///
/// # Safety
/// Only in a child as described at [`child`].
unsafe fn reset_signals() {
    // SAFETY: sigaction on this process's own table; numbers that are no signals fail harmlessly.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        for signal in 1..65 {
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
                continue;
            }
            let handled =
                action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN;
            if handled || signal == libc::SIGPIPE {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
            }
        }
    }
}

/// Puts every descriptor under its number and closes all others at the exec.
///
/// # Safety
/// Only in a child as described at [`child`], which has a table of descriptors of its own, with a
/// valid plan.
unsafe fn place_descriptors(plan: &mut Plan) -> Result<(), c_int> {
    // SAFETY: `plan.fds` points to `fds_len` triples; the calls work on this process's own table, a
    // copy of the parent's.
    unsafe {
        // Whatever the host program may have left inheritable stays here. Old kernels (before 5.11)
        // do not know the flag; there the descriptors' own close-on-exec flags must do.
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        // First out of the way of all targets, then to their places: a source may have a target's
        // number.
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

/// Groups, then group, then user: the other way round the right to change the first two would be
/// gone. Raw system calls, because glibc's wrappers would try to change all threads of the parent
/// too. Afterwards the result is checked.
///
/// # Safety
/// Only in a child as described at [`child`], with a valid plan.
unsafe fn change_identity(plan: &Plan) -> Result<(), (Step, c_int)> {
    // SAFETY: plain system calls with valid pointers.
    unsafe {
        if plan.no_new_privileges {
            privileges::empty_bounding_set();
        }
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

pub(super) fn errno() -> c_int {
    // SAFETY: always a valid pointer to this thread's errno (the parent's, which waits).
    unsafe { *libc::__errno_location() }
}
