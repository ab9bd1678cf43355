//! A worker (or primary) with many faces, chosen by its first argument.
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::exit, clippy::mem_forget)]

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use troop::{Cluster, Event, Handle, Listen, Role, Setup, Worker, WorkerEvent};
use troop_testkit::tamper;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize| args.get(n).map_or("", String::as_str);
    if arg(0) == "raw" {
        raw(&args[1..]);
        return;
    }
    let result = match arg(0) {
        "blocking" => blocking(arg(1)),
        "blocking-echo" => blocking_echo(),
        "nest" => nest(arg(1).parse().unwrap_or(0)),
        "primary" => primary(arg(1)),
        _ => troop::worker().and_then(|role| role.block_on(async |worker| face(worker, &args).await)),
    };
    if let Err(e) = result {
        eprintln!("{}", e.chain());
        std::process::exit(1);
    }
}

fn name(worker: &Worker) -> String {
    format!("{} {}\n", worker.id().map_or(0, |id| id.0), std::process::id())
}

async fn face(worker: Worker, args: &[String]) -> troop::Result<()> {
    let arg = |n: usize| args.get(n).map_or("", String::as_str);
    match arg(0) {
        // One line per connection, no protocol.
        "line" => {
            let listener = worker.listen(arg(1)).await?;
            // Only then is it a test of the order of things.
            while let Ok((mut stream, _)) = listener.accept().await {
                let name = name(&worker);
                tokio::spawn(async move {
                    let _ = stream.write_all(name.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        }
        "options" => {
            let mut listen = Listen::at(arg(1));
            for option in &args[2..] {
                listen = match option.as_str() {
                    "exclusive" => listen.exclusive(true),
                    "ipv6only" => listen.ipv6_only(true),
                    fd => Listen::fd(fd.parse().unwrap_or(-1)),
                };
            }
            let listener = worker.listen(listen).await?;
            worker.send(&json!({"port": listener.local_addr()?.port()})).await?;
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(name(&worker).as_bytes()).await;
            }
        }
        "http" => {
            let who = name(&worker);
            let slow = || async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                "slow\n"
            };
            let app =
                axum::Router::new().route("/", axum::routing::get(async move || who)).route("/slow", axum::routing::get(slow));
            let listener = worker.listen(arg(1)).await?;
            axum::serve(listener, app).with_graceful_shutdown(worker.draining()).await?;
        }
        // The same with `troop::serve`.
        "serve" => {
            let who = name(&worker);
            let client = |at: axum::extract::ConnectInfo<std::net::SocketAddr>| async move { at.0.to_string() };
            let root = axum::routing::get(async move || who);
            if arg(1).starts_with('/') {
                let listener = worker.listen_unix(arg(1)).await?;
                troop::serve(listener, axum::Router::new().route("/", root)).await;
            } else {
                let listener = worker.listen(arg(1)).await?;
                let app = axum::Router::new().route("/", root).route("/client", axum::routing::get(client));
                troop::serve(listener, app).await;
            }
        }
        // Two sockets on one port, which `SO_REUSEADDR` allows for UDP.
        "udp-reuse" => {
            let first = worker.bind_udp(Listen::at(arg(1)).reuse_address(true)).await?;
            let address = first.local_addr()?;
            let second = worker.bind_udp(Listen::at(address).reuse_address(true)).await?;
            worker.send(&json!({"same": second.local_addr()? == address})).await?;
            worker.draining().await;
        }
        "unix" => {
            let listener = worker.listen_unix(arg(1)).await?;
            while let Ok(mut stream) = listener.accept().await {
                let _ = stream.write_all(name(&worker).as_bytes()).await;
            }
        }
        "udp" => {
            let socket = worker.bind_udp(arg(1)).await?;
            let mut buffer = [0; 2048];
            let draining = worker.draining();
            tokio::pin!(draining);
            loop {
                tokio::select! {
                    got = socket.recv_from(&mut buffer) => {
                        let (n, from) = got?;
                        let answer = [&buffer[..n], b" ", name(&worker).as_bytes()].concat();
                        socket.send_to(&answer, from).await?;
                    }
                    () = &mut draining => break,
                }
            }
        }
        // Writes its name and leaves the connection open until the client ends it.
        "hold" => {
            let listener = worker.listen(arg(1)).await?;
            while let Ok((mut stream, _)) = listener.accept().await {
                let name = name(&worker);
                tokio::spawn(async move {
                    let _ = stream.write_all(name.as_bytes()).await;
                    let _ = stream.read(&mut [0; 1]).await;
                });
            }
        }
        // Its name, and all that the client said.
        "repeat" => {
            let listener = worker.listen(arg(1)).await?;
            while let Ok((mut stream, _)) = listener.accept().await {
                let name = name(&worker);
                tokio::spawn(async move {
                    let mut said = Vec::new();
                    let _ = stream.read_to_end(&mut said).await;
                    let _ = stream.write_all(&[name.as_bytes(), &said].concat()).await;
                });
            }
        }
        // Keeps a record of whom it serves: `A address` when it has taken a connection, `D address` when it has answered it.
        "record" => {
            let listener = worker.listen(arg(1)).await?;
            let record = std::sync::Arc::new(std::fs::OpenOptions::new().append(true).open(arg(2))?);
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((mut stream, peer)) = listener.accept().await {
                (&*record).write_all(format!("A {} {}\n", peer.ip(), std::process::id()).as_bytes())?;
                let (record, name) = (record.clone(), name(&worker));
                serving.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    let done = stream.write_all(name.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok();
                    if done {
                        let _ = (&*record).write_all(format!("D {} {}\n", peer.ip(), std::process::id()).as_bytes());
                    }
                });
            }
            serving.join_all().await;
        }
        // Serves, and shuts the sockets down that it listens on when it is told to.
        "shut" => {
            let listener = worker.listen(arg(1)).await?;
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((mut stream, _)) => {
                            let _ = stream.write_all(name(&worker).as_bytes()).await;
                        }
                        Err(_) if worker.is_draining() => break,
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    },
                    Some(WorkerEvent::Message(_)) = worker.next_event() => {
                        tamper::shut();
                        worker.send(&"shut").await?;
                    }
                }
            }
        }
        // Serves; when it is told to, its listeners leave handshakes unfinished until the client has said something.
        "deferred" => {
            let listener = worker.listen(arg(1)).await?;
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((mut stream, _)) => {
                            let _ = stream.write_all(name(&worker).as_bytes()).await;
                        }
                        Err(_) => break,
                    },
                    Some(WorkerEvent::Message(_)) = worker.next_event() => {
                        tamper::defer();
                        worker.send(&"deferred").await?;
                    }
                }
            }
        }
        // Serves, and tampers with the program of its group when it is told to.
        "greedy" => {
            let listener = worker.listen(arg(1)).await?;
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((mut stream, _)) => {
                            let _ = stream.write_all(name(&worker).as_bytes()).await;
                        }
                        Err(_) => break,
                    },
                    Some(WorkerEvent::Message(_)) = worker.next_event() => worker.send(&tamper::steer()).await?,
                }
            }
        }
        // Says how busy it is.
        "busy" => {
            let listener = worker.listen(arg(1)).await?;
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((mut stream, _)) => {
                            let _ = stream.write_all(name(&worker).as_bytes()).await;
                        }
                        Err(_) => break,
                    },
                    Some(WorkerEvent::Message(message)) = worker.next_event() => worker.report_load(message.decode()?),
                }
            }
        }
        // Listens, and never takes a connection.
        "idle" => {
            let listener = worker.listen(arg(1)).await?;
            worker.draining().await;
            drop(listener);
        }
        // Listens, then blocks its whole thread.
        "blocked" => {
            let listener = worker.listen(arg(1)).await?;
            // The report must be out before.
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::thread::sleep(Duration::from_secs(600));
            drop(listener);
        }
        // Tries to listen each time it is told to, says what came of it, and serves.
        "tries" => {
            while let Some(event) = worker.next_event().await {
                if !matches!(event, WorkerEvent::Message(_)) {
                    continue;
                }
                match worker.listen(arg(1)).await {
                    Ok(listener) => {
                        worker.send(&json!({"port": listener.local_addr()?.port()})).await?;
                        let name = name(&worker);
                        tokio::spawn(async move {
                            while let Ok((mut stream, _)) = listener.accept().await {
                                let _ = stream.write_all(name.as_bytes()).await;
                            }
                        });
                    }
                    Err(e) => worker.send(&json!({"error": e.chain().to_string()})).await?,
                }
            }
        }
        // Takes its time before it listens.
        "late" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let listener = worker.listen(arg(1)).await?;
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(name(&worker).as_bytes()).await;
            }
        }
        // Two servers, the second some time after the first.
        "two" => {
            let first = worker.listen(arg(1)).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let second = worker.listen(arg(1)).await?;
            let serve = async |listener: &troop::TcpListener| {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let _ = stream.write_all(name(&worker).as_bytes()).await;
                }
            };
            tokio::join!(serve(&first), serve(&second));
        }
        // Reads a byte of its first connection and is gone before it could tell anybody.
        "read and die" => {
            let listener = worker.listen(arg(1)).await?;
            if let Ok((stream, _)) = listener.accept().await {
                let mut stream = stream.into_inner().into_std()?;
                stream.set_nonblocking(false)?;
                stream.read_exact(&mut [0])?;
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
        }
        // Cannot receive any descriptor for a while.
        "starved" => {
            let listener = worker.listen(arg(1)).await?;
            let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let none = rustix::process::Rlimit { current: Some(3), ..before };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, none).map_err(std::io::Error::from)?;
            worker.send(&"starved").await?;
            while worker.next_event().await.is_some_and(|event| !matches!(event, WorkerEvent::Message(_))) {}
            rustix::process::setrlimit(rustix::process::Resource::Nofile, before).map_err(std::io::Error::from)?;
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(name(&worker).as_bytes()).await;
            }
        }
        // Many messages, and the end of the program right behind them.
        "last words" => {
            for n in 0..arg(1).parse().unwrap_or(0u32) {
                worker.send(&n).await?;
            }
        }
        "echo" => messages(&worker).await?,
        // Leaves on its own account.
        "leave" => {
            let _listener = worker.listen(arg(1)).await?;
            worker.disconnect().await?;
        }
        "exit" => std::process::exit(arg(1).parse().unwrap_or(0)),
        "die" => {
            eprintln!("about to fail\nfatal: no such table");
            std::process::exit(3);
        }
        // Outlives its primary and says so to a file.
        "outlive" => {
            worker.outlive_primary();
            worker.draining().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::fs::write(arg(1), "outlived")?;
        }
        "orphan" => {
            worker.draining().await;
            // Never ends by itself.
            std::future::pending::<()>().await;
        }
        "print" => {
            println!("out {}", std::env::var(arg(1)).unwrap_or_default());
            eprintln!("err");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            println!("in {}", line.trim());
        }
        // What it got: descriptors, environment, directory, identity.
        "inspect" => {
            let fds: Vec<String> =
                std::fs::read_dir("/proc/self/fd")?.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
            let links: Vec<String> = fds
                .iter()
                .filter_map(|fd| Some(format!("{fd}={}", std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.display())))
                .collect();
            let identity: Vec<String> = std::env::vars().map(|(n, _)| n).filter(|n| n.starts_with("NODE_")).collect();
            worker
                .send(&json!({
                    "fds": links,
                    "identity": identity,
                    "cwd": std::env::current_dir()?,
                    "env": std::env::var("TEST_VALUE").ok(),
                    "pgid": rustix::process::getpgrp().as_raw_nonzero().get(),
                    "uid": rustix::process::getuid().as_raw(),
                    "comm": std::fs::read_to_string("/proc/self/comm")?.trim(),
                    "profile": std::env::var("LLVM_PROFILE_FILE").ok(),
                }))
                .await?;
            worker.draining().await;
        }
        other => {
            eprintln!("troop-fixture has no face {other:?}");
            std::process::exit(64);
        }
    }
    Ok(())
}

/// Answers messages: what it does depends on the message.
async fn messages(worker: &Worker) -> troop::Result<()> {
    while let Some(event) = worker.next_event().await {
        match event {
            WorkerEvent::Request(request) => match request.decode::<Value>()? {
                Value::String(s) if s == "refuse" => request.refuse("I will not"),
                Value::String(s) if s == "silence" => std::mem::forget(request),
                question => request.reply(&json!({"you asked": question}))?,
            },
            WorkerEvent::Message(message) => {
                if let Some(handle) = message.take_handle() {
                    handled(worker, message.decode()?, handle).await?;
                    continue;
                }
                match message.decode::<Value>()? {
                    Value::String(s) if s == "exit" => std::process::exit(0),
                    Value::String(s) if s == "stop reading" => tokio::time::sleep(Duration::from_secs(3600)).await,
                    Value::String(s) if s == "block" => std::thread::sleep(Duration::from_secs(3600)),
                    Value::String(s) if s == "ask" => {
                        let answer: troop::Result<Value> = worker.request(&"what now?", Duration::from_secs(5)).await;
                        worker.send(&json!({"answer": answer.map_err(|e| e.to_string()).unwrap_or_else(Value::String)})).await?;
                    }
                    Value::Object(o) if o.contains_key("flood") => {
                        for n in 0..o["flood"].as_u64().unwrap_or(0) {
                            worker.send(&n).await?;
                        }
                    }
                    Value::Object(o) if o.contains_key("sockets") => {
                        let (one, _other) = std::os::unix::net::UnixStream::pair()?;
                        let mut sending = tokio::task::JoinSet::new();
                        for n in 0..o["sockets"].as_u64().unwrap_or(0) {
                            let (worker, one) = (worker.clone(), one.try_clone()?);
                            sending.spawn(async move { worker.send_handle(&n, one).await });
                        }
                        while let Some(sent) = sending.join_next().await {
                            sent.map_err(std::io::Error::other)??;
                        }
                    }
                    other => worker.send(&json!({"echo": other})).await?,
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the sender can see from outside: the socket works here.
async fn handled(worker: &Worker, how: String, handle: Handle) -> troop::Result<()> {
    if how == "back" {
        return worker.send_handle(&"there you are", handle).await;
    }
    match handle {
        Handle::TcpStream(mut s) => s.write_all(b"tcp from the worker")?,
        Handle::UnixStream(mut s) => s.write_all(b"unix from the worker")?,
        Handle::TcpListener(l) => l.accept()?.0.write_all(b"accepted by the worker")?,
        Handle::UnixListener(l) => l.accept()?.0.write_all(b"accepted by the worker")?,
        Handle::UdpSocket(s) => {
            let mut buffer = [0; 100];
            let (_, from) = s.recv_from(&mut buffer)?;
            s.send_to(b"udp from the worker", from)?;
        }
        _ => {}
    }
    worker.send(&json!({"used": how})).await
}

fn blocking(address: &str) -> troop::Result<()> {
    let worker = troop::worker()?.blocking()?;
    let listener = worker.listen(address)?;
    let who = format!("{} {}\n", worker.id().map_or(0, |id| id.0), std::process::id());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(who.as_bytes());
                }
            });
        }
    });
    worker.finish();
    Ok(())
}

/// Everything that a blocking worker can do but listen.
fn blocking_echo() -> troop::Result<()> {
    let worker = troop::worker()?.blocking()?;
    let waiting = worker.clone();
    let waiter = std::thread::spawn(move || {
        waiting.wait_until_draining();
        waiting.is_draining()
    });
    while let Some(event) = worker.next_event(Duration::from_secs(60)) {
        match event {
            WorkerEvent::Request(request) => request.reply(&json!({"you asked": request.decode::<Value>()?}))?,
            WorkerEvent::Message(message) => match message.take_handle() {
                Some(handle) => worker.send_handle(&"there you are", handle)?,
                None if message.as_json() == "\"ask\"" => {
                    let answer: Value = worker.request(&"what now?", Duration::from_secs(5))?;
                    worker.send(&json!({"answer": answer}))?;
                }
                None => worker.send(&json!({"echo": message.decode::<Value>()?}))?,
            },
            _ => {}
        }
    }
    worker.send(&json!({"drained": waiter.join().is_ok_and(|drained| drained)}))?;
    worker.finish();
    Ok(())
}

/// Every worker is the primary of a cluster of its own, down to level 0, which tells its name and its ancestors'.
fn nest(level: u32) -> troop::Result<()> {
    let Role::Worker(role) = troop::role()? else { return Err(troop::Error::Settings("nest runs under a primary".into())) };
    role.block_on(async |worker| {
        let ancestors = std::env::var("ANCESTORS").unwrap_or_default();
        let ancestors = format!("{ancestors}/{}", worker.id().map_or(0, |id| id.0));
        if level == 0 {
            let id_left = std::env::var("NODE_UNIQUE_ID").is_ok() || std::env::var("NODE_CHANNEL_FD").is_ok();
            worker.send(&json!({"ancestors": ancestors, "id left": id_left})).await?;
            worker.draining().await;
            return Ok(());
        }
        let next = (level - 1).to_string();
        let setup = Setup::new().args(["nest", &next]).env("ANCESTORS", &ancestors);
        let cluster = Cluster::builder().setup(setup).start()?;
        let mut events = cluster.events();
        cluster.fork(troop::Fork::new()).await?;
        let draining = worker.draining();
        tokio::pin!(draining);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Message(_, message)) => worker.send(&message.decode::<Value>()?).await?,
                    None => break,
                    _ => {}
                },
                () = &mut draining => {
                    cluster.disconnect().await?;
                    break;
                }
            }
        }
        Ok(())
    })
}

/// A primary with two workers of the given face; for tests that kill it.
fn primary(face: &str) -> troop::Result<()> {
    match troop::role()? {
        Role::Primary => {
            let args: Vec<String> = std::env::args().skip(2).collect();
            let setup = Setup::new().args([vec![face.to_owned()], args[1..].to_vec()].concat());
            Cluster::builder().workers(2).setup(setup).on_event(|event| println!("{event}")).run()
        }
        Role::Worker(_) => Ok(()),
    }
}

/// A worker that does not keep the rules: writes to its channel what its arguments say, and waits.
fn raw(steps: &[String]) {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    #[expect(unsafe_code, reason = "the channel is descriptor 3, by the rules of the protocol")]
    // SAFETY: descriptor 3 was given to this process for its own.
    let channel = std::os::unix::net::UnixStream::from(unsafe { OwnedFd::from_raw_fd(3) });
    let null = std::fs::File::open("/dev/null").ok();
    let pair = std::os::unix::net::UnixStream::pair().ok();
    let mut channel = channel;
    for step in steps {
        let (kind, text) = step.split_once(' ').unwrap_or((step, ""));
        let result = match kind {
            "line" => channel.write_all(format!("{text}\n").as_bytes()),
            "bytes" => channel.write_all(text.as_bytes()),
            // A gigabyte without a newline, or as much as the primary takes.
            "endless" => (0..1024).try_for_each(|_| channel.write_all(&[b'x'; 1 << 20])),
            "deep" => channel.write_all(format!("{}\n", "[".repeat(200_000)).as_bytes()),
            // Descriptors that nobody asked for, with a harmless message.
            "surplus" => {
                let Some((a, b)) = &pair else { return };
                let fds = [a.as_fd(), b.as_fd(), a.as_fd()];
                (0..50).try_for_each(|_| troop_sys::fdpass::send(channel.as_fd(), b"1\n", &fds).map(drop))
            }
            "file" => {
                let Some(null) = &null else { return };
                let line = br#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"a":1}}"#;
                let line = [&line[..], b"\n"].concat();
                troop_sys::fdpass::send(channel.as_fd(), &line, &[null.as_fd()]).map(drop)
            }
            // `repeat 10 text`: the same line many times, a block per system call.
            "repeat" => {
                let (times, text) = text.split_once(' ').unwrap_or(("0", ""));
                let times: usize = times.parse().unwrap_or(0);
                let at_once = (65_536 / (text.len() + 1)).max(1).min(times.max(1));
                let block = format!("{text}\n").repeat(at_once);
                (0..times.div_ceil(at_once)).try_for_each(|_| channel.write_all(block.as_bytes()))
            }
            // A line with a body of this many bytes in the place of `%`.
            "long" => {
                let (length, text) = text.split_once(' ').unwrap_or(("0", ""));
                let long = "x".repeat(length.parse().unwrap_or(0));
                channel.write_all(format!("{}\n", text.replace('%', &long)).as_bytes())
            }
            // Bytes written as hexadecimal digits.
            "hex" => {
                let bytes: Vec<u8> =
                    (0..text.len() / 2).filter_map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()).collect();
                channel.write_all(&bytes)
            }
            // A line together with a Unix socket.
            "socket" => {
                let Some((a, _)) = &pair else { return };
                troop_sys::fdpass::send(channel.as_fd(), format!("{text}\n").as_bytes(), &[a.as_fd()]).map(drop)
            }
            // Answers every connection as a Node worker does that could not receive the descriptor.
            "nack" => {
                let mut buffer = [0; 4096];
                let refuse = |text: &[u8]| text.windows(9).filter(|w| w == b"\"newconn\"").count();
                loop {
                    match channel.read(&mut buffer) {
                        Ok(0) | Err(_) => break Ok(()),
                        Ok(n) => {
                            let answers = "{\"cmd\":\"NODE_HANDLE_NACK\"}\n".repeat(refuse(&buffer[..n]));
                            let _ = channel.write_all(answers.as_bytes());
                        }
                    }
                }
            }
            // Passes the next line that comes from the primary on to the program there, as a message.
            "answer" => {
                let mut line = Vec::new();
                let mut byte = [0];
                channel.write_all(format!("{text}\n").as_bytes()).and_then(|()| {
                    while byte != *b"\n" {
                        channel.read_exact(&mut byte)?;
                        line.extend(byte);
                    }
                    // Not as the protocol message that it is.
                    let line: Value = serde_json::from_slice(&line)?;
                    channel.write_all(format!("{}\n", json!({"errno": line["errno"], "key": line["key"]})).as_bytes())
                })
            }
            "hang" => channel.shutdown(std::net::Shutdown::Both),
            // A process that goes on writing into the channel when this one is gone.
            "behind" => std::process::Command::new("sh").args(["-c", text]).spawn().map(drop),
            "exit" => std::process::exit(text.parse().unwrap_or(0)),
            "sleep" => {
                std::thread::sleep(Duration::from_millis(text.parse().unwrap_or(0)));
                Ok(())
            }
            _ => Ok(()),
        };
        if result.is_err() {
            break;
        }
    }
    // Until the primary closes the channel, or kills.
    let mut rest = Vec::new();
    let _ = channel.read_to_end(&mut rest);
}
