//! Direct I/O: the thread of a relay's program moves messages itself, and no message is lost or
//! overtaken, whichever thread does it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use troop::Cluster;
use troop::embed::{Adoption, RelayIo};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);
const LINE: &str = "{\"text\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}\n";

/// A worker whose end of the channel the test has, and the program's end of its relay.
struct Scene {
    _cluster: Cluster,
    process: Child,
    worker: UnixStream,
    program: UnixStream,
    io: Option<RelayIo>,
    channel: OwnedFd,
    offers: Receiver<()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::builder().start_in_thread(|_| {}).unwrap();
        let process = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let (ours, worker) = Adoption::channel().unwrap();
        let (relay, program) = Adoption::channel().unwrap();
        let adoption = Adoption::new(process.id(), ours).unwrap().relay(relay, false);
        let handle = cluster.adopt_blocking(adoption).unwrap();
        let (offer, offers) = channel();
        let (io, channel) =
            handle.relay_io(move || offer.send(()).unwrap_or_default()).unwrap().unwrap();
        let (worker, program) = (UnixStream::from(worker), UnixStream::from(program));
        for socket in [&worker, &program] {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
            socket.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        }
        Scene { _cluster: cluster, process, worker, program, io: Some(io), channel, offers }
    }

    fn io(&self) -> &RelayIo {
        self.io.as_ref().unwrap()
    }

    /// The worker writes, and its channel becomes readable.
    fn worker_says(&mut self, text: &str) {
        self.worker.write_all(text.as_bytes()).unwrap();
        let patience = Timespec { tv_sec: TEST_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(
            poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&patience)).unwrap(),
            1
        );
    }

    fn helper_reads(&self) -> (String, bool) {
        let mut messages = Vec::new();
        let goes_on = self.io().read(&mut messages);
        (String::from_utf8(messages).unwrap(), goes_on)
    }
}

fn hear(socket: &mut UnixStream, text: &str) {
    let mut heard = vec![0; text.len()];
    socket.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), text);
}

/// Sends numbered messages until the worker's socket and everything behind it is full, and returns
/// how many.
fn fill(io: &RelayIo) -> usize {
    (0..)
        .take_while(|n| {
            io.write(format!("{{\"n\":{n},\"text\":\"{}\"}}\n", "x".repeat(1000)).as_bytes(), false)
        })
        .count()
}

#[test]
fn direct_io_moves_messages_both_ways() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    scene.worker_says("{\"from\":\"the worker\"}\n");
    assert_eq!(scene.helper_reads(), ("{\"from\":\"the worker\"}\n".into(), true));
    assert!(scene.io().write(b"{\"from\":\"the program\"}\n", false));
    hear(&mut scene.worker, "{\"from\":\"the program\"}\n");
}

#[test]
fn half_a_message_is_kept_for_its_other_half() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    scene.worker_says("{\"a\":1}\n{\"b\"");
    assert_eq!(scene.helper_reads().0, "{\"a\":1}\n");
    scene.worker_says(":2}\n");
    assert_eq!(scene.helper_reads().0, "{\"b\":2}\n");
}

#[test]
fn messages_by_the_relay_precede_those_by_direct_io() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    for n in 0..200 {
        scene.program.write_all(format!("{{\"long\":{n}}}\n").as_bytes()).unwrap();
        let short = format!("{{\"short\":{n}}}\n");
        if !scene.io().write(short.as_bytes(), true) {
            // The cluster's thread was at it.
            scene.program.write_all(short.as_bytes()).unwrap();
        }
        hear(&mut scene.worker, &format!("{{\"long\":{n}}}\n{short}"));
    }
}

#[test]
fn internal_messages_are_not_written_past_the_relay() {
    let scene = Scene::new();
    assert!(!scene.io().write(b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"disconnect\"}\n", false));
    assert!(!scene.io().write(format!("\"{}\"\n", "x".repeat(100_000)).as_bytes(), false));
}

#[test]
fn queued_output_is_written_by_whichever_thread_makes_room() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    let sent = fill(scene.io());
    assert!(sent > 500, "{sent}");
    // The helper's next read is the first that notices the room.
    scene.worker_says("{\"answer\":1}\n");
    let mut reader = std::io::BufReader::new(scene.worker.try_clone().unwrap());
    for n in 0..sent {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        assert!(line.starts_with(&format!("{{\"n\":{n},")), "{n}: {line}");
        if n == 10 {
            assert_eq!(scene.helper_reads().0, "{\"answer\":1}\n");
        }
    }
}

#[test]
fn direct_io_stops_at_a_full_channel_and_resumes_when_the_worker_reads() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    // So much that the worker is not read until it reads: one long message.
    let long = format!("\"{}\"\n", "x".repeat(3 * 1024 * 1024));
    scene.program.write_all(long.as_bytes()).unwrap();
    // Until the driver has taken it in.
    loop {
        scene.worker_says(LINE);
        match scene.helper_reads() {
            (heard, true) => assert_eq!(heard, LINE),
            (heard, false) => break assert_eq!(heard, ""),
        }
    }
    hear(&mut scene.worker, &long);
    // Now the cluster's thread reads.
    hear(&mut scene.program, LINE);
    scene.offers.recv_timeout(TEST_TIMEOUT).unwrap();
    assert!(scene.io().begin());
}

#[test]
fn the_relay_continues_without_direct_io() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    scene.worker_says("{\"a\":1}\n");
    scene.io = None;
    hear(&mut scene.program, "{\"a\":1}\n");
    scene.program.write_all(b"{\"b\":2}\n").unwrap();
    hear(&mut scene.worker, "{\"b\":2}\n");
}

#[test]
fn closing_the_relay_closes_the_channel_despite_direct_io() {
    let mut scene = Scene::new();
    assert!(scene.io().begin());
    assert!(scene.io().write(b"{\"last\":1}\n", false));
    scene.program.shutdown(std::net::Shutdown::Both).unwrap();
    hear(&mut scene.worker, "{\"last\":1}\n");
    match scene.worker.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    assert!(!scene.io().write(b"{\"late\":1}\n", false));
    assert!(!scene.helper_reads().1);
}
