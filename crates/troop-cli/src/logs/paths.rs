//! Paths of log files.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use troop::program::safe_path::{Directory, Safety, who_can_change};

use super::line::Origin;
use crate::config::Output;

/// The largest record of an app's log files, in bytes.
const MAX_RECORD: u64 = 64 * 1024;

/// Returns the log directory: `TROOP_LOG_DIR`, `/var/log/troop` for root, or
/// `~/.local/state/troop`.
pub(crate) fn directory() -> PathBuf {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = set("TROOP_LOG_DIR") {
        return own;
    }
    if rustix::process::geteuid().is_root() {
        return "/var/log/troop".into();
    }
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    state.map_or_else(fallback, |state| state.join("troop"))
}

/// Returns the log directory of users without a home, below `/tmp`, where others can create
/// directories too.
fn fallback() -> PathBuf {
    format!("/tmp/troop-{}/logs", rustix::process::geteuid().as_raw()).into()
}

/// The end of a path that stands for a file of each slot.
const OF_SLOTS: &str = "-*.log";

/// Returns the path that stands for a file of each slot, as PM2 names them: `out-0.log` for `out.log`,
/// and for `out-7.log` too. Other paths remain those of one file.
fn of_slots(path: &Path) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".log")?;
    let without = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = without.strip_suffix('-').filter(|_| without.len() < stem.len()).unwrap_or(stem);
    Some(path.with_file_name(format!("{stem}{OF_SLOTS}")))
}

/// Whether a path stands for a file of each slot.
pub(super) fn is_of_slots(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(OF_SLOTS.as_bytes())
}

/// Returns the file of a slot for a path that stands for those of all slots.
pub(crate) fn of_slot(path: &Path, slot: u32) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix(OF_SLOTS)?;
    Some(path.with_file_name(format!("{stem}-{slot}.log")))
}

/// Returns the files that a path stands for, with their slots: those that exist, and those of the
/// first `slots`.
pub(crate) fn expanded(path: PathBuf, slots: u32) -> Vec<(PathBuf, Option<u32>)> {
    let Some(stem) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(OF_SLOTS)) else {
        return vec![(path, None)];
    };
    let slot = |name: &str| -> Option<u32> {
        name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".log")?.parse().ok()
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let found = std::fs::read_dir(parent.unwrap_or(Path::new("."))).into_iter().flatten().flatten();
    let existing = found.filter_map(|entry| slot(entry.file_name().to_str()?));
    let all: BTreeSet<u32> = existing.chain(0..slots).collect();
    let file = |slot| Some((of_slot(&path, slot)?, Some(slot)));
    all.into_iter().filter_map(file).collect()
}

/// Returns how a log file's path is checked. Logs of another user's workers, and those in `/tmp`,
/// are written only where nobody else can replace anything; for others, links are rejected.
pub(crate) fn safety(file: &Path, of_another_user: bool) -> Safety {
    let is_root = rustix::process::geteuid().is_root();
    if (is_root && of_another_user) || file.starts_with(fallback()) {
        Safety::Owners
    } else {
        Safety::Links
    }
}

/// The log files of an app, and which lines each of them gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogPaths {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) routes: Routes,
}

/// Which log files lines go to, by their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    /// Lines of standard output.
    pub(crate) out: Vec<usize>,
    /// Lines of standard error.
    pub(crate) err: Vec<usize>,
    /// The primary's own lines.
    pub(crate) events: Vec<usize>,
    /// Those that stand for a file of each slot.
    pub(crate) each: Vec<usize>,
}

impl Routes {
    /// Returns the files of lines of this origin.
    pub(super) fn of(&self, origin: Origin) -> &[usize] {
        match origin {
            Origin::Out(_) => &self.out,
            Origin::Err(_) => &self.err,
            Origin::Event => &self.events,
        }
    }

    /// Whether no worker's lines are in the primary's file.
    pub(super) fn has_events_apart(&self) -> bool {
        !self.events.iter().any(|file| self.out.contains(file) || self.err.contains(file))
    }
}

impl LogPaths {
    /// Returns the number of a file.
    fn number(&mut self, path: PathBuf) -> usize {
        match self.files.iter().position(|file| *file == path) {
            Some(at) => at,
            None => {
                self.files.push(path);
                self.files.len() - 1
            }
        }
    }

    /// Returns the files that have all lines together, each line once.
    pub(crate) fn shown(&self) -> Vec<&PathBuf> {
        let first = [&self.routes.out, &self.routes.err, &self.routes.events];
        let mut numbers: Vec<usize> =
            first.into_iter().filter_map(|files| files.first().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().filter_map(|number| self.files.get(number)).collect()
    }
}

/// Returns the log files of an app. The first one has its standard output.
pub(crate) fn files(name: &str, output: &Output, cwd: &Path) -> LogPaths {
    let directory = directory();
    // Files of slots have the names that logs of other apps may have: web-2.log.
    let below = |path: PathBuf| match path.file_name() {
        Some(file) if output.per_worker && of_slots(&path).is_some() => {
            directory.join(format!("{name}.d")).join(file)
        }
        _ => path,
    };
    // As in PM2, a path with a slash is relative to the app's working directory.
    let of = |file: &PathBuf| match file.strip_prefix("~/") {
        Ok(rest) => std::env::home_dir().unwrap_or_default().join(rest),
        Err(_) if file.components().count() > 1 => cwd.join(file).components().collect(),
        Err(_) => below(directory.join(file)),
    };
    let each = |path: PathBuf| match output.per_worker {
        true => of_slots(&path).unwrap_or(path),
        false => path,
    };
    let of = |file: &PathBuf| each(of(file));
    let mut paths = LogPaths::default();
    let out =
        paths.number(output.file.as_ref().map_or_else(|| each(below(default_path(name))), of));
    let err = output.error_file.as_ref().map_or(out, |file| paths.number(of(file)));
    let is_apart = output.events_apart || paths.files.get(out).is_some_and(|out| is_of_slots(out));
    let events = if is_apart { paths.number(default_path(name)) } else { out };
    let all = output.all_file.as_ref().map(|file| paths.number(of(file)));
    let with_all = |number: usize| {
        let others = all.filter(|all| *all != number);
        [number].into_iter().chain(others).collect()
    };
    let is_each = |number: &usize| is_of_slots(&paths.files[*number]);
    let each = (0..paths.files.len()).filter(is_each).collect();
    paths.routes = Routes { out: with_all(out), err: with_all(err), events: vec![events], each };
    paths
}

/// The name of the record of an app's log files.
fn record_name(name: &str) -> OsString {
    format!("{name}.files").into()
}

fn default_path(name: &str) -> PathBuf {
    directory().join(format!("{name}.log"))
}

/// Records the paths of an app's log files, so that `troop logs` finds them when the app does not
/// run. A failure is ignored: it only makes `troop logs` look at the default path.
pub(crate) fn record(name: &str, files: &[PathBuf]) {
    let _ = try_record(name, files);
}

fn try_record(name: &str, files: &[PathBuf]) -> io::Result<()> {
    let path = directory();
    let safety = safety(&path, false);
    if files == [default_path(name)] {
        return Directory::open(&path, safety)?.remove(&record_name(name));
    }
    let directory = Directory::create(&path, safety, 0o750)?;
    let text = serde_json::to_string(files).unwrap_or_default();
    // Renamed into place, so that no reader sees a part of it.
    let new = OsString::from(format!(".{name}.files.{}", troop::keeper::app_pid()));
    // What an engine has left that was killed meanwhile.
    let _ = directory.remove(&new);
    let mut file = directory.create_new(&new, 0o640)?;
    let written =
        file.write_all(text.as_bytes()).and_then(|()| directory.rename(&new, &record_name(name)));
    if written.is_err() {
        let _ = directory.remove(&new);
    }
    written
}

/// Returns the recorded log files of an app that does not run, as far as they exist.
pub(crate) fn recorded(name: &str) -> Vec<(PathBuf, Option<u32>)> {
    let files = read_record(name).unwrap_or_else(|| vec![default_path(name)]);
    let files = files.into_iter().flat_map(|file| expanded(file, 0));
    files.filter(|(file, _)| file.exists() && !is_device(file)).collect()
}

/// Whether a file is a device, as `/dev/null` is: what goes there cannot be shown.
pub(crate) fn is_device(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.file_type().is_char_device())
}

/// Reads the record, unless another user could have written it.
fn read_record(name: &str) -> Option<Vec<PathBuf>> {
    let path = directory();
    let file = Directory::open(&path, safety(&path, false))
        .and_then(|directory| directory.read(&record_name(name)))
        .ok()?;
    if who_can_change(&file, &file.metadata().ok()?).is_some() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_RECORD).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_goes_to_a_file_once() {
        let home = Path::new("/srv");
        let output = |file: &str, error: &str, all: &str, apart: bool| {
            let path =
                |text: &str| Some(PathBuf::from(text)).filter(|text| !text.as_os_str().is_empty());
            let output = Output {
                file: path(file),
                error_file: path(error),
                all_file: path(all),
                events_apart: apart,
                ..Output::default()
            };
            let paths = files("web", &output, home);
            let routes = paths.routes.clone();
            (paths.files.len(), routes.out, routes.err, routes.events, paths.shown().len())
        };
        assert_eq!(output("", "", "", false), (1, vec![0], vec![0], vec![0], 1));
        assert_eq!(output("./a", "./b", "", false), (2, vec![0], vec![1], vec![0], 2));
        assert_eq!(output("./a", "./a", "", false), (1, vec![0], vec![0], vec![0], 1));
        assert_eq!(output("./a", "./b", "c/d", true), (4, vec![0, 3], vec![1, 3], vec![2], 3));
        assert_eq!(output("./a", "./b", "./a", true), (3, vec![0], vec![1, 0], vec![2], 3));
        assert_eq!(output("./a", "", "", true), (2, vec![0], vec![0], vec![1], 2));
    }

    #[test]
    fn files_of_slots_are_those_of_no_other_app() {
        let output = |file: Option<&str>| Output {
            file: file.map(PathBuf::from),
            per_worker: true,
            ..Output::default()
        };
        let second = files("web-2", &Output::default(), Path::new("/srv"));
        for file in [None, Some("web.log")] {
            let paths = files("web", &output(file), Path::new("/srv"));
            let of_slot = of_slot(&paths.files[0], 2).unwrap();
            assert!(!second.files.contains(&of_slot), "{of_slot:?}");
            assert_eq!(of_slot.file_name(), Some("web-2.log".as_ref()));
        }
        let paths = files("web", &output(Some("./logs/out.log")), Path::new("/srv"));
        assert_eq!(paths.files[0], Path::new("/srv/logs/out-*.log"));
    }

    #[test]
    fn a_file_of_each_slot_is_named_as_pm2_names_it() {
        for (path, slot) in [
            ("/a/out.log", Some("/a/out-3.log")),
            ("/a/out-17.log", Some("/a/out-3.log")),
            ("/a/out-.log", Some("/a/out--3.log")),
            ("/a/out2.log", Some("/a/out2-3.log")),
            ("/a/out.txt", None),
            ("/dev/null", None),
        ] {
            let all = of_slots(Path::new(path));
            assert_eq!(all.and_then(|all| of_slot(&all, 3)), slot.map(PathBuf::from), "{path}");
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["out-2.log", "out-10.log", "out-x.log", "out.log", "other-1.log"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let found = expanded(directory.path().join("out-*.log"), 1);
        let slots: Vec<_> = found.iter().map(|(_, slot)| slot.unwrap()).collect();
        assert_eq!(slots, [0, 2, 10]);
    }
}
