//! A cluster with one honest worker and one that does what it likes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::time::Duration;

use troop::event::{Consequence, ExitHow, Violation};
use troop::{Builder, Cluster, Event, Fork, Scheduling, Setup, WorkerHandle};
use troop_testkit::{Troop, ask, is_running};

pub const ONLINE: &str = r#"line {"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;

pub fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

/// A cluster with one honest worker, which serves one line per connection.
pub struct Scene {
    pub troop: Troop,
    pub port: u16,
}

impl Scene {
    pub async fn new() -> Scene {
        Scene::with(Cluster::builder()).await
    }

    /// One whose workers have no socket, and get connections from the primary only.
    pub async fn in_turns() -> Scene {
        Scene::with(Cluster::builder().scheduling(Scheduling::RoundRobin)).await
    }

    pub async fn with(builder: Builder) -> Scene {
        let mut troop = Troop::start(builder.setup(fixture(["line", "127.0.0.1:0"])));
        let honest = troop.fork().await;
        let port = troop.listening(&honest).await;
        Scene { troop, port }
    }

    /// Forks a worker that does these steps.
    pub async fn raw(&self, steps: &[&str]) -> WorkerHandle {
        self.troop.cluster.setup(Setup::new().args(["raw"].iter().chain(steps).copied())).unwrap();
        self.troop.cluster.fork(Fork::new()).await.unwrap()
    }

    pub async fn honest_worker_serves(&self) {
        for _ in 0..3 {
            let answer = tokio::time::timeout(Duration::from_secs(5), ask(self.port, ""))
                .await
                .expect("an answer within five seconds");
            assert!(answer.unwrap().starts_with("1 "), "the honest worker answers");
        }
    }

    /// The first offence of this worker, and whether it was killed for it.
    pub async fn offence(&mut self, worker: &WorkerHandle) -> (Violation, bool) {
        let id = worker.id();
        self.troop
            .until("misbehaviour", |event| match event {
                Event::Misbehaved { worker: w, violation, consequence, .. } if w.id() == id => {
                    Some((violation.clone(), *consequence == Consequence::Killed))
                }
                Event::Exit { worker: w, exit: how, .. } if w.id() == id => {
                    panic!("worker {id} ended unreported: {how}")
                }
                _ => None,
            })
            .await
    }

    /// The steps are reported as what `expected` accepts, and their worker is killed and reaped.
    pub async fn is_killed_for(steps: &[&str], expected: impl Fn(&Violation) -> bool) {
        let mut scene = Scene::new().await;
        let worker = scene.raw(steps).await;
        let (violation, cut_off) = scene.offence(&worker).await;
        assert!(expected(&violation), "{violation:?}");
        assert!(cut_off, "{violation:?} is the end of a worker");
        assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
        assert!(!is_running(worker.pid()));
        scene.honest_worker_serves().await;
    }

    /// The steps are reported as what `expected` accepts, and that is all.
    pub async fn is_reported_for(steps: &[&str], expected: impl Fn(&Violation) -> bool) {
        let mut scene = Scene::new().await;
        let worker = scene.raw(&[&[ONLINE], steps, &["line \"still here\""]].concat()).await;
        let (violation, cut_off) = scene.offence(&worker).await;
        assert!(expected(&violation), "{violation:?}");
        assert!(!cut_off, "{violation:?} alone is no reason to kill");
        assert_eq!(scene.troop.message(&worker).await, "still here");
        scene.honest_worker_serves().await;
    }

    /// The steps have no effect at all.
    pub async fn is_ignored(steps: &[&str]) {
        let mut scene = Scene::new().await;
        let worker = scene.raw(&[&[ONLINE], steps, &["line \"still here\""]].concat()).await;
        let id = worker.id();
        let said = scene
            .troop
            .until("its message", |event| match event {
                Event::Misbehaved { worker: w, violation, .. } if w.id() == id => {
                    panic!("{violation:?}")
                }
                Event::Exit { worker: w, exit: how, .. } if w.id() == id => {
                    panic!("it ended: {how}")
                }
                Event::Message { worker: w, message, .. } if w.id() == id => {
                    Some(message.as_json().to_owned())
                }
                _ => None,
            })
            .await;
        assert_eq!(said, "\"still here\"");
        scene.honest_worker_serves().await;
    }

    /// Asks for a listener with these fields, and returns the answer's errno, as the worker passes
    /// it on.
    pub async fn errno_of_query(&mut self, fields: &str) -> i64 {
        let query =
            format!(r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{fields}}}"#);
        let worker = self.raw(&[ONLINE, &query]).await;
        let answer = self.troop.message(&worker).await;
        worker.kill(9).await.unwrap();
        answer["errno"].as_i64().unwrap_or(0)
    }
}

/// Resident memory of this process, which is the primary, in bytes.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// True in a process of this test's own, where memory and descriptors are its own too. Otherwise
/// runs it in one, and returns false.
pub fn alone(test: &str) -> bool {
    if std::env::var_os("TEST_RUNS_ALONE").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env("TEST_RUNS_ALONE", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
    );
    false
}
