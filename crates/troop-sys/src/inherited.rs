//! Takes over descriptors that this process was started with, by their numbers.
//!
//! A number does not show which part of the program owns a descriptor, and that part may rely on
//! being the only owner. So [`claim`] accepts only descriptors for which no code of this process can assume that:
//! - descriptors without close-on-exec, which every executed program inherits (the standard library
//!   and nearly all other code set close-on-exec),
//! - descriptors that `LISTEN_FDS` announces (`sd_listen_fds(3)`),
//! - descriptors that were claimed before, if the number still refers to the same file.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::FdFlags;

use crate::{process, socket};

/// The first number that `LISTEN_FDS` announces (`SD_LISTEN_FDS_START`).
pub const FIRST_ANNOUNCED: RawFd = 3;
/// Maximum number of descriptors in `LISTEN_FDS`; a larger value counts as this one.
pub const MAX_ANNOUNCED: i32 = 1024;

/// Device and inode of a file, which show whether a descriptor number has been reused.
type FileId = (u64, u64);

static CLAIMED: Mutex<BTreeMap<RawFd, FileId>> = Mutex::new(BTreeMap::new());

/// Returns a close-on-exec copy of a descriptor that this process was started with. Sets
/// close-on-exec on the original too, which stays open.
///
/// # Errors
/// `EBADF` if the number is not open, `PermissionDenied` if this program has opened the descriptor
/// itself.
pub fn claim(number: RawFd) -> io::Result<OwnedFd> {
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let original = at(number)?;
    let file = file_id(original)?;
    let is_inheritable = !rustix::io::fcntl_getfd(original)?.contains(FdFlags::CLOEXEC);
    if !is_inheritable && claimed.get(&number) != Some(&file) && !is_announced(number) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "this program has opened it itself, it was not started with it",
        ));
    }
    let copy = rustix::io::fcntl_dupfd_cloexec(original, 3)?;
    rustix::io::fcntl_setfd(original, FdFlags::CLOEXEC)?;
    claimed.insert(number, file);
    Ok(copy)
}

/// Takes over a descriptor that this process was started with and that nobody has
/// [claimed](claim): no part of the program can have another use for it. It is close-on-exec from
/// then on.
///
/// # Errors
/// `EBADF` if the number is not open, `PermissionDenied` if this program has opened the descriptor
/// itself, or has taken it already.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let original = at(number)?;
    let is_inheritable = !rustix::io::fcntl_getfd(original)?.contains(FdFlags::CLOEXEC);
    if number < FIRST_ANNOUNCED || !is_inheritable || claimed.contains_key(&number) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "this program has opened it itself, it was not started with it",
        ));
    }
    rustix::io::fcntl_setfd(original, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing in this process owns it: it was inherited, as only inherited
    // descriptors are not close-on-exec; it was not claimed; and since it is close-on-exec now, it
    // cannot be taken again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Clears close-on-exec of a claimed descriptor, so that the program that this process executes
/// inherits it under the same number.
///
/// # Errors
/// `EBADF` if the number was not claimed, or refers to another file by now.
pub fn leave_to_exec(number: RawFd) -> io::Result<()> {
    let claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let original = at(number)?;
    if claimed.get(&number) != Some(&file_id(original)?) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(rustix::io::fcntl_setfd(original, FdFlags::empty())?)
}

/// Whether a number is that of a socket that is inherited by the program that this process executes.
#[must_use]
pub fn is_inheritable_socket(number: RawFd) -> bool {
    at(number).is_ok_and(|fd| {
        socket::is_socket(fd)
            && rustix::io::fcntl_getfd(fd).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC))
    })
}

/// Returns the process that has made the connection for messages (`SOCK_SEQPACKET`) which this number
/// is one end of.
#[must_use]
pub fn maker_of_messages(number: RawFd) -> Option<u32> {
    let fd = at(number).ok()?;
    let kind = rustix::net::sockopt::socket_type(fd).ok()?;
    let (_, maker) = crate::fdpass::peer(fd).ok()?;
    (kind == rustix::net::SocketType::SEQPACKET).then_some(maker)
}

/// Copies descriptors of another process, from [`FIRST_ANNOUNCED`] on, to the same numbers in this
/// one, where the program that it executes inherits them for as long as they are kept.
///
/// # Errors
/// Those of `pidfd_open(2)` and `pidfd_getfd(2)`: `EPERM` where this process may not trace that one,
/// `EBADF` if it has no such descriptor; `AddrInUse` if something else has the number here.
pub fn fetch(pid: u32, count: i32) -> io::Result<Vec<OwnedFd>> {
    /// Not in the way of the numbers.
    const APART: RawFd = FIRST_ANNOUNCED + MAX_ANNOUNCED;
    let pidfd = rustix::io::fcntl_dupfd_cloexec(process::pidfd(pid)?, APART)
        .or_else(|_| process::pidfd(pid).map_err(|_| rustix::io::Errno::SRCH))?;
    let numbers = FIRST_ANNOUNCED..FIRST_ANNOUNCED.saturating_add(count.min(MAX_ANNOUNCED));
    numbers
        .map(|number| {
            let flags = rustix::process::PidfdGetfdFlags::empty();
            let copy = rustix::process::pidfd_getfd(&pidfd, number, flags)?;
            if !socket::is_socket(&copy) {
                return Err(rustix::io::Errno::NOTSOCK.into());
            }
            let here = match copy.as_raw_fd() == number {
                true => copy,
                false => rustix::io::fcntl_dupfd_cloexec(&copy, number)?,
            };
            if here.as_raw_fd() != number {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("something else is open here as descriptor {number}"),
                ));
            }
            rustix::io::fcntl_setfd(&here, FdFlags::empty())?;
            Ok(here)
        })
        .collect()
}

fn at(number: RawFd) -> io::Result<BorrowedFd<'static>> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is not -1. The callers use the result at once, for `fstat` and `fcntl`,
    // which fail if the number is not open, and duplicate or change only descriptors that pass the
    // checks above, of which no code in this process can assume to be the only owner.
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

fn file_id(fd: impl AsFd) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn is_announced(number: RawFd) -> bool {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_ours = variable("LISTEN_PID").is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let count = variable("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    is_ours
        && (FIRST_ANNOUNCED..FIRST_ANNOUNCED + i32::clamp(count, 0, MAX_ANNOUNCED))
            .contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn is_inheritable(fd: impl AsFd) -> bool {
        !rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)
    }

    #[test]
    fn descriptors_that_the_program_opened_itself_cannot_be_claimed() {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = claim(own.as_raw_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(leave_to_exec(own.as_raw_fd()).is_err());
        assert!(!is_inheritable(&own), "its flags are as they were");
    }

    #[test]
    fn an_inheritable_descriptor_can_be_claimed_again_and_left_to_another_program() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::io::fcntl_setfd(&listener, FdFlags::empty()).unwrap();
        let number = listener.as_raw_fd();
        assert!(leave_to_exec(number).is_err(), "it is not claimed yet");
        let copy = claim(number).unwrap();
        assert_eq!(file_id(&copy).unwrap(), file_id(&listener).unwrap());
        assert!(!is_inheritable(&copy) && !is_inheritable(&listener));
        claim(number).unwrap();
        leave_to_exec(number).unwrap();
        assert!(is_inheritable(&listener));
    }

    #[test]
    fn a_claim_ends_when_the_number_refers_to_another_file() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::io::fcntl_setfd(&listener, FdFlags::empty()).unwrap();
        let number = listener.as_raw_fd();
        claim(number).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        crate::socket::replace(listener.as_fd(), &other).unwrap();
        assert!(claim(number).is_err());
        assert!(leave_to_exec(number).is_err());
    }

    #[test]
    fn numbers_without_a_descriptor_cannot_be_claimed() {
        for number in [-1, i32::MIN, i32::MAX, 999_999] {
            assert_eq!(claim(number).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
