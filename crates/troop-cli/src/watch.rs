//! `--watch`: reports changes of files.

mod filter;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use troop::text::escaped;

use crate::config::Watch;
use crate::control::sockets;
use crate::logs::paths;
use crate::records::store;
pub(crate) use filter::split;
use filter::{Root, WatchFilter, roots};

/// The largest number of watched directories, and the size of their paths in bytes; the kernel has a
/// limit too.
const MAX_DIRECTORIES: usize = 10_000;
const MAX_PATH_BYTES: usize = 4 * 1024 * 1024;
/// The delay is awaited at most this many times while changes go on.
const MAX_DELAYS: u32 = 20;
/// The number of changes that are queued during a reload. After further ones, all directories are
/// checked again.
const MAX_CHANGES: usize = 1024;
/// Time that a reload waits until new directories are watched. The thread of the watcher, which does
/// that, is busy as long as changes come without a pause.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(1);
/// The most characters of a path that are reported.
const MAX_SHOWN: usize = 200;

/// Reports changes until it is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    changes: Receiver<PathBuf>,
    /// Changes were dropped.
    has_missed: Arc<AtomicBool>,
    delay: Duration,
    tree: Arc<Mutex<Tree>>,
    /// The last update of the tree.
    update: Option<JoinHandle<()>>,
}

/// The watched directories.
#[derive(Debug)]
struct Tree {
    watcher: RecommendedWatcher,
    filter: WatchFilter,
    directories: BTreeSet<PathBuf>,
    /// The size of their paths.
    bytes: usize,
    /// An error was reported, and nothing has changed since that could mend it.
    has_failed: bool,
}

/// Checks that the paths to watch exist.
///
/// # Errors
/// The missing path, for people.
pub(crate) fn check(watch: &Watch, cwd: Option<&Path>) -> Result<(), String> {
    roots(watch, cwd).map(drop)
}

/// An app that goes on is not ended by directories that its workers may have changed.
pub(crate) fn unwatched(why: &str) -> Result<Option<Watched>, String> {
    crate::log::line(&format!("troop: changes of files have no effect: {why}"));
    Ok(None)
}

/// Starts watching. `own` are the files that the primary writes itself.
///
/// # Errors
/// The reason, for people.
pub(crate) fn start(
    watch: &Watch,
    cwd: Option<&Path>,
    own: Vec<PathBuf>,
) -> Result<Watched, String> {
    let roots = roots(watch, cwd)?;
    let own = own.into_iter().map(canonical).collect();
    let filter = WatchFilter { hidden: hidden(&roots), roots, ignore: watch.ignore.clone(), own };
    let (sender, changes) = channel(MAX_CHANGES);
    let matters = filter.clone();
    let has_missed = Arc::new(AtomicBool::new(false));
    let missed = has_missed.clone();
    let notice = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if event.need_rescan() {
            missed.store(true, Ordering::Release);
            matters.roots.first().map(|root| sender.try_send(root.path.clone()));
        }
        if matches!(
            event.kind,
            EventKind::Access(_) | EventKind::Modify(notify::event::ModifyKind::Metadata(_))
        ) {
            return;
        }
        // A watched directory that is gone is forgotten, whatever pattern selects the files in it.
        let is_gone = matches!(event.kind, EventKind::Remove(notify::event::RemoveKind::Folder));
        let counts = |path: &PathBuf| matters.matches(path) || (is_gone && matters.is_in(path));
        for path in event.paths.into_iter().filter(counts) {
            if sender.try_send(path).is_err() {
                missed.store(true, Ordering::Release);
            }
        }
    };
    let watcher =
        notify::recommended_watcher(notice).map_err(|e| format!("cannot watch files: {e}"))?;
    let delay = watch.delay.map_or(Duration::from_millis(200), |delay| delay.0);
    let mut tree = Tree::new(watcher, filter);
    tree.add_roots()?;
    Ok(Watched::new(changes, has_missed, delay, tree))
}

/// Returns troop's own directories, which change with each app that starts, unless one of them is
/// watched itself.
fn hidden(roots: &[Root]) -> Vec<PathBuf> {
    let own = [sockets::path(), store::path(), paths::directory()];
    let is_apart = |own: &PathBuf| !roots.iter().any(|root| root.path.starts_with(own));
    own.into_iter().map(canonical).filter(is_apart).collect()
}

/// Returns the canonical path of a file that may not exist yet.
fn canonical(path: PathBuf) -> PathBuf {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    let beside = parent.zip(path.file_name()).map(|(parent, name)| parent.join(name));
    path.canonicalize().ok().or(beside).unwrap_or(path)
}

impl Tree {
    fn new(watcher: RecommendedWatcher, filter: WatchFilter) -> Tree {
        Tree { watcher, filter, directories: BTreeSet::new(), bytes: 0, has_failed: false }
    }

    fn add_roots(&mut self) -> Result<(), String> {
        for root in self.filter.roots.clone() {
            // A file is watched by its directory, because editors replace files.
            let root = root.path;
            let directory = match root.is_dir() {
                true => root,
                false => root.parent().map_or(root.clone(), Path::to_owned),
            };
            self.add(directory)?;
        }
        Ok(())
    }

    /// Watches a directory and its subdirectories one by one, which spares those that are ignored.
    fn add(&mut self, directory: PathBuf) -> Result<(), String> {
        let mut new = usize::from(!self.directories.contains(&directory));
        let mut todo = vec![directory];
        while let Some(path) = todo.pop() {
            let is_new = !self.directories.contains(&path);
            let bytes = if is_new { path.as_os_str().len() } else { 0 };
            if self.directories.len() + new > MAX_DIRECTORIES || self.bytes + bytes > MAX_PATH_BYTES
            {
                return Err(format!(
                    "there are more than {MAX_DIRECTORIES} directories to watch, or their paths are too long, so changes in some are not seen; name some with watch.paths, or ignore some"
                ));
            }
            // Also if it is known: another one may have its name by now.
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                Err(_) if !is_directory(&path) => {
                    new -= usize::from(is_new);
                    continue;
                }
                Err(e) => return Err(format!("cannot watch {}: {e}", path.display())),
            }
            if is_new {
                new -= 1;
                self.bytes += bytes;
                self.directories.insert(path.clone());
            }
            for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                let path = entry.path();
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || !self.filter.is_in(&path) {
                    continue;
                }
                new += usize::from(!self.directories.contains(&path));
                todo.push(path);
                if self.directories.len() + new > MAX_DIRECTORIES {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes a change: watches a directory that is new, and no longer one that is gone.
    fn note(&mut self, path: &Path) {
        if !is_directory(path) {
            self.forget(path);
        } else if let Err(e) = self.add(path.to_owned()) {
            self.report(&e);
        }
    }

    /// Checks all directories again.
    fn check_again(&mut self) {
        let is_gone = |path: &&PathBuf| !is_directory(path);
        let gone: Vec<_> = self.directories.iter().filter(is_gone).cloned().collect();
        gone.iter().for_each(|path| self.forget(path));
        if let Err(e) = self.add_roots() {
            self.report(&e);
        }
    }

    /// Stops watching a directory and those below it.
    fn forget(&mut self, path: &Path) {
        let from = self.directories.range(path.to_owned()..);
        let gone: Vec<_> = from.take_while(|other| other.starts_with(path)).cloned().collect();
        for path in gone {
            // The kernel has removed the watch, unless the directory was moved.
            let _ = self.watcher.unwatch(&path);
            self.bytes -= path.as_os_str().len();
            self.directories.remove(&path);
            self.has_failed = false;
        }
    }

    fn report(&mut self, error: &str) {
        if !std::mem::replace(&mut self.has_failed, true) {
            crate::log::line(&format!("troop: {error}"));
        }
    }
}

/// Whether a path leads to a directory, and not by a link: what is elsewhere is not to be watched.
fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
        && path.canonicalize().is_ok_and(|real| real == path)
}

impl Watched {
    fn new(
        changes: Receiver<PathBuf>,
        has_missed: Arc<AtomicBool>,
        delay: Duration,
        tree: Tree,
    ) -> Watched {
        Watched { changes, has_missed, delay, tree: Arc::new(Mutex::new(tree)), update: None }
    }

    /// Waits for a change and then for quiet, or for [`MAX_DELAYS`] delays if there is none; returns
    /// the path that changed.
    pub(crate) async fn changed(&mut self) -> Option<String> {
        let first = self.changes.recv().await?;
        let shown = format!("{:.MAX_SHOWN$}", escaped(&first.to_string_lossy()));
        let mut changed = BTreeSet::from([first]);
        let latest = Instant::now() + self.delay * MAX_DELAYS;
        while Instant::now() < latest
            && let Ok(Some(next)) = timeout(self.delay, self.changes.recv()).await
        {
            match changed.len() < MAX_CHANGES {
                true => drop(changed.insert(next)),
                false => self.has_missed.store(true, Ordering::Release),
            }
        }
        self.update(changed).await;
        Some(shown)
    }

    /// Updates the tree in a thread: directories may be large, or on file systems that take long to
    /// answer.
    async fn update(&mut self, changed: BTreeSet<PathBuf>) {
        if self.update.as_ref().is_some_and(|update| !update.is_finished()) {
            self.has_missed.store(true, Ordering::Release);
            return;
        }
        let (tree, has_missed) = (self.tree.clone(), self.has_missed.clone());
        let update = self.update.insert(tokio::task::spawn_blocking(move || {
            let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
            if has_missed.swap(false, Ordering::AcqRel) {
                tree.check_again();
            } else {
                changed.iter().for_each(|path| tree.note(path));
            }
        }));
        let _ = timeout(UPDATE_TIMEOUT, update).await;
    }
}

/// Whether a name matches a pattern in which `*` matches anything.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_changes_for_ever_does_not_put_a_change_off_for_ever() {
        let (sender, changes) = channel(1);
        let watcher = notify::recommended_watcher(|_| {}).unwrap();
        let filter = WatchFilter {
            roots: Vec::new(),
            ignore: Vec::new(),
            own: Vec::new(),
            hidden: Vec::new(),
        };
        let delay = Duration::from_millis(20);
        let tree = Tree::new(watcher, filter);
        let mut watched = Watched::new(changes, Arc::default(), delay, tree);
        // The thread of the watcher is busy with them, so no directory can be added.
        let tree = watched.tree.clone();
        let (locked, is_locked) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::spawn(move || {
            let _tree = tree.lock().unwrap();
            locked.send(()).unwrap();
            let _ = released.recv();
        });
        is_locked.recv().unwrap();
        let changing = tokio::spawn(async move {
            while sender.send(PathBuf::from("/nowhere/a.log")).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        for _ in 0..2 {
            let seen = timeout(Duration::from_secs(20), watched.changed()).await;
            assert_eq!(seen.unwrap().unwrap(), "/nowhere/a.log");
        }
        drop((watched, release));
        busy.join().unwrap();
        changing.await.unwrap();
    }

    #[tokio::test]
    async fn files_that_are_replaced_and_directories_that_are_new_are_seen_and_own_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("a.js"), "").unwrap();
        std::fs::write(at("out.txt"), "").unwrap();
        let delay = Some(crate::config::Time(Duration::from_millis(20)));
        let only = Watch { paths: vec![at("a.js")], delay, ..Watch::default() };
        let mut file = start(&only, None, Vec::new()).unwrap();
        for _ in 0..3 {
            std::fs::write(at("new"), "x").unwrap();
            std::fs::rename(at("new"), at("a.js")).unwrap();
            seen(&mut file, "a.js").await;
        }
        let all = Watch { delay, ..Watch::default() };
        let mut watched = start(&all, Some(directory.path()), vec![at("out.txt")]).unwrap();
        std::fs::create_dir(at("deep")).unwrap();
        seen(&mut watched, "deep").await;
        std::fs::write(at("out.txt"), "more").unwrap();
        std::fs::write(at("deep/b.js"), "").unwrap();
        seen(&mut watched, "b.js").await;
    }

    async fn seen(watched: &mut Watched, end: &str) {
        let seen = timeout(Duration::from_secs(10), watched.changed()).await.unwrap().unwrap();
        assert!(seen.ends_with(end), "{seen}");
    }

    fn watched_in(directory: &tempfile::TempDir) -> Watched {
        let delay = Some(crate::config::Time(Duration::from_millis(20)));
        let all = Watch { delay, ..Watch::default() };
        start(&all, Some(directory.path()), Vec::new()).unwrap()
    }

    #[test]
    fn links_that_a_worker_makes_lead_to_nothing_that_is_watched() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(elsewhere.path().join("a/b")).unwrap();
        std::fs::create_dir(at("real")).unwrap();
        let watched = watched_in(&directory);
        let mut tree = watched.tree.lock().unwrap();
        let before = tree.directories.clone();
        assert_eq!(before.len(), 2);
        std::os::unix::fs::symlink(elsewhere.path(), at("link")).unwrap();
        for name in ["link", "link/a"] {
            tree.note(&at(name));
        }
        // A directory that is known, and is elsewhere by now.
        std::fs::rename(at("real"), at("moved")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), at("real")).unwrap();
        tree.note(&at("real"));
        assert_eq!(tree.directories, [at("")].map(|path| path.components().collect()).into());
        tree.check_again();
        let names: Vec<_> = tree.directories.iter().filter_map(|path| path.file_name()).collect();
        assert!(names.len() == 2 && names[1] == "moved", "{names:?}");
    }

    #[test]
    fn directories_that_come_and_go_leave_room_for_others() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let watched = watched_in(&directory);
        let mut tree = watched.tree.lock().unwrap();
        let before = (tree.directories.clone(), tree.bytes);
        for _ in 0..3 {
            std::fs::create_dir_all(at("build/deep")).unwrap();
            for _ in 0..2 {
                tree.note(&at("build"));
                assert_eq!(tree.directories.len(), before.0.len() + 2);
            }
            std::fs::remove_dir_all(at("build")).unwrap();
            tree.note(&at("build"));
            assert_eq!((&tree.directories, tree.bytes), (&before.0, before.1));
        }
        // A full tree is reported once, until there may be room again.
        tree.bytes = MAX_PATH_BYTES;
        for _ in 0..2 {
            std::fs::create_dir_all(at("more")).unwrap();
            tree.note(&at("more"));
        }
        assert!(tree.has_failed && tree.directories == before.0);
    }

    #[tokio::test]
    async fn changes_beyond_what_is_queued_are_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let mut watched = watched_in(&directory);
        for number in 0..2 * MAX_CHANGES {
            std::fs::write(at(&format!("{number}.js")), "").unwrap();
        }
        std::fs::create_dir(at("late")).unwrap();
        troop_testkit::wait_until("a full queue", || watched.has_missed.load(Ordering::Acquire));
        while !watched.tree.lock().unwrap().directories.contains(&at("late")) {
            timeout(Duration::from_secs(10), watched.changed()).await.unwrap().unwrap();
        }
    }
}
