//! Signals that are about the app rather than its workers: reload from its file, open its log files
//! anew.

use std::io;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGUSR1};

/// What is caught here, and left alone by the engine.
pub(crate) const CAUGHT: [i32; 2] = [SIGHUP, SIGUSR1];

/// A byte on each for each signal.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) reload: UnixStream,
    pub(crate) reopen: UnixStream,
}

impl Signals {
    pub(crate) fn catch() -> io::Result<Signals> {
        Ok(Signals { reload: caught(SIGHUP)?, reopen: caught(SIGUSR1)? })
    }
}

fn caught(signal: i32) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal, writer)?;
    reader.set_nonblocking(true)?;
    Ok(reader)
}
