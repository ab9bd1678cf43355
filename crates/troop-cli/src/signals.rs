//! Signals that the program handles instead of the engine: reload with the configuration (HUP),
//! reopening of log files (USR1), one worker less (TTOU), which says when it is the last one, and an
//! upgrade (USR2).

use std::io;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGTTOU, SIGUSR1, SIGUSR2};

/// Signals of the engine's that it must leave to the program.
pub(crate) const LEFT: [i32; 2] = [SIGHUP, SIGTTOU];

/// Streams that receive one byte per signal.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) reload: UnixStream,
    pub(crate) reopen: UnixStream,
    pub(crate) fewer: UnixStream,
    pub(crate) upgrade: UnixStream,
}

impl Signals {
    pub(crate) fn catch() -> io::Result<Signals> {
        Ok(Signals {
            reload: caught(SIGHUP)?,
            reopen: caught(SIGUSR1)?,
            fewer: caught(SIGTTOU)?,
            upgrade: caught(SIGUSR2)?,
        })
    }
}

fn caught(signal: i32) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal, writer)?;
    reader.set_nonblocking(true)?;
    Ok(reader)
}
