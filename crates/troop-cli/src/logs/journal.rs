//! Sends lines to the journal of systemd by its native protocol:
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::io;
use std::os::unix::net::UnixDatagram;

use super::line::Origin;

/// The socket of the journal.
const SOCKET: &str = "/run/systemd/journal/socket";
/// The longest line, in bytes, so that it fits into a datagram.
const MAX_LINE: usize = 48 * 1024;

#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    name: String,
}

impl Journal {
    pub(crate) fn new(name: &str) -> io::Result<Journal> {
        let path = std::env::var("TROOP_JOURNAL_SOCKET").unwrap_or_else(|_| SOCKET.into());
        let socket = UnixDatagram::unbound()?;
        socket.connect(&path)?;
        socket.set_write_timeout(Some(std::time::Duration::from_secs(1)))?;
        Ok(Journal { socket, name: name.to_owned() })
    }

    pub(crate) fn write(&self, origin: Origin, line: &[u8]) -> io::Result<()> {
        if line.len() > MAX_LINE {
            return line.chunks(MAX_LINE).try_for_each(|piece| self.write(origin, piece));
        }
        let priority = if origin.is_error() { 4 } else { 6 };
        let mut datagram =
            format!("SYSLOG_IDENTIFIER={}\nPRIORITY={priority}\n", self.name).into_bytes();
        if let Some(slot) = origin.slot() {
            datagram.extend_from_slice(format!("TROOP_SLOT={slot}\n").as_bytes());
        }
        // The form with a length, because a line may contain any byte.
        datagram.extend_from_slice(b"MESSAGE\n");
        datagram.extend_from_slice(&(line.len() as u64).to_le_bytes());
        datagram.extend_from_slice(line);
        datagram.push(b'\n');
        self.socket.send(&datagram).map(|_| ())
    }
}
