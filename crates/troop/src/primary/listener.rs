//! Opens what the core decides to open.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use troop_core::ListenerId;
use troop_core::primary::{Bind, BindSpec, Repairs};
use troop_core::wire::outgoing::SockName;
use troop_sys::group::Instruction;
use troop_sys::options::Options;
use troop_sys::safe_path::UnsafePath;
use troop_sys::socket::{self, Kind};
use troop_sys::unblock::Unblocker;
use troop_sys::unix::{Rights, UnixFile, unix};
use troop_sys::{diag, group, listen};

use crate::inherited::InheritedSocket;

/// One socket of a listener, which listens, is bound for its workers to listen on, or is UDP's.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: OwnedFd,
    pub(crate) listener: ListenerId,
    /// What it had before others got copies of it, if they do.
    pub(crate) options: Option<Box<Options>>,
    /// Its number among all sockets of the system.
    pub(crate) inode: u64,
    /// The primary accepts on it.
    pub(crate) watched: bool,
    /// It does not listen any more, so the poller was told to forget it.
    pub(crate) unreported: bool,
    /// The kernel may have connections for us.
    pub(crate) ready: bool,
    /// The poller does not report it: nobody is ready for its connections.
    pub(crate) masked: bool,
    /// Nobody comes to it any more; it is closed when what waits in it is taken.
    pub(crate) retired: bool,
    /// How many connections to accept before asking the poller whether there are more.
    pub(crate) burst: usize,
    /// The last burst was accepted in full.
    pub(crate) full: bool,
}

impl Socket {
    /// One that workers get copies of; with these options, if it was known before.
    pub(crate) fn shared(fd: OwnedFd, listener: ListenerId, options: Option<Options>) -> Socket {
        let options = Some(Box::new(options.unwrap_or_else(|| Options::of(&fd))));
        Socket { options, ..Socket::new(fd, listener) }
    }

    /// Before the primary accepts on it: workers that have copies could have made it wait for
    /// connections. Those of other users could do it again at any moment, so this thread is watched
    /// meanwhile.
    pub(crate) fn never_wait(&self, has_other_users: bool) -> Option<Unblocker> {
        self.options.as_ref()?;
        let _ = socket::set_nonblocking(&self.fd, true);
        if has_other_users { Unblocker::start(self.fd.as_fd()).ok() } else { None }
    }

    pub(crate) fn new(fd: OwnedFd, listener: ListenerId) -> Socket {
        let inode = diag::inode(&fd).unwrap_or(0);
        Socket {
            fd,
            listener,
            options: None,
            inode,
            watched: false,
            unreported: false,
            ready: false,
            masked: false,
            retired: false,
            burst: 1,
            full: false,
        }
    }
}

/// A listener's sockets: one, or, for a steered one, the founder of its group and one for each
/// place.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Their numbers in the driver's table.
    pub(crate) sockets: Vec<usize>,
    /// It has a group, whose founder is the first of the sockets.
    pub(crate) grouped: bool,
    /// Removed when the listener is closed.
    pub(crate) file: Option<UnixFile>,
    /// What it was opened as.
    pub(crate) spec: BindSpec,
    /// Where it was bound, if that is an address of IP.
    pub(crate) local: Option<std::net::SocketAddr>,
    /// It has been seen to listen.
    pub(crate) has_listened: bool,
    /// It was shut down and restored.
    pub(crate) shut_downs: Repairs,
    /// Options of its sockets were found changed.
    pub(crate) changes: Repairs,
    /// Some could not be restored, and that has been said.
    pub(crate) is_unfit: bool,
    /// It has been said that its path leads to something else.
    pub(crate) is_lost: bool,
    /// Its key as JSON, for messages.
    pub(crate) key: String,
    /// What to listen with.
    pub(crate) backlog: Option<u32>,
    /// Sockets of others in its group that have been reported.
    pub(crate) intruders: Vec<u64>,
    /// What the kernel was last told to do.
    pub(crate) program: Vec<Instruction>,
}

impl Listener {
    /// The sockets that are the places'.
    pub(crate) fn shards(&self) -> &[usize] {
        if self.grouped { &self.sockets[1..] } else { &self.sockets }
    }
}

/// What came of opening a listener.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) file: Option<UnixFile>,
    pub(crate) name: Option<SockName>,
    /// Why it cannot be the first of a group, if it was meant to.
    pub(crate) alone: Option<String>,
    /// Somebody else has it open too.
    pub(crate) given: bool,
    /// What it had when this process got it, if it was there before.
    pub(crate) options: Option<Options>,
}

fn invalid() -> io::Error {
    io::Error::from(rustix::io::Errno::INVAL)
}

fn ip(address: Option<&str>) -> io::Result<Option<IpAddr>> {
    // Node sends scoped addresses (fe80::1%eth0) as text that std does not parse; those are
    // refused.
    address.map(|a| a.parse().map_err(|_| invalid())).transpose()
}

/// Opens a listener for a worker, with its rights to files. Sockets that were there before this
/// process go before new ones.
pub(crate) fn open(
    spec: &BindSpec,
    inherited: &[InheritedSocket],
    rights: &Rights,
) -> io::Result<Opened> {
    let mut file = None;
    let (mut given, mut options) = (false, None);
    let fd = if let Some(ready) = inherited.iter().find(|socket| socket.fits(&spec.target)) {
        (given, options) = (true, Some(ready.options.as_ref().clone()));
        let fd = ready.socket.try_clone()?;
        socket::set_nonblocking(&fd, true)?;
        fd
    } else {
        bind(spec, &mut file, rights)?
    };
    let founded = if spec.group { group::found(&fd) } else { Ok(()) };
    if let Some(backlog) = spec.listen {
        socket::listen(&fd, backlog)?;
    }
    let alone =
        founded.and_then(|()| if spec.group { try_group(&fd, given) } else { Ok(()) }).err();
    let alone = alone
        .map(|e| format!("the kernel does not let this socket be steered ({e}), so its connections are handed over in turn"));
    let name = socket::local_address(&fd).map(|address| SockName {
        address: address.ip().to_string(),
        family: if address.is_ipv4() { "IPv4" } else { "IPv6" },
        port: address.port(),
    });
    Ok(Opened { fd, file, name, alone, given, options })
}

fn bind(spec: &BindSpec, file: &mut Option<UnixFile>, rights: &Rights) -> io::Result<OwnedFd> {
    Ok(match &spec.target {
        Bind::Tcp { address, port, ipv6_only } => {
            listen::tcp(ip(address.as_deref())?, *port, *ipv6_only)?
        }
        Bind::Unix { .. } => {
            let (fd, path) = bind_path(&spec.target, rights)?;
            *file = path;
            fd
        }
        Bind::Udp { address, port, ipv6, ipv6_only, reuse_address } => {
            let any = || {
                if *ipv6 {
                    IpAddr::from(Ipv6Addr::UNSPECIFIED)
                } else {
                    Ipv4Addr::UNSPECIFIED.into()
                }
            };
            listen::udp(
                ip(address.as_deref())?.unwrap_or_else(any),
                *port,
                *ipv6_only,
                *reuse_address,
            )?
        }
        // Those that are offered are there already.
        Bind::Fd { .. } => return Err(invalid()),
    })
}

/// Binds a Unix socket at a path that a worker has chosen: where the worker itself could have done
/// so, or where the configuration says.
pub(crate) fn bind_path(target: &Bind, rights: &Rights) -> io::Result<(OwnedFd, Option<UnixFile>)> {
    let Bind::Unix { path, readable_all, writable_all, named } = target else {
        return Err(invalid());
    };
    let bind = |rights: Rights| {
        unix(path, *readable_all, *writable_all, &Rights { trusted_links_only: *named, ..rights })
    };
    let is_less = rights.of.is_some() || rights.sandbox.restricts_files();
    match bind(rights.clone()) {
        Err(e) if *named && is_less && e.kind() == io::ErrorKind::PermissionDenied => {
            bind(Rights::own())
        }
        result => result,
    }
}

/// The number for an error, for a worker.
pub(crate) fn errno(error: &io::Error) -> i32 {
    let other = match error.kind() {
        io::ErrorKind::PermissionDenied => rustix::io::Errno::ACCESS,
        _ => rustix::io::Errno::INVAL,
    };
    error.raw_os_error().unwrap_or(other.raw_os_error())
}

/// Why a path could not be had, if that is for the operator to know and not for the worker alone.
pub(crate) fn explain(error: &io::Error, rights: &Rights) -> Option<String> {
    if let Some(reason) = error.get_ref().and_then(|reason| reason.downcast_ref::<UnsafePath>()) {
        return Some(reason.to_string());
    }
    if error.raw_os_error() == Some(rustix::io::Errno::TIMEDOUT.raw_os_error()) {
        return Some(
            "the file system there does not answer; its worker gets no path any more".into(),
        );
    }
    if error.kind() != io::ErrorKind::PermissionDenied {
        return None;
    }
    let who = match (&rights.of, rights.sandbox.restricts_files()) {
        (Some(user), false) => format!("user {}, whom the worker runs as, may not", user.uid),
        (Some(user), true) => {
            format!("user {}, whom the worker runs as, or the worker's sandbox may not", user.uid)
        }
        (None, true) => "the worker's sandbox may not".into(),
        (None, false) => return None,
    };
    Some(format!(
        "{who} make a socket there: let it write to the directory, or name the path in `may_listen`"
    ))
}

/// Whether others can join this socket, and a program choose among them.
fn try_group(fd: &OwnedFd, given: bool) -> io::Result<()> {
    if given || matches!(socket::kind(fd), Ok(Kind::Udp { .. })) {
        // One that somebody else has opened may be somebody else's. A UDP socket alone takes no
        // program.
        return group::sibling(fd.as_fd()).map(drop);
    }
    // "Return 0".
    group::steer(fd.as_fd(), &[Instruction { code: 6, jump_true: 0, jump_false: 0, operand: 0 }])
}
