//! The measured processes: each in a separate process group, killed on drop and when the program is
//! interrupted.
//!
//! A peer writes a line that begins with `ready` to standard output when it can be measured, starts
//! when it reads `go`, and answers with a line that begins with `done`.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The result of a section.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Timeout of an answer of a peer, in seconds.
const ANSWER_TIMEOUT_SECONDS: i64 = 120;

/// The running process groups.
static GROUPS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn groups() -> MutexGuard<'static, BTreeSet<u32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(group: u32) {
    // An error means that all of them have ended already.
    let _ = troop_sys::process::signal_group(group, rustix::process::Signal::KILL.as_raw());
}

/// Kills all peers when this process gets a signal to end.
pub(crate) fn end_with_us() -> Result<()> {
    let (mut reader, writer) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    std::thread::spawn(move || {
        let _ = reader.read(&mut [0]);
        // Held until the end, so that no peer is started any more.
        let groups = groups();
        groups.iter().copied().for_each(kill);
        #[expect(clippy::exit, reason = "this is what the signal asks for")]
        std::process::exit(130);
    });
    Ok(())
}

/// A process group that is killed on drop.
#[derive(Debug)]
pub(crate) struct Group(u32);

impl Group {
    /// Takes over a group by the process id of its leader.
    pub(crate) fn of(leader: u32) -> Group {
        groups().insert(leader);
        Group(leader)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        kill(self.0);
        groups().remove(&self.0);
    }
}

/// A measured process.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    group: Option<Group>,
    output: BufReader<ChildStdout>,
}

/// Starts this program as a peer of the given kind.
pub(crate) fn ourselves<S: AsRef<str>>(arguments: &[S]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("peer").args(arguments.iter().map(AsRef::as_ref));
    Ok(command)
}

/// Returns the path of a script for Node.
pub(crate) fn script(name: &str) -> String {
    format!("{}/node/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Starts Node with a script.
pub(crate) fn node<S: AsRef<str>>(name: &str, arguments: &[S]) -> Command {
    node_with(&[], name, arguments)
}

/// Starts Node with options and a script.
pub(crate) fn node_with<S: AsRef<str>>(
    switches: &[String],
    name: &str,
    arguments: &[S],
) -> Command {
    let mut command = Command::new("node");
    command.args(switches).arg(script(name)).args(arguments.iter().map(AsRef::as_ref));
    command
}

impl Peer {
    /// Starts a process.
    pub(crate) fn start(mut command: Command) -> Result<Peer> {
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_remove("NODE_CLUSTER_SCHED_POLICY");
        let mut groups = groups();
        let mut child = command
            .spawn()
            .map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
        groups.insert(child.id());
        drop(groups);
        let group = Some(Group(child.id()));
        let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Peer { child, group, output })
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its children.
    pub(crate) fn workers(&self) -> Vec<u32> {
        crate::cpu::children(self.pid())
    }

    /// Waits for a line with this first word, and returns the numbers after it.
    pub(crate) fn wait_for(&mut self, word: &str) -> Result<Vec<f64>> {
        loop {
            if self.output.buffer().is_empty() {
                let patience = Timespec { tv_sec: ANSWER_TIMEOUT_SECONDS, tv_nsec: 0 };
                let ready =
                    poll(&mut [PollFd::new(self.output.get_ref(), PollFlags::IN)], Some(&patience));
                match ready {
                    Ok(0) => {
                        return Err(format!(
                            "a peer was not {word} within {ANSWER_TIMEOUT_SECONDS} s"
                        )
                        .into());
                    }
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                };
            }
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(format!("a peer ended before it was {word}").into());
            }
            let mut words = line.split_whitespace();
            if words.next() == Some(word) {
                return Ok(words.map(str::parse).collect::<std::result::Result<_, _>>()?);
            }
        }
    }

    /// Sends `go`.
    pub(crate) fn go(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().ok_or("no standard input")?;
        input.write_all(b"go\n")?;
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.group.take());
        let _ = self.child.wait();
    }
}
