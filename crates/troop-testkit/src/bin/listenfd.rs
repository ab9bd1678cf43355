//! A server that knows nothing of troop: it takes its socket by the crate `listenfd`, as under
//! systemd, and answers with its process id.

use std::io::{Read as _, Write as _};

fn main() -> std::io::Result<()> {
    let Some(listener) = listenfd::ListenFd::from_env().take_tcp_listener(0)? else {
        return Err(std::io::Error::other("no socket was given"));
    };
    loop {
        let (mut stream, _) = listener.accept()?;
        // A client may leave early.
        let _ = stream.read(&mut [0; 1024]);
        let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{}", std::process::id());
    }
}
