//! Seeds of random sequences.

/// Returns a seed that differs from those of other clusters.
pub(crate) fn random_seed() -> u64 {
    u64::from(std::process::id()) << 32
        ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |t| u64::from(t.subsec_nanos()))
}
