//! The program `troop` and PM2: resource usage, and the time of starts, reloads and restarts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Options;
use crate::cpu;
use crate::peer::{Group, Result, script};
use crate::table::{Table, median, number, times};

/// Deadline of every operation.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after a start at which an app counts as idle.
const IDLE_DELAY: Duration = Duration::from_secs(2);
/// The same for memory, some of which is released late.
const MEMORY_DELAY: Duration = Duration::from_secs(8);
/// Duration of the log test.
const LOG_TEST_DURATION: Duration = Duration::from_secs(5);

/// A process manager with a separate home directory.
pub(crate) trait Manager {
    /// Runs it with these arguments in its home.
    fn command(&self, arguments: &[&str]) -> Command;

    /// Returns its process, or that of the app.
    fn pid(&self) -> Result<u32>;

    /// Returns all processes of the manager, given its first one.
    fn processes(&self, pid: u32) -> Vec<u32> {
        vec![pid]
    }

    /// Starts this number of workers of a script.
    fn start(&self, script: &str, workers: usize) -> Result<()>;

    /// Starts this number of processes that do nothing.
    fn start_trivial(&self, workers: usize) -> Result<()>;

    /// Stops all apps.
    fn end(&self);
}

/// Runs a command to its end; one that fails is an error with the last line of what it has said.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{} failed: {}",
        command.get_program().display(),
        words.lines().next_back().unwrap_or_default()
    )
    .into())
}

/// PM2, installed beside this program.
pub(crate) struct Pm2 {
    program: PathBuf,
    home: tempfile::TempDir,
}

impl Pm2 {
    pub(crate) fn install() -> Result<Pm2> {
        let program = std::env::current_exe()?;
        let prefix = program
            .parent()
            .and_then(Path::parent)
            .ok_or("no directory to install PM2 in")?
            .join("troop-bench-pm2");
        let program = prefix.join("node_modules/.bin/pm2");
        if !program.exists() {
            let mut npm = Command::new("npm");
            npm.args(["install", "--no-audit", "--no-fund", "--prefix"])
                .arg(&prefix)
                .arg("pm2@latest");
            if !npm.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
                return Err("npm could not install it".into());
            }
        }
        Ok(Pm2 { program, home: tempfile::tempdir()? })
    }

    /// The daemon, which leads a session and so a process group.
    pub(crate) fn group(&self) -> Result<(u32, Group)> {
        let pid = self.pid()?;
        Ok((pid, Group::of(pid)))
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        run(self.command(arguments))
    }
}

impl Manager for Pm2 {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("PM2_HOME", self.home.path());
        command
    }

    fn pid(&self) -> Result<u32> {
        Ok(std::fs::read_to_string(self.home.path().join("pm2.pid"))?.trim().parse()?)
    }

    fn start(&self, script: &str, workers: usize) -> Result<()> {
        run(self.command(&["start", script, "--name", "app", "-i", &workers.to_string()]))
    }

    fn start_trivial(&self, workers: usize) -> Result<()> {
        run(self.command(&[
            "start",
            "/bin/sleep",
            "--name",
            "app",
            "--interpreter",
            "none",
            "-i",
            &workers.to_string(),
            "--",
            "100000",
        ]))
    }

    fn end(&self) {
        let _ = run(self.command(&["kill"]));
    }
}

/// The program `troop` of this build.
pub(crate) struct Troop {
    program: PathBuf,
    home: tempfile::TempDir,
}

impl Troop {
    pub(crate) fn build() -> Result<Troop> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--release", "-p", "troop-cli", "--manifest-path"]);
        run({
            build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
            build
        })?;
        let program = std::env::current_exe()?.with_file_name("troop");
        if !program.exists() {
            return Err(format!("there is no {}", program.display()).into());
        }
        Ok(Troop { program, home: tempfile::tempdir()? })
    }
}

impl Manager for Troop {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("TROOP_RUNTIME_DIR", self.home.path().join("run"))
            .env("TROOP_LOG_DIR", self.home.path().join("logs"));
        command
    }

    fn pid(&self) -> Result<u32> {
        let output = self.command(&["ls", "--json"]).output()?;
        let text = String::from_utf8(output.stdout)?;
        let number = text
            .split("\"pid\": ")
            .nth(1)
            .and_then(|rest| rest.split(',').next())
            .ok_or("no app runs")?;
        Ok(number.trim().parse()?)
    }

    /// The keeper and its engine, which is the child that runs the same program.
    fn processes(&self, pid: u32) -> Vec<u32> {
        let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let engine = cpu::children(pid).into_iter().filter(|child| program(*child) == program(pid));
        std::iter::once(pid).chain(engine).collect()
    }

    fn start(&self, script: &str, workers: usize) -> Result<()> {
        run(self.command(&["start", script, "--name", "app", "-i", &workers.to_string()]))
    }

    fn start_trivial(&self, workers: usize) -> Result<()> {
        run(self.command(&[
            "start",
            "/bin/sleep",
            "--name",
            "app",
            "-i",
            &workers.to_string(),
            "--no-wait",
            "--",
            "100000",
        ]))
    }

    fn end(&self) {
        let _ = run(self.command(&["stop", "all", "--quick"]));
    }
}

/// Stops the manager on drop, also after a failure.
pub(crate) struct Ends<'a>(pub(crate) &'a dyn Manager);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Waits for a condition; returns how long that took.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > OPERATION_TIMEOUT {
            return Err(format!("{what} did not come true within {OPERATION_TIMEOUT:?}").into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(begin.elapsed())
}

/// The memory of all processes of a manager together; pages that they share are counted once.
fn memory(manager: &dyn Manager, pid: u32) -> Result<f64> {
    std::thread::sleep(MEMORY_DELAY);
    let each = manager.processes(pid).into_iter().map(cpu::memory);
    let sum: Option<f64> = each.map(|memory| memory.map(|memory| memory.proportional)).sum();
    sum.ok_or_else(|| "the memory of a manager cannot be read".into())
}

/// The workers of a manager, given its first process.
pub(crate) fn workers(manager: &dyn Manager, pid: u32) -> Vec<u32> {
    let own = manager.processes(pid);
    cpu::children(pid).into_iter().filter(|child| !own.contains(child)).collect()
}

/// The CPU time of all processes of a manager together.
fn time(manager: &dyn Manager, pid: u32) -> Duration {
    manager.processes(pid).into_iter().map(cpu::time).sum()
}

/// Makes one request and reads the whole response.
fn request(port: u16) -> bool {
    let answered = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200") && answer.ends_with("served"))
    };
    answered().unwrap_or(false)
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Returns the file through which this process and the programs that it measures talk.
fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("troop-bench-{}.{name}", std::process::id()))
}

/// Sets the port of `served.js`.
pub(crate) fn write_port(port: u16) -> Result<()> {
    Ok(std::fs::write(file("port"), port.to_string())?)
}

/// Removes the files of this process.
pub(crate) fn remove_files() {
    for name in ["port", "printed"] {
        let _ = std::fs::remove_file(file(name));
    }
}

/// The measurements of a manager.
#[derive(Default)]
struct Measured {
    empty: Vec<f64>,
    with_4: Vec<f64>,
    with_100: Vec<f64>,
    start_100: Vec<f64>,
    list: Vec<f64>,
    crash: Vec<f64>,
    own_start: Vec<f64>,
    failed: Vec<f64>,
    requests: Vec<f64>,
    log_cpu: Vec<f64>,
    log_rate: Vec<f64>,
}

fn measure(manager: &dyn Manager, is_daemon: bool, to: &mut Measured) -> Result<()> {
    let _ends = Ends(manager);
    if is_daemon {
        run(manager.command(&["ping"]))?;
        to.empty.push(memory(manager, manager.pid()?)?);
    }
    // Many that do nothing.
    let begin = Instant::now();
    manager.start_trivial(100)?;
    let mut pid = 0;
    until("the manager", || manager.pid().map(|found| pid = found).is_ok())?;
    until("100 processes", || workers(manager, pid).len() >= 100)?;
    to.start_100.push(begin.elapsed().as_secs_f64() * 1000.0);
    to.with_100.push(memory(manager, pid)?);
    manager.end();
    until("the end", || manager.pid().is_err() || workers(manager, pid).is_empty())?;

    // A server of four.
    let port = free_port()?;
    write_port(port)?;
    manager.start(&script("served.js"), 4)?;
    until("the server", || request(port))?;
    let pid = manager.pid()?;
    to.with_4.push(memory(manager, pid)?);
    for _ in 0..10 {
        let begin = Instant::now();
        run(manager.command(&["ls"]))?;
        to.list.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    // A reload under load.
    let (ended, failed, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (ended, failed, served) = (ended.clone(), failed.clone(), served.clone());
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let counter = if request(port) { &served } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let reloaded = run(manager.command(&["reload", "app"]));
    std::thread::sleep(Duration::from_secs(1));
    ended.store(true, Ordering::Relaxed);
    for client in clients {
        let _ = client.join();
    }
    reloaded?;
    to.failed.push(failed.load(Ordering::Relaxed) as f64);
    to.requests.push(served.load(Ordering::Relaxed) as f64);
    manager.end();
    until("the end", || !request(port))?;

    // One that crashes.
    manager.start(&script("served.js"), 1)?;
    until("the server", || request(port))?;
    let pid = manager.pid()?;
    std::thread::sleep(IDLE_DELAY);
    for _ in 0..5 {
        let before = workers(manager, pid);
        let worker = before
            .last()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .ok_or("there is no worker")?;
        kill_process(worker, Signal::KILL)?;
        let begin = Instant::now();
        // Until another one answers.
        until("serving again", || workers(manager, pid) != before && request(port))?;
        to.crash.push(begin.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(IDLE_DELAY);
    }
    manager.end();

    // One that prints.
    manager.start(&script("prints.js"), 1)?;
    let pid = manager.pid()?;
    std::thread::sleep(IDLE_DELAY);
    let printed = || {
        std::fs::read_to_string(file("printed"))
            .ok()
            .and_then(|text| text.trim().parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let (before, begun) = (time(manager, pid), printed());
    std::thread::sleep(LOG_TEST_DURATION);
    let (used, megabytes) = (time(manager, pid) - before, (printed() - begun) / 1e6);
    to.log_cpu.push(used.as_secs_f64() * 1000.0 / megabytes.max(0.001));
    to.log_rate.push(megabytes / LOG_TEST_DURATION.as_secs_f64());
    manager.end();
    Ok(())
}

/// Starts the program without a manager and waits until it answers.
fn own_start(port: u16) -> Result<f64> {
    let begin = Instant::now();
    let mut child = Command::new("node").arg(script("served.js")).stdin(Stdio::null()).spawn()?;
    let served = until("the program alone", || request(port));
    let took = begin.elapsed();
    child.kill()?;
    child.wait()?;
    served?;
    Ok(took.as_secs_f64() * 1000.0)
}

/// Runs this section and prints its tables.
pub(crate) fn section(options: &Options) -> Result<()> {
    let (mut pm2, mut troop) = (Measured::default(), Measured::default());
    let mut absent = None;
    let rounds = if options.quick { 1 } else { options.repeat().min(3) };
    for _ in 0..rounds {
        if absent.is_none() {
            match Pm2::install() {
                Ok(manager) => measure(&manager, true, &mut pm2)?,
                Err(e) => absent = Some(e),
            }
        }
        measure(&Troop::build()?, false, &mut troop)?;
        let port = free_port()?;
        write_port(port)?;
        troop.own_start.push(own_start(port)?);
    }
    remove_files();
    println!("## The program `troop` beside PM2\n");
    let mut table = Table::new(&["", "PM2", "troop", "/ PM2"]);
    let mut row = |name: &str, of: fn(&Measured) -> &Vec<f64>| {
        let (theirs, ours) = (median(of(&pm2).iter().copied()), median(of(&troop).iter().copied()));
        table.row(vec![name.into(), number(theirs), number(ours), times(ours / theirs)]);
    };
    row("memory of the manager (PSS), nothing running, MiB (troop has none then)", |m| &m.empty);
    row("… with 4 workers, MiB", |m| &m.with_4);
    row("… with 100 workers, MiB", |m| &m.with_100);
    row("100 processes started, ms", |m| &m.start_100);
    row("`ls`, ms", |m| &m.list);
    row("a killed worker serves again, ms", |m| &m.crash);
    row("… the program's own start, ms", |m| &m.own_start);
    row("reload of 4 workers under load: failed requests", |m| &m.failed);
    row("… of so many", |m| &m.requests);
    row("the manager's CPU per MB of logs, ms", |m| &m.log_cpu);
    row("… at so many MB a second", |m| &m.log_rate);
    table.print();
    if let Some(reason) = absent {
        println!("PM2 was not measured: {reason}.\n");
    }
    Ok(())
}
