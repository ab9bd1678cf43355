//! Channels with `serialization: 'advanced'`: frames in V8's own format instead of lines of JSON.
//!
//! A frame is a length (four bytes, big-endian) and a value as `v8.serialize` writes it. Internal
//! messages are translated from and to JSON, so that all other code handles one format. Messages of
//! programs are relayed unchanged, except to Rust programs, which get JSON ([`to_json`]).
//!
//! The format is that of V8's `ValueSerializer` (`0xff`, version, value); versions 13 to 15 encode
//! the values of internal messages alike.

mod check;
mod program;

use memchr::memmem;
use serde_json::{Map, Number, Value};

pub use check::{Checker, Kind, MAX_DEPTH as MAX_CHECKED_DEPTH, MAX_MEMORY, check};
pub use program::to_json;

/// The version that is written. V8 reads this and all earlier versions.
const VERSION: u8 = 15;
/// Maximum nesting of a translated message.
const MAX_DEPTH: usize = 32;
/// Maximum number of values in an internal message. A value takes much more memory than its minimum
/// of one byte in the frame.
const MAX_VALUES: usize = 64 * 1024;

/// Appends a frame with a value.
pub fn frame(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(value);
}

/// Appends the frame of a line of JSON (with or without its newline), or nothing if it is not JSON.
pub fn from_json(out: &mut Vec<u8>, line: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(line) else { return };
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[0xff, VERSION]);
    write(out, &value);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Returns the line of JSON of an internal message (a frame without its length): an object whose
/// `cmd` begins with `NODE_`. The `msg` of a `NODE_HANDLE` is omitted unless it is an internal
/// message too.
#[must_use]
pub fn internal(frame: &[u8]) -> Option<Vec<u8>> {
    // Most messages are a program's, and need no reading.
    let mentions = |text: &[u8]| memmem::find(frame, text).is_some();
    if !mentions(b"NODE_") && !mentions(b"N\0O\0D\0E\0_\0") {
        return None;
    }
    let object = Reader::of(frame)?.internal_object(0)?;
    serde_json::to_vec(&Value::Object(object)).ok()
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn text(out: &mut Vec<u8>, text: &str) {
    if text.is_ascii() {
        out.push(b'"');
        varint(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    out.push(b'c');
    varint(out, units.len() as u64);
    out.extend_from_slice(&units);
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(b'0'),
        Value::Bool(true) => out.push(b'T'),
        Value::Bool(false) => out.push(b'F'),
        Value::Number(number) => match number.as_i64().and_then(|n| i32::try_from(n).ok()) {
            Some(n) => {
                out.push(b'I');
                varint(out, u64::from(((n << 1) ^ (n >> 31)) as u32));
            }
            None => {
                out.push(b'N');
                out.extend_from_slice(&number.as_f64().unwrap_or(f64::NAN).to_le_bytes());
            }
        },
        Value::String(s) => text(out, s),
        Value::Array(items) => {
            out.push(b'A');
            varint(out, items.len() as u64);
            items.iter().for_each(|item| write(out, item));
            out.push(b'$');
            varint(out, 0);
            varint(out, items.len() as u64);
        }
        Value::Object(fields) => {
            out.push(b'o');
            for (name, value) in fields {
                text(out, name);
                write(out, value);
            }
            out.push(b'{');
            varint(out, fields.len() as u64);
        }
    }
}

/// Returns whole numbers as integers, as JSON writes them.
fn number(n: f64) -> Value {
    let whole = n as i64;
    if whole as f64 == n {
        Value::from(whole)
    } else {
        Number::from_f64(n).map_or(Value::Null, Value::Number)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Number of values that may still be created.
    values_left: usize,
}

impl<'a> Reader<'a> {
    /// Creates a reader at the value of a frame, after the version.
    fn of(frame: &'a [u8]) -> Option<Reader<'a>> {
        let mut reader = Reader { rest: frame, values_left: MAX_VALUES };
        let is_versioned = reader.byte()? == 0xff;
        reader.number()?;
        is_versioned.then_some(reader)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut n = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }

    fn tag(&mut self) -> Option<u8> {
        loop {
            match self.byte()? {
                0 => {}
                tag => return Some(tag),
            }
        }
    }

    fn text(&mut self, tag: u8) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let bytes = self.bytes(length)?;
        match tag {
            b'"' => Some(bytes.iter().map(|byte| char::from(*byte)).collect()),
            b'S' => String::from_utf8(bytes.to_vec()).ok(),
            b'c' => {
                let units: Vec<u16> = bytes
                    .chunks_exact(2)
                    .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                    .collect();
                Some(String::from_utf16_lossy(&units))
            }
            _ => None,
        }
    }

    /// Reads a value; `Some(None)` is undefined. Returns `None` for values that JSON lacks and for
    /// truncated input.
    fn value(&mut self, depth: usize) -> Option<Option<Value>> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.values_left = self.values_left.checked_sub(1)?;
        let tag = self.tag()?;
        self.tagged(tag, depth)
    }

    fn tagged(&mut self, tag: u8, depth: usize) -> Option<Option<Value>> {
        Some(Some(match tag {
            b'_' => return Some(None),
            b'0' => Value::Null,
            b'T' => Value::Bool(true),
            b'F' => Value::Bool(false),
            b'I' => {
                let n = u32::try_from(self.number()?).ok()?;
                Value::from((n >> 1) as i32 ^ -((n & 1) as i32))
            }
            b'U' => Value::from(self.number()?),
            b'N' => number(f64::from_le_bytes(self.bytes(8)?.try_into().ok()?)),
            tag @ (b'"' | b'c' | b'S') => Value::String(self.text(tag)?),
            b'o' => Value::Object(self.fields(depth + 1)?),
            b'A' => {
                let count = usize::try_from(self.number()?)
                    .ok()
                    .filter(|count| *count <= self.rest.len())?;
                let items = (0..count)
                    .map(|_| self.value(depth + 1).map(|item| item.unwrap_or(Value::Null)))
                    .collect::<Option<_>>()?;
                if self.tag()? != b'$' || self.number()? != 0 {
                    return None;
                }
                self.number()?;
                Value::Array(items)
            }
            _ => return None,
        }))
    }

    /// Reads the name of an object's next field; `Some(None)` at the end.
    fn name(&mut self) -> Option<Option<String>> {
        match self.tag()? {
            b'{' => {
                self.number()?;
                Some(None)
            }
            tag @ (b'"' | b'c' | b'S') => Some(Some(self.text(tag)?)),
            // Names that are integers are encoded as integers.
            b'I' => Some(Some((self.number()? >> 1).to_string())),
            b'U' => Some(Some(self.number()?.to_string())),
            _ => None,
        }
    }

    fn fields(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut fields = Map::new();
        while let Some(name) = self.name()? {
            if let Some(value) = self.value(depth)? {
                fields.insert(name, value);
            }
        }
        Some(fields)
    }

    fn internal_object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        if self.tag()? != b'o' || depth > 1 {
            return None;
        }
        let mut fields = Map::new();
        let is_internal = |fields: &Map<String, Value>| {
            fields
                .get("cmd")
                .and_then(Value::as_str)
                .is_some_and(|cmd| cmd.len() > "NODE_".len() && cmd.starts_with("NODE_"))
        };
        while let Some(name) = self.name()? {
            if name == "msg" && fields.get("cmd").and_then(Value::as_str) == Some("NODE_HANDLE") {
                // The message of a program may be any value; only the key follows it.
                let ahead = Reader { rest: self.rest, values_left: self.values_left }
                    .internal_object(depth + 1);
                let is_ours = ahead.is_some();
                fields.insert(name, ahead.map_or(Value::Null, Value::Object));
                if !is_ours {
                    break;
                }
                self.internal_object(depth + 1)?;
                continue;
            }
            match self.value(depth + 1) {
                Some(Some(value)) => drop(fields.insert(name, value)),
                Some(None) => {}
                // An internal message with an unknown value.
                None if is_internal(&fields) => break,
                None => return None,
            }
        }
        is_internal(&fields).then_some(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    fn json(frame: &[u8]) -> Option<Value> {
        internal(frame).map(|line| serde_json::from_slice(&line).unwrap())
    }

    #[test]
    fn what_node_says_is_understood() {
        // Written by `v8.serialize` of Node 20.
        let query = bytes(
            "ff0f6f2203636d64220c4e4f44455f434c55535445522203616374220b71756572795365727665722205696e6465784900220464617461302207616464\
             726573730063083a003a00e90003262204706f727449c09a02220b61646472657373547970654908220266645f2205666c616773490522076261636b6c6f\
             674e000000205fa00242220373657149027b0b",
        );
        let expected = serde_json::json!({
            "cmd": "NODE_CLUSTER", "act": "queryServer", "index": 0, "data": null, "address": "::é☃", "port": 18080, "addressType": 4,
            "flags": -3, "backlog": 10_000_000_000_i64, "seq": 1,
        });
        assert_eq!(json(&query), Some(expected));
    }

    #[test]
    fn what_a_program_says_is_left_alone_also_beside_a_handle() {
        let handle = bytes(
            "ff0f6f2203636d64220b4e4f44455f48414e444c45220474797065220a6e65742e536f636b657422036d73676f2201613b490249043a027b0122036b65\
             792205343a3132377b04",
        );
        assert_eq!(
            json(&handle),
            Some(serde_json::json!({ "cmd": "NODE_HANDLE", "type": "net.Socket", "msg": null }))
        );
        let own = bytes("ff0f6f2203636d64220568656c6c6f2201625c0a01787b02");
        assert_eq!(json(&own), None);
        assert_eq!(json(&bytes("ff0f22054e4f44455f")), None);
    }

    #[test]
    fn what_is_about_a_handle_of_nodes_own_is_understood() {
        let handle = bytes(
            "ff0f6f2203636d64220b4e4f44455f48414e444c45220474797065220a6e65742e4e617469766522036d73676f2203636d64220c4e4f44455f434c5553\
             544552220361636b490e220861636365707465645422046c697374410349022201784e000000000000e03f2400037b047b03",
        );
        let inner = serde_json::json!({ "cmd": "NODE_CLUSTER", "ack": 7, "accepted": true, "list": [1, "x", 0.5] });
        assert_eq!(
            json(&handle),
            Some(serde_json::json!({ "cmd": "NODE_HANDLE", "type": "net.Native", "msg": inner }))
        );
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let line = r#"{"cmd":"NODE_CLUSTER","errno":-98,"key":"null:0:4:é☃:1","big":5000000000,"half":-0.5,"list":[[],{},null,false],"seq":4}"#;
        let mut frame = Vec::new();
        from_json(&mut frame, line.as_bytes());
        let length = u32::from_be_bytes(frame[..4].try_into().unwrap());
        assert_eq!(length as usize, frame.len() - 4);
        assert_eq!(json(&frame[4..]), serde_json::from_str(line).ok());
    }

    #[test]
    fn nonsense_is_nobodys() {
        let good = bytes(
            "ff0f6f2203636d64220c4e4f44455f434c555354455222046c697374410349022201784e000000000000e03f2400037b02",
        );
        assert!(internal(&good).is_some());
        for at in 0..good.len() {
            // Cut anywhere, and changed anywhere: no panic, no endless loop, no huge allocation.
            let _ = internal(&good[..at]);
            for byte in [0, 0x7f, 0x80, 0xff, b'o', b'A', b'c'] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = internal(&bad);
            }
        }
        let mut many = bytes(
            "ff0f6f2203636d64220c4e4f44455f434c55535445522203616374220b71756572795365727665722204646174616f",
        );
        many.pop();
        many.extend(*b"A\x80\x80\x40");
        many.extend(vec![b'0'; 1 << 20]);
        many.extend(*b"$\0\x80\x80\x40{\x03");
        assert_eq!(
            json(&many),
            Some(serde_json::json!({ "cmd": "NODE_CLUSTER", "act": "queryServer" })),
            "a million values are not made"
        );
        let mut deep = bytes("ff0f6f2203636d64220c4e4f44455f434c5553544552220178");
        deep.extend(std::iter::repeat_n(*b"A\x01", 100_000).flatten());
        let _ = internal(&deep);
    }
}
