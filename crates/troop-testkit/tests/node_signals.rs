//! When Node workers that are to finish get their stop signal.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use troop::event::ExitHow;
use troop::supervise::Progress;
use troop::{Builder, Cluster, Event, Setup, WorkerHandle};
use troop_testkit::http::{answer, kept, open, read_answer};
use troop_testkit::kept::Crowd;
use troop_testkit::{Troop, at_once, listening, node_program};

/// The worker's handler has ended it, and it was troop's script that sent the signal, not the primary,
/// which does so only later.
async fn is_ended_by_handler(troop: &mut Troop, worker: &WorkerHandle) -> bool {
    troop.exit(worker).await == ExitHow::Code(7)
        && !worker.was_ended_by(Signal::TERM.as_raw())
        && !worker.was_ended_by(Signal::INT.as_raw())
}

/// Answers with its name, a POST only when it has the body; and says when it is asked to finish.
const SERVER: &str = "
    process.on('internalMessage', ({ act }) => { if (act === 'disconnect') tell('leaving'); });
    const exit = () => process.exit(7);
    const server = http.createServer((q, s) => q.on('end', () => s.end(`${me}\\n`)).resume()).listen(0, '127.0.0.1');";

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../npm/lib/moves.js")
}

/// One worker with troop's script: the server, and this.
fn server(more: &str, grace: Duration, change: impl FnOnce(Setup) -> Setup) -> Builder {
    let text = format!("{SERVER}{more}");
    let setup = Setup::new().script(node_program("run.js")).args([&text]).preload(script());
    Cluster::builder()
        .workers(1)
        .replace(at_once())
        .drain_spread(Duration::ZERO)
        .grace(grace)
        .setup(change(setup))
}

/// A request that is not answered before another byte is sent.
async fn open_request(port: u16) -> TcpStream {
    let mut stream = open(port).await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // So it has been read.
    let mut continues = [0; 25];
    stream.read_exact(&mut continues).await.unwrap();
    assert!(continues.starts_with(b"HTTP/1.1 100"));
    stream
}

/// Otherwise troop sends it two seconds after the worker has disconnected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_with_a_handler_for_the_stop_signal_gets_it_at_once_if_it_has_no_requests() {
    for (signal, stop) in [("SIGTERM", None), ("SIGINT", Some(Signal::INT))] {
        // It goes on otherwise.
        let program = format!("process.once('{signal}', exit); setInterval(() => {{}}, 1000);");
        let builder = server(&program, Duration::from_secs(60), |setup| match stop {
            Some(stop) => setup.stop_signal(stop.as_raw()),
            None => setup,
        });
        let mut troop = Troop::start(builder);
        let (worker, port) = listening(&mut troop).await;
        let _idle = kept(port, 3).await;
        let outcome = troop.cluster.stop().await.unwrap();
        assert!(outcome.is_graceful(), "{outcome:?} {}", troop.story());
        assert!(is_ended_by_handler(&mut troop, &worker).await, "{signal}");
    }
}

/// PM2 stops programs by SIGINT, and so does a terminal: many handle nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_handles_only_the_other_usual_stop_signal_gets_that() {
    for (handled, stop) in [("SIGINT", Signal::TERM), ("SIGTERM", Signal::INT)] {
        let program = format!("process.once('{handled}', exit); setInterval(() => {{}}, 1000);");
        let builder =
            server(&program, Duration::from_secs(60), |setup| setup.stop_signal(stop.as_raw()));
        let mut troop = Troop::start(builder);
        let (worker, port) = listening(&mut troop).await;
        let _idle = kept(port, 3).await;
        let outcome = troop.cluster.stop().await.unwrap();
        assert!(outcome.is_graceful(), "{outcome:?} {}", troop.story());
        assert!(is_ended_by_handler(&mut troop, &worker).await, "{handled}: {}", troop.story());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_exits_cuts_no_request_that_is_answered_in_time() {
    let program = "process.on('SIGTERM', exit);";
    let mut troop = Troop::start(server(program, Duration::from_secs(60), |setup| setup));
    let (worker, port) = listening(&mut troop).await;
    let mut requests = [open_request(port).await, open_request(port).await];
    let cluster = troop.cluster.clone();
    let stop = tokio::spawn(async move { cluster.stop().await });
    assert_eq!(troop.message(&worker).await, json!("leaving"));
    for request in &mut requests {
        // Time in which it would get the signal.
        tokio::time::sleep(Duration::from_millis(100)).await;
        request.write_all(b"x").await.unwrap();
        let (body, _) = read_answer(request).await.expect("an answer");
        assert_eq!(body, format!("{} {}\n", worker.id(), worker.pid()));
    }
    assert!(stop.await.unwrap().unwrap().is_graceful());
    assert!(is_ended_by_handler(&mut troop, &worker).await);
}

/// Node has closed it already, of which the program knows nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_close_its_server() {
    for grace in [2, 60].map(Duration::from_secs) {
        let program = "process.once('SIGTERM', () => server.close((e) => e ? process.exit(9) : exit())); setInterval(() => {}, 1000);";
        let mut troop = Troop::start(server(program, grace, |setup| setup));
        let (worker, port) = listening(&mut troop).await;
        let _idle = kept(port, 3).await;
        let stop = tokio::spawn({
            let cluster = troop.cluster.clone();
            async move { cluster.stop().await }
        });
        assert!(is_ended_by_handler(&mut troop, &worker).await);
        assert!(stop.await.unwrap().unwrap().is_graceful());
    }
}

/// As `Object.defineProperty` does by default: then troop's script cannot replace what Node calls. Its
/// exception would end the worker, and the request with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_has_fixed_methods_of_its_server_answers_before_it_ends() {
    const CLOSES: &str = "process.once('SIGTERM', () => server.close(exit));";
    for fixed in [
        "for (const value of [server.close]) Object.defineProperty(server, 'close', { value });",
        "for (const close of [server.close]) Object.defineProperty(server, 'close', { get: () => close });",
        "Object.defineProperty(server, 'closeIdleConnections', { value: server.closeIdleConnections });",
        "server.once('request', () => Object.preventExtensions(server));",
    ] {
        let program = format!("{fixed} {CLOSES}");
        let builder = server(&program, Duration::from_secs(60), |setup| setup);
        let mut troop = Troop::start(builder);
        let (worker, port) = listening(&mut troop).await;
        let _idle = kept(port, 2).await;
        let mut request = open_request(port).await;
        let cluster = troop.cluster.clone();
        let stop = tokio::spawn(async move { cluster.stop().await });
        assert_eq!(troop.message(&worker).await, json!("leaving"), "{fixed}");
        // Script and Node have done their part by then.
        for _ in 0..5 {
            troop.cluster.snapshot().await.unwrap();
        }
        request.write_all(b"x").await.unwrap();
        let (body, _) = read_answer(&mut request).await.expect(fixed);
        assert_eq!(body, format!("{} {}\n", worker.id(), worker.pid()), "{fixed}");
        drop(request);
        assert!(stop.await.unwrap().unwrap().is_graceful(), "{fixed}");
        assert!(is_ended_by_handler(&mut troop, &worker).await, "{fixed}");
    }
}

/// The program's own listener keeps them where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_cannot_move_end_after_an_announcement_before_a_handler_exits() {
    let program = "server.on('connection', () => {}); process.on('SIGTERM', exit);";
    let builder = server(program, Duration::from_secs(60), |setup| setup);
    let mut troop = Troop::start(builder.workers(2).drain_spread(Duration::from_secs(10)));
    let (_, port) = listening(&mut troop).await;
    troop.cluster.ready().await.unwrap();
    let crowd = Crowd::start(port, "");
    for _ in 0..2 {
        crowd.all_served().await;
        let old = troop.cluster.workers();
        troop.cluster.reload().await.unwrap();
        for worker in old {
            troop.exit(&worker).await;
        }
    }
    crowd.all_served().await;
    let noticed = crowd.noticed();
    assert!(noticed.failed.is_empty() && noticed.closed.is_empty(), "{noticed:#?}");
    assert!(noticed.announced > 0, "{noticed:?}");
    crowd.stop().await;
}

/// One that lasts does not keep it from its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_with_a_handler_gets_the_stop_signal_although_a_request_lasts() {
    for more in ["", "net.createServer(() => {}).listen(0, '127.0.0.1');"] {
        let program = format!("process.once('SIGTERM', exit); {more}");
        let mut troop = Troop::start(server(&program, Duration::from_secs(2), |setup| setup));
        let (worker, port) = listening(&mut troop).await;
        let _request = open_request(port).await;
        let outcome = troop.cluster.stop().await.unwrap();
        assert!(outcome.is_graceful(), "{outcome:?} {}", troop.story());
        assert!(is_ended_by_handler(&mut troop, &worker).await);
    }
}

/// The request of a program without a handler would be cut by the signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_without_a_handler_finishes_its_requests_first() {
    const ANOTHER: &str = "process.on('SIGINT', () => {});";
    // What the package signal-exit does, for whoever starts a process or writes a file.
    const ENDS: &str = "process.__signal_exit_emitter__ = { count: 1 }; process.on('SIGTERM', () => process.exit(1));";
    for program in ["", ANOTHER, ENDS] {
        let mut troop = Troop::start(server(program, Duration::from_secs(60), |setup| setup));
        let (worker, port) = listening(&mut troop).await;
        let mut request = open_request(port).await;
        let cluster = troop.cluster.clone();
        let stop = tokio::spawn(async move { cluster.stop().await });
        assert_eq!(troop.message(&worker).await, json!("leaving"));
        // A report of the worker's would have been read by then.
        for _ in 0..5 {
            troop.cluster.snapshot().await.unwrap();
        }
        request.write_all(b"x").await.unwrap();
        let (body, _) = read_answer(&mut request).await.expect(program);
        assert_eq!(body, format!("{} {}\n", worker.id(), worker.pid()));
        drop(request);
        assert!(stop.await.unwrap().unwrap().is_graceful());
        assert_eq!(troop.exit(&worker).await, ExitHow::Code(0), "{program}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_move_before_a_handler_ends_the_program() {
    let builder = server("process.on('SIGTERM', exit);", Duration::from_secs(60), |setup| setup);
    let mut troop = Troop::start(builder);
    let (old, port) = listening(&mut troop).await;
    let mut streams = kept(port, 20).await;
    troop.cluster.reload().await.unwrap();
    let (new, _) = listening(&mut troop).await;
    troop.exit(&old).await;
    for stream in &mut streams {
        let (body, _) = answer(stream, "/").await.expect("it is still open");
        assert_eq!(body, format!("{} {}\n", new.id(), new.pid()));
    }
}

/// Node itself waits for its first request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_sends_anything_does_not_hold_up_a_stop() {
    let mut troop = Troop::start(server("", Duration::from_secs(60), |setup| setup));
    let (worker, port) = listening(&mut troop).await;
    let mut silent = open(port).await;
    // So the worker has that connection as well.
    let _idle = kept(port, 1).await;
    assert!(troop.cluster.stop().await.unwrap().is_graceful());
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(0));
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
}

/// Its default action ends it shortly before `SIGKILL` would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_the_last_stop_signal_ends_has_not_finished_in_time() {
    let mut troop = Troop::start(server("", Duration::from_millis(800), |setup| setup));
    let (worker, port) = listening(&mut troop).await;
    let _request = open_request(port).await;
    let outcome = troop.cluster.stop().await.unwrap();
    assert_eq!(troop.exit(&worker).await, ExitHow::Signal(Signal::TERM.as_raw()));
    assert!(!outcome.is_graceful(), "{outcome:?}");
    let over =
        |event: &Event| matches!(event, Event::Supervision(Progress::GraceOver(_))).then_some(());
    troop.until("the end of its grace period", over).await;
}
