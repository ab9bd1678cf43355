//! Fields to which Node passes values of the program unchanged. Reading them allocates nothing,
//! however large they are.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::AddressType;

/// Text that borrows from the line unless it has escapes.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A value of any type. Arrays and objects are skipped.
enum Loose<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Compound,
}

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LooseVisitor;
        impl<'de> Visitor<'de> for LooseVisitor {
            type Value = Loose<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> Result<Loose<'de>, E> {
                Ok(Loose::Null)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Loose<'de>, E> {
                Ok(Loose::Bool(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Loose<'de>, E> {
                Ok(Loose::Int(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Loose<'de>, E> {
                Ok(i64::try_from(v).map_or(Loose::Float(v as f64), Loose::Int))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Loose<'de>, E> {
                Ok(Loose::Float(v))
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Loose<'de>, E> {
                Ok(Loose::Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Loose<'de>, E> {
                Ok(Loose::Text(Cow::Owned(v.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Loose<'de>, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose::Compound)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Loose<'de>, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose::Compound)
            }
        }
        deserializer.deserialize_any(LooseVisitor)
    }
}

/// Reads a backlog. Node passes values of the program unchanged: `listen(port, host, callback)`
/// makes it `false`. Values other than numbers count as absent.
pub(super) fn backlog<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(match Loose::deserialize(deserializer)? {
        Loose::Int(n) => Some(n),
        Loose::Float(n) => Some(n as i64),
        Loose::Text(s) => s.trim().parse().ok(),
        Loose::Bool(b) => Some(i64::from(b)),
        Loose::Null | Loose::Compound => None,
    })
}

/// Reads a number that a program has computed, truncated and saturated to the type.
pub(super) fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    // `as` saturates at the limits of the type and makes NaN 0.
    Ok(match Loose::deserialize(deserializer)? {
        Loose::Int(n) => Some((n as f64).round() as u32),
        Loose::Float(n) => Some(n.round() as u32),
        _ => None,
    })
}

/// Distinguishes `null` from a missing message.
pub(super) fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads a value as a JavaScript condition.
pub(super) fn truthy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    Ok(Some(match Loose::deserialize(deserializer)? {
        Loose::Null => false,
        Loose::Bool(b) => b,
        Loose::Int(n) => n != 0,
        Loose::Float(n) => n != 0.0,
        Loose::Text(s) => !s.is_empty(),
        Loose::Compound => true,
    }))
}

/// Reads a port. Node sends a number, null, or (UDP) any value of the program. An invalid port
/// becomes one that cannot be bound, so that the reply is an error.
pub(super) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    const NO_PORT: i64 = -2;
    Ok(match Loose::deserialize(deserializer)? {
        Loose::Null => None,
        Loose::Int(n) => Some(n),
        Loose::Text(s) => Some(s.parse().unwrap_or(NO_PORT)),
        Loose::Bool(_) | Loose::Float(_) | Loose::Compound => Some(NO_PORT),
    })
}

/// Reads 4, 6, -1, null, "udp4" or "udp6". The outer option is whether the field is present.
pub(super) fn address_type<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<AddressType>, D::Error> {
    struct TypeVisitor;
    impl<'de> Visitor<'de> for TypeVisitor {
        type Value = AddressType;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("4, 6, -1, null, \"udp4\" or \"udp6\"")
        }
        fn visit_unit<E>(self) -> Result<AddressType, E> {
            Ok(AddressType::Fd)
        }
        fn visit_i64<E: de::Error>(self, v: i64) -> Result<AddressType, E> {
            match v {
                4 => Ok(AddressType::Tcp4),
                6 => Ok(AddressType::Tcp6),
                -1 => Ok(AddressType::Unix),
                _ => Err(E::invalid_value(de::Unexpected::Signed(v), &self)),
            }
        }
        fn visit_u64<E: de::Error>(self, v: u64) -> Result<AddressType, E> {
            self.visit_i64(i64::try_from(v).unwrap_or(0))
        }
        fn visit_str<E: de::Error>(self, v: &str) -> Result<AddressType, E> {
            match v {
                "udp4" => Ok(AddressType::Udp4),
                "udp6" => Ok(AddressType::Udp6),
                _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
            }
        }
    }
    deserializer.deserialize_any(TypeVisitor).map(Some)
}
