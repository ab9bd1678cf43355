//! Files with the process numbers of the primary and its workers, for programs that look for them
//! there. A thread writes them, because their file system may not answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use troop::program::safe_path::{Directory, split, who_can_change};
use troop::{Event, WorkerHandle};

use crate::config::App;
use crate::logs::paths::safety;
use crate::records::process;
use crate::resolve::ResolvedApp;
use crate::{log, restart};

/// Permissions of the directories and files that are created.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// Time that the first file has to be written, and the last one to be removed.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Interval between attempts to write a file.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The precision of times in file systems.
const CLOCK_STEP: Duration = Duration::from_secs(2);
/// The longest content of a file that is taken for one with a process number, in bytes.
const MAX_CONTENT: u64 = 64;

/// Writes the files of an app as its workers come and go.
pub(crate) struct PidFiles {
    numbers: Arc<Numbers>,
    /// What the files of workers are named by, if they have some.
    workers: Option<PathBuf>,
    /// The file of the primary, if it could not be written yet.
    unwritten: Option<PathBuf>,
    done: Receiver<io::Result<()>>,
}

/// The numbers that files of workers are to have. Bounded by the workers that run, however many
/// changes a file system that does not answer leaves waiting.
#[derive(Default)]
struct Numbers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The processes of each file, in the order of their start.
    running: BTreeMap<PathBuf, Vec<u32>>,
    /// The files that are to be written or removed.
    waiting: BTreeSet<PathBuf>,
    has_ended: bool,
}

impl Numbers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self, path: PathBuf, pid: u32) {
        let mut state = self.lock();
        state.running.entry(path.clone()).or_default().push(pid);
        state.waiting.insert(path);
        self.changed.notify_one();
    }

    fn ended(&self, path: PathBuf, pid: u32) {
        let mut state = self.lock();
        if let Some(pids) = state.running.get_mut(&path) {
            pids.retain(|other| *other != pid);
            if pids.is_empty() {
                state.running.remove(&path);
            }
        }
        state.waiting.insert(path);
        self.changed.notify_one();
    }

    fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_one();
    }

    /// Waits for changes, and returns the files with their numbers; those of `failed`, too, for which
    /// it waits no longer than `retry`. `None` at the end. Where a slot has two workers, in a reload,
    /// the file has the newer one, and the older one again if that has failed.
    fn next(
        &self,
        failed: &mut BTreeSet<PathBuf>,
        retry: Duration,
    ) -> Option<Vec<(PathBuf, Option<u32>)>> {
        let mut state = self.lock();
        let is_idle = |state: &mut State| state.waiting.is_empty() && !state.has_ended;
        if failed.is_empty() {
            state = self.changed.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner);
        } else {
            let waited = self.changed.wait_timeout_while(state, retry, is_idle);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting.append(failed);
        }
        if state.has_ended {
            return None;
        }
        let paths = std::mem::take(&mut state.waiting);
        let last = |path: &PathBuf| state.running.get(path).and_then(|pids| pids.last().copied());
        Some(
            paths
                .into_iter()
                .map(|path| {
                    let pid = last(&path);
                    (path, pid)
                })
                .collect(),
        )
    }
}

impl PidFiles {
    /// Writes the file of the primary, if the app has one. One that has run until now is not ended by a
    /// file that it cannot write: it tries again after [`go_on`](PidFiles::go_on).
    ///
    /// # Errors
    /// The reason, for people.
    pub(crate) fn begin(app: &ResolvedApp, is_restarted: bool) -> Result<Option<PidFiles>, String> {
        let (primary, workers) = (&app.app.pid_file, &app.app.worker_pid_file);
        if primary.is_none() && workers.is_none() {
            return Ok(None);
        }
        let cwd = app.cwd.clone().unwrap_or_else(|| ".".into());
        let cwd = std::path::absolute(&cwd).unwrap_or(cwd);
        let at = |path: &PathBuf| placed(&cwd, path);
        let files =
            Files { primary: primary.as_ref().map(at), of_another_user: app.app.user.is_some() };
        let numbers = Arc::new(Numbers::default());
        let theirs = numbers.clone();
        let (finished, done) = mpsc::channel();
        let shown =
            files.primary.as_ref().map_or_else(String::new, |path| path.display().to_string());
        std::thread::Builder::new()
            .name("troop-pids".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                let _ = finished.send(files.begin());
                files.follow(&theirs, RETRY_INTERVAL);
                let _ = finished.send(files.end());
            })
            .map_err(|e| format!("cannot start the thread for pid files: {e}"))?;
        let begun = done.recv_timeout(TIMEOUT);
        let begun = begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let unwritten = primary.as_ref().map(at).filter(|_| begun.is_err() && is_restarted);
        if let (Err(e), None) = (begun, &unwritten) {
            numbers.end();
            return Err(format!("pid_file: cannot write {shown}: {e}"));
        }
        Ok(Some(PidFiles { numbers, workers: workers.as_ref().map(at), unwritten, done }))
    }

    /// Tries again to write the primary's file, if it could not be written, and says why it cannot be.
    pub(crate) fn go_on(&self) {
        self.unwritten
            .iter()
            .for_each(|path| self.numbers.started(path.clone(), troop::keeper::app_pid()));
    }

    /// Takes note of a worker that runs.
    pub(crate) fn note_running(&self, worker: &WorkerHandle) {
        if let Some(path) = &self.workers {
            self.numbers.started(of_slot(path, worker.slot()), worker.pid());
        }
    }

    /// Takes note of an event.
    pub(crate) fn note(&self, event: &Event) {
        let Some(path) = &self.workers else { return };
        match event {
            Event::Fork { worker, .. } => self.note_running(worker),
            Event::Exit { worker, .. } => {
                self.numbers.ended(of_slot(path, worker.slot()), worker.pid());
            }
            _ => {}
        }
    }
}

impl Drop for PidFiles {
    /// Removes the files.
    fn drop(&mut self) {
        self.numbers.end();
        let _ = self.done.recv_timeout(TIMEOUT);
    }
}

/// Returns what is in the way of the primary's file, as far as it can be told before the start. An app that
/// goes on is not ended by that.
pub(crate) fn problem(app: &App, cwd: &Path) -> Option<String> {
    if std::env::var_os(restart::VARIABLE).is_some() || troop::keeper::set_aside().is_some() {
        return None;
    }
    let path = placed(cwd, app.pid_file.as_ref()?);
    let look = || {
        let (parent, name) = split(&path)?;
        let directory = Directory::find(&parent, safety(&path, app.user.is_some()))?;
        directory.map_or(Ok(None), |directory| number_in(&directory, &name))
    };
    look().err().map(|e| format!("pid_file: cannot write {}: {e}", path.display()))
}

/// Returns the path of a file; a relative one starts at the app's directory.
fn placed(cwd: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Ok(rest) => std::env::home_dir().unwrap_or_default().join(rest),
        Err(_) => cwd.join(path),
    }
}

/// Returns the file of a slot, as PM2 names it: `web-0.pid` for `web.pid`, and for `web-7.pid` too. A
/// path with another ending is that of all workers, and has the number of the one that came last.
pub(crate) fn of_slot(path: &Path, slot: u32) -> PathBuf {
    let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pid"));
    let Some(stem) = stem else { return path.to_owned() };
    let without = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = without.strip_suffix('-').filter(|_| without.len() < stem.len()).unwrap_or(stem);
    path.with_file_name(format!("{stem}-{slot}.pid"))
}

struct Files {
    primary: Option<PathBuf>,
    of_another_user: bool,
}

impl Files {
    fn begin(&self) -> io::Result<()> {
        let Some(path) = &self.primary else { return Ok(()) };
        let own = troop::keeper::app_pid();
        let (directory, name) = self.reach(path)?;
        let before = number_in(&directory, &name)?;
        if let Some(pid) = before.filter(|pid| *pid != own)
            && is_writer(pid, &directory, &name)?
        {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "it has the number of process {pid}, which is running; stop that, or name another file"
                ),
            ));
        }
        // Whoever may write to the directory may have laid one there between two engines.
        if before == Some(own) && !is_of_others(&directory, &name)? {
            return Ok(());
        }
        put(&directory, &name, own)
    }

    fn end(&self) -> io::Result<()> {
        let Some(path) = &self.primary else { return Ok(()) };
        self.remove(path, troop::keeper::app_pid())
    }

    /// Keeps the files of workers.
    fn follow(&self, numbers: &Numbers, retry: Duration) {
        let mut written: BTreeMap<PathBuf, u32> = BTreeMap::new();
        let mut failed = BTreeSet::new();
        let mut has_told = false;
        while let Some(changes) = numbers.next(&mut failed, retry) {
            let mut has_written = false;
            for (path, pid) in changes {
                failed.remove(&path);
                let Some(pid) = pid else {
                    // One that cannot be removed has the number of a process that has ended.
                    let _ = written.remove(&path).map(|pid| self.remove(&path, pid));
                    continue;
                };
                if written.get(&path) == Some(&pid) {
                    continue;
                }
                let result = match &self.primary {
                    Some(primary) if *primary == path => self.begin(),
                    _ => self.write(&path, pid),
                };
                match result {
                    Ok(()) => {
                        has_written = true;
                        written.insert(path, pid);
                    }
                    Err(e) => {
                        if !std::mem::replace(&mut has_told, true) {
                            log::line(&format!(
                                "troop: cannot write the pid file {}: {e}",
                                path.display()
                            ));
                        }
                        failed.insert(path);
                    }
                }
            }
            has_told &= !(has_written && failed.is_empty());
        }
        for (path, pid) in written {
            let _ = self.remove(&path, pid);
        }
    }

    fn reach(&self, path: &Path) -> io::Result<(Directory, OsString)> {
        let (parent, name) = split(path)?;
        let safety = safety(path, self.of_another_user);
        Ok((Directory::create(&parent, safety, DIRECTORY_MODE)?, name))
    }

    fn write(&self, path: &Path, pid: u32) -> io::Result<()> {
        let (directory, name) = self.reach(path)?;
        number_in(&directory, &name)?;
        put(&directory, &name, pid)
    }

    /// Removes a file if it still has this number.
    fn remove(&self, path: &Path, pid: u32) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let directory = Directory::open(&parent, safety(path, self.of_another_user))?;
        match number_in(&directory, &name)? {
            Some(found) if found == pid => directory.remove(&name),
            _ => Ok(()),
        }
    }
}

/// Writes a file. It is renamed into place, so that no reader sees a part of it.
fn put(directory: &Directory, name: &OsStr, pid: u32) -> io::Result<()> {
    // The next engine finds what one has left that was killed meanwhile.
    let new = OsString::from(format!(".troop.{}.pid", troop::keeper::app_pid()));
    let _ = directory.remove(&new);
    let mut file = directory.create_new(&new, FILE_MODE)?;
    let written =
        file.write_all(pid.to_string().as_bytes()).and_then(|()| directory.rename(&new, name));
    if written.is_err() {
        let _ = directory.remove(&new);
    }
    written
}

/// Returns the process number that a file has. `None` if there is no file, or an empty one.
///
/// # Errors
/// If it is none with a process number, which a typing error in a path must not cost; those of
/// `open(2)`.
fn number_in(directory: &Directory, name: &OsStr) -> io::Result<Option<u32>> {
    let file = match directory.read(name) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut content = Vec::new();
    file.take(MAX_CONTENT + 1).read_to_end(&mut content)?;
    let text = str::from_utf8(&content).ok().map(str::trim);
    match text {
        Some("") => Ok(None),
        Some(text) if content.len() as u64 <= MAX_CONTENT && text.parse::<u32>().is_ok() => {
            Ok(text.parse().ok())
        }
        _ => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file with something else than a process number; remove it, or name another one",
        )),
    }
}

/// Whether others can change a file.
fn is_of_others(directory: &Directory, name: &OsStr) -> io::Result<bool> {
    let file = directory.read(name)?;
    let found = file.metadata()?;
    Ok(who_can_change(&file, &found).is_some())
}

/// Whether a process runs that may have written the file: not one that has got its number later.
fn is_writer(pid: u32, directory: &Directory, name: &OsStr) -> io::Result<bool> {
    let Some(found) = directory.entry(name)? else { return Ok(false) };
    let written = found.modified()?;
    Ok(process::started(pid).is_some_and(|started| started <= written + CLOCK_STEP))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
    use std::time::{Instant, SystemTime};

    use super::*;

    fn of(path: &Path) -> Files {
        Files { primary: Some(path.to_owned()), of_another_user: false }
    }

    #[test]
    fn pid_files_of_slots_are_named_as_pm2_names_them() {
        for (path, file) in [
            ("/run/web.pid", "/run/web-2.pid"),
            ("/run/web-14.pid", "/run/web-2.pid"),
            ("/run/web4.pid", "/run/web4-2.pid"),
            ("/run/web", "/run/web"),
        ] {
            assert_eq!(of_slot(Path::new(path), 2), Path::new(file));
        }
    }

    #[test]
    fn what_is_no_pid_file_is_neither_replaced_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("text"), "[app.web]\n").unwrap();
        std::fs::write(at("long"), "1".repeat(100)).unwrap();
        std::fs::write(at("bytes"), [0xff, 0xfe]).unwrap();
        std::fs::write(at("other"), "1").unwrap();
        std::os::unix::fs::symlink(at("other"), at("link")).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for (name, why) in [
            ("text", "something else than a process number"),
            ("long", "something else"),
            ("bytes", "something else"),
            ("link", "a symbolic link"),
            ("directory", "a directory"),
            ("pipe", "a pipe"),
        ] {
            let files = of(&at(name));
            let e = files.begin().unwrap_err().to_string();
            assert!(e.contains(why), "{name}: {e}");
            assert!(files.write(&at(name), 1).is_err(), "{name}");
            let _ = files.end();
            assert!(at(name).symlink_metadata().is_ok(), "{name} is gone");
        }
        let kind = |name: &str| at(name).symlink_metadata().unwrap().file_type();
        assert!(kind("link").is_symlink() && kind("pipe").is_fifo());
        assert_eq!(std::fs::read_to_string(at("text")).unwrap(), "[app.web]\n");
        assert!(
            !directory.path().read_dir().unwrap().any(|entry| {
                entry.unwrap().file_name().to_string_lossy().starts_with(".troop")
            })
        );
    }

    #[test]
    fn a_file_is_removed_only_while_it_has_the_own_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.pid");
        let files = of(&path);
        files.begin().unwrap();
        std::fs::write(&path, "1\n").unwrap();
        files.end().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
        std::fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        files.end().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_with_the_own_number_that_others_can_change_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.pid");
        let files = of(&path);
        let planted = |mode| {
            std::fs::write(&path, std::process::id().to_string()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.metadata().unwrap().ino()
        };
        let before = planted(0o644);
        files.begin().unwrap();
        assert_eq!(path.metadata().unwrap().ino(), before, "what is right stays");
        let before = planted(0o666);
        // It keeps its number for as long as it is held.
        let held = std::fs::File::open(&path).unwrap();
        files.begin().unwrap();
        assert_ne!(path.metadata().unwrap().ino(), before);
        assert_eq!(path.metadata().unwrap().mode() & 0o022, 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(held);
    }

    #[test]
    fn a_file_of_a_running_process_is_left_alone_unless_that_has_got_its_number_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.pid");
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        std::fs::write(&path, child.id().to_string()).unwrap();
        let (files, before) = (of(&path), SystemTime::now() - Duration::from_secs(3600));
        let e = files.begin().unwrap_err().to_string();
        let kept = std::fs::read_to_string(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(before).unwrap();
        let begun = files.begin();
        // One that has ended.
        std::fs::write(&path, child.id().to_string()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(e.contains(&format!("process {}, which is running", child.id())), "{e}");
        assert_eq!(kept, child.id().to_string());
        begun.unwrap();
        files.begin().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), std::process::id().to_string());
    }

    #[test]
    fn changes_that_wait_for_a_file_system_are_bounded_by_the_workers_that_run() {
        let numbers = Numbers::default();
        for pid in 1..100_000 {
            numbers.started("/run/web-0.pid".into(), pid);
            if pid > 2 {
                numbers.ended("/run/web-0.pid".into(), pid - 2);
            }
        }
        numbers.started("/run/web-1.pid".into(), 7);
        numbers.ended("/run/web-1.pid".into(), 7);
        let pids: usize = numbers.lock().running.values().map(Vec::len).sum();
        assert_eq!((pids, numbers.lock().waiting.len()), (2, 2));
        let next = numbers.next(&mut BTreeSet::new(), RETRY_INTERVAL).unwrap();
        let wanted = [("/run/web-0.pid".into(), Some(99_999)), ("/run/web-1.pid".into(), None)];
        assert_eq!(next, wanted);
    }

    #[test]
    fn a_file_that_could_not_be_written_is_written_as_soon_as_that_is_possible() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("sub");
        std::fs::write(&parent, "in the way").unwrap();
        let path = parent.join("web-0.pid");
        let numbers = Arc::new(Numbers::default());
        let theirs = numbers.clone();
        let files = Files { primary: None, of_another_user: false };
        let thread = std::thread::spawn(move || files.follow(&theirs, Duration::from_millis(10)));
        numbers.started(path.clone(), 7);
        std::fs::remove_file(&parent).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !path.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        numbers.end();
        thread.join().unwrap();
        assert_eq!(written, "7");
        assert!(!path.exists());
    }
}
