//! Environments as lists of pairs, for `serde(with)`: names need not be UTF-8.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

use super::Text;

type Environment = BTreeMap<OsString, OsString>;

pub(crate) fn of(env: &Environment) -> Vec<(Text, Text)> {
    env.iter().map(|(name, value)| (name.as_os_str().into(), value.as_os_str().into())).collect()
}

pub(crate) fn environment(pairs: &[(Text, Text)]) -> Environment {
    pairs.iter().map(|(name, value)| (name.to_os(), value.to_os())).collect()
}

pub(crate) fn serialize<S: Serializer>(env: &Environment, to: S) -> Result<S::Ok, S::Error> {
    of(env).serialize(to)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Environment, D::Error> {
    Ok(environment(&Vec::deserialize(from)?))
}
