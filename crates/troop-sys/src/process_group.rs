//! Process groups that outlive their leader.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use crate::process;

/// `PIDFD_SIGNAL_PROCESS_GROUP` of `pidfd_send_signal(2)`, Linux 6.9 and newer.
const TO_GROUP: libc::c_uint = 1 << 2;

/// The process group of a process that has been reaped. Its number may be given to another process
/// once the group is empty, so it is held by the leader's pidfd. On kernels older than 6.9 the group
/// counts as gone as soon as it was seen empty, or a process with its number exists.
#[derive(Debug)]
pub struct HeldGroup {
    leader: u32,
    pidfd: OwnedFd,
    is_gone: bool,
}

impl HeldGroup {
    /// Holds the group of `leader`, whose pidfd this is.
    #[must_use]
    pub fn new(leader: u32, pidfd: OwnedFd) -> HeldGroup {
        HeldGroup { leader, pidfd, is_gone: false }
    }

    /// Sends a signal to all processes of the group, or none with 0. Returns whether there are any;
    /// ended ones count until they are reaped.
    pub fn signal(&mut self, signal: i32) -> bool {
        let sent = match self.send(signal) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.send_by_number(signal),
            sent => sent,
        };
        // `EPERM` means that there are some.
        self.is_gone |= sent.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH));
        !self.is_gone
    }

    fn send(&self, signal: i32) -> io::Result<()> {
        let pidfd = self.pidfd.as_fd().as_raw_fd();
        let information = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null pointer stands for the information that `kill(2)` sends.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, information, TO_GROUP)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn send_by_number(&self, signal: i32) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let number = libc::pid_t::try_from(self.leader).map_err(|_| gone())?;
        // SAFETY: the signal 0 only checks whether there is a process.
        let is_used = unsafe { libc::kill(number, 0) } == 0
            || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH);
        if self.is_gone || is_used {
            return Err(gone());
        }
        if signal == 0 {
            // SAFETY: as above.
            let result = unsafe { libc::kill(-number, 0) };
            return if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        }
        process::signal_group(self.leader, signal)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Child, Command};

    use super::*;

    fn sleep(group: i32) -> Child {
        Command::new("sleep").arg("1000").process_group(group).spawn().unwrap()
    }

    fn leader_and_member() -> (HeldGroup, Child) {
        let mut leader = sleep(0);
        let number = leader.id();
        let member = sleep(number.try_into().unwrap());
        let group = HeldGroup::new(number, process::pidfd(number).unwrap());
        leader.kill().unwrap();
        leader.wait().unwrap();
        (group, member)
    }

    #[test]
    fn a_group_gets_signals_after_its_leader_was_reaped_until_it_is_empty() {
        for by_number in [false, true] {
            let (mut group, mut member) = leader_and_member();
            let signal = |group: &mut HeldGroup, signal| {
                if by_number { group.send_by_number(signal).is_ok() } else { group.signal(signal) }
            };
            assert!(signal(&mut group, 0));
            assert!(signal(&mut group, 9));
            assert_eq!(member.wait().unwrap().signal(), Some(9));
            assert!(!signal(&mut group, 9));
        }
    }

    #[test]
    fn a_group_that_was_empty_is_another_one_later() {
        let (mut group, mut member) = leader_and_member();
        member.kill().unwrap();
        member.wait().unwrap();
        assert!(!group.signal(0));
        // What has its number now.
        let mut other = sleep(0);
        group.leader = other.id();
        assert!(!group.signal(9));
        assert!(group.send_by_number(9).is_err());
        group.is_gone = false;
        assert!(group.send_by_number(9).is_err(), "a process has the number");
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
