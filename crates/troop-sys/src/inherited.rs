//! Descriptors that this process was started with, which are known by their numbers alone.
//!
//! A number does not say who owns a descriptor, and a copy of one that some other part of the program
//! relies on having alone would break that part. So [`claim`] takes only those that nobody in this
//! process can rely on having alone:
//! - that are inherited by every program which this one executes (not close-on-exec, as the standard
//!   library and nearly everything else opens them),
//! - that whoever started this process has announced in `LISTEN_FDS` (`sd_listen_fds(3)`),
//! - or that have been claimed before, if the number still stands for the same file.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::FdFlags;

/// The first number that `LISTEN_FDS` announces, and the most that anybody gives.
pub const FIRST_ANNOUNCED: RawFd = 3;
/// The most descriptors that `LISTEN_FDS` can announce.
pub const MAX_ANNOUNCED: i32 = 1024;

/// A file's device and number, by which a later use of its descriptor's number is recognised.
type FileId = (u64, u64);

static CLAIMED: Mutex<BTreeMap<RawFd, FileId>> = Mutex::new(BTreeMap::new());

/// A close-on-exec copy of a descriptor that this process was started with. From then on no child
/// inherits the original either, which stays open.
///
/// # Errors
/// `EBADF` if there is none, `PermissionDenied` if it is this program's own.
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

/// Leaves a claimed descriptor, under its number, to the program that this process becomes by
/// `exec`.
///
/// # Errors
/// `EBADF` if the number was not claimed, or stands for something else by now.
pub fn leave_to_exec(number: RawFd) -> io::Result<()> {
    let claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let original = at(number)?;
    if claimed.get(&number) != Some(&file_id(original)?) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(rustix::io::fcntl_setfd(original, FdFlags::empty())?)
}

fn at(number: RawFd) -> io::Result<BorrowedFd<'static>> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is not -1, and is used at once for `fstat` and `fcntl`, which fail if it is not
    // open. Only if it is one that nobody in this process relies on having alone (see the module),
    // more is done than to look.
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
    use std::os::fd::AsRawFd as _;

    fn is_inheritable(fd: impl AsFd) -> bool {
        !rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)
    }

    #[test]
    fn a_descriptor_that_the_program_has_opened_itself_cannot_be_claimed() {
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
    fn a_claim_ends_when_the_number_stands_for_something_else() {
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
