//! Parses lines. All input is untrusted: each field is checked.

mod fields;
mod numbers;

use std::borrow::Cow;

use memchr::memchr2_iter;
use serde_json::value::RawValue;

use crate::event::{AddressType, Violation};
use crate::wire::frame::FrameError;
use fields::{Text, address_type, amount, backlog, port, present, truthy};

pub use numbers::Numbers;
use numbers::number;

pub(super) use head::is_our_cmd;
use head::{head, may_be_internal};

/// Maximum nesting of JSON, the same as that of serde_json.
pub const MAX_DEPTH: usize = 127;

/// Maximum length of an internal message, in bytes. Messages of programs may be longer, also with a
/// descriptor.
pub const MAX_PROTOCOL_LINE: usize = 128 * 1024;

/// Maximum number of characters of a reason, which may quote the worker's message.
const MAX_REASON: usize = 200;

/// A parsed line.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// `NODE_HANDLE_ACK`: the peer has the descriptor.
    HandleAck,
    /// `NODE_HANDLE_NACK`: the descriptor did not reach the peer.
    HandleNack,
    /// A message wrapped around a descriptor. Parse `body` again; the descriptor is the line's.
    Handle(Wrapped<'a>),
    /// A `NODE_CLUSTER` message: an `ack`, an `act`, or both.
    Cluster(Box<ClusterMessage<'a>>),
    /// A reply to `newconn`, by far the most frequent message.
    Answer {
        /// The `seq` of the `newconn`.
        ack: u64,
        /// Whether the worker has accepted it.
        accepted: bool,
    },
    /// A message between troop peers.
    Troop(TroopMessage<'a>),
    /// A Node peer requests the number of open sockets of its server.
    SocketGetCount(Cow<'a, str>),
    /// A Node peer requests a notification when all sockets of its server are closed.
    SocketNotifyClose(Cow<'a, str>),
    /// An internal message of an unknown kind, which is ignored, as in Node.
    Unknown,
    /// A message of the program, valid JSON.
    User(&'a str),
}

impl Incoming<'_> {
    /// Whether it changes nothing but what is known of connections. A state that is written down for
    /// another shell, in case this one is killed, is not written anew for it.
    #[must_use]
    pub fn is_of_connections(&self) -> bool {
        matches!(
            self,
            Incoming::Answer { .. }
                | Incoming::HandleAck
                | Incoming::HandleNack
                | Incoming::Unknown
                | Incoming::Troop(
                    TroopMessage::Taken { .. }
                        | TroopMessage::Load { .. }
                        | TroopMessage::Counted { .. }
                )
        )
    }
}

/// A `NODE_HANDLE` line.
#[derive(Debug)]
pub struct Wrapped<'a> {
    /// Node's type name, such as `net.Socket`.
    pub kind: Cow<'a, str>,
    /// The sender's key of the server that the socket belongs to.
    pub key: Option<Cow<'a, str>>,
    /// The message inside, valid JSON.
    pub body: &'a [u8],
}

/// A message between troop peers.
#[derive(Debug)]
pub enum TroopMessage<'a> {
    /// Connections for a worker; as many descriptors come with the line.
    Conns {
        /// The key of the listener.
        key: Cow<'a, str>,
        /// The number of each connection.
        seqs: Vec<u64>,
    },
    /// Connections that a worker's program has taken, and those that it returns.
    Taken {
        /// Taken by the program.
        taken: Numbers<'a>,
        /// Returned unread.
        returned: Numbers<'a>,
        /// Number of open connections of the worker.
        open: Option<u32>,
    },
    /// The load of a worker.
    Load {
        /// Number of its open connections.
        open: Option<u32>,
        /// Its load, in its own unit. Any program may send this:
        /// `process.send({cmd: 'NODE_TROOP', act: 'load', load: 12})`.
        load: Option<u32>,
    },
    /// A connection between two requests, for another worker; its descriptor comes with the line.
    Move {
        /// The listener that it came from, by the key of the primary's answer.
        key: Cow<'a, str>,
        /// Whether a request was answered on it, which a Node worker that receives it has to know.
        kept: bool,
    },
    /// A Node worker has troop's script, which moves idle connections on
    /// [`leave`](super::outgoing::leave).
    Moves,
    /// The primary has a worker count the connections of a listener that could move.
    Count {
        /// The key of the listener.
        key: Cow<'a, str>,
    },
    /// A worker's answer to [`Count`](TroopMessage::Count).
    Counted {
        /// The key of the listener.
        key: Cow<'a, str>,
        /// Number of its open connections.
        open: u32,
    },
    /// The primary asks a worker to return connections of a listener, idle ones first.
    Rebalance {
        /// The key of the listener.
        key: Cow<'a, str>,
        /// How many at most.
        count: u32,
    },
    /// Such a worker has moved the connections that were idle when it was told to leave.
    Moved,
    /// A server in such a worker limits its connections (`maxConnections`).
    Limited {
        /// Its listener, by the key of the primary's answer.
        key: Cow<'a, str>,
    },
    /// The program of a Node worker with that script has a handler for the stop signal that
    /// `disconnect` named, and the script sends it.
    Raises,
    /// The primary requests the return of connections that were not taken.
    Recall(Vec<u64>),
    /// The primary sets the minimum interval between two [`Load`](TroopMessage::Load)s, in
    /// milliseconds.
    Report(u64),
    /// A message of a newer version.
    Unknown,
}

/// A `NODE_CLUSTER` message. Absent fields are `None`.
#[derive(Debug, Default)]
pub struct ClusterMessage<'a> {
    /// The kind of the message.
    pub act: Option<Act>,
    /// The `seq` of the message that this one answers.
    pub ack: Option<i64>,
    /// The sender's number for this message.
    pub seq: Option<u64>,
    /// Answer to `newconn`.
    pub accepted: Option<bool>,
    /// The key of the listener.
    pub key: Option<Cow<'a, str>>,
    /// Negative error number of a reply.
    pub errno: Option<i32>,
    /// `queryServer`: the index among the worker's servers on this address.
    pub index: Option<u32>,
    /// Opaque data that is echoed in every reply (TLS ticket keys).
    pub data: Option<&'a RawValue>,
    /// IP, path or nothing.
    pub address: Option<Cow<'a, str>>,
    /// Port.
    pub port: Option<i64>,
    /// Family.
    pub address_type: Option<AddressType>,
    /// Descriptor of the primary, or -1.
    pub fd: Option<i64>,
    /// TCP or UDP flags.
    pub flags: Option<u32>,
    /// Length of the accept queue.
    pub backlog: Option<i64>,
    /// Unix path: whether all users may read.
    pub readable_all: bool,
    /// Unix path: whether all users may write.
    pub writable_all: bool,
    /// Where the listener is bound (replies).
    pub sockname: Option<Bound<'a>>,
    /// The version of a troop worker, in `online`.
    pub troop: Option<u32>,
    /// `disconnect`: the drain spread in milliseconds.
    pub drain_spread: Option<u64>,
    /// `disconnect`: the primary gives connections that are between two requests to other workers.
    pub moves: bool,
}

/// The `sockname` of a reply.
#[derive(Debug, serde::Deserialize)]
pub struct Bound<'a> {
    /// The IP address.
    #[serde(borrow)]
    pub address: Cow<'a, str>,
    /// The port.
    pub port: u16,
}

/// The kind of a `NODE_CLUSTER` message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Worker: it runs.
    Online,
    /// Worker: it wants a listener.
    QueryServer,
    /// Worker: its server listens.
    Listening,
    /// Worker: it closed a server.
    Close,
    /// Worker: it disconnects by itself.
    ExitedAfterDisconnect,
    /// Primary: a connection.
    Newconn,
    /// Primary: disconnect.
    Disconnect,
    /// Something else, ignored.
    Unknown,
}

impl From<FrameError> for Violation {
    fn from(e: FrameError) -> Violation {
        match e {
            FrameError::TooLong(limit) => Violation::TooLong(limit),
        }
    }
}

/// Parses one line (or the body of a [`Wrapped`] one).
///
/// # Errors
/// The [`Violation`] of the protocol.
pub fn parse(line: &[u8]) -> Result<Incoming<'_>, Violation> {
    if line == br#"{"cmd":"NODE_HANDLE_ACK"}"# {
        return Ok(Incoming::HandleAck);
    }
    if let Some(answer) = parse_answer(line).or_else(|| parse_taken(line)) {
        return Ok(answer);
    }
    let is_long = line.len() > MAX_PROTOCOL_LINE;
    if too_deep(line) {
        return Err(Violation::TooDeep(MAX_DEPTH));
    }
    if !line.starts_with(br#"{"cmd":"NODE_"#) {
        // Validates, without building anything.
        let raw: &RawValue = serde_json::from_slice(line).map_err(|_| Violation::NotJson)?;
        if !may_be_internal(line) || !head(line)?.is_some_and(|head| head.is_internal()) {
            return Ok(Incoming::User(raw.get()));
        }
    }
    // A handle may carry any message of a program.
    if is_long
        && head(line)?
            .is_some_and(|head| head.is_ours() && head.cmd.as_deref() != Some(b"NODE_HANDLE"))
    {
        return Err(Violation::TooLong(MAX_PROTOCOL_LINE));
    }
    let fields: Fields<'_> = match serde_json::from_slice(line) {
        Ok(fields) => fields,
        Err(e) if e.classify() != serde_json::error::Category::Data => {
            return Err(Violation::NotJson);
        }
        // The rest of the line may be invalid too: all of it must be JSON before another parser
        // reads it.
        Err(e) => match head(line)? {
            // Unknown messages may have fields of any type.
            Some(head) if head.times == 1 && !head.is_ours() => return Ok(Incoming::Unknown),
            _ => {
                return Err(Violation::Malformed(e.to_string().chars().take(MAX_REASON).collect()));
            }
        },
    };
    match &*fields.cmd.0 {
        "NODE_" => std::str::from_utf8(line).map(Incoming::User).map_err(|_| Violation::NotJson),
        "NODE_CLUSTER" => fields.cluster(),
        "NODE_HANDLE" => fields.handle(),
        "NODE_HANDLE_ACK" => Ok(Incoming::HandleAck),
        "NODE_HANDLE_NACK" => Ok(Incoming::HandleNack),
        "NODE_TROOP" => Ok(Incoming::Troop(fields.troop_message()?)),
        "NODE_SOCKET_GET_COUNT" => {
            Ok(fields.key.map_or(Incoming::Unknown, |key| Incoming::SocketGetCount(key.0)))
        }
        "NODE_SOCKET_NOTIFY_CLOSE" => {
            Ok(fields.key.map_or(Incoming::Unknown, |key| Incoming::SocketNotifyClose(key.0)))
        }
        _ => Ok(Incoming::Unknown),
    }
}

/// Fast path for `{"cmd":"NODE_CLUSTER","ack":7,"accepted":true,"seq":3}`, exactly as Node writes
/// it.
#[inline]
fn parse_answer<'a>(line: &[u8]) -> Option<Incoming<'a>> {
    let (ack, rest) = number(line.strip_prefix(br#"{"cmd":"NODE_CLUSTER","ack":"#)?)?;
    let rest = rest.strip_prefix(br#","accepted":"#)?;
    let (accepted, rest) = if let Some(rest) = rest.strip_prefix(b"true") {
        (true, rest)
    } else {
        (false, rest.strip_prefix(b"false")?)
    };
    let rest = rest.strip_prefix(br#","seq":"#)?;
    let (last, digits) = rest.split_last()?;
    (*last == b'}' && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
        .then_some(Incoming::Answer { ack, accepted })
}

/// Fast path for the reply of a troop worker that returns nothing:
/// `{"cmd":"NODE_TROOP","act":"taken","taken":[7,8],"open":2}`, exactly as it is written by
/// [`taken`](super::outgoing::taken).
#[inline]
fn parse_taken(line: &[u8]) -> Option<Incoming<'_>> {
    if line.len() > MAX_PROTOCOL_LINE {
        return None;
    }
    let mut rest = line.strip_prefix(br#"{"cmd":"NODE_TROOP","act":"taken","taken":["#)?;
    let numbers = rest;
    let taken = loop {
        let (_, after) = number(rest)?;
        match after.split_first()? {
            (b',', after) => rest = after,
            (b']', behind) => {
                rest = behind;
                break &numbers[..numbers.len() - after.len()];
            }
            _ => return None,
        }
    };
    let open = match rest.strip_prefix(br#","open":"#) {
        None => None,
        Some(after) => {
            let (open, after) = number(after)?;
            rest = after;
            Some(u32::try_from(open).ok()?)
        }
    };
    (rest == b"}").then_some(Incoming::Troop(TroopMessage::Taken {
        taken: Numbers::in_text(taken),
        returned: Numbers::default(),
        open,
    }))
}

/// The number of opening brackets is an upper bound of the nesting and cheap to count; only if it
/// is too high, the line is scanned with its strings.
fn too_deep(line: &[u8]) -> bool {
    if line.len() <= MAX_DEPTH
        || memchr2_iter(b'{', b'[', line).take(MAX_DEPTH + 1).count() <= MAX_DEPTH
    {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in line {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    cmd: Text<'a>,
    #[serde(borrow, default)]
    act: Option<Text<'a>>,
    #[serde(default)]
    ack: Option<i64>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    accepted: Option<bool>,
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(default)]
    errno: Option<i32>,
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    address: Option<Text<'a>>,
    #[serde(default, deserialize_with = "port")]
    port: Option<i64>,
    #[serde(default, deserialize_with = "address_type")]
    address_type: Option<AddressType>,
    #[serde(default)]
    fd: Option<i64>,
    #[serde(default)]
    flags: Option<u32>,
    #[serde(default, deserialize_with = "backlog")]
    backlog: Option<i64>,
    #[serde(default, deserialize_with = "truthy")]
    readable_all: Option<bool>,
    #[serde(default, deserialize_with = "truthy")]
    writable_all: Option<bool>,
    #[serde(borrow, default)]
    sockname: Option<Bound<'a>>,
    #[serde(default)]
    troop: Option<u32>,
    #[serde(default)]
    drain_spread: Option<u64>,
    #[serde(default, deserialize_with = "truthy")]
    moves: Option<bool>,
    #[serde(default, deserialize_with = "truthy")]
    kept: Option<bool>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    msg: Option<&'a RawValue>,
    #[serde(default)]
    seqs: Option<Vec<u64>>,
    #[serde(default)]
    taken: Option<Vec<u64>>,
    #[serde(default)]
    returned: Option<Vec<u64>>,
    #[serde(default)]
    open: Option<u32>,
    #[serde(default, deserialize_with = "amount")]
    load: Option<u32>,
    #[serde(default, deserialize_with = "amount")]
    every: Option<u32>,
    #[serde(default, deserialize_with = "amount")]
    count: Option<u32>,
}

impl<'a> Fields<'a> {
    fn cluster(self) -> Result<Incoming<'a>, Violation> {
        let act = self.act.map(|act| match &*act.0 {
            "online" => Act::Online,
            "queryServer" => Act::QueryServer,
            "listening" => Act::Listening,
            "close" => Act::Close,
            "exitedAfterDisconnect" => Act::ExitedAfterDisconnect,
            "newconn" => Act::Newconn,
            "disconnect" => Act::Disconnect,
            _ => Act::Unknown,
        });
        Ok(Incoming::Cluster(Box::new(ClusterMessage {
            act,
            ack: self.ack,
            seq: self.seq,
            accepted: self.accepted,
            key: self.key.map(|t| t.0),
            errno: self.errno,
            index: self.index,
            data: self.data,
            address: self.address.map(|t| t.0),
            port: self.port,
            address_type: self.address_type,
            fd: self.fd,
            flags: self.flags,
            backlog: self.backlog,
            readable_all: self.readable_all.unwrap_or(false),
            writable_all: self.writable_all.unwrap_or(false),
            sockname: self.sockname,
            troop: self.troop,
            drain_spread: self.drain_spread,
            moves: self.moves.unwrap_or(false),
        })))
    }

    fn handle(self) -> Result<Incoming<'a>, Violation> {
        let (Some(kind), Some(msg)) = (self.kind, self.msg) else {
            return Err(Violation::Malformed("NODE_HANDLE without type or msg".into()));
        };
        // A Node sender that retransmits wraps the wrapped message once more.
        if msg.get().starts_with(r#"{"cmd":"NODE_HANDLE","#)
            && let Ok(inner) = serde_json::from_str::<Fields<'a>>(msg.get())
            && let (Some(kind), Some(msg)) = (inner.kind, inner.msg)
        {
            return Ok(Incoming::Handle(Wrapped {
                kind: kind.0,
                key: inner.key.map(|t| t.0),
                body: msg.get().as_bytes(),
            }));
        }
        Ok(Incoming::Handle(Wrapped {
            kind: kind.0,
            key: self.key.map(|t| t.0),
            body: msg.get().as_bytes(),
        }))
    }

    fn troop_message(self) -> Result<TroopMessage<'a>, Violation> {
        let missing = |what: &str| Violation::Malformed(format!("NODE_TROOP without {what}"));
        Ok(match self.act.as_ref().map(|t| &*t.0) {
            Some("conns") => TroopMessage::Conns {
                key: self.key.ok_or_else(|| missing("key"))?.0,
                seqs: self.seqs.ok_or_else(|| missing("seqs"))?,
            },
            Some("taken") => {
                let (taken, returned) =
                    (self.taken.unwrap_or_default(), self.returned.unwrap_or_default());
                TroopMessage::Taken {
                    taken: taken.into(),
                    returned: returned.into(),
                    open: self.open,
                }
            }
            Some("load") => TroopMessage::Load { open: self.open, load: self.load },
            Some("move") => TroopMessage::Move {
                key: self.key.ok_or_else(|| missing("key"))?.0,
                kept: self.kept.unwrap_or(false),
            },
            Some("moves") => TroopMessage::Moves,
            Some("moved") => TroopMessage::Moved,
            Some("limited") => {
                TroopMessage::Limited { key: self.key.ok_or_else(|| missing("key"))?.0 }
            }
            Some("count") => TroopMessage::Count { key: self.key.ok_or_else(|| missing("key"))?.0 },
            Some("counted") => TroopMessage::Counted {
                key: self.key.ok_or_else(|| missing("key"))?.0,
                open: self.open.unwrap_or(0),
            },
            Some("rebalance") => TroopMessage::Rebalance {
                key: self.key.ok_or_else(|| missing("key"))?.0,
                count: self.count.unwrap_or(0),
            },
            Some("raises") => TroopMessage::Raises,
            Some("recall") => TroopMessage::Recall(self.seqs.ok_or_else(|| missing("seqs"))?),
            Some("report") => {
                TroopMessage::Report(self.every.ok_or_else(|| missing("every"))?.into())
            }
            _ => TroopMessage::Unknown,
        })
    }
}

mod head;
#[cfg(test)]
mod tests;
