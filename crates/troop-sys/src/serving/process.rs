//! The process that checks.

use std::io;
use std::time::Duration;

use super::Waits;
use super::check::{Failure, MAX_SOCKETS, Memory, waits_with};
use crate::aside::{Aside, LeftBehind};

/// A process and its sockets.
const REQUEST: usize = 4 + 8 * MAX_SOCKETS;

const NO: u8 = 0;
const PERHAPS: u8 = 1;
const YES: u8 = 2;
const HIDDEN: u8 = 3;
const TIMED_OUT: u8 = 4;
const WITHOUT: u8 = 5;

/// A process that checks whether others wait for connections. It ends with the thread that has
/// started it.
#[derive(Debug)]
pub struct Checker(Aside);

impl Checker {
    /// Starts the process.
    ///
    /// # Errors
    /// Those of `socketpair(2)` and `clone(2)`.
    pub fn start() -> io::Result<Checker> {
        Ok(Checker(Aside::start(c"troop-serving", Memory::new(), answer)?))
    }

    /// Has a process checked, as [`waits`](super::waits) does it. Blocks for this time at most.
    ///
    /// # Errors
    /// `TimedOut` if there was no answer, after which it must be [left](Checker::leave);
    /// `PermissionDenied` if the system does not show what it takes, or not in time; others if the
    /// checking process has ended.
    pub fn check(&self, pid: u32, sockets: &[u64], timeout: Duration) -> io::Result<Waits> {
        let mut request = [0; REQUEST];
        request[..4].copy_from_slice(&pid.to_ne_bytes());
        let sockets = &sockets[..sockets.len().min(MAX_SOCKETS)];
        for (place, inode) in request[4..].chunks_exact_mut(8).zip(sockets) {
            place.copy_from_slice(&inode.to_ne_bytes());
        }
        let mut answer = [HIDDEN];
        self.0.ask(&request[..4 + 8 * sockets.len()], &mut answer, timeout)?;
        match answer[0] {
            WITHOUT => Ok(Waits::Without),
            NO => Ok(Waits::No),
            PERHAPS => Ok(Waits::Perhaps),
            YES => Ok(Waits::Yes),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Kills it. Returns what is left of it, if it does not end within this time.
    #[must_use]
    pub fn leave(self, timeout: Duration) -> Option<LeftBehind> {
        self.0.leave(timeout)
    }
}

/// Does a check in the other process.
fn answer(memory: &mut Memory, request: &[u8], answer: &mut [u8]) -> usize {
    let mut sockets = [0u64; MAX_SOCKETS];
    let (pid, inodes) = request.split_at(request.len().min(4));
    let pid = pid.try_into().map_or(0, u32::from_ne_bytes);
    let inodes = inodes.chunks_exact(8);
    let count = inodes.len().min(MAX_SOCKETS);
    for (socket, inode) in sockets.iter_mut().zip(inodes) {
        *socket = inode.try_into().map_or(0, u64::from_ne_bytes);
    }
    answer[0] = match waits_with(memory, pid, &sockets[..count]) {
        Ok(Waits::Without) => WITHOUT,
        Ok(Waits::No) => NO,
        Ok(Waits::Perhaps) => PERHAPS,
        Ok(Waits::Yes) => YES,
        Err(Failure::Hidden) => HIDDEN,
        Err(Failure::TimedOut) => TIMED_OUT,
    };
    1
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::diag::inode;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn another_process_checks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        let checker = Checker::start().unwrap();
        // This process has the socket, and a thread of it waits for connections.
        let copy = listener.try_clone().unwrap();
        let accepting = std::thread::spawn(move || copy.accept().map(drop));
        while checker.check(std::process::id(), &sockets, TIMEOUT).unwrap() != Waits::Yes {
            std::thread::yield_now();
        }
        drop(std::net::TcpStream::connect(listener.local_addr().unwrap()));
        accepting.join().unwrap().unwrap();
        assert!(checker.check(u32::MAX / 2, &sockets, TIMEOUT).is_err());
        assert!(checker.leave(TIMEOUT).is_none());
    }
}
