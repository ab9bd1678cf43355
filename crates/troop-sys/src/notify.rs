//! The manager's side of `sd_notify(3)`.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::Mode;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, recvmsg, socket_with,
};

use crate::fdpass;
use crate::safe_path::Directory;
use crate::tree::Token;

/// `SO_PASSRIGHTS` of Linux 6.16, where options have their usual numbers.
const PASSRIGHTS: Option<libc::c_int> = if cfg!(any(
    target_arch = "x86",
    target_arch = "x86_64",
    target_arch = "arm",
    target_arch = "aarch64",
    target_arch = "loongarch64",
    target_arch = "powerpc64",
    target_arch = "riscv64",
    target_arch = "s390x",
)) {
    Some(83)
} else {
    None
};
/// Age of a file without a socket from which it was surely left behind.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of files in a directory that are checked.
const MAX_LEFT_BEHIND: usize = 4096;

/// A socket for `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct NotifySocket {
    socket: Arc<OwnedFd>,
    address: OsString,
    file: Option<(Arc<Directory>, OsString)>,
    refuses_descriptors: bool,
}

/// A notification that was inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its length, at most that of the buffer.
    pub len: usize,
    /// The process that has sent it.
    pub pid: Option<u32>,
    /// Whether descriptors came with it, which the kernel drops in the thread that [consumes
    /// it](fdpass::consume).
    pub has_descriptors: bool,
}

impl NotifySocket {
    /// Returns a socket with a random name in this directory, which others must be able to enter
    /// (and not to list): every process may send that knows the name. The name of the file, which
    /// is removed when this is dropped, is not among those that `/proc/net/unix` shows.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub fn bind_in(directory: &Arc<Directory>) -> io::Result<NotifySocket> {
        let (socket, refuses_descriptors) = new_socket()?;
        let (shown, name) = (Token::random()?, Token::random()?);
        let (shown, name) = (OsStr::new(shown.as_str()), OsString::from(name.as_str()));
        // The file is made with this mode: until it has its name, only this user may connect.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        bind(&socket, &SocketAddrUnix::new(directory.reach(shown))?)?;
        let named = directory.rename(shown, &name).and_then(|()| {
            Ok(rustix::fs::chmod(directory.reach(&name), Mode::from_raw_mode(0o666))?)
        });
        if let Err(e) = named {
            let _ = directory.remove(shown);
            let _ = directory.remove(&name);
            return Err(e);
        }
        Ok(NotifySocket {
            socket: Arc::new(socket),
            address: directory.path().join(&name).into(),
            file: Some((directory.clone(), name)),
            refuses_descriptors,
        })
    }

    /// Returns a socket at an abstract address that the kernel chooses. Every process of the system
    /// may send.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn bind_abstract() -> io::Result<NotifySocket> {
        let (socket, refuses_descriptors) = new_socket()?;
        // Without a name the kernel chooses one: autobind, unix(7).
        bind(&socket, &SocketAddrUnix::new_unnamed())?;
        let address: SocketAddrUnix = getsockname(&socket)?.try_into().map_err(io::Error::from)?;
        let name = address.abstract_name().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = format!("@{}", String::from_utf8_lossy(name)).into();
        Ok(NotifySocket { socket: Arc::new(socket), address, file: None, refuses_descriptors })
    }

    /// Returns the name of the socket's file, if it has one.
    #[must_use]
    pub fn file_name(&self) -> Option<&OsStr> {
        self.file.as_ref().map(|(_, name)| name.as_os_str())
    }

    /// Takes a socket that another process has bound at this address, and its file in this
    /// directory.
    #[must_use]
    pub fn restore(
        socket: OwnedFd,
        address: OsString,
        file: Option<(Arc<Directory>, OsString)>,
        refuses_descriptors: bool,
    ) -> NotifySocket {
        NotifySocket { socket: Arc::new(socket), address, file, refuses_descriptors }
    }

    /// Returns the value of `NOTIFY_SOCKET`.
    #[must_use]
    pub fn address(&self) -> &OsStr {
        &self.address
    }

    /// Whether every process of the system may send.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.file.is_none()
    }

    /// Returns the socket, which has to be closed where that may take long if [descriptors are
    /// accepted](NotifySocket::refuses_descriptors).
    #[must_use]
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Whether the kernel refuses notifications with descriptors (`EPERM` for their senders).
    #[must_use]
    pub fn refuses_descriptors(&self) -> bool {
        self.refuses_descriptors
    }

    /// Looks at the next notification without consuming it. Does not block, and closes nothing.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<Seen> {
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let message = recvmsg(&self.socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
        let pid = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmCredentials(from) => u32::try_from(from.pid.as_raw_pid()).ok(),
            _ => None,
        });
        let has_descriptors = message.flags.contains(ReturnFlags::CTRUNC);
        Ok(Seen { len: message.bytes, pid, has_descriptors })
    }

    /// Consumes the next notification, which must be one without descriptors.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub fn consume(&self) -> io::Result<()> {
        fdpass::consume(self.socket.as_fd(), &mut [0]).map(drop)
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if let Some((directory, name)) = &self.file {
            let _ = directory.remove(name);
        }
    }
}

/// Returns a socket, and whether it refuses descriptors.
fn new_socket() -> io::Result<(OwnedFd, bool)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    set_socket_passcred(&socket, true)?;
    let refuses = refuse_descriptors(socket.as_fd());
    Ok((socket, refuses))
}

fn refuse_descriptors(socket: BorrowedFd<'_>) -> bool {
    let Some(option) = PASSRIGHTS else { return false };
    let no: libc::c_int = 0;
    // SAFETY: the kernel reads an `int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(&no).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}

/// Removes files of sockets that processes have left behind in a directory of this user's.
pub fn remove_left_behind(directory: &Directory) {
    let Ok(entries) = std::fs::read_dir(directory.reach(OsStr::new("."))) else { return };
    for entry in entries.flatten().take(MAX_LEFT_BEHIND) {
        let name = entry.file_name();
        let Ok(Some(found)) = directory.entry(&name) else { continue };
        // One that is being bound is not connected to anything yet.
        let is_old = u64::try_from(found.mtime()).is_ok_and(|since| {
            let since = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
            since.elapsed().is_ok_and(|age| age >= LEFT_BEHIND_AFTER)
        });
        if found.file_type().is_socket()
            && is_old
            && let Ok(probe) = UnixDatagram::unbound()
            && probe
                .connect(directory.reach(&name))
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        {
            let _ = directory.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safe_path::Safety;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    fn directory() -> (tempfile::TempDir, Arc<Directory>) {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::create(&home.path().join("n"), Safety::Ancestors, 0o711);
        (home, Arc::new(directory.unwrap()))
    }

    #[test]
    fn a_notification_tells_who_sent_it() {
        let (_home, directory) = directory();
        let bound =
            [NotifySocket::bind_abstract().unwrap(), NotifySocket::bind_in(&directory).unwrap()];
        for socket in bound {
            let mut bytes = [0; 64];
            assert_eq!(socket.peek(&mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let address = socket.address().to_str().unwrap();
            let to = match address.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).unwrap(),
                None => SocketAddr::from_pathname(address).unwrap(),
            };
            assert_eq!(socket.is_public(), address.starts_with('@'));
            UnixDatagram::unbound().unwrap().send_to_addr(b"READY=1", &to).unwrap();
            let pid = Some(std::process::id());
            for _ in 0..2 {
                let seen = socket.peek(&mut bytes).unwrap();
                assert_eq!(seen, Seen { len: 7, pid, has_descriptors: false });
                assert_eq!(&bytes[..seen.len], b"READY=1");
            }
            socket.consume().unwrap();
            assert!(socket.peek(&mut bytes).is_err());
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_name_of_a_socket_in_a_directory_is_nowhere_to_be_seen() {
        let (_home, directory) = directory();
        let socket = NotifySocket::bind_in(&directory).unwrap();
        let (_, name) = socket.file.as_ref().unwrap();
        let shown = std::fs::read_to_string("/proc/net/unix").unwrap();
        assert!(!shown.contains(name.to_str().unwrap()));
        // So each user that is told may send.
        assert_eq!(directory.entry(name).unwrap().unwrap().mode() & 0o777, 0o666);
    }

    #[test]
    fn descriptors_are_refused_or_seen() {
        let mut socket = NotifySocket::bind_abstract().unwrap();
        let address = socket.address().to_str().unwrap().to_owned();
        let to = SocketAddr::from_abstract_name(address.strip_prefix('@').unwrap()).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect_addr(&to).unwrap();
        let sent = fdpass::send(sender.as_fd(), b"FDSTORE=1", &[sender.as_fd()]);
        assert_eq!(sent.is_err(), socket.refuses_descriptors());
        if socket.refuses_descriptors() {
            // As on older systems.
            let yes: libc::c_int = 1;
            // SAFETY: as above.
            let result = unsafe {
                libc::setsockopt(
                    socket.socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    PASSRIGHTS.unwrap(),
                    std::ptr::from_ref(&yes).cast(),
                    4,
                )
            };
            assert_eq!(result, 0);
            socket.refuses_descriptors = false;
            fdpass::send(sender.as_fd(), b"FDSTORE=1", &[sender.as_fd()]).unwrap();
        }
        let pid = Some(std::process::id());
        let seen = socket.peek(&mut [0; 64]).unwrap();
        assert_eq!(seen, Seen { len: 9, pid, has_descriptors: true });
        fdpass::consume(socket.socket().as_fd(), &mut [0; 64]).unwrap();
        assert!(socket.peek(&mut [0; 64]).is_err());
    }

    #[test]
    fn what_processes_have_left_behind_is_removed() {
        let (_home, directory) = directory();
        let socket = NotifySocket::bind_in(&directory).unwrap();
        let left = NotifySocket::bind_in(&directory).unwrap();
        let new = NotifySocket::bind_in(&directory).unwrap();
        let age = |socket: &NotifySocket| {
            let time = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::empty();
            rustix::fs::utimensat(rustix::fs::CWD, socket.address(), &times, flags).unwrap();
        };
        age(&socket);
        age(&left);
        // As if it had been killed.
        let abandon = |mut socket: NotifySocket| socket.file.take();
        abandon(left);
        abandon(new);
        remove_left_behind(&directory);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(std::path::Path::new(socket.address()).exists());
    }
}
