//! `--watch`: reports changes of files.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{Instant, timeout};
use troop::text::escaped;

use crate::config::Watch;

/// Names that are always ignored, besides those that begin with a dot.
const IGNORED: [&str; 7] =
    ["node_modules", "target", "__pycache__", "*.log", "*.log.*", "*.pid", "*~"];
/// The largest number of watched directories; the kernel has a limit too.
const MAX_DIRECTORIES: usize = 10_000;
/// The delay is awaited at most this many times while changes go on.
const MAX_DELAYS: u32 = 20;
/// The number of changes that are queued during a reload; further ones are dropped, because one
/// reload covers them all.
const MAX_CHANGES: usize = 64 * 1024;

/// Reports changes until it is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    watcher: RecommendedWatcher,
    changes: Receiver<PathBuf>,
    delay: Duration,
    filter: WatchFilter,
    directories: usize,
}

/// Decides which changes count.
#[derive(Debug, Clone)]
struct WatchFilter {
    /// Watched files, and directories with everything below them.
    roots: Vec<PathBuf>,
    ignore: Vec<String>,
    /// Files that troop itself writes.
    own: Vec<PathBuf>,
}

/// Returns the paths to watch, if they exist.
fn roots(watch: &Watch, cwd: Option<&Path>) -> Result<Vec<PathBuf>, String> {
    let cwd = cwd.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let found = |path: &Path| {
        path.canonicalize().map_err(|e| format!("cannot watch {}: {e}", path.display()))
    };
    let cwd = found(&cwd)?;
    let paths = if watch.paths.is_empty() { vec![PathBuf::new()] } else { watch.paths.clone() };
    paths.iter().map(|path| found(&cwd.join(path))).collect()
}

/// Checks that the paths to watch exist.
///
/// # Errors
/// The missing path, for people.
pub(crate) fn check(watch: &Watch, cwd: Option<&Path>) -> Result<(), String> {
    roots(watch, cwd).map(drop)
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
    let filter = WatchFilter { roots, ignore: watch.ignore.clone(), own };
    let (sender, changes) = channel(MAX_CHANGES);
    let matters = filter.clone();
    let notice = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if matches!(
            event.kind,
            EventKind::Access(_) | EventKind::Modify(notify::event::ModifyKind::Metadata(_))
        ) {
            return;
        }
        for path in event.paths.into_iter().filter(|path| matters.matches(path)) {
            // The queue is full, or the process ends.
            let _ = sender.try_send(path);
        }
    };
    let watcher =
        notify::recommended_watcher(notice).map_err(|e| format!("cannot watch files: {e}"))?;
    let delay = watch.delay.map_or(Duration::from_millis(200), |delay| delay.0);
    let mut watched = Watched { watcher, changes, delay, filter, directories: 0 };
    for root in watched.filter.roots.clone() {
        // A file is watched by its directory, because editors replace files.
        let directory =
            if root.is_dir() { root } else { root.parent().map_or(root.clone(), Path::to_owned) };
        watched.add(directory)?;
    }
    Ok(watched)
}

/// Returns the canonical path of a file that may not exist yet.
fn canonical(path: PathBuf) -> PathBuf {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    let beside = parent.zip(path.file_name()).map(|(parent, name)| parent.join(name));
    path.canonicalize().ok().or(beside).unwrap_or(path)
}

impl WatchFilter {
    fn matches(&self, path: &Path) -> bool {
        let is_own = |own: &PathBuf| path.to_string_lossy().starts_with(&*own.to_string_lossy());
        let is_below = |root: &PathBuf| {
            path == root
                || path.strip_prefix(root).is_ok_and(|below| !is_ignored(below, &self.ignore))
        };
        !self.own.iter().any(is_own) && self.roots.iter().any(is_below)
    }
}

impl Watched {
    /// Watches a directory and its subdirectories one by one, which spares those that are ignored.
    fn add(&mut self, directory: PathBuf) -> Result<(), String> {
        let mut todo = vec![directory];
        while let Some(path) = todo.pop() {
            self.directories += 1;
            if self.directories > MAX_DIRECTORIES {
                return Err(format!(
                    "there are more than {MAX_DIRECTORIES} directories to watch; name some with watch.paths, or ignore some"
                ));
            }
            let watched = self.watcher.watch(&path, RecursiveMode::NonRecursive);
            watched.map_err(|e| format!("cannot watch {}: {e}", path.display()))?;
            for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && self.filter.matches(&entry.path())
                {
                    todo.push(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Watches a directory that was created meanwhile.
    fn note(&mut self, path: &Path) {
        if path.is_dir()
            && let Err(e) = self.add(path.to_owned())
        {
            crate::log::line(&format!("troop: {e}"));
        }
    }

    /// Waits for a change and then for quiet, or for [`MAX_DELAYS`] delays if there is none; returns
    /// the path that changed.
    pub(crate) async fn changed(&mut self) -> Option<String> {
        let first = self.changes.recv().await?;
        self.note(&first);
        let latest = Instant::now() + self.delay * MAX_DELAYS;
        while Instant::now() < latest
            && let Ok(Some(next)) = timeout(self.delay, self.changes.recv()).await
        {
            self.note(&next);
        }
        Some(escaped(&first.to_string_lossy()).to_string())
    }
}

fn is_ignored(below: &Path, more: &[String]) -> bool {
    let names = below
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None });
    let patterns: Vec<&str> = IGNORED.into_iter().chain(more.iter().map(String::as_str)).collect();
    let fits = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with('.') || patterns.iter().any(|pattern| matches(pattern, &name))
    };
    let paths: Vec<String> =
        below.ancestors().map(|path| path.to_string_lossy().into_owned()).collect();
    // A pattern with a slash is a path, and includes everything below it.
    let is_below = |pattern: &String| {
        let pattern = pattern.strip_prefix("./").unwrap_or(pattern).trim_end_matches('/');
        !pattern.is_empty() && paths.iter().any(|path| matches(pattern, path))
    };
    names.into_iter().any(fits) || more.iter().any(is_below)
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

    #[test]
    fn what_is_ignored_is_told_by_its_name() {
        let more =
            ["*.tmp", "a*b*c", "src/gen", "./logs", "data/*.db", "./cache/"].map(str::to_owned);
        for ignored in [
            "node_modules/x/y.js",
            ".git/HEAD",
            "x.log",
            "x.log.3",
            "d/x.tmp",
            "axxbyyc",
            "src/gen/x.js",
            "x~",
            "logs/a/b",
            "data/x.db",
            "cache/y",
        ] {
            assert!(is_ignored(Path::new(ignored), &more), "{ignored}");
        }
        for filter in
            ["server.js", "src/x.ts", "logs.js", "acb", "tmp/x", "data/x.js", "other/data.txt"]
        {
            assert!(!is_ignored(Path::new(filter), &more), "{filter}");
        }
    }

    #[tokio::test]
    async fn what_changes_for_ever_does_not_put_a_change_off_for_ever() {
        let (sender, changes) = channel(1);
        let watcher = notify::recommended_watcher(|_| {}).unwrap();
        let filter = WatchFilter { roots: Vec::new(), ignore: Vec::new(), own: Vec::new() };
        let delay = Duration::from_millis(20);
        let mut watched = Watched { watcher, changes, delay, filter, directories: 0 };
        let changing = tokio::spawn(async move {
            while sender.send(PathBuf::from("/nowhere/a.log")).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        for _ in 0..2 {
            let seen = timeout(Duration::from_secs(20), watched.changed()).await;
            assert_eq!(seen.unwrap().unwrap(), "/nowhere/a.log");
        }
        drop(watched);
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
            let seen = timeout(Duration::from_secs(10), file.changed()).await.unwrap().unwrap();
            assert!(seen.ends_with("a.js"), "{seen}");
        }
        let all = Watch { delay, ..Watch::default() };
        let mut watched = start(&all, Some(directory.path()), vec![at("out.txt")]).unwrap();
        std::fs::create_dir(at("deep")).unwrap();
        let seen = timeout(Duration::from_secs(10), watched.changed()).await.unwrap().unwrap();
        assert!(seen.ends_with("deep"), "{seen}");
        std::fs::write(at("out.txt"), "more").unwrap();
        std::fs::write(at("deep/b.js"), "").unwrap();
        let seen = timeout(Duration::from_secs(10), watched.changed()).await.unwrap().unwrap();
        assert!(seen.ends_with("b.js"), "{seen}");
    }
}
