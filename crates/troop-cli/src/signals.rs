//! Signals that the program handles instead of the engine: reload with the configuration (HUP), and
//! reopening of log files (USR1).

use std::io;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGUSR1};

/// Signals of the engine's that it must leave to the program.
pub(crate) const LEFT: [i32; 1] = [SIGHUP];

/// Streams that receive one byte per signal.
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
