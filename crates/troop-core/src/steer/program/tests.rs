//! The programs on a machine of our own; what the kernel makes of them is tested with real
//! connections.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::{BUCKETS, Mixer, bucket_of, partition};

/// Runs a program on the IP packet `packet`, with this random number.
fn run(program: &[Instruction], packet: &[u8], random: u32) -> u32 {
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0);
    let load = |operand: u32, size: usize| {
        if operand == RANDOM {
            return random;
        }
        let from = operand.wrapping_sub(IP_HEADER) as usize;
        packet[from..from + size].iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
    };
    for _ in 0..4096 {
        let Instruction { code, jump_true, jump_false, operand } = program[at];
        at += 1;
        match code {
            code::LOAD => a = load(operand, 4),
            code::LOAD_HALF => a = load(operand, 2),
            code::LOAD_BYTE => a = load(operand, 1),
            code::LOAD_HALF_AT_X => a = load(operand + x, 2),
            code::HEADER_LENGTH => x = 4 * (load(operand, 1) & 15),
            code::LOAD_NUMBER => a = operand,
            code::LOAD_STORED => a = memory[operand as usize],
            code::STORE => memory[operand as usize] = a,
            code::LOAD_X_STORED => x = memory[operand as usize],
            code::ADD => a = a.wrapping_add(operand),
            code::SUBTRACT => a = a.wrapping_sub(operand),
            code::MULTIPLY => a = a.wrapping_mul(operand),
            code::DIVIDE => a /= operand,
            code::AND => a &= operand,
            code::SHIFT_RIGHT => a >>= operand,
            code::XOR_X => a ^= x,
            code::X_BECOMES_A => x = a,
            code::JUMP => at += operand as usize,
            code::JUMP_IF_EQUAL => {
                at += usize::from(if a == operand { jump_true } else { jump_false })
            }
            code::JUMP_IF_AT_LEAST => {
                at += usize::from(if a >= operand { jump_true } else { jump_false })
            }
            code::RETURN => return operand,
            code::RETURN_A => return a,
            _ => panic!("no such operation: {code:#x}"),
        }
    }
    panic!("the program does not end");
}

fn packet(from: IpAddr, port: u16, extension: bool) -> Vec<u8> {
    let mut packet = vec![0u8; 80];
    match from {
        IpAddr::V4(ip) => {
            // With options, so that the header's length matters.
            packet[0] = 0x46;
            packet[12..16].copy_from_slice(&ip.octets());
            packet[24..26].copy_from_slice(&port.to_be_bytes());
        }
        IpAddr::V6(ip) => {
            packet[0] = 0x60;
            packet[6] = if extension { 0 } else { 17 };
            packet[8..24].copy_from_slice(&ip.octets());
            packet[40..42].copy_from_slice(&port.to_be_bytes());
        }
    }
    packet
}

proptest! {
    #[test]
    fn shares_are_kept_whatever_they_are(shares in prop::collection::vec(prop_oneof![Just(0u32), Just(100), Just(100), 0..2000u32], 1..400)) {
        let program = by_share(&shares);
        prop_assert!(program.len() <= 4096);
        let total: u64 = shares.iter().map(|s| u64::from(*s)).sum();
        const DRAWS: u64 = 20_000;
        let mut counts = vec![0u64; shares.len()];
        for n in 0..DRAWS {
            // Evenly spread instead of random; both ends are among them.
            let random = (n * u64::from(u32::MAX) / (DRAWS - 1)) as u32;
            counts[run(&program, &[], random) as usize] += 1;
        }
        for (count, share) in counts.iter().zip(&shares) {
            let expected = (DRAWS * u64::from(*share)).checked_div(total).unwrap_or(DRAWS / shares.len() as u64);
            prop_assert!(count.abs_diff(expected) <= 2, "{counts:?} for {shares:?}");
            prop_assert!(total == 0 || *share > 0 || *count == 0);
        }
    }

    #[test]
    fn the_kernel_finds_the_same_place_as_the_primary(
        from in prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)],
        port: u16, prefix4 in 0..=32u8, prefix6 in 0..=128u8, shards in 1..300usize, dead in 0..300usize, flows: bool, extension: bool,
    ) {
        // Mapped addresses are IPv4 on the wire.
        let from = from.to_canonical();
        let mut all = vec![(100, true); shards];
        if let Some(shard) = all.get_mut(dead) {
            shard.1 = false;
        }
        let table = partition(&all);
        let program = by_client(&table, prefix4, prefix6, flows);
        prop_assert!(program.len() <= 2500, "{} instructions", program.len());
        let mut client = Mixer::default().address(from, prefix4, prefix6);
        if flows && !(extension && from.is_ipv6()) {
            client = client.word(u32::from(port));
        }
        let expected = table[bucket_of(client.finish())];
        prop_assert_eq!(run(&program, &packet(from, port, extension), 0), u32::from(expected));
    }
}

#[test]
fn even_shares_cost_a_division_and_the_largest_table_fits() {
    assert_eq!(by_share(&[100; 64]).len(), 3);
    // No two neighbours have the same owner, so nothing can be left out.
    let table: Vec<u16> = (0..BUCKETS).map(|n| n as u16).collect();
    let program = by_client(&table, 32, 128, true);
    // 20,480 bytes are what old kernels allow (net.core.optmem_max), with 8 bytes for each
    // instruction.
    assert!(program.len() * 8 < 20_000, "{} instructions", program.len());
    assert_eq!(by_share(&[]).last().map(|i| i.code), Some(code::RETURN));
}
