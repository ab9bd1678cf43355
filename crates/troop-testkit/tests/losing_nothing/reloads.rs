//! Reloads under load.

use super::*;

/// One HTTP request over any stream; the process id in its answer.
fn http(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.trim().to_owned()))
}

/// More of them with `TROOP_ROUNDS`.
fn rounds() -> usize {
    std::env::var("TROOP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// `generations`: at least so many workers must be seen to serve, so that the load was there all
/// the time.
async fn reloads_lose_nothing(
    builder: Builder,
    generations: usize,
    request: impl Fn() -> std::io::Result<String> + Send + Sync + 'static,
) {
    let mut troop = Troop::start(builder.workers(2).replace(at_once()));
    for _ in 0..2 {
        troop.until("listening", |e| matches!(e, Event::Listening { .. }).then_some(())).await;
    }
    let load = Load::start(request);
    for _ in 0..rounds() {
        let reload = troop.cluster.reload();
        let outcome = troop
            .until("the end of the reload", |e| match e {
                Event::Supervision(
                    p @ (Progress::ReloadFinished | Progress::ReloadFailed { .. }),
                ) => Some(p.clone()),
                _ => None,
            })
            .await;
        assert_eq!(outcome, Progress::ReloadFinished);
        assert_eq!(reload.await.unwrap().replaced, 2);
    }
    load.goes_on_after(20);
    let (served, failures, answers) = load.end();
    assert!(
        failures.is_empty(),
        "{} failures of {served}, the first: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    assert!(served > 20 && answers.len() >= generations, "{served} served by {answers:?}");
    let stop = troop.cluster.stop();
    while let Some(event) =
        tokio::time::timeout(TEST_TIMEOUT, troop.events.recv()).await.expect("the cluster ends")
    {
        if let Event::Exit { worker, exit: how, .. } = event {
            assert!(
                how.is_success(),
                "worker {} was told to finish and ended with {how}",
                worker.id()
            );
        }
    }
    assert!(stop.await.unwrap().is_graceful());
}

fn over_tcp(port: u16) -> impl Fn() -> std::io::Result<String> {
    move || {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        http(stream)
    }
}

fn over_unix(path: PathBuf) -> impl Fn() -> std::io::Result<String> {
    move || {
        let stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(TEST_TIMEOUT))?;
        http(stream)
    }
}

const RELOADED: [&str; 8] = [
    "round-robin",
    "auto",
    "weighted",
    "least-connections",
    "sticky:query=x",
    "shared",
    "steered",
    "steered:sticky",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_rust_workers_under_load_lose_nothing() {
    for scheduling in RELOADED {
        let port = free_port();
        let builder = Cluster::builder().setup(fixture(["http", &format!("127.0.0.1:{port}")]));
        // All clients have one address here, and a shared socket is uneven.
        eprintln!("{scheduling}");
        let generations =
            if scheduling.contains("sticky") || scheduling == "shared" { 2 } else { 4 };
        reloads_lose_nothing(
            builder.scheduling(scheduling.parse().unwrap()),
            generations,
            over_tcp(port),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_rust_workers_on_a_unix_socket_under_load_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let builder = Cluster::builder().setup(fixture(["unix", path.to_str().unwrap()]));
    let line = move || {
        let mut stream = UnixStream::connect(&path)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    reloads_lose_nothing(builder, 4, line).await;
}

/// From Node 26 on, `server.close` closes connections whose request has not arrived
/// (nodejs/node#63470). A worker that accepts on a socket which its successor has too does so until it
/// drains, so nothing can keep it from having such ones.
fn resets_what_it_has_not_read() -> bool {
    let version = std::process::Command::new("node")
        .args(["-p", "process.versions.node.split('.')[0]"])
        .output()
        .unwrap();
    String::from_utf8(version.stdout).unwrap().trim().parse::<u32>().unwrap() >= 26
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_node_workers_under_load_lose_nothing() {
    let resets = resets_what_it_has_not_read();
    for scheduling in RELOADED {
        if resets && ["shared", "steered:sticky"].contains(&scheduling) {
            eprintln!(
                "{scheduling}: left out, this Node resets connections that it has just accepted when it is told to disconnect"
            );
            continue;
        }
        let port = free_port();
        let builder = Cluster::builder()
            .setup(Setup::new().script(node_program("plain.js")).args([port.to_string()]));
        // All clients have one address here, and a shared socket is uneven.
        eprintln!("{scheduling}");
        let generations =
            if scheduling.contains("sticky") || scheduling == "shared" { 2 } else { 4 };
        reloads_lose_nothing(
            builder.scheduling(scheduling.parse().unwrap()),
            generations,
            over_tcp(port),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_of_node_workers_on_a_unix_socket_under_load_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let builder = Cluster::builder()
        .setup(Setup::new().script(node_program("plain.js")).args([path.as_os_str()]));
    reloads_lose_nothing(builder, 4, over_unix(path)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_a_single_worker_waits_for_all_servers_of_its_successor() {
    let mut troop = Troop::start(
        Cluster::builder().workers(1).replace(at_once()).setup(fixture(["two", "127.0.0.1:0"])),
    );
    let listening = |e: &Event| {
        if let Event::Listening { address: at, .. } = e {
            at.port.and_then(|p| u16::try_from(p).ok())
        } else {
            None
        }
    };
    troop.until("the first server", listening).await;
    let second = troop.until("the second server", listening).await;
    let load = Load::start(move || talk(([127, 0, 0, 1], second), ""));
    let reload = troop.cluster.reload();
    troop
        .until("the reload", |e| {
            matches!(e, Event::Supervision(Progress::ReloadFinished)).then_some(())
        })
        .await;
    reload.await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (served, failures, _) = load.end();
    assert!(
        failures.is_empty(),
        "{} failures of {served}, the first: {:?}",
        failures.len(),
        &failures[..failures.len().min(3)]
    );
}
