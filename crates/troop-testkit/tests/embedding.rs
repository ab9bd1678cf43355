//! Workers that an embedding program starts itself, and ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use troop::embed::{Adoption, Start, Starter};
use troop::supervise::RestartPolicy;
use troop::{Cluster, Event, Setup, WorkerId};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn new() -> Process {
        Process(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    /// Kills it; the kernel has reported its end on return.
    fn kill(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        self.0.kill().unwrap();
        let patience = Timespec { tv_sec: TEST_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).unwrap(), 1);
    }
}

/// Is asked for workers, and starts none.
struct Asked;

impl Starter for Asked {
    fn start(&mut self, _: Start) {}

    fn draining(&mut self, _: WorkerId) {}
}

/// Returns the next event that `wanted` accepts.
fn until<T>(events: &Receiver<Event>, wanted: impl Fn(&Event) -> Option<T>) -> T {
    loop {
        let event = events.recv_timeout(TEST_TIMEOUT).unwrap();
        if let Some(found) = wanted(&event) {
            return found;
        }
    }
}

#[test]
fn a_worker_that_its_program_ends_has_no_successor_though_the_cluster_sees_both_at_once() {
    let (tell, events) = channel();
    let (go_on, held_up) = sync_channel::<()>(1);
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = is_armed.clone();
    // From then on a change of the setup holds up the cluster's thread until it is to go on.
    let observer = move |event: &Event| {
        tell.send(event.clone()).unwrap_or_default();
        if matches!(event, Event::Setup { .. }) && armed.load(Ordering::Acquire) {
            let _ = held_up.recv_timeout(TEST_TIMEOUT);
        }
    };
    let cluster = Cluster::builder().start_in_thread(observer).unwrap();
    cluster.supervise_adopted(Asked).unwrap();
    // One end that counts is one too many.
    let policy = RestartPolicy::new(0).max_ends(1);
    cluster.restart_as(Some(policy), false).unwrap();
    let mut process = Process::new();
    let (channel, _worker) = Adoption::channel().unwrap();
    let adoption = Adoption::new(process.0.id(), channel).unwrap();
    let worker = cluster.adopt_blocking(adoption).unwrap().id();

    is_armed.store(true, Ordering::Release);
    while events.try_recv().is_ok() {}
    cluster.setup(Setup::new()).unwrap();
    until(&events, |event| matches!(event, Event::Setup { .. }).then_some(()));
    cluster.release(worker).unwrap();
    process.kill();
    go_on.send(()).unwrap();

    until(&events, |event| matches!(event, Event::Exit { .. }).then_some(()));
    let status = cluster.supervision_blocking(Some(worker)).unwrap();
    assert!(!status.expects_workers && !status.has_given_up, "{status:?}");
}
