//! Identifies a client by the first bytes of its connection: a PROXY header, a cookie or a query
//! parameter.

use std::net::IpAddr;

use memchr::memmem;
use ppp::{HeaderResult, PartialResult, v1, v2};

use super::partition::Mixer;
use super::scheduling::{Header, Http, Sticky};

/// Maximum number of headers of a request; with more, its cookie is not found.
const MAX_HEADERS: usize = 128;

/// The result of [`identify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// More bytes are needed.
    More,
    /// The identification is complete.
    Found {
        /// The client's number; `None` if it has no address either.
        client: Option<u32>,
        /// Number of bytes to remove from the connection before the hand-over.
        strip: usize,
    },
}

/// The input of [`identify`].
#[derive(Debug, Clone, Copy)]
pub struct Identify<'a> {
    /// The rules of the listener.
    pub sticky: &'a Sticky,
    /// The address of the peer.
    pub peer: Option<IpAddr>,
    /// The bytes that have arrived so far.
    pub bytes: &'a [u8],
    /// Whether these are the last bytes: after the timeout, at the end of the stream, or when the
    /// buffer is full.
    pub last: bool,
}

/// Identifies a client. Never fails: if the header, cookie or parameter is missing or malformed,
/// the address counts.
#[must_use]
pub fn identify(Identify { sticky, peer, bytes, last }: Identify<'_>) -> Finding {
    let (mut address, mut strip, mut rest) = (peer, 0, bytes);
    if let Some(header) = sticky.proxy {
        match proxied(bytes) {
            Proxied::Unfinished if !last => return Finding::More,
            Proxied::Header { length, source } => {
                address = source.or(peer);
                strip = if header == Header::Strip { length } else { 0 };
                rest = bytes.get(length..).unwrap_or_default();
            }
            Proxied::Unfinished | Proxied::None => {}
        }
    }
    let by_address = |ip| Mixer::default().address(ip, sticky.prefix4, sticky.prefix6).finish();
    let client = match sticky.http.as_ref().map(|http| marked(http, rest)) {
        Some(Mark::Unfinished) if !last => return Finding::More,
        Some(Mark::Value(value)) => Some(Mixer::default().text(value).finish()),
        _ => address.map(by_address),
    };
    Finding::Found { client, strip }
}

enum Proxied {
    None,
    Unfinished,
    Header { length: usize, source: Option<IpAddr> },
}

/// Prefix of a PROXY header of version 1.
const V1_PREFIX: &[u8] = b"PROXY ";
/// Maximum length of a PROXY header of version 1, with its CR and LF.
const MAX_V1: usize = 107;

fn proxied(bytes: &[u8]) -> Proxied {
    // Finds the end of a header of version 1 here, because the parser rejects some incomplete
    // headers and accepts a bare newline as the end.
    let bytes = if bytes.starts_with(V1_PREFIX) {
        match memmem::find(&bytes[..bytes.len().min(MAX_V1)], b"\r\n") {
            Some(at) => &bytes[..at + 2],
            None if bytes.len() < MAX_V1 => return Proxied::Unfinished,
            None => return Proxied::None,
        }
    } else {
        bytes
    };
    // The parser treats empty input as an incomplete header, and rejects other input as soon as it
    // cannot become one.
    match HeaderResult::parse(bytes) {
        header if header.is_incomplete() => Proxied::Unfinished,
        HeaderResult::V1(Ok(header)) => {
            let source = match header.addresses {
                v1::Addresses::Tcp4(ip) => Some(ip.source_address.into()),
                v1::Addresses::Tcp6(ip) => Some(ip.source_address.into()),
                v1::Addresses::Unknown => None,
            };
            Proxied::Header { length: header.header.len(), source }
        }
        HeaderResult::V2(Ok(header)) => {
            let source = match (header.command, header.addresses) {
                // A connection of the proxy itself, such as a health check.
                (v2::Command::Local, _) => None,
                (_, v2::Addresses::IPv4(ip)) => Some(ip.source_address.into()),
                (_, v2::Addresses::IPv6(ip)) => Some(ip.source_address.into()),
                _ => None,
            };
            Proxied::Header { length: header.len(), source }
        }
        _ => Proxied::None,
    }
}

enum Mark<'a> {
    None,
    Unfinished,
    Value(&'a [u8]),
}

fn marked<'a>(http: &Http, bytes: &'a [u8]) -> Mark<'a> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(status) = request.parse(bytes) else { return Mark::None };
    match http {
        Http::Query(name) => {
            let Some(path) = request.path else {
                return if status.is_partial() { Mark::Unfinished } else { Mark::None };
            };
            let query = path.split_once('?').map_or("", |(_, query)| query);
            pair(query.as_bytes(), b'&', name).map_or(Mark::None, Mark::Value)
        }
        Http::Cookie(_) if status.is_partial() => Mark::Unfinished,
        Http::Cookie(name) => {
            let cookies =
                request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("cookie"));
            cookies
                .filter_map(|header| pair(header.value, b';', name))
                .next()
                .map_or(Mark::None, Mark::Value)
        }
    }
}

/// Returns the value of `name` in a list of `name=value`.
fn pair<'a>(list: &'a [u8], separator: u8, name: &str) -> Option<&'a [u8]> {
    list.split(|byte| *byte == separator)
        .map(<[u8]>::trim_ascii)
        .find_map(|item| item.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sticky(text: &str) -> Sticky {
        let super::super::Scheduling::Sticky(sticky) = format!("sticky:{text}").parse().unwrap()
        else {
            panic!()
        };
        sticky
    }

    fn find(options: &str, bytes: &[u8], last: bool) -> Finding {
        identify(Identify {
            sticky: &sticky(options),
            peer: Some([10, 0, 0, 1].into()),
            bytes,
            last,
        })
    }

    fn address(ip: &str) -> Option<u32> {
        Some(Mixer::default().address(ip.parse().unwrap(), 32, 64).finish())
    }

    fn text(value: &[u8]) -> Option<u32> {
        Some(Mixer::default().text(value).finish())
    }

    /// Identifies a client by `bytes`, and checks that the result does not depend on how the bytes
    /// are split, and is complete as soon as all have arrived.
    fn found(options: &str, bytes: &[u8]) -> (Option<u32>, usize) {
        for cut in 0..bytes.len() {
            assert!(
                matches!(find(options, &bytes[..cut], true), Finding::Found { .. }),
                "it never waits beyond the end"
            );
        }
        match find(options, bytes, false) {
            Finding::Found { client, strip } => (client, strip),
            Finding::More => panic!("{options}: {} is not enough", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn a_proxy_header_identifies_the_client() {
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\nGET / HTTP/1.1\r\n";
        assert_eq!(found("proxy=pass", v1), (address("192.0.2.7"), 0));
        assert_eq!(found("proxy=strip", v1), (address("192.0.2.7"), 43));
        for header in
            [&v1[..43], b"PROXY TCP6 2001:db8::1 2001:db8::2 4000 80\r\n", b"PROXY UNKNOWN\r\n"]
        {
            for cut in 0..header.len() {
                let cut = &header[..cut];
                assert_eq!(
                    find("proxy=strip", cut, false),
                    Finding::More,
                    "{}",
                    String::from_utf8_lossy(cut)
                );
            }
        }
        for no_end in [
            &b"PROXY UNKNOWN \n"[..],
            b"PROXY UNKNOWN \nP\xc4HT",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\nGET",
        ] {
            assert_eq!(find("proxy=strip", no_end, false), Finding::More, "only CR and LF end it");
        }
        assert_eq!(found("proxy=strip", b"PROXY UNKNOWN\r\n"), (address("10.0.0.1"), 15));
        let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f".to_vec();
        v2.extend([203, 0, 113, 9, 198, 51, 100, 1, 0x10, 0, 0, 80]);
        v2.extend([4, 0, 0]);
        assert_eq!(found("proxy=strip", &v2), (address("203.0.113.9"), 31));
        v2[12] = 0x20;
        assert_eq!(
            found("proxy=strip", &v2),
            (address("10.0.0.1"), 31),
            "LOCAL is the proxy itself"
        );
        for cut in 0..v2.len() - 3 {
            assert_eq!(find("proxy=strip", &v2[..cut], false), Finding::More, "{cut} bytes");
        }
        let none = Finding::Found { client: address("10.0.0.1"), strip: 0 };
        assert_eq!(
            find("proxy=strip", b"GET / HTTP/1.1\r\n\r\n", false),
            none,
            "no header is no reason to wait"
        );
        assert_eq!(find("proxy=strip", b"PROXY TCP4 192.0.2.7", true), none);
        assert_eq!(find("proxy=strip", b"PROXY TCP9 nonsense\r\n", false), none);
    }

    #[test]
    fn a_cookie_or_a_query_parameter_identifies_the_client() {
        let request =
            b"GET /a?x=1&id=42&y=2 HTTP/1.1\r\nHost: x\r\ncookie: a=b; sid=abc; c=d\r\n\r\nbody";
        assert_eq!(found("cookie=sid", request), (text(b"abc"), 0));
        assert_eq!(found("query=id", request), (text(b"42"), 0));
        assert_eq!(found("query=id", &request[..31]), (text(b"42"), 0), "the first line is enough");
        assert_eq!(found("cookie=si", request), (address("10.0.0.1"), 0));
        assert_eq!(found("query=z", request), (address("10.0.0.1"), 0));
        assert_eq!(find("cookie=sid", &request[..60], false), Finding::More);
        for other in [
            &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0\0\0\0",
        ] {
            assert_eq!(
                found("cookie=sid", other),
                (address("10.0.0.1"), 0),
                "what is no HTTP/1 goes by the address"
            );
        }
        let behind = [&b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\n"[..], request].concat();
        assert_eq!(found("cookie=sid,proxy=strip", &behind), (text(b"abc"), 43));
        assert_eq!(found("cookie=none,proxy=pass", &behind), (address("192.0.2.7"), 0));
    }

    proptest::proptest! {
        #[test]
        fn anything_at_all_is_taken(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), http in 0..2) {
            let options = if http == 0 { "proxy=strip,cookie=a" } else { "proxy=pass,query=a" };
            let strip = match find(options, &bytes, true) {
                Finding::Found { strip, .. } => strip,
                Finding::More => panic!("it waits for ever"),
            };
            proptest::prop_assert!(strip <= bytes.len());
        }
    }
}
