//! What connections and messages cost the primary in memory that it has to ask for: nothing but the
//! texts of messages that its program gets. Everything else fits into memory that it has already.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "an allocator cannot be replaced without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use troop::embed::Adoption;
use troop::{Cluster, Event, Setup};
use troop_testkit::{TEST_TIMEOUT, node_program, talk};

/// Counts what threads allocate that have a counter.
struct Counting;

thread_local! {
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
}

fn count() {
    if let Some(counter) = COUNTER.get() {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator does all of it; counting allocates nothing, as the cell is constant
// from the start and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Clients at a time, and connections of each.
const CLIENTS: usize = 4;
const EACH: usize = 125;
const CONNECTIONS: usize = CLIENTS * EACH;

/// How many connections there are for each allocation at least. What happens now and then, whether or
/// not there are connections, is allowed to allocate.
const FOR_ONE: usize = 10;

const WORKERS: usize = 3;

/// Messages in each direction.
const MESSAGES: usize = 5000;

/// `{text: 'hello'}` as V8 writes it, after its length.
const FRAME: &[u8] = b"\0\0\0\x12\xff\x0fo\"\x04text\"\x05hello{\x01";

/// What a client says.
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\nCookie: sid=7\r\nConnection: close\r\n\r\n";

fn rust() -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(["http", "127.0.0.1:0"])
}

fn node() -> Setup {
    Setup::new().script(node_program("http.js")).args(["0"])
}

/// Several clients, each with one connection after another.
fn connect(port: u16) {
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let answer = talk(([127, 0, 0, 1], port), REQUEST).unwrap();
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            });
        }
    });
}

/// Under this policy, after as many connections as make room for everything, the thread of the
/// primary's driver asks for no memory because of connections.
fn allocates_nothing(scheduling: &str, setup: Setup) {
    let (sender, events) = channel();
    let counter: &AtomicUsize = Box::leak(Box::default());
    let observe = move |event: &Event| {
        COUNTER.set(Some(counter));
        if let Event::Listening { address, .. } = event {
            let _ = sender.send(u16::try_from(address.port.unwrap_or(0)).unwrap_or(0));
        }
    };
    let builder = Cluster::builder().workers(WORKERS).scheduling(scheduling.parse().unwrap());
    let _cluster = builder.setup(setup).start_in_thread(observe).unwrap();
    let ports: Vec<_> = (0..WORKERS).map(|_| events.recv_timeout(TEST_TIMEOUT).unwrap()).collect();
    connect(ports[0]);
    let before = counter.load(Ordering::Relaxed);
    assert!(before > 0, "the thread is counted");
    connect(ports[0]);
    let count = counter.load(Ordering::Relaxed) - before;
    assert!(
        count < CONNECTIONS / FOR_ONE,
        "{scheduling}: {count} allocations for {CONNECTIONS} connections"
    );
}

fn allocates_nothing_for_either(scheduling: &str) {
    allocates_nothing(scheduling, rust());
    allocates_nothing(scheduling, node());
}

#[test]
fn round_robin_allocates_nothing_for_a_connection() {
    allocates_nothing_for_either("round-robin");
}

#[test]
fn weighted_round_robin_allocates_nothing_for_a_connection() {
    allocates_nothing_for_either("weighted");
}

#[test]
fn least_connections_allocate_nothing_for_a_connection() {
    allocates_nothing_for_either("least-connections");
}

#[test]
fn the_power_of_two_choices_allocates_nothing_for_a_connection() {
    allocates_nothing_for_either("p2c");
}

#[test]
fn sticky_by_address_allocates_nothing_for_a_connection() {
    allocates_nothing_for_either("sticky");
}

#[test]
fn sticky_by_cookie_allocates_nothing_for_a_connection() {
    allocates_nothing_for_either("sticky:cookie=sid");
}

#[test]
fn a_shared_listener_allocates_nothing_for_a_connection() {
    allocates_nothing_for_either("shared");
}

#[test]
fn a_message_allocates_its_own_text_alone() {
    let (sender, events) = channel();
    let counter: &AtomicUsize = Box::leak(Box::default());
    let mut seen = 0;
    let observe = move |event: &Event| {
        COUNTER.set(Some(counter));
        match event {
            Event::Online { worker, .. } => sender.send(Some(worker.clone())).unwrap_or_default(),
            Event::Message { .. } => {
                seen += 1;
                if seen % MESSAGES == 0 {
                    sender.send(None).unwrap_or_default();
                }
            }
            _ => {}
        }
    };
    let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(["echo"]);
    let _cluster = Cluster::builder().workers(1).setup(setup).start_in_thread(observe).unwrap();
    let worker = events.recv_timeout(TEST_TIMEOUT).unwrap().unwrap();
    // Each of them comes back.
    let exchange = || {
        let before = counter.load(Ordering::Relaxed);
        (0..MESSAGES).for_each(|number| worker.try_send(&number).unwrap());
        assert!(events.recv_timeout(TEST_TIMEOUT).unwrap().is_none());
        counter.load(Ordering::Relaxed) - before
    };
    assert!(exchange() > MESSAGES, "the thread is counted");
    let count = exchange();
    assert!(
        count < MESSAGES + MESSAGES / FOR_ONE,
        "{count} allocations for {MESSAGES} messages and their answers"
    );
}

/// A process that stands for a worker whose channel the test has.
struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes frames into one socket, and reads as many out of the other.
fn relayed(from: &UnixStream, to: &UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| (0..MESSAGES).for_each(|_| (&*from).write_all(FRAME).unwrap()));
        let mut heard = vec![0; FRAME.len() * MESSAGES];
        (&*to).read_exact(&mut heard).unwrap();
        assert!(heard.ends_with(FRAME));
    });
}

#[test]
fn a_relayed_message_allocates_nothing() {
    let counter: &AtomicUsize = Box::leak(Box::default());
    let observe = move |_: &Event| COUNTER.set(Some(counter));
    let cluster = Cluster::builder().start_in_thread(observe).unwrap();
    let process = Idle(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
    let (channel, worker) = Adoption::channel().unwrap();
    let (relay, program) = Adoption::channel().unwrap();
    let adoption = Adoption::new(process.0.id(), channel).unwrap().relay(relay, true);
    cluster.adopt_blocking(adoption).unwrap();
    let (worker, program) = (UnixStream::from(worker), UnixStream::from(program));
    for socket in [&worker, &program] {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        socket.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    }
    for (from, to) in [(&worker, &program), (&program, &worker)] {
        relayed(from, to);
        let before = counter.load(Ordering::Relaxed);
        assert!(before > 0, "the thread is counted");
        relayed(from, to);
        let count = counter.load(Ordering::Relaxed) - before;
        assert!(count < MESSAGES / FOR_ONE, "{count} allocations for {MESSAGES} messages");
    }
}
