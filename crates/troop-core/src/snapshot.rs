//! Snapshots: all that a cluster has decided and waits for, as plain data with a version.
//!
//! A cluster that is read goes on as the one that was written would have. Policies of the program's
//! own cannot be written, as they are no data.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

/// The version of what [`write()`] writes, and the only one that [`read`] takes. One more with each
/// change of the state's form.
pub const VERSION: u32 = 2;

/// Why a cluster could not be written or read.
#[derive(Debug)]
pub enum SnapshotError {
    /// A snapshot of this other version.
    Version(u32),
    /// It cannot be written, or what is read is no snapshot.
    Format(serde_json::Error),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::Version(version) => {
                write!(f, "a snapshot of version {version}; this program reads version {VERSION}")
            }
            SnapshotError::Format(_) => f.write_str("the snapshot of a cluster"),
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

/// Writes down the state of a cluster.
///
/// # Errors
/// [`SnapshotError::Format`] if it has a policy that is the program's own.
pub fn write(cluster: &Cluster) -> Result<Vec<u8>, SnapshotError> {
    #[derive(Serialize)]
    struct Written<'a> {
        version: u32,
        cluster: &'a Cluster,
    }
    Ok(serde_json::to_vec(&Written { version: VERSION, cluster })?)
}

/// Reads the state of a cluster that [`write()`] has written.
///
/// # Errors
/// [`SnapshotError::Version`] for another version, whatever else it holds;
/// [`SnapshotError::Format`] if it is no snapshot.
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

/// Floating-point numbers by their bits: a number that is written and read is the same number, in
/// any format.
pub(crate) mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

/// An option in an option. JSON has one `null` for both.
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

/// Maps whose keys are no text, as lists of pairs.
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
