//! The number of workers that `troop scale` has set. It is kept beside the configuration, which a
//! reload compares with its file.

use serde::{Deserialize, Serialize};

/// The variable by which a primary gets the number: `3/1`, three instead of the one that is
/// configured.
pub(crate) const VARIABLE: &str = "TROOP_SCALED";

/// A number of workers, instead of that of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scaled {
    pub(crate) workers: usize,
    /// The number of the configuration. Once that has another one, this is over.
    pub(crate) instead_of: usize,
}

impl Scaled {
    /// Returns the number that this primary was given.
    pub(crate) fn given() -> Option<Scaled> {
        Scaled::decode(&std::env::var(VARIABLE).ok()?)
    }

    fn decode(text: &str) -> Option<Scaled> {
        let (workers, instead_of) = text.split_once('/')?;
        Some(Scaled { workers: workers.parse().ok()?, instead_of: instead_of.parse().ok()? })
    }

    pub(crate) fn encode(self) -> String {
        format!("{}/{}", self.workers, self.instead_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_it_was_written() {
        let scaled = Scaled { workers: 3, instead_of: 1 };
        assert_eq!(Scaled::decode(&scaled.encode()), Some(scaled));
        assert_eq!((Scaled::decode("3"), Scaled::decode("-1/2")), (None, None));
    }
}
