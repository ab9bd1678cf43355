//! The manager's side of `sd_notify(3)`.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, getsockname, recvmsg, socket_with,
};

/// Returns a socket for `NOTIFY_SOCKET` at an abstract address that the kernel chooses, and the
/// value of the variable.
///
/// # Errors
/// If no descriptor is left.
pub fn bind_socket() -> io::Result<(OwnedFd, String)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    set_socket_passcred(&socket, true)?;
    // Without a name the kernel chooses one: autobind, unix(7).
    bind(&socket, &SocketAddrUnix::new_unnamed())?;
    let address: SocketAddrUnix = getsockname(&socket)?.try_into().map_err(io::Error::from)?;
    let name = address.abstract_name().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((socket, format!("@{}", String::from_utf8_lossy(name))))
}

/// Reads the next notification and returns its length and the process that sent it. Does not block,
/// except while the kernel closes descriptors that came with it: that can take long (`SO_LINGER`),
/// and a signal ends it.
///
/// # Errors
/// `WouldBlock` if there is none.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let pid = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmCredentials(from) => u32::try_from(from.pid.as_raw_pid()).ok(),
        _ => None,
    });
    Ok((message.bytes, pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_notification_tells_who_sent_it() {
        let (socket, name) = bind_socket().unwrap();
        let mut bytes = [0; 64];
        assert_eq!(receive(&socket, &mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let address = SocketAddr::from_abstract_name(name.strip_prefix('@').unwrap()).unwrap();
        UnixDatagram::unbound().unwrap().send_to_addr(b"READY=1", &address).unwrap();
        let (len, pid) = receive(&socket, &mut bytes).unwrap();
        assert_eq!((&bytes[..len], pid), (&b"READY=1"[..], Some(std::process::id())));
    }
}
