//! The sockets that a primary opens for listeners, and how they follow from a `queryServer`
//! request.

use serde::{Deserialize, Serialize};

use crate::event::{Address, AddressType};
use crate::policy::Scheduling;
use crate::wire::incoming::ClusterMessage;

/// A socket to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindSpec {
    /// Where.
    pub target: Bind,
    /// The length of the accept queue; `None` if the socket must not listen yet (the workers do
    /// that on a shared one), or is UDP.
    pub listen: Option<u32>,
    /// It is to be the founder of a group of sockets, on which the primary accepts itself, or else
    /// [`Primary::cannot_steer`](super::Primary::cannot_steer) is to be called.
    pub group: bool,
    /// The length of the accept queue that was asked for, also where the workers listen themselves.
    pub backlog: u32,
}

/// A listening or bound socket of the primary's that workers may listen on by its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// The number by which workers know it.
    pub number: i32,
    /// Where it is bound, if that is known.
    pub at: Option<Address>,
}

/// Where a listener is.
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
        /// Everybody may read (`readableAll`).
        readable_all: bool,
        /// Everybody may write (`writableAll`).
        writable_all: bool,
        /// The configuration names this very path (`may_listen`), so the primary binds there also
        /// where its workers could not.
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
    /// A descriptor that the primary has inherited or opened.
    Fd {
        /// Its number.
        fd: i32,
        /// Whether it must be a UDP socket.
        udp: bool,
    },
}

/// What to bind for a question; `None` if the question makes no sense.
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
        // As the kernel takes a negative length.
        n => u32::try_from(n).unwrap_or(u32::MAX),
    };
    let udp = matches!(target, Bind::Udp { .. } | Bind::Fd { udp: true, .. });
    let group = matches!(scheduling, Scheduling::Steered(_));
    // The number in a group is given when the socket begins to listen, so that is not left to the
    // workers.
    Some(BindSpec {
        target,
        listen: (!udp && *scheduling != Scheduling::Shared).then_some(backlog),
        group,
        backlog,
    })
}
