//! A control group (cgroups v2) for each worker, where the system has delegated a part of the tree
//! to this process.
//!
//! Processes can only be in the leaves of a tree with limits, so this process goes into one too:
//! beside `troop.PID.primary` there is one `troop.PID.worker-ID` for each worker. See `cgroups(7)`
//! and the kernel's `admin-guide/cgroup-v2.rst`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use troop_core::WorkerId;
use troop_sys::process;

use crate::error::{Error, Result};
use crate::keeper;

/// Resource limits of each worker and its children, by a control group (cgroups v2) per worker.
///
/// Set by [`Setup::cgroup`](crate::Setup::cgroup); the default limits nothing. Needs a part of the
/// tree of control groups that is delegated to this process: a systemd unit with `Delegate=yes`,
/// `systemd-run --scope -p Delegate=yes`, or a container with a writable tree. Without it no worker
/// starts, and the error names what is missing.
///
/// ```
/// use troop::Setup;
/// use troop::setup::Cgroup;
///
/// let mut limits = Cgroup::default();
/// limits.memory = Some(512 * 1024 * 1024);
/// limits.cpu = Some(1.5);
/// limits.other.insert("io.weight".into(), "50".into());
/// let setup = Setup::new().cgroup(limits);
/// # assert!(setup.get_cgroup().is_some());
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Cgroup {
    /// Memory in bytes (`memory.max`). A worker that needs more is killed, with all processes that
    /// it has started.
    pub memory: Option<u64>,
    /// Memory in bytes above which a worker is throttled and has to return some (`memory.high`).
    pub memory_high: Option<u64>,
    /// Swap in bytes (`memory.swap.max`).
    pub swap: Option<u64>,
    /// CPU time, in CPUs (`cpu.max`): 0.5 is half of one CPU's time. At least 0.01.
    pub cpu: Option<f64>,
    /// Share of CPU time while CPUs are contended, from 1 to 10,000; 100 is usual (`cpu.weight`).
    pub cpu_weight: Option<u32>,
    /// Number of processes and threads (`pids.max`).
    pub processes: Option<u32>,
    /// Values for other files of the control group, by file name: `io.weight`, `cpuset.cpus`.
    pub other: BTreeMap<String, String>,
}

/// Maximum number of nested directories of a worker that are searched.
const MAX_DIRECTORIES: usize = 1000;
/// Maximum number of attempts to move processes that keep starting others.
const MAX_MOVE_ATTEMPTS: usize = 10;

/// The period of `cpu.max`, in microseconds.
const CPU_PERIOD: f64 = 100_000.0;

impl Cgroup {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Cgroup::default()
    }

    /// Returns the values to write, by file name.
    fn files(&self) -> Vec<(&str, String)> {
        let number = |name, value: Option<u64>| value.map(|value| (name, value.to_string()));
        let mut files: Vec<_> = [
            number("memory.max", self.memory),
            number("memory.high", self.memory_high),
            number("memory.swap.max", self.swap),
            self.cpu.map(|cpu| {
                ("cpu.max", format!("{} {CPU_PERIOD}", (cpu * CPU_PERIOD).round().max(1000.0)))
            }),
            number("cpu.weight", self.cpu_weight.map(u64::from)),
            number("pids.max", self.processes.map(u64::from)),
            // Killing only some processes of a worker would leave a broken one.
            self.memory.map(|_| ("memory.oom.group", "1".to_owned())),
        ]
        .into_iter()
        .flatten()
        .collect();
        files.extend(self.other.iter().map(|(name, value)| (name.as_str(), value.clone())));
        files
    }

    /// Returns the controllers that the limits need. Files of the core (`cgroup.…`) need none.
    fn controllers(&self) -> BTreeSet<&str> {
        let all = self
            .files()
            .into_iter()
            .filter_map(|(name, _)| name.split_once('.').map(|(controller, _)| controller));
        all.filter(|controller| *controller != "cgroup").collect()
    }
}

/// This process's part of the tree.
#[derive(Debug)]
pub(crate) struct Tree {
    directory: PathBuf,
    enabled: BTreeSet<String>,
    /// Whether this process is in a leaf.
    in_leaf: bool,
}

/// The control group of a worker. Dropping it removes the group, if no process is in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkerCgroup {
    directory: PathBuf,
    /// Its limit on memory.
    memory: Option<u64>,
}

const ADVICE: &str = "run troop where a part of the tree is its own: in a unit with Delegate=yes, as `troop startup` writes it, or by \
                      `systemd-run --scope -p Delegate=yes troop run …`";

fn refused(what: impl Into<String>) -> Error {
    Error::Settings(format!("{}; {ADVICE}", what.into()))
}

impl Tree {
    pub(crate) fn find() -> Result<Tree> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(Error::io("find the control group of this process"))
        };
        let (mounts, groups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let own = place(&mounts, &groups)
            .ok_or_else(|| refused("there are no control groups of version 2 for this process"))?;
        let name = own.file_name().unwrap_or_default().as_bytes();
        // After a restart this process is in its leaf already.
        let in_leaf = name.starts_with(b"troop.") && name.ends_with(b".primary");
        let directory = if in_leaf { own.parent().unwrap_or(&own).to_owned() } else { own };
        Ok(Tree { directory, enabled: BTreeSet::new(), in_leaf })
    }

    /// Enables these controllers for the groups of workers.
    fn enable(&mut self, limits: &Cgroup) -> Result<()> {
        let missing: Vec<_> =
            limits.controllers().into_iter().filter(|name| !self.enabled.contains(*name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let here = self.directory.display().to_string();
        let had = fs::read_to_string(self.directory.join("cgroup.controllers")).unwrap_or_default();
        if let Some(none) =
            missing.iter().find(|name| !had.split_whitespace().any(|had| had == **name))
        {
            let had = if had.trim().is_empty() { "none" } else { had.trim() };
            return Err(refused(format!(
                "the control group {here} has no controller {none:?} ({had})"
            )));
        }
        if self.enabled.is_empty() {
            let leaf = self.leaf("primary");
            if !self.in_leaf {
                make(&leaf)
                    .map_err(|e| refused(format!("cannot make a control group in {here}: {e}")))?;
                write(&leaf.join("cgroup.procs"), "0").map_err(|e| {
                    refused(format!("cannot go into a control group in {here}: {e}"))
                })?;
                if keeper::is_kept() {
                    // If it cannot be moved, dividing the group fails, and the error names it.
                    let _ = write(&leaf.join("cgroup.procs"), &keeper::app_pid().to_string());
                }
                self.in_leaf = true;
            }
            self.remove_old(&leaf);
            self.move_own();
        }
        for name in missing {
            let switch = self.directory.join("cgroup.subtree_control");
            let mut written = write(&switch, &format!("+{name}"));
            for _ in 0..MAX_MOVE_ATTEMPTS {
                if !written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) {
                    break;
                }
                // Another process was started meanwhile.
                self.move_own();
                written = write(&switch, &format!("+{name}"));
            }
            written.map_err(|e| match e.kind() {
                io::ErrorKind::ResourceBusy => refused(format!(
                    "others are in this process's control group {here}: {}",
                    self.others()
                )),
                _ => refused(format!("cannot divide the control group {here}: {e}")),
            })?;
            self.enabled.insert(name.to_owned());
        }
        Ok(())
    }

    fn leaf(&self, name: &str) -> PathBuf {
        self.directory.join(format!("troop.{}.{name}", keeper::app_pid()))
    }

    /// Moves processes that this process has started before, and a `troop start` that waits for it,
    /// into a separate group without limits.
    fn move_own(&self) {
        let own = keeper::app_pid();
        let starter = process::parent(own).filter(|parent| {
            let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
            program(*parent).is_some() && program(*parent) == program(own)
        });
        let here = members(&self.directory);
        let moving: Vec<u32> = here
            .into_iter()
            .filter(|pid| Some(*pid) == starter || process::descends(*pid, own))
            .collect();
        if !moving.is_empty() && make(&self.leaf("before")).is_ok() {
            // If a process cannot be moved, dividing the group fails, and the error names the
            // process.
            moving.iter().for_each(|pid| {
                drop(write(&self.leaf("before").join("cgroup.procs"), &pid.to_string()))
            });
        }
    }

    /// Removes groups that killed primaries have left here.
    fn remove_old(&self, leaf: &Path) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.file_name().as_bytes().starts_with(b"troop.") && entry.path() != leaf {
                // Removing succeeds only for groups without processes.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Returns the names of processes, up to a limit of length.
    fn others(&self) -> String {
        let pids = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        let named = |pid: &str| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} {pid}", name.trim())
        };
        pids.lines().take(3).map(named).collect::<Vec<_>>().join(", ")
    }

    /// Makes a group for a worker.
    pub(crate) fn make(&mut self, worker: WorkerId, limits: &Cgroup) -> Result<WorkerCgroup> {
        self.enable(limits)?;
        // Removed when all earlier processes in it have ended.
        let _ = fs::remove_dir(self.leaf("before"));
        let name = format!("worker-{worker}");
        // Before a restart there may have been a group of this number, in which a process still is.
        let mut free = std::iter::once(self.leaf(&name))
            .chain((1..1000).map(|n| self.leaf(&format!("{name}.{n}"))));
        let made = free.find_map(|directory| match fs::create_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
            made => Some(made.map(|()| directory)),
        });
        let made = made.unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()));
        let directory = made.map_err(|e| {
            refused(format!("cannot make a control group in {}: {e}", self.directory.display()))
        })?;
        let group = WorkerCgroup { directory, memory: limits.memory };
        for (name, value) in limits.files() {
            if let Err(e) = write(&group.directory.join(name), &value) {
                // Without swap there is no such file.
                if e.kind() == io::ErrorKind::NotFound && name == "memory.swap.max" {
                    continue;
                }
                return Err(Error::Settings(format!(
                    "cannot write {value:?} to {name} of a worker's control group: {e}"
                )));
            }
        }
        Ok(group)
    }
}

/// Writes to an existing file. (The kernel would refuse to create one.)
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

fn members(directory: &Path) -> Vec<u32> {
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Returns a directory and those below it, the inner ones first. Workers may make some themselves.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    let mut at = 0;
    while let Some(next) = all.get(at).filter(|_| all.len() < MAX_DIRECTORIES) {
        let inner = fs::read_dir(next).into_iter().flatten().flatten();
        let inner: Vec<_> = inner
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        all.extend(inner);
        at += 1;
    }
    all.reverse();
    all
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Returns the directory of a process's group, from its `mountinfo` and `cgroup`.
fn place(mounts: &str, groups: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        // The mount may show only a part of the tree; groups outside of it appear as `/..`.
        let below = Path::new(own).strip_prefix(root).ok()?;
        let inside = !below.components().any(|part| part.as_os_str() == "..");
        inside.then(|| Path::new(point).join(below))
    })
}

impl WorkerCgroup {
    /// Returns the file that moves the writer of `0` into the group.
    pub(crate) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.directory.join("cgroup.procs"))
    }

    /// Kills all processes in the group. Returns false where the kernel cannot do that (before
    /// 5.14).
    pub(crate) fn kill(&self) -> bool {
        write(&self.directory.join("cgroup.kill"), "1").is_ok()
    }

    pub(crate) fn members(&self) -> Vec<u32> {
        tree(&self.directory).iter().flat_map(|directory| members(directory)).collect()
    }

    /// Returns the limit, if a process was killed because of it, and not because of an outer group.
    pub(crate) fn broken_limit(&self) -> Option<u64> {
        let events = fs::read_to_string(self.directory.join("memory.events")).ok()?;
        let count = |name: &str| {
            events
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        self.memory.filter(|_| count("oom ") > 0 && count("oom_kill ") > 0)
    }

    /// Removes the group, if no process is in it.
    pub(crate) fn remove(&self) -> bool {
        if fs::remove_dir(&self.directory).is_err() {
            tree(&self.directory).iter().for_each(|directory| drop(fs::remove_dir(directory)));
        }
        !self.directory.exists()
    }
}

impl Drop for WorkerCgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_in_the_tree() {
        let mounts = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n26 30 0:24 / /tmp rw - tmpfs x rw\n";
        let cases = [
            (
                mounts,
                "0::/system.slice/web.service\n",
                Some("/sys/fs/cgroup/system.slice/web.service"),
            ),
            (mounts, "0::/\n", Some("/sys/fs/cgroup/")),
            (mounts, "4:memory:/x\n0::/a\n", Some("/sys/fs/cgroup/a")),
            (mounts, "4:memory:/x\n", None),
            (mounts, "0::/../b\n", None),
            (
                "25 30 0:23 /docker/c /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
                "0::/docker/c/d\n",
                Some("/sys/fs/cgroup/d"),
            ),
            ("25 30 0:23 /docker/c /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/other\n", None),
            ("25 30 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "0::/x\n", None),
        ];
        for (mounts, groups, expected) in cases {
            assert_eq!(place(mounts, groups).as_deref(), expected.map(Path::new), "{groups}");
        }
    }

    #[test]
    fn limits_are_written_in_the_format_of_the_kernel() {
        let other = BTreeMap::from([
            ("io.weight".to_owned(), "50".to_owned()),
            ("cgroup.max.depth".to_owned(), "1".to_owned()),
        ]);
        let limits = Cgroup {
            memory: Some(1 << 20),
            cpu: Some(1.5),
            processes: Some(30),
            other,
            ..Cgroup::default()
        };
        let files = limits
            .files()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>();
        let expected = [
            "memory.max=1048576",
            "cpu.max=150000 100000",
            "pids.max=30",
            "memory.oom.group=1",
            "cgroup.max.depth=1",
            "io.weight=50",
        ];
        assert_eq!(files, expected);
        assert_eq!(
            limits.controllers().into_iter().collect::<Vec<_>>(),
            ["cpu", "io", "memory", "pids"]
        );
        assert!(Cgroup::default().is_empty() && !limits.is_empty());
    }
}
