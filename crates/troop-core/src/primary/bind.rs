//! The sockets of listeners, and how they follow from a `queryServer` request.

use serde::{Deserialize, Serialize};

use crate::event::{Address, AddressType};
use crate::policy::Scheduling;
use crate::wire::incoming::ClusterMessage;

/// A socket to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindSpec {
    /// The address.
    pub target: Bind,
    /// The length of the accept queue; `None` for UDP, and if the workers call `listen` themselves
    /// (shared sockets).
    pub listen: Option<u32>,
    /// Whether to make it the first socket of a group, on which the primary accepts itself. If that
    /// fails, the shell calls [`Primary::cannot_steer`](super::Primary::cannot_steer).
    pub group: bool,
    /// Whether the group must be of this process alone, so that a socket that another process has,
    /// too, is not made the first one of a group.
    pub exclusive: bool,
    /// The length of the accept queue that the worker asked for.
    pub backlog: u32,
}

/// A socket of the primary that workers may listen on by its descriptor number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Its number.
    pub number: i32,
    /// Its address, if it is known.
    pub at: Option<Address>,
}

/// The address to bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// TCP. Without an address: `::` for both families, or `0.0.0.0` where there is no IPv6.
    Tcp {
        /// An IP address.
        address: Option<String>,
        /// 0 lets the kernel choose.
        port: u16,
        /// `IPV6_V6ONLY`.
        ipv6_only: bool,
    },
    /// A Unix socket.
    Unix {
        /// Its absolute path.
        path: String,
        /// Whether all users may read (`readableAll`).
        readable_all: bool,
        /// Whether all users may write (`writableAll`).
        writable_all: bool,
        /// Whether the configuration names this path (`may_listen`), so that the primary binds it
        /// even if the workers' user could not.
        named: bool,
    },
    /// UDP.
    Udp {
        /// An IP address; the family's "any" if absent.
        address: Option<String>,
        /// 0 lets the kernel choose.
        port: u16,
        /// The family.
        ipv6: bool,
        /// `IPV6_V6ONLY`.
        ipv6_only: bool,
        /// `SO_REUSEADDR`.
        reuse_address: bool,
    },
    /// A descriptor that the primary inherited or opened.
    Fd {
        /// Its number.
        fd: i32,
        /// Whether it must be a UDP socket.
        udp: bool,
    },
}

/// Returns what to bind for a request; `None` if the request is invalid.
pub(super) fn bind_spec(
    message: &ClusterMessage<'_>,
    scheduling: &Scheduling,
    named: bool,
) -> Option<BindSpec> {
    let address = message.address.as_deref().map(str::to_owned);
    let flags = message.flags.unwrap_or(0);
    let port = |port: Option<i64>| port.and_then(|p| u16::try_from(p).ok());
    let kind = message.address_type?;
    let target = match (kind, message.fd) {
        (AddressType::Udp4 | AddressType::Udp6, Some(fd)) if fd >= 0 => {
            Bind::Fd { fd: i32::try_from(fd).ok()?, udp: true }
        }
        (AddressType::Udp4 | AddressType::Udp6, _) => Bind::Udp {
            address,
            port: port(message.port.or(Some(0)))?,
            ipv6: kind == AddressType::Udp6,
            ipv6_only: flags & 1 != 0,
            reuse_address: flags & 4 != 0,
        },
        (_, Some(fd)) if fd >= 0 => Bind::Fd { fd: i32::try_from(fd).ok()?, udp: false },
        (AddressType::Tcp4 | AddressType::Tcp6, _) => {
            Bind::Tcp { address, port: port(message.port)?, ipv6_only: flags & 1 != 0 }
        }
        (AddressType::Unix, _) => Bind::Unix {
            path: address.filter(|p| !p.is_empty())?,
            readable_all: message.readable_all,
            writable_all: message.writable_all,
            named,
        },
        (AddressType::Fd, _) => return None,
    };
    let backlog = match message.backlog.unwrap_or(0) {
        0 => 511,
        // The kernel reads a negative length as the largest one.
        n => u32::try_from(n).unwrap_or(u32::MAX),
    };
    let udp = matches!(target, Bind::Udp { .. } | Bind::Fd { udp: true, .. });
    let group = matches!(scheduling, Scheduling::Auto | Scheduling::Steered(_));
    // A socket gets its number in the group when it begins to listen, so the workers must not do
    // that.
    Some(BindSpec {
        target,
        listen: (!udp && *scheduling != Scheduling::Shared).then_some(backlog),
        group,
        exclusive: *scheduling == Scheduling::Auto,
        backlog,
    })
}
