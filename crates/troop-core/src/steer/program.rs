//! Generates classic BPF programs for `SO_ATTACH_REUSEPORT_CBPF` (`socket(7)`; the instructions are
//! described in `Documentation/networking/filter.rst` of Linux). A program reads the packet that
//! opens a connection, or a datagram, and returns the number of a socket.

use serde::{Deserialize, Serialize};

use crate::policy::prefix_masks;

/// An instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// The operation code.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip if a comparison fails.
    pub jump_false: u8,
    /// The operand.
    pub operand: u32,
}

/// The operation codes in use; A and X are the registers of the BPF machine.
mod code {
    pub(super) const LOAD: u16 = 0x20;
    pub(super) const LOAD_HALF: u16 = 0x28;
    pub(super) const LOAD_BYTE: u16 = 0x30;
    /// Loads two bytes at X + operand.
    pub(super) const LOAD_HALF_AT_X: u16 = 0x48;
    /// Sets X to four times the low half of a byte: the length of an IPv4 header.
    pub(super) const HEADER_LENGTH: u16 = 0xb1;
    pub(super) const LOAD_NUMBER: u16 = 0x00;
    /// Loads from the scratch memory.
    pub(super) const LOAD_STORED: u16 = 0x60;
    pub(super) const STORE: u16 = 0x02;
    pub(super) const LOAD_X_STORED: u16 = 0x61;
    pub(super) const ADD: u16 = 0x04;
    pub(super) const SUBTRACT: u16 = 0x14;
    pub(super) const MULTIPLY: u16 = 0x24;
    pub(super) const DIVIDE: u16 = 0x34;
    pub(super) const AND: u16 = 0x54;
    pub(super) const SHIFT_RIGHT: u16 = 0x74;
    pub(super) const XOR_X: u16 = 0xac;
    pub(super) const X_BECOMES_A: u16 = 0x07;
    pub(super) const JUMP: u16 = 0x05;
    pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(super) const JUMP_IF_AT_LEAST: u16 = 0x35;
    pub(super) const RETURN: u16 = 0x06;
    pub(super) const RETURN_A: u16 = 0x16;
}

/// `SKF_NET_OFF`: the offset of the IP header.
const IP_HEADER: u32 = 0xfff0_0000;
/// `SKF_AD_OFF + SKF_AD_RANDOM`: a random number.
const RANDOM: u32 = 0xffff_f000 + 56;
const UDP: u32 = 17;

fn op(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

/// The code for numbers from `start` on.
struct Leaf {
    start: u32,
    code: Vec<Instruction>,
}

/// Generates a binary search for the leaf of the number in A.
fn tree(leaves: &[Leaf]) -> Vec<Instruction> {
    match leaves {
        [] => vec![op(code::RETURN, 0)],
        [leaf] => leaf.code.clone(),
        _ => {
            let (left, right) = leaves.split_at(leaves.len() / 2);
            let (middle, left, right) = (right[0].start, tree(left), tree(right));
            let mut program = Vec::with_capacity(left.len() + right.len() + 2);
            match u8::try_from(left.len()) {
                Ok(skip) => program.push(jump(code::JUMP_IF_AT_LEAST, middle, skip, 0)),
                Err(_) => {
                    // The distance may exceed the 8 bits of a conditional jump.
                    program.push(jump(code::JUMP_IF_AT_LEAST, middle, 0, 1));
                    program.push(op(code::JUMP, left.len() as u32));
                }
            }
            program.extend(left);
            program.extend(right);
            program
        }
    }
}

/// Generates a program that always returns the same number.
#[must_use]
pub fn always(number: u32) -> Vec<Instruction> {
    vec![op(code::RETURN, number)]
}

/// Generates a program that returns each number at random in proportion to its share; all are
/// equally likely if no share is above 0.
#[must_use]
pub fn by_share(shares: &[u32]) -> Vec<Instruction> {
    let even = vec![1; shares.len()];
    let shares = if shares.iter().all(|share| *share == 0) { &even } else { shares };
    let total: u64 = shares.iter().map(|share| u64::from(*share)).sum();
    let at = |sum: u64| ((u128::from(sum) << 32) / u128::from(total.max(1))) as u64;
    let mut leaves = Vec::new();
    let (mut sum, mut number) = (0, 0);
    while number < shares.len() {
        let share = shares[number];
        let run = shares[number..].iter().take_while(|other| **other == share).count();
        let before = sum;
        sum += u64::from(share) * run as u64;
        let (start, end) = (at(before), at(sum));
        if end > start {
            // Neighbours with equal shares are separated by a division, rounded so that the result
            // never exceeds the last one.
            let mut code = Vec::new();
            if run == 1 {
                code.push(op(code::RETURN, number as u32));
            } else {
                if start > 0 {
                    code.push(op(code::SUBTRACT, start as u32));
                }
                code.push(op(code::DIVIDE, (end - start).div_ceil(run as u64) as u32));
                if number > 0 {
                    code.push(op(code::ADD, number as u32));
                }
                code.push(op(code::RETURN_A, 0));
            }
            leaves.push(Leaf { start: start as u32, code });
        }
        number += run;
    }
    let mut program = vec![op(code::LOAD, RANDOM)];
    program.extend(tree(&leaves));
    program
}

/// Generates a program that chooses by the first bits of the client's address: it returns the entry
/// of `table` at the client's [bucket](crate::policy::bucket_of). With `flows`, the client's UDP
/// port counts too.
#[must_use]
pub fn by_client(table: &[u16], prefix4: u8, prefix6: u8, flows: bool) -> Vec<Instruction> {
    use crate::policy::mixing as mix;
    let (mask4, mask6) = prefix_masks(prefix4, prefix6);
    // The hash so far is in A, and in M[0] while the next word is loaded.
    let mixed = |load: &[Instruction], program: &mut Vec<Instruction>| {
        program.push(op(code::STORE, 0));
        program.extend(load);
        program.push(op(code::LOAD_X_STORED, 0));
        program.push(op(code::XOR_X, 0));
        program.push(op(code::MULTIPLY, mix::MULTIPLY_WORD));
        program.push(op(code::X_BECOMES_A, 0));
        program.push(op(code::SHIFT_RIGHT, mix::SHIFT_WORD));
        program.push(op(code::XOR_X, 0));
    };
    let address =
        |offset: u32, mask: u32| [op(code::LOAD, IP_HEADER + offset), op(code::AND, mask)];
    let (mut four, mut six) = (Vec::new(), Vec::new());
    mixed(&address(12, mask4), &mut four);
    for (word, mask) in (0..).zip(mask6).filter(|(_, mask)| *mask != 0) {
        mixed(&address(8 + 4 * word, mask), &mut six);
    }
    if flows {
        mixed(
            &[op(code::HEADER_LENGTH, IP_HEADER), op(code::LOAD_HALF_AT_X, IP_HEADER)],
            &mut four,
        );
        // The port is ignored behind extension headers, where its offset is unknown.
        let mut port = Vec::new();
        mixed(&[op(code::LOAD_HALF, IP_HEADER + 40)], &mut port);
        let skip = (port.len() + 2) as u8;
        // A is needed again after the comparison.
        six.extend([op(code::STORE, 1), op(code::LOAD_BYTE, IP_HEADER + 6)]);
        six.push(jump(code::JUMP_IF_EQUAL, UDP, 0, skip));
        six.push(op(code::LOAD_STORED, 1));
        six.extend(&port);
        six.extend([op(code::JUMP, 1), op(code::LOAD_STORED, 1)]);
    }
    let mut program = vec![op(code::LOAD_BYTE, IP_HEADER), op(code::SHIFT_RIGHT, 4)];
    // Both begin with a hash of 0.
    let nothing = op(code::LOAD_NUMBER, 0);
    four.insert(0, nothing);
    six.insert(0, nothing);
    six.push(op(code::JUMP, four.len() as u32));
    program.push(jump(code::JUMP_IF_EQUAL, 6, 0, six.len() as u8));
    program.extend(six);
    program.extend(four);
    program.push(op(code::MULTIPLY, mix::MULTIPLY_END));
    program.push(op(code::X_BECOMES_A, 0));
    program.push(op(code::SHIFT_RIGHT, mix::SHIFT_END));
    program.push(op(code::XOR_X, 0));
    program.push(op(code::SHIFT_RIGHT, 32 - mix::BUCKET_BITS));
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut last = None;
    for (bucket, shard) in (0..).zip(table) {
        if last.replace(*shard) != Some(*shard) {
            leaves.push(Leaf { start: bucket, code: vec![op(code::RETURN, u32::from(*shard))] });
        }
    }
    program.extend(tree(&leaves));
    program
}

#[cfg(test)]
mod tests;
