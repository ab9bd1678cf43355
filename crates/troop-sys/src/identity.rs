//! File access with the rights of another user.

use std::io;

use serde::{Deserialize, Serialize};

/// A user and its groups, as far as they determine access to files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Identity {
    /// Returns the effective identity of this process.
    ///
    /// # Errors
    /// None are expected.
    pub fn own() -> io::Result<Identity> {
        let groups =
            rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
        Ok(Identity {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups,
        })
    }

    /// Returns the effective identity of another process, from `/proc/PID/status`
    /// (`proc_pid_status(5)`).
    ///
    /// # Errors
    /// If the process has ended, or `/proc` is not mounted.
    pub fn of_process(pid: u32) -> io::Result<Identity> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let numbers = |name: &str| -> io::Result<Vec<u32>> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let line = line.ok_or(io::ErrorKind::InvalidData)?;
            line.split_whitespace()
                .map(|n| n.parse().map_err(|_| io::ErrorKind::InvalidData.into()))
                .collect()
        };
        // Real, effective, saved, and the one for files.
        let effective = |name| {
            numbers(name)?
                .get(1)
                .copied()
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        Ok(Identity {
            uid: effective("Uid:")?,
            gid: effective("Gid:")?,
            groups: numbers("Groups:")?,
        })
    }

    /// Runs `work` in a thread with only this identity's rights to files: the kernel checks each
    /// system call as this user's, and created files belong to this user. The user cannot signal or
    /// trace the process meanwhile, because only `fsuid`, `fsgid` and the groups of that thread
    /// change (`setfsuid(2)`). The thread ends with the work.
    ///
    /// # Errors
    /// `EPERM` if this process may not take on the identity; those of `work`; or if no thread can
    /// be started.
    pub fn with_rights<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread =
                std::thread::Builder::new().name("troop-files".into()).spawn_scoped(scope, || {
                    self.take_on()?;
                    work()
                });
            thread?.join().unwrap_or_else(|_| {
                Err(io::Error::other("the thread that acts for the worker's user has panicked"))
            })
        })
    }

    /// Gives the calling thread this identity's rights to files. Groups are set first, because that
    /// needs root's rights.
    pub(crate) fn take_on(&self) -> io::Result<()> {
        // SAFETY: a raw system call, which changes this thread alone, with a valid pointer and its
        // length.
        if unsafe { libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) }
            != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: these change this thread's own credentials, and nothing else; -1 changes nothing
        // and tells what is set.
        let (gid, uid) = unsafe {
            libc::setfsgid(self.gid);
            libc::setfsuid(self.uid);
            (libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX))
        };
        // These calls report no failure, so the result is read back.
        if (gid.cast_unsigned(), uid.cast_unsigned()) == (self.gid, self.uid) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_process_has_the_identity_that_proc_tells() {
        assert_eq!(Identity::of_process(std::process::id()).unwrap(), Identity::own().unwrap());
        assert!(Identity::of_process(u32::MAX - 1).is_err());
    }

    #[test]
    fn only_what_the_user_may_do_is_done_and_this_thread_stays_what_it_is() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let stranger = Identity { uid: 64_017, gid: 64_018, groups: vec![64_019] };
        let path = directory.path().join("file");
        let make = || stranger.with_rights(|| std::fs::write(&path, "x"));
        assert_eq!(make().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        // By its supplementary group.
        std::os::unix::fs::chown(directory.path(), None, Some(64_019)).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
        make().unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!((file.uid(), file.gid()), (64_017, 64_018));
        assert_eq!(Identity::own().unwrap().uid, 0);
        std::fs::write(directory.path().join("own"), "x").unwrap();
        assert_eq!(std::fs::metadata(directory.path().join("own")).unwrap().uid(), 0);
    }
}
