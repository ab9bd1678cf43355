//! Assigns clients to shards: consistently, evenly, and simply enough for a BPF program.
//!
//! A client's address is hashed to a number, the number to one of [`BUCKETS`], and each bucket
//! belongs to a shard. A shard that joins takes its share from all others alike, and no other
//! bucket moves. The buckets of a shard that is out of service move to the others, by rendezvous
//! hashing of each bucket over the shards in service, and return with the shard; no other bucket
//! moves.

use std::net::IpAddr;

/// Number of buckets that clients are divided into.
pub const BUCKETS: usize = 1024;

/// Number of bits of a client's number that select its bucket.
pub(crate) const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// Constants of the hash, which the BPF program shares.
pub(crate) mod mixing {
    pub(crate) use super::BUCKET_BITS;
    pub(crate) const MULTIPLY_WORD: u32 = 0x9E37_79B1;
    pub(crate) const MULTIPLY_END: u32 = 0x85EB_CA77;
    pub(crate) const SHIFT_WORD: u32 = 15;
    pub(crate) const SHIFT_END: u32 = 13;
}

use mixing::{MULTIPLY_END, MULTIPLY_WORD, SHIFT_END, SHIFT_WORD};

/// Hashes words to a client's number. The BPF program does the same with the words of a packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mixer(u32);

impl Mixer {
    /// Adds a word to the hash.
    #[must_use]
    pub fn word(self, word: u32) -> Mixer {
        let h = (self.0 ^ word).wrapping_mul(MULTIPLY_WORD);
        Mixer(h ^ (h >> SHIFT_WORD))
    }

    /// Adds the first bits of an address to the hash. IPv4-mapped IPv6 addresses count as IPv4.
    #[must_use]
    pub fn address(self, address: IpAddr, prefix4: u8, prefix6: u8) -> Mixer {
        let (mask4, mask6) = prefix_masks(prefix4, prefix6);
        match address.to_canonical() {
            IpAddr::V4(ip) => self.word(u32::from(ip) & mask4),
            IpAddr::V6(ip) => {
                let ip = u128::from(ip);
                let words = [96, 64, 32, 0].map(|shift| ((ip >> shift) & 0xffff_ffff) as u32);
                words
                    .iter()
                    .zip(mask6)
                    .filter(|(_, mask)| *mask != 0)
                    .fold(self, |mixer, (word, mask)| mixer.word(word & mask))
            }
        }
    }

    /// Adds a text to the hash.
    #[must_use]
    pub fn text(self, text: &[u8]) -> Mixer {
        let words =
            text.chunks(4).map(|c| c.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)));
        words.fold(self.word(text.len() as u32), Mixer::word)
    }

    /// Returns the client's number.
    #[must_use]
    pub fn finish(self) -> u32 {
        let h = self.0.wrapping_mul(MULTIPLY_END);
        h ^ (h >> SHIFT_END)
    }
}

/// Returns masks for the first bits of an address: one word for IPv4, four for IPv6.
#[must_use]
pub fn prefix_masks(prefix4: u8, prefix6: u8) -> (u32, [u32; 4]) {
    let mask = |bits: u32| if bits == 0 { 0 } else { u32::MAX << (32 - bits.min(32)) };
    (
        mask(u32::from(prefix4)),
        [0, 32, 64, 96].map(|from| mask(u32::from(prefix6).saturating_sub(from))),
    )
}

/// Returns the bucket of a client's number.
#[must_use]
pub fn bucket_of(client: u32) -> usize {
    (client >> (32 - BUCKET_BITS)) as usize
}

/// Returns the shard of each bucket. `shards` has each shard's weight and whether it is in service.
/// If none is in service, all buckets stay with their own shards.
#[must_use]
pub fn partition(shards: &[(u32, bool)]) -> Vec<u16> {
    let mut owners = home(&shards.iter().map(|(weight, _)| *weight).collect::<Vec<_>>());
    let those = |wanted: fn(&(u32, bool)) -> bool| -> Vec<u16> {
        (0u16..).zip(shards).filter(|(_, shard)| wanted(shard)).map(|(n, _)| n).collect()
    };
    let mut serving = those(|(weight, serves)| *serves && *weight > 0);
    if serving.is_empty() {
        serving = those(|(_, serves)| *serves);
    }
    if !serving.is_empty() {
        for (bucket, owner) in owners.iter_mut().enumerate() {
            if !shards.get(usize::from(*owner)).is_some_and(|(_, serves)| *serves) {
                let score = |shard: &u16| {
                    Mixer::default().word(bucket as u32).word(u32::from(*shard)).finish()
                };
                *owner = serving.iter().copied().max_by_key(score).unwrap_or(*owner);
            }
        }
    }
    owners
}

/// Returns the own shard of each bucket: the shards join one after the other, and each takes its
/// weighted share from those that have most relative to their weights.
fn home(weights: &[u32]) -> Vec<u16> {
    let mut owners = vec![0u16; BUCKETS];
    // The buckets of each shard, in an order other than that of the buckets.
    let mut has: Vec<Vec<u16>> = Vec::with_capacity(weights.len());
    let mut sum = 0u64;
    for (shard, weight) in (0u16..).zip(weights) {
        let weight = u64::from(*weight);
        sum += weight;
        if sum == weight {
            // The first shard with a weight above 0 takes all buckets, also those of shards without
            // weight.
            has.iter_mut().for_each(Vec::clear);
            has.push((0..BUCKETS).map(|n| ((n * 389) % BUCKETS) as u16).collect());
            owners.fill(shard);
            continue;
        }
        let share = (BUCKETS as u64 * weight + sum / 2) / sum;
        let mut taken = Vec::new();
        while (taken.len() as u64) < share {
            // Compares buckets per weight by cross-multiplication, without fractions.
            let richest = (0..has.len()).filter(|n| !has[*n].is_empty()).max_by(|a, b| {
                let (x, y) = (
                    has[*a].len() as u64 * u64::from(weights[*b]),
                    has[*b].len() as u64 * u64::from(weights[*a]),
                );
                x.cmp(&y).then(b.cmp(a))
            });
            let Some(bucket) = richest.and_then(|n| has[n].pop()) else { break };
            owners[usize::from(bucket)] = shard;
            taken.push(bucket);
        }
        has.push(taken);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(owners: &[u16], shards: usize) -> Vec<usize> {
        (0..shards)
            .map(|shard| owners.iter().filter(|o| usize::from(**o) == shard).count())
            .collect()
    }

    fn all(n: usize) -> Vec<(u32, bool)> {
        vec![(100, true); n]
    }

    #[test]
    fn shares_are_even_and_follow_the_weights() {
        for n in [1, 2, 3, 7, 8, 64, 256, 1000] {
            let shares = shares(&partition(&all(n)), n);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 2, "{n} places: from {least} to {most}");
        }
        let weighted = shares(&partition(&[(300, true), (100, true), (0, true), (600, true)]), 4);
        for (share, expected) in weighted.iter().zip([307, 102, 0, 615]) {
            assert!(share.abs_diff(expected) <= 3, "{weighted:?}");
        }
    }

    #[test]
    fn a_shard_that_joins_moves_only_its_own_share() {
        for n in 1..100 {
            let (before, after) = (partition(&all(n)), partition(&all(n + 1)));
            let moved: Vec<_> = before
                .iter()
                .zip(&after)
                .filter(|(b, a)| b != a)
                .map(|(_, a)| usize::from(*a))
                .collect();
            assert!(moved.iter().all(|to| *to == n), "{n}: a client moved to another old shard");
            assert!(moved.len() <= BUCKETS / (n + 1) + 1, "{n}: {} moved", moved.len());
        }
    }

    #[test]
    fn only_the_clients_of_a_dead_shard_move_and_they_come_back() {
        let whole = partition(&all(8));
        let mut shards = all(8);
        shards[3].1 = false;
        let without = partition(&shards);
        for (before, after) in whole.iter().zip(&without) {
            assert!(before == after || *before == 3);
            assert_ne!(*after, 3);
        }
        // Every other shard gets some of its buckets.
        assert!(
            shares(&without, 8)
                .iter()
                .zip(shares(&whole, 8))
                .enumerate()
                .all(|(n, (a, b))| n == 3 || *a > b)
        );
        // A second failure moves the buckets that it had taken over and its own.
        shards[5].1 = false;
        for (before, after) in without.iter().zip(&partition(&shards)) {
            assert!(before == after || *before == 5);
        }
        shards[3].1 = true;
        shards[5].1 = true;
        assert_eq!(partition(&shards), whole);
        assert_eq!(
            partition(&[(100, false); 8]),
            whole,
            "without a shard in service no bucket moves"
        );
    }

    #[test]
    fn addresses_fall_into_all_buckets_alike() {
        let mut counts = [0usize; 16];
        for n in 0..16_000u32 {
            let client = Mixer::default()
                .address(IpAddr::from((0x0A00_0000 + n).to_be_bytes()), 32, 64)
                .finish();
            counts[bucket_of(client) * 16 / BUCKETS] += 1;
        }
        assert!(counts.iter().all(|c| (800..1200).contains(c)), "{counts:?}");
        let mixed =
            |ip: &str, four, six| Mixer::default().address(ip.parse().unwrap(), four, six).finish();
        assert_eq!(mixed("10.1.2.3", 24, 64), mixed("10.1.2.250", 24, 64));
        assert_ne!(mixed("10.1.2.3", 24, 64), mixed("10.1.3.3", 24, 64));
        assert_eq!(mixed("::ffff:10.1.2.3", 32, 64), mixed("10.1.2.3", 32, 64));
        assert_eq!(mixed("2001:db8:1:2::1", 32, 64), mixed("2001:db8:1:2:ffff::1", 32, 64));
        assert_ne!(mixed("2001:db8:1:2::1", 32, 64), mixed("2001:db8:1:3::1", 32, 64));
        assert_eq!(mixed("2001:db8:1:2::1", 32, 48), mixed("2001:db8:1:3::1", 32, 48));
    }
}
