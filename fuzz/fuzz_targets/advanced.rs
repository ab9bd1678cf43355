//! Channels with `serialization: 'advanced'`: frames from a worker, with and without their lengths,
//! and lines of JSON as frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use troop_core::event::Violation;
use troop_core::wire::advanced::{self, Kind};
use troop_core::wire::frame::{FrameReader, Framing};
use troop_core::wire::incoming;

/// The version of V8's format that is understood.
const VERSION: u8 = 15;
const MAX_FRAME: usize = 1 << 16;

fn is_sound(error: &Violation) -> bool {
    !matches!(error, Violation::NotJson)
}

fn frame(frame: &[u8]) {
    let checked = advanced::check(frame);
    let translated = advanced::internal(frame);
    if let Some(line) = &translated {
        assert!(serde_json::from_slice::<serde_json::Map<String, Value>>(line).is_ok());
        assert!(incoming::parse(line).as_ref().err().is_none_or(is_sound));
        // Otherwise one of Node's own messages would be passed on as a program's.
        if frame.get(1) == Some(&VERSION) {
            assert_ne!(checked, Ok(Kind::Program));
        }
    }
    if let Some(line) = advanced::to_json(frame) {
        let value: Value = serde_json::from_slice(&line).expect("JSON");
        assert!(incoming::parse(&line).as_ref().err().is_none_or(is_sound));
        round_trip(&line, &value);
    }
}

/// What is written as a frame is read as what it was.
fn round_trip(line: &[u8], value: &Value) {
    let mut written = Vec::new();
    advanced::from_json(&mut written, line);
    let (length, body) = written.split_at(4);
    assert_eq!(length, (body.len() as u32).to_be_bytes());
    match advanced::check(body) {
        Ok(_) | Err(Violation::TooDeep(_) | Violation::TooCostly(_)) => {}
        Err(violation) => panic!("{violation}: {}", String::from_utf8_lossy(line)),
    }
    let Some(again) = advanced::to_json(body) else { return };
    let again: Value = serde_json::from_slice(&again).expect("JSON");
    // Numbers are doubles there.
    let is_exact = |value: &Value| !value.to_string().contains(|c: char| c.is_ascii_digit());
    if is_exact(value) {
        assert_eq!(&again, value);
    }
}

fuzz_target!(|data: &[u8]| {
    let [mode, rest @ ..] = data else { return };
    match mode % 3 {
        0 => frame(rest),
        1 => {
            // Cut anywhere, each frame comes once and whole.
            let mut reader: FrameReader<u32> = FrameReader::with(Framing::Lengths, MAX_FRAME);
            let mut pieces = rest.chunks(usize::from(*mode) + 1);
            let mut last = None;
            while let Some(piece) = pieces.next() {
                let mut chunk = reader.feed(piece, [1]);
                loop {
                    match chunk.next_line() {
                        Ok(Some(line)) => {
                            frame(line.bytes);
                            last = Some(line.bytes.len());
                        }
                        Ok(None) => break,
                        Err(_) => return,
                    }
                }
                assert!(reader.pending() <= MAX_FRAME + 4);
                assert!(last.is_none_or(|length| length <= MAX_FRAME));
            }
        }
        _ => {
            if let Ok(value) = serde_json::from_slice::<Value>(rest) {
                round_trip(rest, &value);
            }
            let _ = incoming::parse(rest);
        }
    }
});
