//! Checks the cells of the table, each with clients of all manners.

use std::path::PathBuf;
use std::time::Duration;

use troop::supervise::RestartPolicy;
use troop::{Builder, Cluster, Event, Setup};
use troop_testkit::kept::{Crowd, Noticed};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, node_program};

/// What clients see of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Nothing: their connections stay where they are, or move.
    Moves,
    /// Their connections are closed after an answer that announces it.
    Closes,
}

/// What happens to the workers.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Reload,
    Recycle,
    /// One worker is killed, whose clients do not count.
    Kill,
    /// All workers but one leave, and others come.
    Scale,
}

const OPERATIONS: [Operation; 4] =
    [Operation::Reload, Operation::Recycle, Operation::Kill, Operation::Scale];

/// A kind of server.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// What the fixture serves, or a Node program, with its arguments.
    pub(crate) program: &'static [&'static str],
    /// What stands before each path.
    pub(crate) prefix: &'static str,
    pub(crate) workers: usize,
    /// The schedulings that the short form checks; all if there are none.
    pub(crate) short: &'static [&'static str],
}

impl Kind {
    fn is_node(&self) -> bool {
        self.program.len() > 1
    }

    fn setup(&self, ended: PathBuf) -> Setup {
        let (program, arguments) = (self.program[0], &self.program[1..]);
        if !self.is_node() {
            let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture"));
            return setup.args(["serve as", program, "127.0.0.1:0", ended.to_str().unwrap()]);
        }
        let moves = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../npm/lib/moves.js");
        Setup::new()
            .script(node_program(program))
            .args(arguments.iter().copied())
            .cwd(node_program(""))
            .env("NEXT_TELEMETRY_DISABLED", "1")
            .preload(moves)
    }
}

/// The number of rounds that was asked for.
pub(crate) fn rounds() -> Option<u32> {
    std::env::var("TROOP_ROUNDS").ok().map(|text| text.parse().unwrap())
}

/// Whether a scheduling was asked for, among others or because none was.
fn is_asked_for(scheduling: &str) -> bool {
    std::env::var("TROOP_SCHEDULINGS")
        .map_or(true, |names| names.split(' ').any(|n| n == scheduling))
}

/// Checks a kind of server under the schedulings of the table.
pub(crate) async fn check(kind: &Kind, table: &[(&str, [Cell; 4])]) {
    let is_short = rounds().is_none();
    for (scheduling, cells) in table {
        let is_left_out = is_short && !kind.short.is_empty() && !kind.short.contains(scheduling);
        if is_left_out || !is_asked_for(scheduling) {
            continue;
        }
        let mut scene = Scene::new(kind, scheduling, |builder| builder).await;
        for round in 0..rounds().unwrap_or(1) {
            for (operation, cell) in OPERATIONS.iter().zip(cells) {
                scene.carry_out(*operation).await;
                scene.settled().await;
                let noticed = scene.expect(*cell, &format!("{operation:?}, round {round}"));
                let has_cut_off = matches!(operation, Operation::Kill);
                assert_eq!(noticed.cut_off > 0, has_cut_off, "{}: {noticed:?}", scene.name);
            }
        }
        scene.crowd.stop().await;
    }
}

/// A cluster with clients.
pub(crate) struct Scene {
    pub(crate) troop: Troop,
    pub(crate) crowd: Crowd,
    pub(crate) port: u16,
    name: String,
    workers: usize,
    _directory: tempfile::TempDir,
}

impl Scene {
    pub(crate) async fn new(
        kind: &Kind,
        scheduling: &str,
        with: impl FnOnce(Builder) -> Builder,
    ) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let builder = Cluster::builder()
            .workers(kind.workers)
            .replace(at_once())
            // A worker that is killed was none that fails.
            .restart(RestartPolicy::new(kind.workers).min_uptime(Duration::ZERO))
            // So that clients which pause for 150 ms ask between the announcement and the close.
            .drain_spread(Duration::from_millis(1600))
            .scheduling(scheduling.parse().unwrap())
            .setup(kind.setup(directory.path().join("ended")));
        let mut troop = Troop::start(with(builder));
        let port = |event: &Event| match event {
            Event::Listening { address, .. } => u16::try_from(address.port?).ok(),
            _ => None,
        };
        let port = troop.until("listening", port).await;
        troop.cluster.ready().await.unwrap();
        let crowd = Crowd::start(port, kind.prefix);
        crowd.all_served().await;
        let name = format!("{}, {scheduling}", kind.name);
        Scene { troop, crowd, port, name, workers: kind.workers, _directory: directory }
    }

    async fn carry_out(&mut self, operation: Operation) {
        let cluster = &self.troop.cluster;
        match operation {
            Operation::Reload => drop(cluster.reload().await.unwrap()),
            Operation::Recycle => {
                let worker = cluster.workers().first().unwrap().id();
                cluster.recycle(worker, "a test").await.unwrap();
            }
            Operation::Scale => {
                cluster.scale(1).await.unwrap();
                self.crowd.all_served().await;
                cluster.scale(self.workers).await.unwrap();
            }
            Operation::Kill => {
                let victim = self.crowd.victim();
                let worker = cluster.workers().into_iter().find(|w| w.pid() == victim).unwrap();
                worker.kill(9).await.unwrap();
                self.troop.exit(&worker).await;
            }
        }
    }

    /// Waits until all workers are ready, none leaves any more, and all clients are served.
    pub(crate) async fn settled(&self) {
        let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
        loop {
            let workers = self.troop.cluster.snapshot().await.unwrap().workers;
            let is_settled = |w: &troop::snapshot::WorkerSnapshot| {
                w.ready == Some(true) && w.leaving_ms.is_none()
            };
            if workers.len() == self.workers && workers.iter().all(is_settled) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{}: {workers:?}", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.crowd.all_served().await;
    }

    /// What the clients have noticed since the last time is what the cell says.
    pub(crate) fn expect(&self, cell: Cell, what: &str) -> Noticed {
        let noticed = self.crowd.noticed();
        let Noticed { answered, failed, closed, announced, cut_off } = &noticed;
        eprintln!(
            "{}, {what}: {answered} answers, {} failed, {} closed, {announced} announced, {cut_off} of a killed worker",
            self.name,
            failed.len(),
            closed.len(),
        );
        assert!(failed.is_empty() && closed.is_empty(), "{}, {what}: {noticed:#?}", self.name);
        match cell {
            Cell::Moves => assert_eq!(*announced, 0, "{}, {what}", self.name),
            Cell::Closes => assert!(*announced > 0, "{}, {what}: nothing was closed", self.name),
        }
        noticed
    }
}
