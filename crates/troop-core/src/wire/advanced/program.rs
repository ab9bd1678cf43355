//! Translates messages of programs from V8's format to JSON.

use serde_json::{Map, Value};

use super::{Reader, number};

/// Maximum nesting, below the limit of `serde_json`.
const MAX_DEPTH: usize = 120;
/// Maximum size of a message, in values, where text counts by its length; references count as often
/// as they repeat a value.
const MAX_VALUES: usize = 1_000_000;
/// Number of bytes of text that count as one value.
const BYTES_PER_VALUE: usize = 32;

/// Returns the line of JSON (without a newline) for a frame's value, as `JSON.stringify` writes it.
/// Values that it would lose or reject are translated too: a `Map` to an array of pairs, a `Set` to
/// an array, a `BigInt` to a string of digits, buffers and typed arrays as `Buffer` does, an
/// `Error` to an object with name, message and stack. Returns `None` for invalid values, for those
/// that contain themselves, and for those that are too large or too deep.
#[must_use]
pub fn to_json(frame: &[u8]) -> Option<Vec<u8>> {
    let left = MAX_VALUES.max(frame.len() / BYTES_PER_VALUE * 2);
    let mut program = Program { reader: Reader::of(frame)?, objects: Vec::new(), left };
    // JSON has no undefined; null stands for it.
    let value = program.value(0)?.unwrap_or(Value::Null);
    serde_json::to_vec(&value).ok()
}

struct Program<'a> {
    reader: Reader<'a>,
    /// The begin of each object so far, after its tag, by the numbers that references use.
    objects: Vec<(u8, &'a [u8])>,
    left: usize,
}

impl Program<'_> {
    fn spend(&mut self, values: usize) -> Option<()> {
        self.left = self.left.checked_sub(values)?;
        Some(())
    }

    fn text(&mut self, tag: u8) -> Option<String> {
        let text = self.reader.text(tag)?;
        self.spend(text.len() / BYTES_PER_VALUE)?;
        Some(text)
    }

    /// Resolves a reference by reading its object again, which counts its size and depth again.
    fn again(&mut self, depth: usize) -> Option<Value> {
        let number = usize::try_from(self.reader.number()?).ok()?;
        let (tag, from) = *self.objects.get(number)?;
        let later = self.objects.split_off(number + 1);
        self.spend(later.len() / BYTES_PER_VALUE)?;
        let after = std::mem::replace(&mut self.reader.rest, from);
        let value = self.object(tag, depth)?;
        self.reader.rest = after;
        self.objects.truncate(number + 1);
        self.objects.extend(later);
        Some(value)
    }

    /// Reads a value; `Some(None)` is undefined. Returns `None` if it cannot be read.
    fn value(&mut self, depth: usize) -> Option<Option<Value>> {
        let tag = self.reader.tag()?;
        self.tagged(tag, depth)
    }

    fn tagged(&mut self, tag: u8, depth: usize) -> Option<Option<Value>> {
        self.spend(1)?;
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match tag {
            b'_' | b'-' => None,
            b'^' => Some(self.again(depth)?),
            b'Z' => Some(self.bigint()?),
            b'"' | b'c' | b'S' => Some(Value::String(self.text(tag)?)),
            b'o' | b'A' | b'a' | b';' | b'\'' | b'D' | b'y' | b'x' | b'n' | b'z' | b's' | b'R'
            | b'B' | b'\\' | b'r' => {
                self.objects.push((tag, self.reader.rest));
                Some(self.object(tag, depth)?)
            }
            // A value without parts.
            _ => return self.reader.tagged(tag, 0),
        })
    }

    fn object(&mut self, tag: u8, depth: usize) -> Option<Value> {
        Some(match tag {
            b'o' => Value::Object(self.fields(b'{', depth)?),
            b'A' => {
                let count = self.count()?;
                let mut items = Vec::new();
                for _ in 0..count {
                    items.push(self.value(depth + 1)?.unwrap_or(Value::Null));
                }
                self.fields(b'$', depth)?;
                self.reader.number()?;
                Value::Array(items)
            }
            b'a' => {
                // A sparse array: most of its elements are missing.
                let length = usize::try_from(self.reader.number()?).ok()?;
                self.spend(length)?;
                let mut items = vec![Value::Null; length];
                for (name, value) in self.fields(b'@', depth)? {
                    if let Some(item) = name.parse().ok().and_then(|at: usize| items.get_mut(at)) {
                        *item = value;
                    }
                }
                self.reader.number()?;
                Value::Array(items)
            }
            b';' => {
                // Two levels of nesting in JSON.
                let items = self.until(b':', depth + 1)?;
                Value::Array(items.chunks(2).map(|pair| Value::Array(pair.to_vec())).collect())
            }
            b'\'' => Value::Array(self.until(b',', depth)?),
            b'D' => date(self.double()?),
            b'y' => Value::Bool(true),
            b'x' => Value::Bool(false),
            b'n' => number(self.double()?),
            b'z' => self.bigint()?,
            b's' => {
                let tag = self.reader.tag()?;
                Value::String(self.text(tag)?)
            }
            b'R' => {
                let tag = self.reader.tag()?;
                self.text(tag)?;
                self.reader.number()?;
                Value::Object(Map::new())
            }
            b'B' => {
                let count = self.count()?;
                self.spend(count)?;
                Value::Array(
                    self.reader.bytes(count)?.iter().map(|byte| Value::from(*byte)).collect(),
                )
            }
            b'\\' => self.host_object(depth)?,
            _ => self.error(depth)?,
        })
    }

    /// Reads a host object of Node: a view of a buffer, or an object of a type that V8 does not
    /// know.
    fn host_object(&mut self, depth: usize) -> Option<Value> {
        match self.reader.number()? {
            // The type of the view, and its bytes.
            0 => {
                self.reader.number()?;
                let count = self.count()?;
                self.spend(count)?;
                let data: Vec<Value> =
                    self.reader.bytes(count)?.iter().map(|byte| Value::from(*byte)).collect();
                Some(serde_json::json!({ "type": "Buffer", "data": data }))
            }
            1 => Some(self.value(depth + 1)?.unwrap_or(Value::Null)),
            _ => None,
        }
    }

    fn error(&mut self, depth: usize) -> Option<Value> {
        let mut fields = Map::new();
        let mut name = "Error";
        loop {
            match self.reader.tag()? {
                b'E' => name = "EvalError",
                b'R' => name = "RangeError",
                b'F' => name = "ReferenceError",
                b'S' => name = "SyntaxError",
                b'T' => name = "TypeError",
                b'U' => name = "URIError",
                field @ (b'm' | b's') => {
                    let tag = self.reader.tag()?;
                    let text = Value::String(self.text(tag)?);
                    fields.insert(if field == b'm' { "message" } else { "stack" }.into(), text);
                }
                b'c' => {
                    if let Some(cause) = self.value(depth + 1)? {
                        fields.insert("cause".into(), cause);
                    }
                }
                b'.' => break,
                _ => return None,
            }
        }
        fields.insert("name".into(), name.into());
        Some(Value::Object(fields))
    }

    fn fields(&mut self, end: u8, depth: usize) -> Option<Map<String, Value>> {
        let mut fields = Map::new();
        loop {
            let name = match self.reader.tag()? {
                tag if tag == end => break,
                tag @ (b'"' | b'c' | b'S') => self.text(tag)?,
                b'I' => (self.reader.number()? >> 1).to_string(),
                b'U' => self.reader.number()?.to_string(),
                b'N' => self.double()?.to_string(),
                _ => return None,
            };
            if let Some(value) = self.value(depth + 1)? {
                fields.insert(name, value);
            }
        }
        self.reader.number()?;
        Some(fields)
    }

    fn until(&mut self, end: u8, depth: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        loop {
            let tag = self.reader.tag()?;
            if tag == end {
                break;
            }
            items.push(self.tagged(tag, depth + 1)?.unwrap_or(Value::Null));
        }
        self.reader.number()?;
        Some(items)
    }

    /// Reads a number of elements, each of at least one byte.
    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.reader.number()?).ok().filter(|count| *count <= self.reader.rest.len())
    }

    fn double(&mut self) -> Option<f64> {
        Some(f64::from_le_bytes(self.reader.bytes(8)?.try_into().ok()?))
    }

    /// Reads a `BigInt`: its sign, and groups of 64 bits, the lowest first.
    fn bigint(&mut self) -> Option<Value> {
        let field = self.reader.number()?;
        let bytes = self.reader.bytes(usize::try_from(field >> 1).ok()?)?;
        // Base 10^9, the lowest first.
        let mut digits: Vec<u32> = Vec::new();
        self.spend(bytes.len().checked_mul(bytes.len())?)?;
        for byte in bytes.iter().rev() {
            let mut carry = u64::from(*byte);
            for digit in &mut digits {
                let value = u64::from(*digit) * 256 + carry;
                *digit = u32::try_from(value % 1_000_000_000).ok()?;
                carry = value / 1_000_000_000;
            }
            if carry > 0 {
                digits.push(u32::try_from(carry).ok()?);
            }
        }
        let mut text = String::from(if field & 1 == 1 { "-" } else { "" });
        text += &digits.last().copied().unwrap_or(0).to_string();
        for digit in digits.iter().rev().skip(1) {
            text += &format!("{digit:09}");
        }
        Some(Value::String(text))
    }
}

/// Returns a date as `Date.prototype.toJSON` writes it, from milliseconds since 1970.
fn date(ms: f64) -> Value {
    if !ms.is_finite() || ms.abs() > 8.64e15 {
        return Value::Null;
    }
    let ms = ms as i64;
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days to a date, by eras of 400 years that begin in March:
    // https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second, rest) =
        (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60, of_day % 1000);
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{}{:06}", if year < 0 { '-' } else { '+' }, year.abs()),
    };
    Value::String(format!(
        "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{rest:03}Z"
    ))
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

    fn json(hex: &str) -> String {
        String::from_utf8(to_json(&bytes(hex)).unwrap()).unwrap()
    }

    /// Values written by a `v8.DefaultSerializer` like that of Node's channels, with the expected
    /// JSON.
    const FIXTURES: &[(&str, &str)] = &[
        (
            "ff0f6f220161490222016241045446305f240004220163006304e900032622016449092201654e000000000000e03f2201664e00003426f56b0c432201755f22016e6f22016f6f7b007b017b08",
            r#"{"a":1,"b":[true,false,null,null],"c":"é☃","d":-5,"e":0.5,"f":1000000000000000,"n":{"o":{}}}"#,
        ),
        (
            "ff0f6f2205747769636541026f22017849027b015e0224000222036d61703b22016b6f22017649027b01490449063a0422037365742749022201782c027b03",
            r#"{"twice":[{"x":1},{"x":1}],"map":[["k",{"v":1}],[2,3]],"set":[1,"x"]}"#,
        ),
        (
            "ff0f41084400b067c54bdf78425a20cb444271764eb6429d020000000000005a1101000000000000005a00796e0000000000001040732201735222017801240008",
            r#"["2024-02-29T12:00:00.123Z","12345678901234567890123","-1","0",true,4,"s",{}]"#,
        ),
        (
            "ff0f6f2201625c000a0268692201755c00010201027b02",
            r#"{"b":{"type":"Buffer","data":[104,105]},"u":{"type":"Buffer","data":[1,2]}}"#,
        ),
        (
            "ff0f410561054906220164400105610349004902490449064002034e000000000000f87f4e000000000000f07f6f490e2205736576656e7b01240005",
            r#"[[null,null,null,"d",null],[1,null,3],null,null,{"7":"seven"}]"#,
        ),
        (
            "ff0f6f22016572546d220362616473220e547970654572726f723a206261642e7b01",
            r#"{"e":{"name":"TypeError","message":"bad","stack":"TypeError: bad"}}"#,
        ),
        ("ff0f220474657874", r#""text""#),
        ("ff0f4954", r#"42"#),
        ("ff0f30", r#"null"#),
        (
            "ff0f6f2203636d64220b4e4f44455f48414e444c45220474797065220a6e65742e536f636b657422036d73676f220568656c6c6f410149022400017b0122036b65792204343a3a317b04",
            r#"{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"hello":[1]},"key":"4::1"}"#,
        ),
    ];

    #[test]
    fn values_of_javascript_become_json() {
        for (hex, expected) in FIXTURES {
            let (left, right): (Value, Value) = (
                serde_json::from_str(&json(hex)).unwrap(),
                serde_json::from_str(expected).unwrap(),
            );
            assert_eq!(left, right);
        }
    }

    #[test]
    fn dates_are_written_as_javascript_does() {
        for (ms, text) in [
            (0.0, "1970-01-01T00:00:00.000Z"),
            (1_709_208_000_123.0, "2024-02-29T12:00:00.123Z"),
            (-1.0, "1969-12-31T23:59:59.999Z"),
            (-62_198_755_200_000.0, "-000001-01-01T00:00:00.000Z"),
            (8.64e15, "+275760-09-13T00:00:00.000Z"),
        ] {
            assert_eq!(date(ms), Value::from(text));
        }
        assert_eq!(date(f64::NAN), Value::Null);
    }

    #[test]
    fn invalid_values_are_rejected_cheaply() {
        for (hex, _) in FIXTURES {
            let good = bytes(hex);
            for at in 0..good.len() {
                let _ = to_json(&good[..at]);
                for byte in [0, 0x7f, 0x80, 0xff, b'o', b'A', b'a', b'^', b'Z', b';', b'\\'] {
                    let mut bad = good.clone();
                    bad[at] = byte;
                    let _ = to_json(&bad);
                }
            }
        }
        // Deep, and with repeated references.
        let deep: Vec<u8> = [0xff, 15]
            .into_iter()
            .chain(std::iter::repeat_n(*b"A\x01", 100_000).flatten())
            .collect();
        assert_eq!(to_json(&deep), None);
        // `[[], [^1, ^1], [^2, ^2], …]`, and one that contains itself.
        let mut doubled = b"\xff\x0fA\x28A\x00$\x00\x00".to_vec();
        for at in 1..40 {
            doubled.extend_from_slice(&[b'A', 2, b'^', at, b'^', at, b'$', 0, 2]);
        }
        doubled.extend_from_slice(b"$\x00\x28");
        assert_eq!(to_json(&doubled), None);
        assert_eq!(to_json(b"\xff\x0fo\"\x01a^\x00{\x01"), None);
        // A repeated text, and a chain of references that is flat in the frame and deep in JSON.
        let mut repeated = b"\xff\x0fA\xa0\x8d\x06s\"\x80\x80\x40".to_vec();
        repeated.resize(repeated.len() + (1 << 20), b'x');
        repeated.extend(std::iter::repeat_n(*b"^\x01", 99_999).flatten());
        assert_eq!(to_json(&repeated), None);
        let mut chain = b"\xff\x0fA\x64o{\x00".to_vec();
        for at in 1..100 {
            chain.extend_from_slice(&[b'o', b'"', 1, b'n', b'^', at, b'{', 1]);
        }
        chain.extend_from_slice(b"$\x00\x64");
        let json = String::from_utf8(to_json(&chain).unwrap()).unwrap();
        assert!(crate::wire::incoming::parse(json.as_bytes()).is_ok());
    }
}
