//! The clients: one thread, a fixed number of connections under way, a fixed number in all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use troop_sys::poll::{Interest, Poller};

use crate::peer::Result;

/// Nothing should take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What the clients saw.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From the first connect to the last end.
    pub(crate) took: Duration,
    /// Connections by the byte that the worker sent.
    pub(crate) shares: BTreeMap<u8, usize>,
    /// Connections that ended without a byte.
    pub(crate) failed: usize,
}

fn open(address: SocketAddr) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

/// Makes `count` connections, `clients` at a time: connect, read to the end, close.
pub(crate) fn run(address: SocketAddr, clients: usize, count: usize) -> Result<Outcome> {
    let mut poller = Poller::new()?;
    let mut slots: Vec<Option<(OwnedFd, Option<u8>)>> = Vec::new();
    let mut outcome = Outcome { took: Duration::ZERO, shares: BTreeMap::new(), failed: 0 };
    let begin = Instant::now();
    let mut opened = 0;
    let mut open_into = |slot: usize, poller: &Poller| -> Result<Option<(OwnedFd, Option<u8>)>> {
        if opened == count {
            return Ok(None);
        }
        opened += 1;
        let socket = open(address)?;
        poller.add(&socket, slot as u64, Interest::Read)?;
        Ok(Some((socket, None)))
    };
    for slot in 0..clients {
        slots.push(open_into(slot, &poller)?);
    }
    let (mut ready, mut ended) = (Vec::new(), 0);
    while ended < count {
        ready.clear();
        poller.wait(Some(Duration::from_secs(1)), &mut ready)?;
        if begin.elapsed() > LIMIT {
            return Err(format!("only {ended} of {count} connections were served within {LIMIT:?}").into());
        }
        for event in &ready {
            let slot = usize::try_from(event.token)?;
            let Some((socket, mark)) = &mut slots[slot] else { continue };
            let mut buffer = [0; 16];
            let over = loop {
                match rustix::io::read(&*socket, &mut buffer) {
                    Ok(0) => break true,
                    Ok(_) => *mark = Some(buffer[0]),
                    Err(Errno::AGAIN) => break false,
                    Err(_) => break true,
                }
            };
            if over {
                ended += 1;
                match mark {
                    Some(mark) => *outcome.shares.entry(*mark).or_default() += 1,
                    None => outcome.failed += 1,
                }
                slots[slot] = None;
                slots[slot] = open_into(slot, &poller)?;
            }
        }
    }
    outcome.took = begin.elapsed();
    Ok(outcome)
}
