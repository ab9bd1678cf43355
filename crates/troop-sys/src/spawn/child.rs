//! The child between `clone(2)` and `execve(2)`.

use libc::{c_char, c_int, c_void};

use super::{Step, privileges};
use crate::interrupt;

/// Everything that the child needs, as plain pointers that the parent prepares, because the child
/// must not allocate.
pub(super) struct Plan {
    pub(super) candidates: *const *const c_char,
    pub(super) argv: *const *const c_char,
    pub(super) envp: *const *const c_char,
    pub(super) cwd: *const c_char,
    /// Array of triples: source, target, and space for a copy of the source.
    pub(super) fds: *mut [c_int; 3],
    pub(super) fds_len: usize,
    pub(super) max_target: c_int,
    /// The sources and the ruleset, in order.
    pub(super) kept: *const c_int,
    pub(super) kept_len: usize,
    /// Buffer for the child's process id as NUL-terminated text: 21 bytes.
    pub(super) pid_text: *mut u8,
    pub(super) death_signal: c_int,
    /// The process that starts it.
    pub(super) parent: libc::pid_t,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) groups: *const u32,
    /// Number of supplementary groups; -1 keeps the parent's.
    pub(super) groups_len: isize,
    pub(super) drop_groups: bool,
    /// Descriptor of `cgroup.procs`; -1 for none.
    pub(super) cgroup: c_int,
    pub(super) own_group: bool,
    pub(super) own_session: bool,
    /// Whether to drop all capabilities after the change of user.
    pub(super) drop_capabilities: bool,
    pub(super) no_new_privileges: bool,
    /// Descriptor of a landlock ruleset, above `max_target`; -1 for none.
    pub(super) ruleset: c_int,
    pub(super) filters: *const libc::sock_fprog,
    pub(super) filters_len: usize,
    pub(super) descriptor_limit: u64,
    pub(super) limits: *const (super::LimitNumber, u64, u64),
    pub(super) limits_len: usize,
    /// File mode creation mask; -1 keeps the parent's.
    pub(super) umask: i64,
    pub(super) nice: *const c_int,
    pub(super) cpus: *const libc::cpu_set_t,
    pub(super) step: c_int,
    pub(super) errno: c_int,
}

/// Entry point of the child. It shares the parent's memory while the parent's thread waits, so it
/// must only make system calls: no allocation, no locks, no panics.
pub(super) extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: `spawn` passes a valid `Plan` and does not access it until this process has exited or
    // executed the program, and this is the child that `run` requires.
    unsafe {
        let (step, errno) = run(plan);
        (*plan).errno = errno;
        (*plan).step = step as c_int;
        libc::_exit(127)
    }
}

/// Applies the settings and executes the program. Returns only on failure: the step and its errno.
///
/// # Safety
/// Call only from [`child`], with a valid `plan`.
unsafe fn run(plan: *mut Plan) -> (Step, c_int) {
    // SAFETY: `spawn` made all pointers in the plan from vectors that outlive the child,
    // null-terminated where the system calls require it. The calls are async-signal-safe and act on
    // this process's own descriptor table, signal handlers and credentials (`clone` without
    // `CLONE_FILES` and `CLONE_SIGHAND`).
    unsafe {
        let plan = &mut *plan;
        reset_signals();
        // Before descriptors are placed, which may close this one. Writing 0 moves the writer
        // itself.
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
            if libc::setrlimit(resource, &raw const limit) != 0 {
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
        // The settings above may need root's rights, so the user changes after them.
        if let Err(failed) = change_identity(plan).and_then(|()| privileges::drop_all(plan)) {
            return failed;
        }
        // After the change of user, which clears it (`PR_SET_PDEATHSIG`).
        if plan.death_signal != 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, plan.death_signal);
            // The parent may have ended before that.
            if libc::getppid() != plan.parent {
                libc::_exit(127);
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // Last, because the sandbox may forbid the steps above.
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

/// Writes this process's id as text. A raw system call, because a C library may cache the parent's
/// id.
///
/// # Safety
/// `text` must point to 21 writable bytes that are all 0.
unsafe fn write_pid(text: *mut u8) {
    let mut digits = [0; 20];
    let mut count = 0;
    // SAFETY: `getpid` has no arguments and cannot fail.
    let mut pid = unsafe { libc::syscall(libc::SYS_getpid) };
    while count == 0 || pid > 0 {
        digits[count] = b'0' + (pid % 10) as u8;
        pid /= 10;
        count += 1;
    }
    for (at, digit) in digits[..count].iter().rev().enumerate() {
        // SAFETY: a 64-bit number has at most 20 digits, so `at` is within the 21 bytes that the
        // caller guarantees.
        unsafe { *text.add(at) = *digit };
    }
}

/// Resets all signal handlers to the default, so that the parent's handlers do not run here.
/// Signals that the parent ignores stay ignored, except `SIGPIPE`, which the Rust runtime ignores
/// for itself only.
///
/// # Safety
/// Call only from [`child`].
unsafe fn reset_signals() {
    // SAFETY: `sigaction` acts on this process's own handlers (no `CLONE_SIGHAND`), with valid
    // pointers; it fails with `EINVAL` for numbers that are not signals.
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

/// Closes the sockets that the program does not get.
///
/// They are closed here, not by `execve(2)`: it may be that this process has the last copy of a socket
/// that a hostile worker has made linger, or in whose queue such a one is, because others close theirs at
/// the same time, and only here is there something that interrupts the close. Other files are left to
/// `execve(2)`, which the parent does not wait for: their file systems may not answer a close.
///
/// # Safety
/// Call only from [`child`], which has its own descriptor table, with a valid plan.
unsafe fn close_sockets(plan: &Plan) {
    // SAFETY: this is the child. `plan.kept` points to `kept_len` numbers.
    unsafe {
        let kept = std::slice::from_raw_parts(plan.kept, plan.kept_len);
        if !close_low_sockets(kept) {
            close_listed_sockets(kept);
        }
    }
}

/// Closes the sockets among the lowest numbers. Returns whether these are all that are open: the
/// kernel makes a file for each number that it lists, which takes ten times as long as to try it, and
/// as long again when the process has ended.
///
/// # Safety
/// As [`close_sockets`].
unsafe fn close_low_sockets(kept: &[c_int]) -> bool {
    // SAFETY: all zeroes is a value of the struct, and the pointers are valid.
    let open = unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        match libc::stat(c"/proc/self/fd".as_ptr(), &raw mut found) {
            0 => found.st_size,
            _ => 0,
        }
    };
    // Before Linux 6.2 the size does not tell how many are open.
    let mut left = open;
    let mut fd = 0;
    while left > 0 && i64::from(fd) < open.saturating_mul(4).saturating_add(64) {
        if is_socket(fd) {
            left -= 1;
            if !kept.contains(&fd) {
                // SAFETY: this process has its own descriptor table.
                unsafe { libc::close(fd) };
            }
        } else if is_open(fd) {
            left -= 1;
        }
        fd += 1;
    }
    open > 0 && left == 0
}

/// Closes the sockets that `/proc` lists.
///
/// # Safety
/// As [`close_sockets`].
unsafe fn close_listed_sockets(kept: &[c_int]) {
    // SAFETY: the calls get valid pointers and lengths; the kernel fills the buffer with whole entries
    // (`getdents64(2)`: number, offset, length at 16, type, name at 19), whose lengths add up to what it
    // returns, and whose names end with NUL. Entries of descriptors that are closed meanwhile are left
    // out.
    unsafe {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let directory = libc::open(c"/proc/self/fd".as_ptr(), flags);
        if directory < 0 {
            return;
        }
        let mut entries = [0u64; 512];
        let (begin, size) = (entries.as_mut_ptr().cast::<u8>(), size_of_val(&entries));
        loop {
            let len = libc::syscall(libc::SYS_getdents64, directory, begin, size);
            if len <= 0 {
                break;
            }
            let mut at = 0;
            while at < len as usize {
                let entry = begin.add(at);
                at += entry.add(16).cast::<u16>().read_unaligned() as usize;
                if let Some(fd) = number(entry.add(19))
                    && fd != directory
                    && !kept.contains(&fd)
                    && is_socket(fd)
                {
                    libc::close(fd);
                }
            }
        }
        libc::close(directory);
    }
}

/// Whether there is such a descriptor, also one of a path only (`O_PATH`).
fn is_open(fd: c_int) -> bool {
    // SAFETY: it takes numbers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Returns the number that a text is.
///
/// # Safety
/// The text must end with NUL.
unsafe fn number(text: *const u8) -> Option<c_int> {
    let (mut number, mut at) = (0 as c_int, 0);
    loop {
        // SAFETY: it has not ended yet.
        let byte = unsafe { *text.add(at) };
        match byte {
            0 if at > 0 => return Some(number),
            b'0'..=b'9' => number = number.wrapping_mul(10).wrapping_add((byte - b'0') as c_int),
            _ => return None,
        }
        at += 1;
    }
}

/// Whether a descriptor is a socket. Does not access any file system.
fn is_socket(fd: c_int) -> bool {
    let mut kind: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the pointers are valid, and the length is that of the integer.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast::<c_void>(),
            &raw mut len,
        )
    };
    result == 0
}

/// Moves each descriptor to its number, closes other sockets and marks all others close-on-exec.
///
/// # Safety
/// Call only from [`child`], which has its own descriptor table, with a valid plan.
unsafe fn place_descriptors(plan: &mut Plan) -> Result<(), c_int> {
    // SAFETY: this is the child, and the plan is valid.
    interrupt::often(|| unsafe { close_sockets(plan) });
    // SAFETY: `plan.fds` points to `fds_len` triples; the calls act on this process's own
    // descriptor table, a copy of the parent's (no `CLONE_FILES`).
    unsafe {
        // The host program may have left descriptors inheritable. Kernels before 5.11 lack
        // `CLOSE_RANGE_CLOEXEC`; there only the descriptors' own flags count.
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        // Copy all sources above the targets first, then move them to their targets, because a
        // source may have a target's number.
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

/// Sets the supplementary groups, the group and the user, in this order, because a change of user
/// drops the right to change groups, and verifies the result. Raw system calls, because glibc's
/// wrappers change all threads of the parent.
///
/// # Safety
/// Only in a child as described at [`child`], with a valid plan.
unsafe fn change_identity(plan: &Plan) -> Result<(), (Step, c_int)> {
    // SAFETY: raw system calls that change this process's credentials only; `plan.groups` points to
    // `groups_len` entries.
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
    // SAFETY: the C library returns a valid pointer to this thread's errno. With `CLONE_VM` that is
    // the errno of the parent's thread, which waits.
    unsafe { *libc::__errno_location() }
}
