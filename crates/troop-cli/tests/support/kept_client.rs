//! A client that keeps its connection open.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use troop_testkit::TEST_TIMEOUT;

/// A connection that stays open.
pub struct KeptClient(BufReader<TcpStream>);

impl KeptClient {
    pub fn new(port: u16) -> KeptClient {
        KeptClient::try_new(port).unwrap()
    }

    pub fn try_new(port: u16) -> io::Result<KeptClient> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        Ok(KeptClient(BufReader::new(stream)))
    }

    pub fn get(&mut self) -> String {
        self.try_get().unwrap()
    }

    pub fn try_get(&mut self) -> io::Result<String> {
        self.0.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut len = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::Error::other("the connection was closed"));
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok(String::from_utf8(body).unwrap())
    }
}

/// Does something while six clients send requests, every second one on a connection that stays open if
/// `keeps`, the others by `get`. No request may fail, and none may be missing.
pub fn while_clients_ask<T>(
    port: u16,
    keeps: bool,
    get: impl Fn() -> io::Result<T> + Sync,
    change: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let (stop, get) = (&stop, &get);
                scope.spawn(move || {
                    let mut kept = (keeps && number % 2 == 0).then(|| KeptClient::new(port));
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        match &mut kept {
                            Some(client) => drop(client.get()),
                            None => drop(get().expect("no request fails")),
                        }
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        change();
        stop.store(true, Ordering::Relaxed);
        let done: Vec<u32> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(done.iter().all(|done| *done > 0), "{done:?}");
    });
}
