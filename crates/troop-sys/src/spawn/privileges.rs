//! What the child gives up besides its user and groups: capabilities, and the ways to new ones.
//! System calls only, as in all of the child.

use libc::c_int;

use super::Step;
use super::child::{Plan, errno};

/// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// 0 is the caller.
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// What no program that is executed can ever get. Needs `CAP_SETPCAP`; without it the set stays,
/// and `no_new_privs` alone keeps it from being of use.
///
/// # Safety
/// Only in a child between `clone` and `execve`.
pub(super) unsafe fn empty_bounding_set() {
    for capability in 0..64 {
        // SAFETY: a system call on this process's own credentials. It ends at the first number that
        // is no capability, or without the right to.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return;
        }
    }
}

/// Drops capabilities after the change of user, checks that they are gone, and closes the ways to
/// new ones.
///
/// # Safety
/// Only in a child between `clone` and `execve`.
pub(super) unsafe fn drop_all(plan: &Plan) -> Result<(), (Step, c_int)> {
    let header = Header { version: VERSION, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: raw system calls on this process's own credentials with valid pointers; glibc has no
    // wrappers for two of them, and they change this process alone.
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
        // Ambient capabilities are lost with inheritable ones.
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

/// Restricts access to files, then system calls; both stay for whatever is executed.
///
/// # Safety
/// As [`drop_all`], after it.
pub(super) unsafe fn enter_sandbox(plan: &Plan) -> Result<(), (Step, c_int)> {
    // SAFETY: raw system calls that change this process alone; the descriptor and the programs are
    // the parent's, which waits.
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

/// The inheritable capabilities that whoever has started this process wants its programs to have:
/// the ambient ones.
///
/// # Safety
/// As [`drop_all`].
unsafe fn ambient(word: usize, inheritable: u32) -> u32 {
    let mut kept = 0;
    for bit in (0..32).filter(|bit| inheritable & (1 << bit) != 0) {
        // SAFETY: asks about this process's own credentials.
        if unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET, word * 32 + bit, 0, 0)
        } == 1
        {
            kept |= 1 << bit;
        }
    }
    kept
}
