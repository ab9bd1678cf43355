//! Reads the `cmd` of a message, which marks internal messages, as JavaScript does: in any order of
//! fields, with escapes in names and values, and the last one of several.

use std::borrow::Cow;
use std::fmt;

use memchr::memmem;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;

use crate::event::Violation;

/// Fast check whether a line may be an internal message; may be wrongly true, because letters may
/// be escaped, but never wrongly false.
pub(super) fn may_be_internal(line: &[u8]) -> bool {
    let is_object = line.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    is_object && (memmem::find(line, b"NODE_").is_some() || memmem::find(line, br"\u00").is_some())
}

/// The `cmd` of a message, as JavaScript reads it.
pub(super) struct Head<'a> {
    /// The last `cmd` of several; `None` if it is not a string.
    pub(super) cmd: Option<Cow<'a, [u8]>>,
    /// The number of `cmd` fields.
    pub(super) times: usize,
}

impl Head<'_> {
    /// Whether it marks the message as internal.
    pub(super) fn is_internal(&self) -> bool {
        self.cmd.as_ref().is_some_and(|cmd| cmd.len() > INTERNAL.len() && cmd.starts_with(INTERNAL))
    }

    /// Whether the message is of a known kind.
    pub(super) fn is_ours(&self) -> bool {
        self.cmd.as_deref().is_some_and(is_our_cmd)
    }
}

/// The prefix of the `cmd` of internal messages.
const INTERNAL: &[u8] = b"NODE_";

/// Whether a `cmd` is of a known kind.
pub(in crate::wire) fn is_our_cmd(cmd: &[u8]) -> bool {
    matches!(
        cmd,
        b"NODE_CLUSTER"
            | b"NODE_HANDLE"
            | b"NODE_HANDLE_ACK"
            | b"NODE_HANDLE_NACK"
            | b"NODE_TROOP"
            | b"NODE_SOCKET_GET_COUNT"
            | b"NODE_SOCKET_NOTIFY_CLOSE"
    )
}

/// Returns the head of a line; `None` if it is not an object.
pub(super) fn head(line: &[u8]) -> Result<Option<Head<'_>>, Violation> {
    struct HeadVisitor;
    impl<'de> Visitor<'de> for HeadVisitor {
        type Value = Head<'de>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut fields: A) -> Result<Head<'de>, A::Error> {
            let mut head = Head { cmd: None, times: 0 };
            while let Some(Bytes(name)) = fields.next_key()? {
                if &*name == b"cmd" {
                    let value: &RawValue = fields.next_value()?;
                    head.cmd = serde_json::from_str(value.get()).ok().map(|Bytes(cmd)| cmd);
                    head.times += 1;
                } else {
                    fields.next_value::<de::IgnoredAny>()?;
                }
            }
            Ok(head)
        }
    }
    // The parser does not decode strings that it skips.
    let line = std::str::from_utf8(line).map_err(|_| Violation::NotJson)?;
    let mut deserializer = serde_json::Deserializer::from_str(line);
    match deserializer.deserialize_map(HeadVisitor) {
        Ok(head) => deserializer.end().map(|()| Some(head)).map_err(|_| Violation::NotJson),
        Err(e) if e.classify() == serde_json::error::Category::Data => Ok(None),
        Err(_) => Err(Violation::NotJson),
    }
}

/// A string that may contain lone surrogates, as JavaScript's may.
struct Bytes<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl<'de> Visitor<'de> for BytesVisitor {
            type Value = Bytes<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_bytes<E>(self, v: &'de [u8]) -> Result<Bytes<'de>, E> {
                Ok(Bytes(Cow::Borrowed(v)))
            }
            fn visit_bytes<E>(self, v: &[u8]) -> Result<Bytes<'de>, E> {
                Ok(Bytes(Cow::Owned(v.to_vec())))
            }
        }
        deserializer.deserialize_bytes(BytesVisitor)
    }
}
