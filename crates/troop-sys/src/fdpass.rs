//! Bytes and descriptors over Unix stream sockets (`SCM_RIGHTS`, `unix(7)`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The largest number of descriptors in a message (`SCM_MAX_FD`).
pub const MAX_HANDLES: usize = 253;

/// The largest number of descriptors that [`recv_few`] takes from a message.
pub const FEW_HANDLES: usize = 16;

/// The largest number of descriptors that [`peek_two`] takes from a message.
const TWO: usize = 2;

/// Sends bytes, and descriptors with the first of them. Never blocks, never raises `SIGPIPE`.
/// Returns the number of bytes that were sent; on success the descriptors were sent too.
///
/// # Errors
/// `WouldBlock` if the socket is full; `BrokenPipe` or `ConnectionReset` if the peer has closed;
/// `ETOOMANYREFS` if too many descriptors of this user are in flight.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], handles: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if handles.is_empty() {
        return Ok(rustix::net::send(socket, bytes, flags)?);
    }
    // One descriptor is by far the most frequent case and needs little space.
    let mut small = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut large = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
    let mut control =
        SendAncillaryBuffer::new(if handles.len() == 1 { &mut small } else { &mut large });
    if !control.push(SendAncillaryMessage::ScmRights(handles)) {
        return Err(io::Error::from(rustix::io::Errno::TOOMANYREFS));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// The result of [`recv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The number of bytes in the buffer; 0 is the end of the stream.
    pub len: usize,
    /// Whether there were more descriptors than were taken, because this process has too many or the
    /// message had too many. Those that were received, not peeked at, are dropped by the kernel.
    pub truncated: bool,
}

/// Receives bytes, and appends the descriptors that came with them to `handles`. Never blocks.
///
/// # Errors
/// `WouldBlock` if nothing has arrived; `ConnectionReset` if the peer closed with unread data
/// (treat it as the end of the stream).
pub fn recv(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
    receive(socket, bytes, handles, &mut space)
}

/// Receives as [`recv`] does, from an untrusted peer: takes at most [`FEW_HANDLES`] descriptors and
/// lets the kernel close the rest.
///
/// # Errors
/// Those of [`recv`].
pub fn recv_few(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FEW_HANDLES))];
    receive(socket, bytes, handles, &mut space)
}

const FOR_TWO: usize = rustix::cmsg_aligned_space!(ScmRights(TWO));

#[repr(align(8))]
struct ForTwo([MaybeUninit<u8>; FOR_TWO]);

/// Looks at the next bytes without consuming them, and appends copies of at most two of the
/// descriptors that come with them to `handles`: one, and one more as a sign that there are too
/// many. The kernel closes nothing. If the result is not `truncated`, `handles` has all descriptors
/// of these bytes, which may then be [consumed](consume) without closing anything either.
///
/// # Errors
/// Those of [`recv`].
pub fn peek_two(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    // Aligned, as otherwise there would be room for another one, depending on where it is.
    let mut space = ForTwo([MaybeUninit::uninit(); FOR_TWO]);
    receive_with(socket, bytes, handles, &mut space.0, RecvFlags::PEEK)
}

/// As [`peek_two`], but takes no descriptors: `truncated` says whether there are any.
///
/// # Errors
/// Those of [`recv`].
pub fn peek_none(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, bytes, &mut Vec::new(), &mut [], RecvFlags::PEEK)
}

/// Consumes bytes that were peeked before. The kernel drops descriptors that came with them, in
/// the calling thread: if nobody else has copies, this takes as long as closing them.
///
/// # Errors
/// Those of [`recv`].
pub fn consume(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    receive(socket, bytes, &mut Vec::new(), &mut [])
}

fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    space: &mut [MaybeUninit<u8>],
) -> io::Result<Received> {
    receive_with(socket, bytes, handles, space, RecvFlags::empty())
}

fn receive_with(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    space: &mut [MaybeUninit<u8>],
    flags: RecvFlags,
) -> io::Result<Received> {
    let mut control = RecvAncillaryBuffer::new(space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            handles.extend(fds);
        }
    }
    Ok(Received { len: message.bytes, truncated: message.flags.contains(ReturnFlags::CTRUNC) })
}

/// Returns a connected pair of Unix stream sockets, close-on-exec; the first is non-blocking, the
/// second blocks.
///
/// # Errors
/// If the process or the system has no descriptors left.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Returns true for errors that mean that the peer has closed.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// Returns true for errors after which the same call may succeed later: the socket is full, or too
/// many descriptors are in flight.
#[must_use]
pub fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || matches!(error.raw_os_error(), Some(libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM))
}

/// Returns the user and the process at the other end of a Unix socket (`SO_PEERCRED`).
///
/// # Errors
/// If the descriptor is not a Unix socket.
pub fn peer(socket: impl AsFd) -> io::Result<(u32, u32)> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok((credentials.uid.as_raw(), credentials.pid.as_raw_nonzero().get().unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_at_bytes_drops_no_descriptor_and_says_whether_consuming_them_would() {
        use std::io::Read as _;
        let (a, b) = channel().unwrap();
        for (count, copies) in [(1, 1), (2, 2), (3, 2)] {
            let (mut reader, writer) = io::pipe().unwrap();
            let harmless = io::pipe().unwrap();
            let mut sent = vec![harmless.0.as_fd(); count - 1];
            sent.push(writer.as_fd());
            send(a.as_fd(), b"before", &[]).unwrap();
            send(a.as_fd(), b"with", &sent).unwrap();
            send(a.as_fd(), b"after", &[]).unwrap();
            drop(writer);
            let (mut buffer, mut handles) = ([0; 64], Vec::new());
            let seen = peek_none(b.as_fd(), &mut buffer).unwrap();
            assert_eq!((&buffer[..seen.len], seen.truncated), (&b"beforewith"[..], true));
            let seen = peek_two(b.as_fd(), &mut buffer, &mut handles).unwrap();
            assert_eq!((seen.len, seen.truncated), (10, count > 2));
            assert_eq!(handles.len(), copies);
            let taken = consume(b.as_fd(), &mut buffer[..seen.len]).unwrap();
            assert_eq!(&buffer[..taken.len], b"beforewith");
            rustix::io::ioctl_fionbio(&reader, true).unwrap();
            // Its last copy is among the handles, or was dropped with the bytes.
            assert_eq!(reader.read(&mut [0]).is_err(), count <= 2);
            drop(handles);
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            let seen = peek_none(b.as_fd(), &mut buffer).unwrap();
            assert_eq!((&buffer[..seen.len], seen.truncated), (&b"after"[..], false));
            assert_eq!(consume(b.as_fd(), &mut buffer[..seen.len]).unwrap().len, 5);
        }
    }

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (a, b) = channel().unwrap();
        let (x, y) = channel().unwrap();
        assert_eq!(send(a.as_fd(), b"hello\n", &[x.as_fd(), y.as_fd()]).unwrap(), 6);
        let (mut buffer, mut handles) = ([0; 64], Vec::new());
        let got = recv(b.as_fd(), &mut buffer, &mut handles).unwrap();
        assert_eq!((got.len, got.truncated, handles.len()), (6, false, 2));
        assert!(
            rustix::io::fcntl_getfd(&handles[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
        );
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut buffer, &mut handles).unwrap().len, 0);
        assert!(is_gone(&send(b.as_fd(), b"x", &[]).unwrap_err()));
    }
}
