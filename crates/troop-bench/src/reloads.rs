//! What clients that keep their connections open notice of reloads: failed requests and closed
//! connections, with troop and with its peers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::{Router, routing::get};
use rustix::process::{Pid, Signal, kill_process};

use crate::manager::{Ends, Manager, Pm2, Troop, free_port, run as finish, until, workers};
use crate::peer::{Peer, Result, node, script};
use crate::table::Table;
use crate::{Options, cpu};

pub(crate) const CLIENTS: usize = 40;
const RELOADS: usize = 10;
pub(crate) const WORKERS: usize = 2;
/// Time between two reloads in which the clients find their new connections.
const PAUSE: Duration = Duration::from_millis(500);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What the clients have counted.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) closed: AtomicU64,
    ended: AtomicBool,
}

/// Clients that run until they are ended.
pub(crate) struct Clients {
    counted: Arc<Counted>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(address: SocketAddr) -> Clients {
        let counted = Arc::new(Counted::default());
        let threads = (0..CLIENTS).map(|number| {
            let counted = counted.clone();
            std::thread::spawn(move || client(address, number, &counted))
        });
        Clients { threads: threads.collect(), counted }
    }

    pub(crate) fn end(self) -> Arc<Counted> {
        self.counted.ended.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        self.counted
    }
}

/// One client: it pauses for up to 20 ms after each answer, and opens a connection only when its
/// last one was closed.
fn client(address: SocketAddr, number: usize, counted: &Counted) {
    let mut random = number as u64 * 2_654_435_769 + 1;
    while !counted.ended.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else {
            counted.failed.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let _ = stream.set_nodelay(true);
        loop {
            if counted.ended.load(Ordering::Relaxed) {
                return;
            }
            let is_last = match ask(&mut stream) {
                Some(is_last) => is_last,
                None => {
                    counted.failed.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            };
            counted.answered.fetch_add(1, Ordering::Relaxed);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if is_last || rests(&mut stream, Duration::from_micros(1 + (random >> 33) % 20_000)) {
                break;
            }
        }
        counted.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends a request. Returns whether its answer is the last one; `None` if there is none.
pub(crate) fn ask(stream: &mut TcpStream) -> Option<bool> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).ok()?;
    stream.write_all(REQUEST).ok()?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        answer.extend_from_slice(&buffer[..count]);
        if crate::load::length(&answer).is_some_and(|length| answer.len() >= length) {
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            return text.starts_with("http/1.1 200").then(|| text.contains("connection: close"));
        }
    }
}

/// Waits. Returns early, and true, if the connection is closed meanwhile.
fn rests(stream: &mut TcpStream, pause: Duration) -> bool {
    if stream.set_read_timeout(Some(pause)).is_err() {
        return true;
    }
    !matches!(stream.read(&mut [0]), Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// A server that can replace its workers.
pub(crate) trait Server {
    /// Replaces all workers, and returns when the old ones have ended.
    fn reload(&mut self) -> Result<()>;

    /// The process that holds the listener and looks after the workers.
    fn primary(&self) -> Result<u32>;
}

/// Starts a server on a port.
type Start = fn(u16) -> Result<Box<dyn Server>>;

/// troop or PM2.
struct Managed(Box<dyn Manager>);

impl Server for Managed {
    fn reload(&mut self) -> Result<()> {
        let pid = self.0.pid()?;
        let old = workers(&*self.0, pid);
        finish(self.0.command(&["reload", "app"]))?;
        until("new workers", || !workers(&*self.0, pid).iter().any(|child| old.contains(child)))?;
        Ok(())
    }

    fn primary(&self) -> Result<u32> {
        self.0.processes(self.0.pid()?).pop().ok_or_else(|| "there is no process".into())
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        drop(Ends(&*self.0));
    }
}

/// A Node program that replaces its workers by `fork` and `disconnect`.
struct Disconnects(Peer);

impl Server for Disconnects {
    fn reload(&mut self) -> Result<()> {
        self.0.go()?;
        self.0.wait_for("done").map(drop)
    }

    fn primary(&self) -> Result<u32> {
        Ok(self.0.pid())
    }
}

/// A process that replaces its children at SIGHUP.
struct HangsUp {
    peer: Peer,
    _directory: tempfile::TempDir,
}

impl Server for HangsUp {
    fn reload(&mut self) -> Result<()> {
        let pid = self.peer.pid();
        let old = cpu::children(pid);
        let process = Pid::from_raw(pid.cast_signed()).ok_or("no process")?;
        kill_process(process, Signal::HUP)?;
        until("new workers", || {
            let now = cpu::children(pid);
            now.len() >= WORKERS && !now.iter().any(|child| old.contains(child))
        })?;
        Ok(())
    }

    fn primary(&self) -> Result<u32> {
        Ok(self.peer.pid())
    }
}

fn managed(manager: impl Manager + 'static, program: &[&str]) -> Result<Box<dyn Server>> {
    let managed = Managed(Box::new(manager));
    let workers = WORKERS.to_string();
    let mut arguments = vec!["start", program[0], "--name", "app", "-i", &workers];
    if program.len() > 1 {
        arguments.push("--");
        arguments.extend(&program[1..]);
    }
    finish(managed.0.command(&arguments))?;
    Ok(Box::new(managed))
}

fn troop_and_node(port: u16) -> Result<Box<dyn Server>> {
    managed(Troop::build()?, &[&script("served.js"), &port.to_string()])
}

fn troop_and_rust(port: u16) -> Result<Box<dyn Server>> {
    let program = std::env::current_exe()?.display().to_string();
    managed(Troop::build()?, &[&program, "peer", "kept", &port.to_string()])
}

fn pm2(port: u16) -> Result<Box<dyn Server>> {
    managed(Pm2::install()?, &[&script("served.js"), &port.to_string()])
}

fn disconnects(port: u16) -> Result<Box<dyn Server>> {
    let arguments = [WORKERS.to_string(), script("served.js"), port.to_string()];
    let mut peer = Peer::start(node("restarts.js", &arguments))?;
    peer.wait_for("ready")?;
    Ok(Box::new(Disconnects(peer)))
}

fn nginx(port: u16) -> Result<Box<dyn Server>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().display();
    let configuration = format!(
        "daemon off; worker_processes {WORKERS}; pid {path}/pid; error_log {path}/errors;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {path}/a; proxy_temp_path {path}/b;\n\
         fastcgi_temp_path {path}/c; uwsgi_temp_path {path}/d; scgi_temp_path {path}/e; default_type text/plain;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"served\"; }} }} }}\n"
    );
    let file = directory.path().join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let mut command = Command::new(installed("nginx")?);
    command.arg("-c").arg(&file).arg("-p").arg(directory.path());
    Ok(Box::new(HangsUp { peer: Peer::start(command)?, _directory: directory }))
}

/// Returns a program on `PATH`, among those of the system, or where `test.sh` unpacks it.
pub(crate) fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nginx/usr/sbin");
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), unpacked]);
    let found = directories.map(|directory| directory.join(name)).find(|path| path.exists());
    found.ok_or_else(|| format!("{name} is not installed").into())
}

fn gunicorn(port: u16) -> Result<Box<dyn Server>> {
    let program = std::env::current_exe()?;
    let environment = program.with_file_name("troop-bench-gunicorn");
    if !environment.join("bin/gunicorn").exists() {
        finish({
            let mut command = Command::new("python3");
            command.args(["-m", "venv"]).arg(&environment);
            command
        })?;
        finish({
            let mut command = Command::new(environment.join("bin/pip"));
            command.args(["install", "--quiet", "gunicorn"]);
            command
        })?;
    }
    let directory = tempfile::tempdir()?;
    std::fs::write(
        directory.path().join("app.py"),
        "def app(environ, start):\n    start('200 OK', [('Content-Length', '6')])\n    return [b'served']\n",
    )?;
    let mut command = Command::new(environment.join("bin/gunicorn"));
    command.args(["-w", &WORKERS.to_string(), "-k", "gthread", "--threads", "40"]);
    command.args(["--keep-alive", "75", "--log-level", "critical"]);
    command.args(["-b", &format!("127.0.0.1:{port}"), "app:app"]);
    command.current_dir(directory.path());
    Ok(Box::new(HangsUp { peer: Peer::start(command)?, _directory: directory }))
}

/// Whether a new connection is answered.
pub(crate) fn serves(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok_and(|mut stream| ask(&mut stream).is_some())
}

/// Reloads a server under load, and adds what its clients have counted to the table.
fn measure(name: &str, mut server: Box<dyn Server>, port: u16, table: &mut Table) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    until("the server", || serves(address))?;
    let clients = Clients::start(address);
    std::thread::sleep(PAUSE);
    let (begin, mut outcome) = (Instant::now(), Ok(()));
    for _ in 0..RELOADS {
        outcome = outcome.and_then(|()| server.reload());
        std::thread::sleep(PAUSE);
    }
    let took = begin.elapsed();
    let counted = clients.end();
    outcome?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
    table.row(vec![
        name.into(),
        count(&counted.answered),
        count(&counted.failed),
        count(&counted.closed),
        format!("{:.1}", took.as_secs_f64()),
    ]);
    Ok(())
}

/// What is measured, and how it reloads.
const SERVERS: [(&str, &str, Start); 6] = [
    ("troop, Node's http, unchanged", "`troop reload`", troop_and_node),
    ("troop, Rust with `troop::serve`", "`troop reload`", troop_and_rust),
    ("PM2", "`pm2 reload`", pm2),
    ("Node's cluster", "`fork` and `disconnect`", disconnects),
    ("nginx", "`-s reload`", nginx),
    ("gunicorn with threads", "HUP", gunicorn),
];

/// Starts each server, has it measured, and prints the table. The measurement gets the server's name and
/// how it reloads.
pub(crate) fn print_each(
    columns: &[&str],
    measure: impl Fn(&str, &str, Box<dyn Server>, u16, &mut Table) -> Result<()>,
) -> Result<()> {
    let (mut table, mut absent) = (Table::new(columns), Vec::new());
    for (name, how, start) in SERVERS {
        let port = free_port()?;
        match start(port) {
            Ok(server) => measure(name, how, server, port, &mut table)?,
            Err(e) => absent.push(format!("{name} was not measured: {e}.")),
        }
    }
    table.print();
    for line in absent {
        println!("{line}\n");
    }
    Ok(())
}

/// Runs this section and prints its table.
pub(crate) fn run(_: &Options) -> Result<()> {
    println!("## Reloads\n");
    println!(
        "{CLIENTS} clients that keep their connections open and pause for up to 20 ms after each answer, {WORKERS} workers, {RELOADS} reloads one after the other.\n"
    );
    let columns = ["", "requests answered", "failed requests", "closed connections", "seconds"];
    print_each(&columns, |name, how, server, port, table| {
        measure(&format!("{name}, {how}"), server, port, table)
    })
}

/// Runs the peer: a worker that says `served`.
pub(crate) fn server(port: &str) -> Result<()> {
    troop::worker()?.block_on(async |worker| {
        let listener = worker.listen(format!("127.0.0.1:{port}").as_str()).await?;
        troop::serve(listener, Router::new().route("/", get(async || "served"))).await;
        Ok(())
    })
}
