//! Drops the child's capabilities and enters its sandbox. Makes system calls only, as all code of
//! the child.

use libc::c_int;

use super::Step;
use super::child::{Plan, errno};

/// `_LINUX_CAPABILITY_VERSION_3`, with two words per set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// Process id; 0 for the caller.
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the capability bounding set (`PR_CAPBSET_DROP`), so that no executed program can gain
/// capabilities. Without `CAP_SETPCAP` the set stays, and only `no_new_privs` prevents its use.
///
/// # Safety
/// Call only in a child between `clone` and `execve`.
pub(super) unsafe fn empty_bounding_set() {
    for capability in 0..64 {
        // SAFETY: `prctl` with integer arguments that changes this process's own credentials. It
        // fails with `EINVAL` after the last capability, and with `EPERM` without `CAP_SETPCAP`.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return;
        }
    }
}

/// Drops capabilities after the change of user, verifies that they are gone, and sets
/// `no_new_privs` if the plan says so. Without `drop_capabilities`, only those inheritable
/// capabilities are dropped that are not ambient.
///
/// # Safety
/// Call only in a child between `clone` and `execve`.
pub(super) unsafe fn drop_all(plan: &Plan) -> Result<(), (Step, c_int)> {
    let header = Header { version: VERSION, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: `capset`, `capget` and `prctl` with valid pointers to structures of the version in
    // the header. They change this process's credentials only. Raw, because glibc has no wrappers
    // for the first two.
    unsafe {
        if libc::syscall(libc::SYS_capget, &raw const header, words.as_mut_ptr()) != 0 {
            return Err((Step::Capabilities, errno()));
        }
        let mut wanted = [Word::default(); 2];
        if !plan.drop_capabilities {
            wanted = words;
            for (at, word) in wanted.iter_mut().enumerate() {
                word.inheritable = ambient(at, word.inheritable);
            }
        }
        // The kernel drops ambient capabilities with the inheritable ones.
        if words != wanted {
            if libc::syscall(libc::SYS_capset, &raw const header, wanted.as_ptr()) != 0 {
                return Err((Step::Capabilities, errno()));
            }
            if libc::syscall(libc::SYS_capget, &raw const header, words.as_mut_ptr()) != 0
                || words != wanted
            {
                return Err((Step::Capabilities, libc::EPERM));
            }
        }
        if plan.no_new_privileges
            && (libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
        {
            return Err((Step::Privileges, errno()));
        }
    }
    Ok(())
}

/// Restricts file access, then system calls. Executed programs inherit both.
///
/// # Safety
/// Call only in a child between `clone` and `execve`, after [`drop_all`].
pub(super) unsafe fn enter_sandbox(plan: &Plan) -> Result<(), (Step, c_int)> {
    // SAFETY: raw system calls that restrict this process only. The descriptor is open in this
    // process, and the filter programs are in the memory of the parent, which waits.
    unsafe {
        if plan.ruleset >= 0
            && libc::syscall(libc::SYS_landlock_restrict_self, plan.ruleset, 0) != 0
        {
            return Err((Step::Files, errno()));
        }
        for at in 0..plan.filters_len {
            let filter = plan.filters.add(at);
            if libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, filter) != 0 {
                return Err((Step::SystemCalls, errno()));
            }
        }
    }
    Ok(())
}

/// Returns the inheritable capabilities of this word that are also ambient: those that the starter
/// of this process passes on to programs.
///
/// # Safety
/// Call only in a child between `clone` and `execve`.
unsafe fn ambient(word: usize, inheritable: u32) -> u32 {
    let mut kept = 0;
    for bit in (0..32).filter(|bit| inheritable & (1 << bit) != 0) {
        // SAFETY: `prctl(PR_CAP_AMBIENT_IS_SET)` takes integers and only reads this process's own
        // credentials.
        if unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET, word * 32 + bit, 0, 0)
        } == 1
        {
            kept |= 1 << bit;
        }
    }
    kept
}
