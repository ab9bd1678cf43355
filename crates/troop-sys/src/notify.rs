//! What processes say to their manager: `sd_notify(3)`, the manager's side.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, getsockname, recvmsg, socket_with,
};

/// Descriptors that a message can have (`SCM_MAX_FD`).
const MAX_HANDLES: usize = 253;

/// A socket for `NOTIFY_SOCKET`, at an abstract address that the kernel chooses, and that address
/// as the variable has it.
///
/// # Errors
/// When out of descriptors.
pub fn bind_socket() -> io::Result<(OwnedFd, String)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    set_socket_passcred(&socket, true)?;
    // Without a name, the kernel finds one: unix(7), autobind.
    bind(&socket, &SocketAddrUnix::new_unnamed())?;
    let address: SocketAddrUnix = getsockname(&socket)?.try_into().map_err(io::Error::from)?;
    let name = address.abstract_name().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((socket, format!("@{}", String::from_utf8_lossy(name))))
}

/// Reads the next notification and returns its length and the process that sent it. Never blocks.
///
/// Descriptors that came with it are appended to `handles`: all of them, because the kernel closes
/// those that are not asked for at once, however long that takes (`SO_LINGER`).
///
/// # Errors
/// `WouldBlock` if there is none.
pub fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
) -> io::Result<(usize, Option<u32>)> {
    let mut space = [MaybeUninit::<u8>::uninit();
        rustix::cmsg_space!(ScmCredentials(1), ScmRights(MAX_HANDLES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut pid = None;
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmCredentials(from) => {
                pid = u32::try_from(from.pid.as_raw_pid()).ok();
            }
            RecvAncillaryMessage::ScmRights(rights) => handles.extend(rights),
            _ => {}
        }
    }
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
        assert_eq!(
            receive(&socket, &mut bytes, &mut Vec::new()).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let address = SocketAddr::from_abstract_name(name.strip_prefix('@').unwrap()).unwrap();
        UnixDatagram::unbound().unwrap().send_to_addr(b"READY=1", &address).unwrap();
        let (len, pid) = receive(&socket, &mut bytes, &mut Vec::new()).unwrap();
        assert_eq!((&bytes[..len], pid), (&b"READY=1"[..], Some(std::process::id())));
    }
}
