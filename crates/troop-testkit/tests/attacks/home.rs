//! A place for apps of the program `troop`, in which a stranger has a directory of his own.
#![allow(dead_code, unreachable_pub, reason = "each attack uses a part of it")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::support::{STRANGER, troop};

/// A directory with an app. All its apps end with it.
pub struct Home {
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Home {
    /// With nothing in it.
    pub fn bare() -> Home {
        Home { directory: tempfile::tempdir().unwrap() }
    }

    /// With these files in it, and a directory `app` that belongs to the stranger.
    pub fn with(files: &[(&str, &str)]) -> Home {
        let home = Home { directory: tempfile::tempdir().unwrap() };
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(home.at("app")).unwrap();
        home.give("app");
        for (name, text) in files {
            fs::write(home.at(name), text).unwrap();
        }
        home
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a file or directory the stranger's.
    pub fn give(&self, name: &str) {
        chown(self.at(name), Some(STRANGER), Some(STRANGER)).unwrap();
    }

    pub fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), Permissions::from_mode(mode)).unwrap();
    }

    pub fn text(&self, name: &str) -> String {
        fs::read(self.at(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The names in a directory.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(directory)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub fn command(&self, args: &[&str]) -> Command {
        troop(self.path(), args)
    }

    /// Runs `troop`, which must end by itself within twenty seconds.
    pub fn troop(&self, args: &[&str]) -> Ended {
        Home::ended(self.command(args))
    }

    pub fn ended(mut command: Command) -> Ended {
        let began = Instant::now();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let (sender, over) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if over.recv_timeout(Duration::from_secs(20))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(sender);
        watch.join().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
            took: began.elapsed(),
        }
    }

    /// Runs a command that must succeed; returns its standard output.
    pub fn fine(&self, args: &[&str]) -> String {
        let ended = self.troop(args);
        assert_eq!(ended.code, Some(0), "troop {args:?}: {ended:?}");
        ended.out
    }

    /// Runs a command that must be rejected as invalid; returns its standard error.
    pub fn refused(&self, args: &[&str]) -> String {
        let ended = self.troop(args);
        assert!(
            ended.code == Some(2) && ended.took < Duration::from_secs(10),
            "troop {args:?}: {ended:?}"
        );
        ended.err
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.command(&["stop", "all", "--quick"]).output();
    }
}
