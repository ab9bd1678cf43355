//! Snapshots of a cluster's whole state, as plain data with a version.
//!
//! A cluster that was written and read behaves like the original. Policies of the embedding program
//! are code and cannot be written.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

/// The major version of the format that [`write()`] writes, and the only one that [`read`] accepts.
pub const VERSION: u32 = 17;

/// The minor version of what [`write()`] writes. A new field that has a default increments it, every
/// other change of the state's fields the [major](VERSION) one: [`read`] has to do without fields that
/// an older minor version does not have, and ignores those of a newer one.
pub const MINOR: u32 = 3;

/// The reason why a snapshot could not be written or read.
#[derive(Debug)]
pub enum SnapshotError {
    /// The snapshot has this other major version.
    Version(u32),
    /// The state cannot be serialized, or the bytes are not a snapshot.
    Format(serde_json::Error),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::Version(version) => {
                write!(f, "a snapshot of version {version}; this program reads version {VERSION}")
            }
            SnapshotError::Format(_) => f.write_str("invalid snapshot of a cluster"),
        }
    }
}

impl Error for SnapshotError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SnapshotError::Version(_) => None,
            SnapshotError::Format(e) => Some(e),
        }
    }
}

impl From<serde_json::Error> for SnapshotError {
    fn from(e: serde_json::Error) -> SnapshotError {
        SnapshotError::Format(e)
    }
}

/// Serializes the state of a cluster.
///
/// # Errors
/// [`SnapshotError::Format`] if it has a policy of the embedding program.
pub fn write(cluster: &Cluster) -> Result<Vec<u8>, SnapshotError> {
    #[derive(Serialize)]
    struct Written<'a> {
        version: u32,
        minor: u32,
        cluster: &'a Cluster,
    }
    Ok(serde_json::to_vec(&Written { version: VERSION, minor: MINOR, cluster })?)
}

/// Restores a cluster from the output of [`write()`].
///
/// # Errors
/// [`SnapshotError::Version`] for another major version, whatever else the bytes contain;
/// [`SnapshotError::Format`] if they are not a snapshot.
pub fn read(snapshot: &[u8]) -> Result<Cluster, SnapshotError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    #[derive(Deserialize)]
    struct Written {
        cluster: Cluster,
    }
    let Head { version } = serde_json::from_slice(snapshot)?;
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let Written { cluster } = serde_json::from_slice(snapshot)?;
    Ok(cluster)
}

/// Serializes floating-point numbers by their bits, so that any format preserves them exactly.
pub(crate) mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

/// Serializes an option in an option, which JSON's single `null` cannot distinguish.
pub(crate) mod nested {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer, T: Serialize>(
        value: &Option<Option<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(|inner| (inner,)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        Ok(Option::<(Option<T>,)>::deserialize(deserializer)?.map(|(inner,)| inner))
    }
}

/// Serializes maps whose keys are not text as lists of pairs.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer, K: Serialize, V: Serialize>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        D: Deserializer<'de>,
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(BTreeMap::from_iter)
    }
}
