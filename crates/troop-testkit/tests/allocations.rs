//! What a connection costs the primary in memory that it has to ask for: nothing. Every policy hands
//! connections over out of room that is there already.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "an allocator cannot be replaced without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

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
