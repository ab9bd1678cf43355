//! Whatever the cuts, the same lines come out with the same descriptors; whatever the bytes,
//! nothing panics.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use proptest::prelude::*;
use troop_core::wire::frame::{FrameError, FrameReader};
use troop_core::wire::incoming;

/// A line and how many descriptors are sent with it.
#[derive(Debug, Clone)]
struct Sent {
    text: Vec<u8>,
    handles: usize,
    /// How many bytes of the line the system call with the descriptors takes; the rest follows
    /// without.
    first_write: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    let text =
        prop::collection::vec(any::<u8>().prop_map(|b| if b == b'\n' { b' ' } else { b }), 0..40);
    (text, 0..4usize, 1..60usize).prop_map(|(text, handles, first_write)| Sent {
        text,
        handles,
        first_write,
    })
}

/// What one read brings.
#[derive(Debug, Default, PartialEq)]
struct Read {
    bytes: Vec<u8>,
    handles: Vec<u32>,
}

/// The bytes of one system call of the sender, which the kernel keeps together with its
/// descriptors.
struct Piece {
    bytes: Vec<u8>,
    handles: Vec<u32>,
}

/// Reads as Linux does: a read goes on from piece to piece until its buffer is full, or behind a
/// piece that has descriptors. These come with the first byte of their piece.
fn reads(pieces: Vec<Piece>, sizes: &[usize]) -> Vec<Read> {
    let mut out = Vec::new();
    let mut sizes = sizes.iter().copied().cycle();
    let mut pieces = pieces.into_iter().filter(|p| !p.bytes.is_empty()).peekable();
    while pieces.peek().is_some() {
        let (mut read, mut room) = (Read::default(), sizes.next().unwrap_or(1));
        while let Some(piece) = pieces.peek_mut() {
            let n = room.min(piece.bytes.len());
            read.bytes.extend(piece.bytes.drain(..n));
            room -= n;
            let had_handles = !piece.handles.is_empty();
            read.handles.append(&mut piece.handles);
            if piece.bytes.is_empty() {
                pieces.next();
            }
            if room == 0 || had_handles {
                break;
            }
        }
        out.push(read);
    }
    out
}

/// Lines as they are read, with their descriptors.
type Lines = Vec<(Vec<u8>, Vec<u32>)>;

/// Lines as they are sent: a line with descriptors in a system call of its own, perhaps cut short
/// by a full buffer.
fn pieces(lines: &[Sent]) -> (Vec<Piece>, Lines) {
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    let mut next = 0;
    for line in lines {
        let bytes = [&line.text[..], b"\n"].concat();
        let handles: Vec<u32> = (next..next + u32::try_from(line.handles).unwrap()).collect();
        next += u32::try_from(line.handles).unwrap();
        expected.push((line.text.clone(), handles.clone()));
        if handles.is_empty() {
            out.push(Piece { bytes, handles });
        } else {
            let (first, rest) = bytes.split_at(line.first_write.min(bytes.len()));
            out.push(Piece { bytes: first.to_vec(), handles });
            out.push(Piece { bytes: rest.to_vec(), handles: Vec::new() });
        }
    }
    (out, expected)
}

/// Reads everything, every other time by another reader; each line takes as many descriptors as it was
/// sent with.
fn received(reads: Vec<Read>, lines: &[Sent]) -> (Lines, u64) {
    let mut reader = FrameReader::new(1000);
    let (mut out, mut surplus) = (Vec::new(), 0);
    for (number, read) in reads.into_iter().enumerate() {
        if number % 2 == 1 {
            surplus += reader.take_surplus();
            let (unfinished, handles) = reader.unfinished();
            let handles: Vec<_> = handles.map(|(at, handle)| (at, *handle)).collect();
            reader = FrameReader::new(1000).resume(unfinished, handles);
        }
        let mut chunk = reader.feed(&read.bytes, read.handles);
        while let Some(mut line) = chunk.next_line().unwrap() {
            let wanted = lines.get(out.len()).map_or(0, |l| l.handles);
            let handles = (0..wanted).filter_map(|_| line.take_handle()).collect();
            out.push((line.bytes.to_vec(), handles));
        }
    }
    (out, surplus + reader.take_surplus())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn lines_and_their_descriptors_survive_every_way_of_cutting(
        lines in prop::collection::vec(sent(), 0..20),
        sizes in prop::collection::vec(1..70usize, 1..10),
    ) {
        let (pieces, expected) = pieces(&lines);
        let (got, surplus) = received(reads(pieces, &sizes), &lines);
        prop_assert_eq!(got, expected);
        prop_assert_eq!(surplus, 0);
    }

    /// A sender may attach the descriptors to any part of the line, as Node's readers allow.
    #[test]
    fn descriptors_may_ride_on_any_byte_of_their_line(
        lines in prop::collection::vec(sent(), 0..20),
        sizes in prop::collection::vec(1..70usize, 1..10),
    ) {
        let mut all = Vec::new();
        let mut expected = Vec::new();
        for (n, line) in lines.iter().enumerate() {
            let bytes = [&line.text[..], b"\n"].concat();
            let handles: Vec<u32> = (0..line.handles).map(|h| u32::try_from(10 * n + h).unwrap()).collect();
            expected.push((line.text.clone(), handles.clone()));
            let (before, with) = bytes.split_at(line.first_write.min(bytes.len()) - 1);
            all.push(Piece { bytes: before.to_vec(), handles: Vec::new() });
            all.push(Piece { bytes: with.to_vec(), handles });
        }
        let (got, _) = received(reads(all, &sizes), &lines);
        prop_assert_eq!(got, expected);
    }

    /// What a line does not claim is never given to a later one that came in a later read.
    #[test]
    fn descriptors_that_are_not_claimed_do_not_move_on(
        lines in prop::collection::vec((sent(), any::<bool>()), 1..20),
        sizes in prop::collection::vec(1..70usize, 1..10),
    ) {
        let all: Vec<Sent> = lines.iter().map(|(l, _)| l.clone()).collect();
        let (pieces, expected) = pieces(&all);
        // The last byte of a line and its successor's first never come in one read here, so there
        // is no doubt whose a descriptor is.
        let mut reader = FrameReader::new(1000);
        let mut n = 0;
        let mut dropped = 0;
        for piece in pieces {
            for read in reads(vec![piece], &sizes) {
                let mut chunk = reader.feed(&read.bytes, read.handles);
                while let Some(mut line) = chunk.next_line().unwrap() {
                    if lines[n].1 {
                        let got: Vec<u32> = std::iter::from_fn(|| line.take_handle()).collect();
                        prop_assert_eq!(&got, &expected[n].1, "line {}", n);
                    } else {
                        dropped += expected[n].1.len() as u64;
                    }
                    n += 1;
                }
            }
        }
        prop_assert_eq!(n, lines.len());
        // The end of the stream takes the last line's with it.
        let last = lines.last().filter(|(_, claims)| !claims).map_or(0, |(l, _)| l.handles as u64);
        let surplus = reader.take_surplus();
        prop_assert!(surplus == dropped || surplus == dropped - last, "{} of {} dropped ones were counted", surplus, dropped);
    }

    #[test]
    fn no_line_is_longer_than_the_limit_and_no_more_than_that_is_kept(
        chunks in prop::collection::vec(prop::collection::vec(prop_oneof![9 => Just(b'x'), 1 => Just(b'\n')], 0..50), 0..20),
        limit in 0..60usize,
    ) {
        let mut reader: FrameReader<u32> = FrameReader::new(limit);
        let whole: Vec<u8> = chunks.concat();
        let mut lines = Vec::new();
        let mut error = None;
        'reading: for chunk in &chunks {
            let mut chunk = reader.feed(chunk, []);
            loop {
                match chunk.next_line() {
                    Ok(Some(line)) => lines.push(line.bytes.to_vec()),
                    Ok(None) => break,
                    Err(e) => { error = Some(e); break 'reading; }
                }
            }
            prop_assert!(reader.pending() <= limit);
        }
        let mut expected: Vec<Vec<u8>> = whole.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        match expected.iter().position(|line| line.len() > limit) {
            Some(first) => {
                prop_assert_eq!(error, Some(FrameError::TooLong(limit)));
                expected.truncate(first);
            }
            None => {
                prop_assert_eq!(error, None);
                expected.pop();
            }
        }
        prop_assert_eq!(lines, expected);
    }

    #[test]
    fn garbage_is_a_named_violation_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = incoming::parse(&bytes);
    }

    /// Nearly right is where parsers stumble.
    #[test]
    fn almost_valid_messages_never_panic(
        start in prop::sample::select(STARTS),
        cut in 0..200usize,
        flip in prop::collection::vec((0..200usize, any::<u8>()), 0..4),
        tail in "[ -~]{0,30}",
    ) {
        let mut bytes = start.as_bytes().to_vec();
        bytes.truncate(cut.max(start.len() / 2));
        for (at, with) in flip {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
        }
        bytes.extend(tail.as_bytes());
        let _ = incoming::parse(&bytes);
    }

    /// The quick way for the most frequent message says the same as the general one.
    #[test]
    fn an_answer_means_the_same_in_any_order(ack in 0..1_000_000u64, accepted: bool, seq in 0..u64::MAX) {
        let quick = format!(r#"{{"cmd":"NODE_CLUSTER","ack":{ack},"accepted":{accepted},"seq":{seq}}}"#);
        let other = format!(r#"{{"seq":{seq},"accepted":{accepted},"cmd":"NODE_CLUSTER","ack":{ack}}}"#);
        let quick_says = matches!(incoming::parse(quick.as_bytes()), Ok(incoming::Incoming::Answer { ack: a, accepted: b }) if (a, b) == (ack, accepted));
        prop_assert!(quick_says);
        let Ok(incoming::Incoming::Cluster(m)) = incoming::parse(other.as_bytes()) else { panic!("{other}") };
        prop_assert_eq!((m.ack, m.accepted), (i64::try_from(ack).ok(), Some(accepted)));
    }

    /// Any JSON that is not marked as internal is the program's, unchanged.
    #[test]
    fn the_programs_messages_come_through_unchanged(text in "\\PC{0,60}", number: i64) {
        let value = serde_json::json!({"text": text, "number": number, "cmd": "MINE"});
        let line = value.to_string();
        let Ok(incoming::Incoming::User(body)) = incoming::parse(line.as_bytes()) else { panic!("{line}") };
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap(), value);
    }
}

const STARTS: &[&str] = &[
    r#"{"cmd":"NODE_HANDLE_ACK"}"#,
    r#"{"cmd":"NODE_CLUSTER","ack":1,"accepted":true,"seq":3}"#,
    r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0,"troop":1}"#,
    r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":18080,"addressType":4,"backlog":0,"seq":1}"#,
    r#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_HANDLE","type":"net.Socket","key":"6::::0","msg":"hi"}}"#,
    r#"{"cmd":"NODE_TROOP","act":"taken","taken":[1,2,3],"returned":[4]}"#,
    r#"{"cmd":"NODE_TROOP","act":"recall","seqs":[1,2]}"#,
    r#"{"cmd":"NODE_SOCKET_GET_COUNT","key":"\u0000k"}"#,
];
