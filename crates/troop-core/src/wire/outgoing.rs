//! Writes lines as Node writes them. Every function appends one whole line, newline included.

use std::io::Write as _;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The bound address of a listener, in the format of `net.Server.address()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SockName {
    /// The IP address.
    pub address: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The port.
    pub port: u16,
}

impl<'de> Deserialize<'de> for SockName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SockName, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            address: String,
            family: String,
            port: u16,
        }
        let Written { address, family, port } = Written::deserialize(deserializer)?;
        let family = if family == "IPv6" { "IPv6" } else { "IPv4" };
        Ok(SockName { address, family, port })
    }
}

/// A primary's reply to `queryServer`.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The listener's key.
    pub key: &'a str,
    /// The `seq` of the request.
    pub ack: u64,
    /// Negative for an error, `None` or 0 for success.
    pub errno: Option<i32>,
    /// The data of the first request, unchanged.
    pub data: Option<&'a RawValue>,
    /// The bound address, for listeners whose connections are handed over.
    pub sockname: Option<&'a SockName>,
    /// The version of a troop primary, for a troop worker.
    pub troop: Option<u32>,
    /// The number of this message.
    pub seq: u64,
}

impl Serialize for Reply<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The fields in Node's order.
        #[derive(Serialize)]
        struct Fields<'a> {
            cmd: &'static str,
            errno: Option<i32>,
            key: &'a str,
            ack: u64,
            data: Option<&'a RawValue>,
            #[serde(skip_serializing_if = "Option::is_none")]
            sockname: Option<&'a SockName>,
            seq: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            troop: Option<u32>,
        }
        let Reply { key, ack, errno, data, sockname, troop, seq } = *self;
        Fields { cmd: "NODE_CLUSTER", errno, key, ack, data, sockname, seq, troop }
            .serialize(serializer)
    }
}

fn put(out: &mut Vec<u8>, args: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(args);
}

/// The line that acknowledges a received descriptor.
pub const HANDLE_ACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";
/// The line that reports that an announced descriptor did not arrive.
pub const HANDLE_NACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_NACK\"}\n";

/// Writes the reply to `queryServer` without a descriptor.
pub fn reply(out: &mut Vec<u8>, reply: &Reply<'_>) {
    json(out, reply);
}

/// Writes the reply to `queryServer` that carries the shared socket. `kind` is `net.Native` or
/// `dgram.Native`.
pub fn reply_with_handle(out: &mut Vec<u8>, kind: &str, reply: &Reply<'_>) {
    put(out, format_args!("{{\"cmd\":\"NODE_HANDLE\",\"type\":\"{kind}\",\"msg\":"));
    json(out, reply);
    out.pop();
    out.extend_from_slice(b"}\n");
}

/// Writes a connection for a Node worker. `key` must be JSON (quoted and escaped). `kept` tells
/// troop's script in the worker that another worker has answered on it before; Node ignores it.
#[inline]
pub fn newconn(out: &mut Vec<u8>, key: &str, seq: u64, kept: bool) {
    out.extend_from_slice(
        b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\"key\":",
    );
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b",\"seq\":");
    number(out, seq);
    if kept {
        out.extend_from_slice(b",\"kept\":true");
    }
    out.extend_from_slice(b"}}\n");
}

/// Writes connections for a troop worker, whose descriptors accompany the line in the order of
/// `seqs`. `key` must be JSON.
pub fn conns(out: &mut Vec<u8>, key: &str, seqs: &[u64]) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"conns\",\"key\":");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b",\"seqs\":");
    numbers(out, seqs);
    out.extend_from_slice(b"}\n");
}

/// Writes a troop worker's reply to [`conns`]: the connections that its program has taken, those
/// that it returns, and the number of open ones, for primaries that use it.
pub fn taken(out: &mut Vec<u8>, taken: &[u64], returned: &[u64], open: Option<u32>) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"taken\",\"taken\":");
    numbers(out, taken);
    if !returned.is_empty() {
        out.extend_from_slice(b",\"returned\":");
        numbers(out, returned);
    }
    if let Some(open) = open {
        out.extend_from_slice(b",\"open\":");
        number(out, open.into());
    }
    out.extend_from_slice(b"}\n");
}

/// Writes a worker's report of its open connections, and of its load in its own unit.
pub fn load(out: &mut Vec<u8>, open: u32, load: Option<u32>) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"load\",\"open\":");
    number(out, open.into());
    if let Some(load) = load {
        out.extend_from_slice(b",\"load\":");
        number(out, load.into());
    }
    out.extend_from_slice(b"}\n");
}

/// Writes the minimum interval between two [`load`]s of a troop worker, in milliseconds.
pub fn report(out: &mut Vec<u8>, every: u64) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"report\",\"every\":");
    number(out, every);
    out.extend_from_slice(b"}\n");
}

/// Writes the request that a troop worker return connections that its program has not taken.
pub fn recall(out: &mut Vec<u8>, seqs: &[u64]) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"recall\",\"seqs\":");
    numbers(out, seqs);
    out.extend_from_slice(b"}\n");
}

/// Writes a Node worker's reply to `newconn`.
pub fn accepted(out: &mut Vec<u8>, ack: u64, accepted: bool, seq: u64) {
    put(
        out,
        format_args!(
            "{{\"cmd\":\"NODE_CLUSTER\",\"ack\":{ack},\"accepted\":{accepted},\"seq\":{seq}}}\n"
        ),
    );
}

/// A worker gives a connection to the primary that is between two requests, for another worker. Its
/// descriptor goes with the line, and the answer is [`HANDLE_ACK`], or [`HANDLE_NACK`] if the worker
/// has to keep it. `key` is plain text.
pub fn move_connection(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(
        b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_TROOP\",\"act\":\"move\",\"key\":",
    );
    json_value(out, key);
    out.extend_from_slice(b"}}\n");
}

/// Tells troop's script in a Node worker, before [`disconnect`], that the worker is to leave: it
/// moves the idle connections of the listeners with these keys, and closes those that cannot move
/// over `spread` milliseconds.
pub fn leave(out: &mut Vec<u8>, keys: &[&str], spread: u64) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"leave\",\"keys\":");
    json_value(out, keys);
    put(out, format_args!(",\"spread\":{spread}}}\n"));
}

/// Has a worker count the connections of a listener that could move ([`counted`]).
pub fn count(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"count\",\"key\":");
    json_value(out, key);
    out.extend_from_slice(b"}\n");
}

/// Writes a worker's answer to [`count`].
pub fn counted(out: &mut Vec<u8>, key: &str, open: u32) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"counted\",\"key\":");
    json_value(out, key);
    put(out, format_args!(",\"open\":{open}}}\n"));
}

/// Asks a worker to return so many connections of a listener, idle ones first, by
/// [`move_connection`]: other workers have fewer.
pub fn rebalance(out: &mut Vec<u8>, key: &str, count: u32) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_TROOP\",\"act\":\"rebalance\",\"key\":");
    json_value(out, key);
    put(out, format_args!(",\"count\":{count}}}\n"));
}

/// The primary asks a worker to finish. For troop workers: over how many milliseconds they should
/// close connections that stay open, and whether the primary gives those between two requests to
/// other workers ([`move_connection`]). For troop's script in others: the signal that the program
/// gets if it has a handler for it, when its requests are answered or after so many milliseconds.
pub fn disconnect(
    out: &mut Vec<u8>,
    seq: u64,
    drain_spread: Option<u64>,
    moves: bool,
    stop: Option<(i32, u64)>,
) {
    put(out, format_args!("{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"disconnect\",\"seq\":{seq}"));
    if let Some(ms) = drain_spread {
        put(out, format_args!(",\"drainSpread\":{ms}"));
    }
    if moves {
        out.extend_from_slice(b",\"moves\":true");
    }
    if let Some((signal, ms)) = stop {
        put(out, format_args!(",\"stopSignal\":{signal},\"stopWithin\":{ms}"));
    }
    out.extend_from_slice(b"}\n");
}

/// Writes a plain acknowledgement.
pub fn ack(out: &mut Vec<u8>, ack: u64, seq: u64) {
    put(out, format_args!("{{\"cmd\":\"NODE_CLUSTER\",\"ack\":{ack},\"seq\":{seq}}}\n"));
}

/// Writes the first line of a troop worker; Node ignores the last field.
pub fn online(out: &mut Vec<u8>, seq: u64) {
    let version = super::TROOP_VERSION;
    put(
        out,
        format_args!(
            "{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"online\",\"seq\":{seq},\"troop\":{version}}}\n"
        ),
    );
}

/// Writes that a worker has closed a server. `key` is plain text.
pub fn close(out: &mut Vec<u8>, key: &str, seq: u64) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"close\",\"key\":");
    json_value(out, key);
    put(out, format_args!(",\"seq\":{seq}}}\n"));
}

/// Writes that a worker disconnects by itself.
pub fn exited_after_disconnect(out: &mut Vec<u8>, seq: u64) {
    put(
        out,
        format_args!(
            "{{\"cmd\":\"NODE_CLUSTER\",\"act\":\"exitedAfterDisconnect\",\"seq\":{seq}}}\n"
        ),
    );
}

/// The fields of `queryServer` and `listening`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Question<'a> {
    /// The index among its servers on this address, from 0.
    pub index: u32,
    /// Always null here; TLS servers of Node send their ticket keys.
    pub data: Option<()>,
    /// An IP, an absolute path, or null.
    pub address: Option<&'a str>,
    /// The port, -1 for paths, null for a descriptor.
    pub port: Option<i64>,
    /// 4, 6, -1, null, `"udp4"` or `"udp6"`.
    pub address_type: serde_json::Value,
    /// The descriptor, for `listen({fd})`; -1 for UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i64>,
    /// TCP: 1 is `IPV6_V6ONLY`. UDP: 1 is `IPV6_V6ONLY`, 4 is `SO_REUSEADDR`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
    /// Length of the accept queue, 0 for the default of 511.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u32>,
}

/// `queryServer` or `listening`.
pub fn question(out: &mut Vec<u8>, act: &'static str, question: &Question<'_>, seq: u64) {
    #[derive(Serialize)]
    struct Full<'a> {
        cmd: &'static str,
        act: &'static str,
        #[serde(flatten)]
        question: &'a Question<'a>,
        seq: u64,
    }
    json(out, &Full { cmd: "NODE_CLUSTER", act, question, seq });
}

/// Writes a user message that carries a socket. `kind` is that of Node's table, `body` is JSON
/// without newline.
pub fn user_handle(out: &mut Vec<u8>, kind: HandleKind, body: &[u8]) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"");
    out.extend_from_slice(kind.name().as_bytes());
    match kind {
        HandleKind::Dgram { ipv6 } => {
            out.extend_from_slice(if ipv6 {
                b"\",\"dgramType\":\"udp6\",\"msg\":"
            } else {
                b"\",\"dgramType\":\"udp4\",\"msg\":"
            });
        }
        _ => out.extend_from_slice(b"\",\"msg\":"),
    }
    out.extend_from_slice(body);
    out.extend_from_slice(b"}\n");
}

/// Writes the number of open sockets of a Node peer's server (`server.getConnections`).
pub fn socket_count(out: &mut Vec<u8>, key: &str, count: usize) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_SOCKET_COUNT\",\"key\":");
    json_value(out, key);
    put(out, format_args!(",\"count\":{count}}}\n"));
}

/// Writes that all sockets of a Node peer's server are closed, so that its `server.close()`
/// completes.
pub fn socket_all_closed(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b"{\"cmd\":\"NODE_SOCKET_ALL_CLOSED\",\"key\":");
    json_value(out, key);
    out.extend_from_slice(b"}\n");
}

/// The kinds of socket a program may send, by Node's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleKind {
    /// A connected stream.
    Socket,
    /// A listening stream socket.
    Server,
    /// A raw handle of either stream kind.
    Native,
    /// A UDP socket.
    Dgram {
        /// Whether its family is IPv6.
        ipv6: bool,
    },
}

impl HandleKind {
    fn name(self) -> &'static str {
        match self {
            HandleKind::Socket => "net.Socket",
            HandleKind::Server => "net.Server",
            HandleKind::Native => "net.Native",
            HandleKind::Dgram { .. } => "dgram.Socket",
        }
    }
}

/// Returns `text` as a JSON string.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = Vec::new();
    json_value(&mut out, text);
    String::from_utf8(out).unwrap_or_default()
}

fn json<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    json_value(out, value);
    out.push(b'\n');
}

fn json_value<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // None of the types above can fail to serialise: no maps with odd keys, no failing Serialize.
    let _ = serde_json::to_writer(out, value);
}

#[inline]
fn number(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn numbers(out: &mut Vec<u8>, all: &[u64]) {
    out.push(b'[');
    for (i, n) in all.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        number(out, *n);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(f: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        f(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_the_ones_node_writes() {
        let name = SockName { address: "::".into(), family: "IPv6", port: 18080 };
        let answer = Reply {
            key: "k",
            ack: 1,
            errno: None,
            data: None,
            sockname: None,
            troop: None,
            seq: 0,
        };
        assert_eq!(
            written(|o| reply(
                o,
                &Reply { key: "null:18080:4:undefined:0", sockname: Some(&name), ..answer }
            )),
            "{\"cmd\":\"NODE_CLUSTER\",\"errno\":null,\"key\":\"null:18080:4:undefined:0\",\"ack\":1,\"data\":null,\
             \"sockname\":{\"address\":\"::\",\"family\":\"IPv6\",\"port\":18080},\"seq\":0}\n"
        );
        assert_eq!(
            written(|o| reply(o, &Reply { errno: Some(-98), ..answer })),
            "{\"cmd\":\"NODE_CLUSTER\",\"errno\":-98,\"key\":\"k\",\"ack\":1,\"data\":null,\"seq\":0}\n"
        );
        assert_eq!(
            written(|o| reply_with_handle(o, "net.Native", &Reply { errno: Some(0), ..answer })),
            "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"errno\":0,\"key\":\"k\",\"ack\":1,\
             \"data\":null,\"seq\":0}}\n"
        );
        assert_eq!(
            written(|o| newconn(o, &quote("null:18080:4:undefined:0"), 1, false)),
            "{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"act\":\"newconn\",\
             \"key\":\"null:18080:4:undefined:0\",\"seq\":1}}\n"
        );
        let asked = Question {
            index: 0,
            data: None,
            address: None,
            port: Some(18080),
            address_type: 4.into(),
            fd: None,
            flags: None,
            backlog: Some(0),
        };
        assert_eq!(
            written(|o| question(o, "queryServer", &asked, 1)),
            "{\"cmd\":\"NODE_CLUSTER\",\"act\":\"queryServer\",\"index\":0,\"data\":null,\"address\":null,\"port\":18080,\
             \"addressType\":4,\"backlog\":0,\"seq\":1}\n"
        );
    }

    #[test]
    fn numbers_are_written_whole() {
        assert_eq!(written(|o| numbers(o, &[0, 10, u64::MAX])), "[0,10,18446744073709551615]");
    }
}
