//! How supervised workers are looked after: when they are ready, replaced, tested, ended, and what
//! they leave behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod health;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use troop::activation::ActivationSocket;
use troop::event::{Consequence, ExitHow, Violation};
use troop::setup::{Output, Resource, Source, Stdio};
use troop::snapshot::Phase;
use troop::supervise::{
    Afterwards, GiveUp, Progress, ReadyWhen, RecyclePolicy, ReloadFailed, Restart, RestartPolicy,
    WhenFailed,
};
use troop::{Builder, Cluster, Event, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, is_running, node_program, talk};

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

fn js(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text])
}

const SERVER: &str = "require('http').createServer((q, s) => s.end('ok')).listen(0, '127.0.0.1');";

async fn listening(troop: &mut Troop) -> (WorkerHandle, u16) {
    let seen = |e: &Event| match e {
        Event::Listening { worker: w, address: at, .. } => {
            Some((w.clone(), u16::try_from(at.port?).ok()?))
        }
        _ => None,
    };
    troop.until("listening", seen).await
}

async fn progress(troop: &mut Troop, what: &str, fits: impl Fn(&Progress) -> bool) -> Progress {
    let seen = |e: &Event| match e {
        Event::Supervision(progress) if fits(progress) => Some(progress.clone()),
        _ => None,
    };
    troop.until(what, seen).await
}

async fn replaced(troop: &mut Troop) -> (u32, u32) {
    match progress(troop, "the successor", |p| matches!(p, Progress::Replaced { .. })).await {
        Progress::Replaced { old, new } => (old.0, new.0),
        _ => unreachable!(),
    }
}

async fn is_recycled_for(builder: Builder, word: &str, load: impl Fn(u16)) {
    let mut troop = Troop::start(builder.workers(2).replace(at_once()));
    let (_, port) = listening(&mut troop).await;
    listening(&mut troop).await;
    load(port);
    let recycling =
        progress(&mut troop, "recycling", |p| matches!(p, Progress::Recycling { .. })).await;
    let Progress::Recycling { worker, reason } = recycling else { unreachable!() };
    assert!(reason.contains(word), "{reason}");
    assert_eq!(replaced(&mut troop).await.0, worker.0);
}

#[tokio::test]
async fn old_workers_are_replaced() {
    let policy = RecyclePolicy::default().age(Some(Duration::from_secs(1)));
    is_recycled_for(
        Cluster::builder().setup(fixture(["line", "127.0.0.1:0"])).recycle(policy),
        "old",
        |_| (),
    )
    .await;
}

#[tokio::test]
async fn big_workers_are_replaced() {
    let policy = RecyclePolicy::default().memory(Some(20 << 20));
    is_recycled_for(Cluster::builder().setup(js(SERVER)).recycle(policy), "MiB", |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_have_taken_many_connections_are_replaced() {
    let policy = RecyclePolicy::default().connections(Some(20));
    let load = |port| (0..60).for_each(|_| drop(talk(([127, 0, 0, 1], port), "")));
    is_recycled_for(
        Cluster::builder().setup(fixture(["line", "127.0.0.1:0"])).recycle(policy),
        "connections",
        load,
    )
    .await;
}

#[tokio::test]
async fn a_worker_whose_successor_is_not_ready_keeps_running() {
    // The second process and all after it fail.
    let directory = tempfile::tempdir().unwrap();
    let once = format!("require('fs').mkdirSync('{}/m');{SERVER}", directory.path().display());
    let policy = RecyclePolicy::default().age(Some(Duration::from_millis(500)));
    let mut troop = Troop::start(
        Cluster::builder().workers(1).setup(js(&once).stderr(Stdio::Null)).recycle(policy),
    );
    let (worker, _) = listening(&mut troop).await;
    progress(&mut troop, "the failure", |p| matches!(p, Progress::RecycleFailed { .. })).await;
    assert!(is_running(worker.pid()));
    assert_eq!(troop.cluster.snapshot().await.unwrap().phase, Phase::Running);
}

#[tokio::test]
async fn a_worker_can_report_readiness_by_a_message() {
    let text = format!("{SERVER} process.on('message', m => m === 'go' && process.send('ready'));");
    let policy = at_once().ready_when(ReadyWhen::Message);
    let mut troop = Troop::start(Cluster::builder().workers(1).replace(policy).setup(js(&text)));
    let (first, _) = listening(&mut troop).await;
    assert_eq!(troop.cluster.snapshot().await.unwrap().workers[0].ready, Some(false));
    first.try_send("go").unwrap();
    troop.until("the message", |e| matches!(e, Event::Message { .. }).then_some(())).await;
    assert_eq!(troop.cluster.snapshot().await.unwrap().workers[0].ready, Some(true));
    let reload = troop.cluster.reload();
    let (second, _) = listening(&mut troop).await;
    assert!(is_running(first.pid()));
    second.try_send("go").unwrap();
    assert_eq!(replaced(&mut troop).await, (1, 2));
    reload.await.unwrap();
    assert_eq!(
        troop
            .cluster
            .snapshot()
            .await
            .unwrap()
            .workers
            .iter()
            .find(|w| w.id.0 == 2)
            .unwrap()
            .generation,
        Some(2)
    );
}

#[tokio::test]
async fn a_worker_can_report_readiness_by_sd_notify() {
    // A child of the worker says it, as `systemd-notify` does.
    let notify = "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); a = os.environ['NOTIFY_SOCKET']; \
                  s.sendto(b'STATUS=fine\\nREADY=1', a.replace('@', '\\0', 1))";
    let text = format!(
        "setTimeout(() => require('child_process').execFileSync('python3', ['-c', {notify:?}]), 300); {SERVER}"
    );
    let policy = at_once().ready_when(ReadyWhen::Notified);
    let mut troop = Troop::start(
        Cluster::builder().workers(1).replace(policy).setup(js(&text).own_process_group(true)),
    );
    listening(&mut troop).await;
    assert_eq!(troop.cluster.snapshot().await.unwrap().workers[0].ready, Some(false));
    tokio::time::timeout(Duration::from_secs(10), async {
        while troop.cluster.snapshot().await.unwrap().workers[0].ready != Some(true) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it says that it is ready");
    // Others may say what they want.
    let setup = troop
        .until("the setup", |e| {
            if let Event::Setup { setup: s, .. } = e { Some(s.clone()) } else { None }
        })
        .await;
    assert!(setup.get_own_process_group());
}

#[tokio::test]
async fn a_worker_that_reports_before_its_process_is_known_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let reported = directory.path().join("reported");
    let touch = format!("behind touch {}", reported.display());
    let online = r#"line {"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;
    let setup = fixture(["raw", "notify READY=1", &touch, online]);
    let policy = at_once().ready_when(ReadyWhen::Notified);
    let mut troop = Troop::start(Cluster::builder().workers(1).replace(policy).setup(setup));
    // It is being started now, in a thread.
    troop.until("its start", |e| matches!(e, Event::Setup { .. }).then_some(())).await;
    // The cluster does not run while this thread does.
    let deadline = std::time::Instant::now() + troop_testkit::TEST_TIMEOUT;
    while !reported.exists() {
        assert!(std::time::Instant::now() < deadline, "it reports");
        std::thread::sleep(Duration::from_millis(5));
    }
    troop.until("its first message", |e| matches!(e, Event::Online { .. }).then_some(())).await;
    let deadline = tokio::time::Instant::now() + troop_testkit::TEST_TIMEOUT;
    while troop.cluster.snapshot().await.unwrap().workers[0].ready != Some(true) {
        assert!(tokio::time::Instant::now() < deadline, "it is heard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn processes_that_a_worker_leaves_behind_are_ended() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    // One child ends when told to, one does not.
    let text = format!(
        "const run = c => require('child_process').spawn('sh', ['-c', c], {{stdio: 'ignore'}}).pid;
         const all = [run('sleep 20'), run('trap \"\" TERM; sleep 20; sleep 20')];
         require('fs').writeFileSync({pids:?}, all.join(' ')); {SERVER}"
    );
    let mut troop =
        Troop::start(Cluster::builder().workers(1).setup(js(&text).own_process_group(true)));
    let (worker, _) = listening(&mut troop).await;
    let children: Vec<u32> = std::fs::read_to_string(&pids)
        .unwrap()
        .split(' ')
        .map(|pid| pid.parse().unwrap())
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(children.iter().all(|pid| is_running(*pid)));
    worker.kill(9).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while children.iter().any(|pid| is_running(*pid)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("its children end too");
}

#[tokio::test]
async fn a_hung_worker_gets_the_report_signal_then_abort_then_kill() {
    // A worker that catches the signal can report; a stopped one cannot.
    let setup = fixture(["line", "127.0.0.1:0"]).report_signal(28);
    let mut troop = Troop::start(
        Cluster::builder().workers(1).hang_timeout(Some(Duration::from_millis(500))).setup(setup),
    );
    let (worker, port) = listening(&mut troop).await;
    let stopped = rustix::process::Pid::from_raw(worker.pid().cast_signed()).unwrap();
    rustix::process::kill_process(stopped, rustix::process::Signal::STOP).unwrap();
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let id = worker.id();
    let hung = |e: &Event| {
        matches!(
            e,
            Event::Misbehaved {
                worker: w,
                violation: Violation::Hung(_),
                consequence: Consequence::Killed,
                ..
            } if w.id() == id
        )
        .then_some(())
    };
    troop.until("the hung worker", hung).await;
    assert_eq!(troop.exit(&worker).await, ExitHow::Signal(9));
    drop(client);
}

/// Its slot, and whether it is standard error.
type Stream = (Option<u32>, bool);

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<BTreeMap<Stream, Vec<u8>>>>);

impl Output for Collected {
    fn write(&mut self, source: Source, bytes: &[u8]) {
        self.0.lock().unwrap().entry((source.slot, source.error)).or_default().extend(bytes);
    }

    fn end(&mut self, source: Source) {
        self.0.lock().unwrap().entry((source.slot, source.error)).or_default().extend(b"END");
    }
}

#[tokio::test]
async fn output_can_be_collected_and_settings_reach_the_process() {
    let output = Collected::default();
    let script =
        "echo out $TROOP_SLOT $NODE_APP_INSTANCE; ulimit -n >&2; umask >&2; nice >&2; exit 3";
    let setup = Setup::new()
        .program("sh")
        .args(["-c", script])
        .stdout(Stdio::Collect)
        .stderr(Stdio::Collect);
    let setup =
        setup.umask(0o077).nice(19).limit(Resource::Files, Some(123), Some(456)).cpus([vec![0]]);
    let restart = RestartPolicy::new(2).restart(Restart::Never);
    let builder = Cluster::builder()
        .workers(2)
        .restart(restart)
        .setup(setup.slot_variable("NODE_APP_INSTANCE"));
    let mut troop = Troop::start(builder.output(output.clone()));
    for _ in 0..2 {
        progress(&mut troop, "the end for good", |p| matches!(p, Progress::NotRestarting { .. }))
            .await;
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while output.0.lock().unwrap().values().filter(|text| text.ends_with(b"END")).count() < 4 {
        assert!(tokio::time::Instant::now() < deadline, "{output:?}", output = output.0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let text = |slot: u32, error| {
        String::from_utf8(output.0.lock().unwrap()[&(Some(slot), error)].clone()).unwrap()
    };
    assert_eq!((text(0, false), text(1, false)), ("out 0 0\nEND".into(), "out 1 1\nEND".into()));
    assert_eq!(text(0, true), "123\n0077\n19\nEND");
}

#[tokio::test]
async fn an_app_without_a_ready_worker_keeps_its_port_and_comes_back_by_itself_or_by_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad");
    let text = format!("if (require('fs').existsSync({bad:?})) process.exit(5); {SERVER}");
    let restart = RestartPolicy::new(2)
        .max_ends(3)
        .first_delay(Duration::from_millis(10))
        .max_delay(Duration::from_millis(200));
    let mut troop = Troop::start(
        Cluster::builder().workers(2).restart(restart).replace(at_once()).setup(js(&text)),
    );
    let (first, port) = listening(&mut troop).await;
    let (second, _) = listening(&mut troop).await;
    std::fs::write(&bad, "").unwrap();
    for worker in [&first, &second] {
        worker.kill(9).await.unwrap();
    }
    progress(&mut troop, "no worker", |p| matches!(p, Progress::Degraded { ready: 0, wanted: 2 }))
        .await;
    for _ in 0..10 {
        progress(&mut troop, "a restart", |p| matches!(p, Progress::Restarting { .. })).await;
    }
    let down = troop.cluster.snapshot().await.unwrap();
    assert_eq!((down.phase, down.ready), (Phase::Degraded, 0), "{down:?}");
    assert!(down.last_end.as_deref().is_some_and(|end| end.contains("exit code 5")), "{down:?}");
    // A reload of a version that is still bad changes nothing.
    let reload = troop.cluster.reload();
    progress(&mut troop, "the failure", |p| matches!(p, Progress::ReloadFailed { .. })).await;
    let failed = reload.await.unwrap_err();
    assert!(matches!(failed, ReloadFailed::Failed { then: Afterwards::Retries, .. }), "{failed:?}");
    let client = tokio::task::spawn_blocking(move || {
        talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::remove_file(&bad).unwrap();
    progress(&mut troop, "recovery", |p| *p == Progress::Recovered { workers: 2 }).await;
    assert!(client.await.unwrap().contains("200 OK"), "it has waited");
    let running = troop.cluster.snapshot().await.unwrap();
    assert_eq!((running.phase, running.ready, running.vacant.len()), (Phase::Running, 2, 0));
}

#[tokio::test]
async fn an_app_ends_without_a_ready_worker_if_configured() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad");
    let text = format!("if (require('fs').existsSync({bad:?})) process.exit(5); {SERVER}");
    let restart = RestartPolicy::new(1)
        .first_delay(Duration::from_millis(10))
        .max_delay(Duration::from_millis(100))
        .window(Duration::from_secs(1))
        .when_failed(WhenFailed::End);
    let mut troop = Troop::start(Cluster::builder().workers(1).restart(restart).setup(js(&text)));
    let (worker, _) = listening(&mut troop).await;
    std::fs::write(&bad, "").unwrap();
    let killed = Instant::now();
    worker.kill(9).await.unwrap();
    progress(&mut troop, "giving up", |p| {
        matches!(p, Progress::GivingUp(GiveUp::NotReady { been_ready: true, .. }))
    })
    .await;
    assert!(killed.elapsed() >= Duration::from_secs(1));
    while tokio::time::timeout(TEST_TIMEOUT, troop.events.recv()).await.unwrap().is_some() {}
}

#[tokio::test]
async fn a_failed_reload_is_rolled_back_with_its_workers() {
    // The third process with the new setting fails: by then two have taken over.
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().display().to_string();
    let text = format!(
        "const fs = require('fs'), v = process.env.V; let n = 0;
         for (; v === '2'; n++) try {{ fs.mkdirSync('{place}/' + n); break }} catch {{}}
         if (n === 2) process.exit(9);
         require('http').createServer((q, s) => s.end(v)).listen(0, '127.0.0.1');"
    );
    let mut troop = Troop::start(
        Cluster::builder().workers(3).replace(at_once()).setup(js(&text).env("V", "1")),
    );
    let (_, port) = listening(&mut troop).await;
    for _ in 0..2 {
        listening(&mut troop).await;
    }
    let reload = troop.cluster.reload_as(Setup::new().env("V", "2"));
    let failed =
        progress(&mut troop, "the failure", |p| matches!(p, Progress::ReloadFailed { .. })).await;
    assert!(
        matches!(&failed, Progress::ReloadFailed { reason, .. } if reason.contains("exit code 9")),
        "{failed:?}"
    );
    let failed = reload.await.unwrap_err();
    assert!(
        matches!(failed, ReloadFailed::Failed { replaced: 2, then: Afterwards::KeepsRunning, .. }),
        "{failed:?}"
    );
    progress(&mut troop, "the way back", |p| *p == Progress::RollingBack { workers: 2 }).await;
    for _ in 0..4 {
        replaced(&mut troop).await;
    }
    let get = move |_| talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap();
    let answers: Vec<String> =
        tokio::task::spawn_blocking(move || (0..9).map(get).collect()).await.unwrap();
    assert!(answers.iter().all(|answer| answer.ends_with('1')), "{answers:?}");
}

#[tokio::test]
async fn a_pause_keeps_clients_waiting() {
    let mut troop = Troop::start(
        Cluster::builder().workers(1).replace(at_once()).setup(fixture(["line", "127.0.0.1:0"])),
    );
    let (worker, port) = listening(&mut troop).await;
    troop.cluster.pause().await.unwrap();
    troop.exit(&worker).await;
    assert_eq!(troop.cluster.snapshot().await.unwrap().phase, Phase::Paused);
    let client = tokio::task::spawn_blocking(move || talk(([127, 0, 0, 1], port), ""));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!client.is_finished());
    assert_eq!(troop.cluster.reload().await.unwrap().started, 1);
    assert!(!client.await.unwrap().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_server_that_uses_listenfd_is_served_on_one_socket_and_on_its_own() {
    for steered in [false, true] {
        let at = "127.0.0.1:0";
        let socket = if steered {
            ActivationSocket::bind_steered(at, 2)
        } else {
            ActivationSocket::bind(at)
        }
        .unwrap();
        let port: u16 = socket.address().rsplit(':').next().unwrap().parse().unwrap();
        let setup =
            Setup::new().program(env!("CARGO_BIN_EXE_troop-listenfd")).args(Vec::<String>::new());
        let mut troop = Troop::start(
            Cluster::builder().workers(2).replace(at_once()).setup(setup).activation([socket]),
        );
        let served_by = move || {
            let answer = talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap();
            answer.rsplit("\r\n").next().unwrap().parse::<u32>().unwrap()
        };
        let mut workers = Vec::new();
        for _ in 0..2 {
            workers.push(
                troop
                    .until("online", |e| {
                        if let Event::Online { worker: w, .. } = e { Some(w.pid()) } else { None }
                    })
                    .await,
            );
        }
        let served: Vec<u32> =
            tokio::task::spawn_blocking(move || (0..40).map(|_| served_by()).collect())
                .await
                .unwrap();
        assert!(served.iter().all(|pid| workers.contains(pid)), "{served:?} of {workers:?}");
        assert!(
            !steered || workers.iter().all(|pid| served.contains(pid)),
            "{served:?} of {workers:?}"
        );
        // One without weight gets none, as soon as that was set.
        if steered {
            let worker = troop.cluster.workers().remove(0);
            worker.set_weight(0).await.unwrap();
            let served: Vec<u32> =
                tokio::task::spawn_blocking(move || (0..40).map(|_| served_by()).collect())
                    .await
                    .unwrap();
            assert!(!served.contains(&worker.pid()), "{served:?}");
        }
        // Connections that arrive while no worker runs wait for the next one.
        for worker in troop.cluster.workers() {
            worker.kill(9).await.unwrap();
            troop.exit(&worker).await;
        }
        let served = tokio::task::spawn_blocking(served_by).await.unwrap();
        assert!(!workers.contains(&served));
    }
}
