//! Processes that are attacked, and all that they have started, which end with their test.
#![allow(unreachable_pub, reason = "as in `support`")]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use troop_testkit::{TEST_TIMEOUT, wait_until};

/// A primary whose lines are read: `troop run --log json`, or a program that is its own.
pub struct Running {
    pub child: Child,
    lines: Receiver<String>,
    pub seen: Vec<String>,
    /// Its workers' processes, as far as lines have told.
    pub workers: Vec<u32>,
}

impl Running {
    /// Reads its standard error.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        Running::reading(child, stderr)
    }

    /// Reads what it writes somewhere.
    pub fn reading(child: Child, from: impl Read + Send + 'static) -> Running {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(from).lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        Running { child, lines, seen: Vec::new(), workers: Vec::new() }
    }

    fn line(&mut self, deadline: Instant) -> Option<String> {
        let line =
            self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && let ("fork", Some(pid)) =
                (event["event"].as_str().unwrap_or_default(), event["pid"].as_u64())
        {
            self.workers.push(u32::try_from(pid).unwrap());
        }
        self.seen.push(line.clone());
        Some(line)
    }

    /// The next line, if it comes at once.
    pub fn soon(&mut self) -> Option<String> {
        self.line(Instant::now() + Duration::from_millis(50))
    }

    /// The next line that contains a text.
    pub fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            match self.line(deadline) {
                Some(line) if line.contains(text) => return line,
                Some(_) => {}
                None => panic!("no {text:?}; seen:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// The next event of this name.
    pub fn event(&mut self, name: &str) -> Value {
        serde_json::from_str(&self.until(&format!("\"event\":\"{name}\""))).unwrap()
    }

    /// Waits for its end; returns its exit code.
    pub fn end(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the end of the primary", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(pid(self.child.id()), Signal::QUIT);
            let deadline = Instant::now() + Duration::from_secs(3);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        while self.line(Instant::now()).is_some() {}
        for worker in &self.workers {
            let _ = kill_process(pid(*worker), Signal::KILL);
        }
    }
}

pub fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

/// A user that no other test has, not even one of another run on this machine. Its processes are
/// ended by user number.
pub fn nobody_else() -> u32 {
    // From what systemd hands out for a while, of which little is ever in use.
    const FIRST: u32 = 61_184;
    FIRST + std::process::id() % (64_000 - FIRST)
}

/// Returns all processes of such a user.
pub struct Crowd {
    uid: u32,
    primary: Option<troop_sys::spawn::Child>,
    stderr: Option<std::io::PipeReader>,
}

/// The most processes and threads that a crowd may have.
const BOUND: u64 = 80;

impl Crowd {
    /// Starts a program as such a user, with a limit on the processes and threads of the user.
    pub fn start(argv: &[&str], variables: &[(&str, &str)]) -> Crowd {
        let uid = nobody_else();
        let text = |text: &str| std::ffi::CString::new(text).unwrap();
        let (stderr, theirs) = std::io::pipe().unwrap();
        let null: OwnedFd =
            std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let path = std::env::var("PATH").unwrap();
        let variables = variables.iter().copied().chain([("PATH", path.as_str())]);
        let env = variables.map(|(name, value)| text(&format!("{name}={value}")));
        let command = troop_sys::spawn::Command {
            candidates: vec![text(argv[0])],
            argv: argv.iter().map(|arg| text(arg)).collect(),
            env: env.collect(),
            pid_variable: None,
            death_signal: 0,
            cwd: Some(text("/")),
            fds: vec![(0, null.as_fd()), (1, null.as_fd()), (2, theirs.as_fd())],
            uid: Some(uid),
            gid: Some(uid),
            groups: None,
            own_group: true,
            own_session: true,
            no_new_privileges: true,
            sandbox: troop_sys::sandbox::Sandbox::default(),
            descriptor_limit: None,
            limits: vec![(troop_sys::spawn::RLIMIT_NPROC, BOUND, BOUND)],
            umask: None,
            nice: None,
            cpus: Vec::new(),
            cgroup: None,
            is_sibling: false,
        };
        let primary = troop_sys::spawn::spawn(&command).unwrap();
        Crowd { uid, primary: Some(primary), stderr: Some(stderr) }
    }

    /// The processes that there are now.
    pub fn members(&self) -> Vec<u32> {
        use std::os::unix::fs::MetadataExt as _;
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let alive = troop_testkit::is_running(number);
            (alive && entry.metadata().is_ok_and(|found| found.uid() == self.uid)).then_some(number)
        })
        .collect()
    }

    /// The first process.
    pub fn first(&self) -> u32 {
        self.primary.as_ref().unwrap().pid
    }

    /// Waits for the end of the first process; returns the most processes that there ever were, and
    /// what was written to standard error.
    pub fn outcome(self) -> (usize, troop_sys::process::Exit, String) {
        self.outcome_seeing(|_| {})
    }

    /// The same, and shows the processes that there are, again and again.
    pub fn outcome_seeing(
        mut self,
        mut see: impl FnMut(&[u32]),
    ) -> (usize, troop_sys::process::Exit, String) {
        let stderr = self.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.take(1 << 20).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let primary = self.primary.as_ref().unwrap();
        let (mut most, deadline) = (0, Instant::now() + TEST_TIMEOUT);
        let exit = loop {
            let members = self.members();
            most = most.max(members.len());
            see(&members);
            if let Some(exit) = troop_sys::process::try_reap(primary.pidfd.as_fd()).unwrap() {
                break exit;
            }
            if Instant::now() > deadline || most > 20 {
                self.end();
                break troop_sys::process::reap(primary.pidfd.as_fd()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        self.end();
        // It is reaped.
        self.primary = None;
        (most, exit, reader.join().unwrap())
    }

    fn end(&self) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let members = self.members();
            if members.is_empty() || Instant::now() > deadline {
                return;
            }
            for member in members {
                let _ = kill_process(pid(member), Signal::KILL);
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
        if let Some(primary) = &self.primary {
            let _ = troop_sys::process::reap(primary.pidfd.as_fd());
        }
    }
}

/// A directory in which anybody may write.
pub fn open_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

/// Waits for a file, and reads it.
pub fn file(path: &Path) -> String {
    wait_until(&format!("{}", path.display()), || {
        path.metadata().is_ok_and(|found| found.len() > 0)
    });
    std::fs::read_to_string(path).unwrap()
}
