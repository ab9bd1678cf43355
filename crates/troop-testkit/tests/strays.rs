//! Processes that workers leave behind, with sessions of their own, and their copies of sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpStream;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use troop::setup::KillMode;
use troop::{Cluster, Scheduling, Setup, WorkerHandle};
use troop_testkit::http::open;
use troop_testkit::{Troop, at_once, get, is_running, listening, node_program};

/// Starts a process that has the listening socket, says its number, and serves.
const SERVER: &str = "
    const server = http.createServer((q, s) => s.end('x')).listen(0, '127.0.0.1', () => {
        const { fd } = server._handle;
        const stdio = ['ignore', 'ignore', 'ignore', fd > 0 ? fd : 'ignore'];
        const child = require('child_process').spawn('sleep', ['1000'], { detached: true, stdio });
        child.unref();
        tell(child.pid);
    });";

/// A process that does not outlive the test.
struct Started(u32);

impl Started {
    async fn by(troop: &mut Troop, worker: &WorkerHandle) -> Started {
        let pid: Value = troop.message(worker).await;
        Started(pid.as_u64().unwrap().try_into().unwrap())
    }

    fn is_running(&self) -> bool {
        is_running(self.0)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.0.cast_signed())
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn server(scheduling: Scheduling, change: impl FnOnce(Setup) -> Setup) -> Troop {
    let setup = change(Setup::new().script(node_program("run.js")).args([SERVER]));
    Troop::start(
        Cluster::builder().workers(1).replace(at_once()).scheduling(scheduling).setup(setup),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_with_sessions_of_their_own_end_with_their_worker_if_that_is_wanted() {
    for (mode, survives) in [(None, true), (Some(KillMode::Tree), false)] {
        let mut troop = server(Scheduling::RoundRobin, |setup| match mode {
            Some(mode) => setup.kill_mode(mode),
            None => setup,
        });
        let (worker, _) = listening(&mut troop).await;
        let child = Started::by(&mut troop, &worker).await;
        assert!(troop.cluster.stop().await.unwrap().is_graceful());
        // The end of the cluster waits for them.
        while troop.events.recv().await.is_some() {}
        assert_eq!(child.is_running(), survives, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_shared_listener_keeps_no_client_waiting_after_the_end() {
    for scheduling in [Scheduling::Shared, "steered".parse().unwrap()] {
        let mut troop = server(scheduling.clone(), |setup| setup);
        let (worker, port) = listening(&mut troop).await;
        let first = Started::by(&mut troop, &worker).await;
        troop.cluster.reload().await.unwrap();
        let (worker, same) = listening(&mut troop).await;
        let second = Started::by(&mut troop, &worker).await;
        assert_eq!(port, same);
        // It is a socket of the new worker too.
        assert!(get(port, "/").await.is_ok(), "{scheduling:?}");
        troop.cluster.stop().await.unwrap();
        while troop.events.recv().await.is_some() {}
        assert!(first.is_running() && second.is_running());
        let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{scheduling:?}");
    }
}

/// The worker accepts by itself, and reads late that it is to finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_served_that_connected_while_the_worker_computed_before_a_stop() {
    // Node 26 closes an HTTP connection on which nothing was read yet.
    const COMPUTES: &str = "
        net.createServer((stream) => stream.on('data', (data) => {
            if (String(data) === 'compute') {
                tell('computes');
                const end = Date.now() + 1500;
                while (Date.now() < end);
            }
            stream.end('x');
        })).listen(0, '127.0.0.1');";
    for scheduling in [Scheduling::Shared, "steered".parse().unwrap()] {
        let setup = Setup::new().script(node_program("run.js")).args([COMPUTES]);
        let builder = Cluster::builder().workers(1).scheduling(scheduling.clone()).setup(setup);
        let mut troop = Troop::start(builder);
        let (worker, port) = listening(&mut troop).await;
        let mut first = open(port).await;
        first.write_all(b"compute").await.unwrap();
        troop.message(&worker).await;
        let mut second = open(port).await;
        let cluster = troop.cluster.clone();
        let stop = tokio::spawn(async move { cluster.stop().await });
        second.write_all(b"answer").await.unwrap();
        for mut stream in [first, second] {
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer).await;
            assert!(read.is_ok() && answer == "x", "{scheduling:?}: {read:?}");
        }
        assert!(stop.await.unwrap().unwrap().is_graceful());
    }
}
