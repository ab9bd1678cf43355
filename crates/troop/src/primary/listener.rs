//! Opens the listeners that the core requests.

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
    /// Its options before other processes got copies, if they do.
    pub(crate) options: Option<Box<Options>>,
    /// Its inode, which identifies it among all sockets of the system.
    pub(crate) inode: u64,
    /// Whether its clients may send descriptors.
    pub(crate) is_unix: bool,
    /// Whether the primary accepts on it.
    pub(crate) watched: bool,
    /// Whether it does not listen any more, so that the poller does not watch it.
    pub(crate) unreported: bool,
    /// Whether the kernel may have connections to accept.
    pub(crate) ready: bool,
    /// Whether the poller does not report it, because no worker is ready for its connections.
    pub(crate) masked: bool,
    /// Whether it gets no new connections; it is closed when those in its queue are accepted.
    pub(crate) retired: bool,
    /// Number of connections to accept before the poller is asked for more.
    pub(crate) burst: usize,
    /// Whether the last burst was complete, so that more connections are likely.
    pub(crate) full: bool,
}

impl Socket {
    /// Returns a socket of which workers get copies; with these original options, if they are
    /// known.
    pub(crate) fn shared(fd: OwnedFd, listener: ListenerId, options: Option<Options>) -> Socket {
        let options = Some(Box::new(options.unwrap_or_else(|| Options::of(&fd))));
        Socket { options, ..Socket::new(fd, listener) }
    }

    /// Makes it non-blocking before the primary accepts on it: workers that have copies could have
    /// made it blocking. Workers of other users could do so again at any moment, so the accept is
    /// guarded.
    pub(crate) fn never_wait(&self, has_other_users: bool) -> Option<Unblocker> {
        self.options.as_ref()?;
        let _ = socket::set_nonblocking(&self.fd, true);
        if has_other_users { Unblocker::start(self.fd.as_fd()).ok() } else { None }
    }

    pub(crate) fn new(fd: OwnedFd, listener: ListenerId) -> Socket {
        let inode = diag::inode(&fd).unwrap_or(0);
        let is_unix = socket::is_unix(&fd);
        Socket {
            fd,
            listener,
            options: None,
            inode,
            is_unix,
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

/// The sockets of a listener: one, or, if it is steered, the first of its group and one for each
/// shard.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Indexes of the sockets in the driver's table.
    pub(crate) sockets: Vec<usize>,
    /// Whether it has a group, of which the first socket is the founder.
    pub(crate) grouped: bool,
    /// The socket file, which is removed when the listener closes.
    pub(crate) file: Option<UnixFile>,
    /// The specification with which it was opened.
    pub(crate) spec: BindSpec,
    /// The address to which it is bound, if that is an IP address.
    pub(crate) local: Option<std::net::SocketAddr>,
    /// Whether its socket existed before, and may belong to another process.
    pub(crate) given: bool,
    /// Whether it has been seen to listen.
    pub(crate) has_listened: bool,
    /// Whether it was shut down and restored.
    pub(crate) shut_downs: Repairs,
    /// Whether options of its sockets were found changed.
    pub(crate) changes: Repairs,
    /// Whether it has been reported that options could not be restored.
    pub(crate) is_unfit: bool,
    /// Whether it has been reported that its path leads to another socket.
    pub(crate) is_lost: bool,
    /// Its key as JSON, for messages.
    pub(crate) key: String,
    /// What to listen with.
    pub(crate) backlog: Option<u32>,
    /// Reported sockets of other processes in its group.
    pub(crate) intruders: Vec<u64>,
    /// The program that was installed last.
    pub(crate) program: Vec<Instruction>,
}

impl Listener {
    /// Returns the sockets of the shards.
    pub(crate) fn shards(&self) -> &[usize] {
        if self.grouped { &self.sockets[1..] } else { &self.sockets }
    }
}

/// The result of opening a listener.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) file: Option<UnixFile>,
    pub(crate) name: Option<SockName>,
    /// The reason why it cannot be the first of a group, if it was to be.
    pub(crate) alone: Option<String>,
    /// Whether another process has it open, too.
    pub(crate) given: bool,
    /// Its options when this process got it, if it existed before.
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

/// Opens a listener for a worker, with the worker's rights to files. Inherited sockets take
/// precedence over new ones.
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
    let is_common = given && spec.exclusive;
    let grouped = spec.group && !is_common;
    let founded = if grouped { group::found(&fd) } else { Ok(()) };
    if let Some(backlog) = spec.listen {
        socket::listen(&fd, backlog)?;
    }
    let alone = founded.and_then(|()| if grouped { try_group(&fd, given) } else { Ok(()) }).err();
    let alone = alone
        .map(|e| format!("the kernel does not let this socket be steered ({e}), so its connections are handed over in turn"));
    let alone = alone.or_else(|| {
        (spec.group && is_common).then(|| "another process has this socket, too".into())
    });
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
        // Offered sockets exist already.
        Bind::Fd { .. } => return Err(invalid()),
    })
}

/// Binds a Unix socket at a path that a worker has chosen: where the worker itself could bind it,
/// or where the configuration allows it.
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

/// Returns the errno of an error, for a worker.
pub(crate) fn errno(error: &io::Error) -> i32 {
    let other = match error.kind() {
        io::ErrorKind::PermissionDenied => rustix::io::Errno::ACCESS,
        _ => rustix::io::Errno::INVAL,
    };
    error.raw_os_error().unwrap_or(other.raw_os_error())
}

/// Returns the reason why a path was refused, if the operator must know it, and not only the
/// worker.
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

/// Whether other sockets can join this one in a group with a program.
fn try_group(fd: &OwnedFd, given: bool) -> io::Result<()> {
    if given || matches!(socket::kind(fd), Ok(Kind::Udp { .. })) {
        // An inherited socket may belong to another process. A UDP socket takes no program outside
        // of a group.
        return group::sibling(fd.as_fd()).map(drop);
    }
    // "Return 0".
    group::steer(fd.as_fd(), &[Instruction { code: 6, jump_true: 0, jump_false: 0, operand: 0 }])
}
