//! Opens listeners the way libuv does, so that Node's workers see what they expect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with, sockopt};

/// The longest path that a Unix socket address holds.
const MAX_UNIX_PATH: usize = 107;

fn new_socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// A bound TCP socket with `SO_REUSEADDR`, non-blocking, not listening. Without an address it takes both families, or IPv4 where there
/// is no IPv6.
///
/// # Errors
/// As `bind(2)`.
pub fn tcp(address: Option<IpAddr>, port: u16, ipv6_only: bool) -> io::Result<OwnedFd> {
    let Some(ip) = address else {
        return match tcp(Some(Ipv6Addr::UNSPECIFIED.into()), port, ipv6_only) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                tcp(Some(Ipv4Addr::UNSPECIFIED.into()), port, false)
            }
            other => other,
        };
    };
    let socket = new_socket(family(ip), SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, ipv6_only)?;
    }
    bind(&socket, &SocketAddr::new(ip, port))?;
    Ok(socket)
}

/// A bound UDP socket, non-blocking.
///
/// # Errors
/// As `bind(2)`.
pub fn udp(address: IpAddr, port: u16, ipv6_only: bool, reuse_address: bool) -> io::Result<OwnedFd> {
    let socket = new_socket(family(address), SocketType::DGRAM)?;
    if reuse_address {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, ipv6_only)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    Ok(socket)
}

/// Removes the file of a Unix socket when it is dropped, unless somebody has put another file there.
#[derive(Debug)]
pub struct UnixPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        if let Ok(stat) = rustix::fs::lstat(&self.path)
            && (stat.st_dev, stat.st_ino) == (self.device, self.inode)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A bound Unix stream socket, non-blocking, not listening. `\0name` is an abstract address, which leaves no file. A path that is too
/// long is tried relative to the working directory, as Node does. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// As `bind(2)`; a missing directory is `EACCES`, as libuv reports it; `ENAMETOOLONG`.
pub fn unix(path: &str, readable_all: bool, writable_all: bool) -> io::Result<(OwnedFd, Option<UnixPath>)> {
    let socket = new_socket(AddressFamily::UNIX, SocketType::STREAM)?;
    // A worker that listens on `\0name` sends `/its/directory/\0name`; the name is what follows the NUL.
    if let Some((_, name)) = path.split_once('\0') {
        bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        return Ok((socket, None));
    }
    let short = shortened(path);
    let address = SocketAddrUnix::new(short.as_path())?;
    match bind(&socket, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if is_stale(&short) => {
            std::fs::remove_file(&short)?;
            bind(&socket, &address)?;
        }
        Err(rustix::io::Errno::NOENT) => return Err(io::Error::from_raw_os_error(libc::EACCES)),
        other => other?,
    }
    if readable_all || writable_all {
        use std::os::unix::fs::PermissionsExt;
        let mut mode = std::fs::metadata(&short)?.permissions().mode();
        mode |= if readable_all { 0o444 } else { 0 } | if writable_all { 0o222 } else { 0 };
        std::fs::set_permissions(&short, std::fs::Permissions::from_mode(mode))?;
    }
    let stat = rustix::fs::lstat(&short)?;
    let file = UnixPath { path: std::path::absolute(&short).unwrap_or(short), device: stat.st_dev, inode: stat.st_ino };
    Ok((socket, Some(file)))
}

fn shortened(path: &str) -> PathBuf {
    let whole = PathBuf::from(path);
    if path.len() <= MAX_UNIX_PATH {
        return whole;
    }
    let relative = std::env::current_dir().ok().and_then(|cwd| whole.strip_prefix(cwd).map(Path::to_path_buf).ok());
    relative.unwrap_or(whole)
}

/// A socket file whose server is gone: nobody answers. Never blocks, also not on a server whose queue is full.
fn is_stale(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = || {
        let probe = new_socket(AddressFamily::UNIX, SocketType::STREAM).ok()?;
        Some(rustix::net::connect(&probe, &SocketAddrUnix::new(path).ok()?) == Err(rustix::io::Errno::CONNREFUSED))
    };
    is_socket && refused().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_address_takes_both_families() {
        let socket = tcp(None, 0, false).unwrap();
        crate::socket::listen(&socket, 8).unwrap();
        let port = crate::socket::local_address(&socket).unwrap().port();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(crate::socket::accept(std::os::fd::AsFd::as_fd(&socket)).is_ok());
        assert_eq!(tcp(None, port, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_live_socket_file_is_respected_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let text = path.to_str().unwrap();
        let (live, file) = unix(text, false, false).unwrap();
        crate::socket::listen(&live, 8).unwrap();
        assert_eq!(unix(text, false, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::mem::forget(file.unwrap());
        drop(live);
        let (_again, file) = unix(text, true, true).unwrap();
        drop(file);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(unix(text, false, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(unix("/no/such/directory/s", false, false).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
