//! `--watch`: sees that files change.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::config::Watch;

/// What is ignored anyway, besides what begins with a dot.
const IGNORED: [&str; 6] = ["node_modules", "target", "__pycache__", "*.log", "*.pid", "*~"];
/// The most directories that are watched; the kernel has a limit too.
const MOST_DIRECTORIES: usize = 10_000;

/// Reports changes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    _watcher: RecommendedWatcher,
    changes: UnboundedReceiver<PathBuf>,
    delay: Duration,
}

/// Begins to watch.
///
/// # Errors
/// For people.
pub(crate) fn start(watch: &Watch, cwd: Option<&Path>) -> Result<Watched, String> {
    let cwd = cwd.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let cwd = cwd.canonicalize().map_err(|e| format!("cannot watch {}: {e}", cwd.display()))?;
    let paths = if watch.paths.is_empty() { vec![PathBuf::new()] } else { watch.paths.clone() };
    let roots = paths
        .iter()
        .map(|path| cwd.join(path))
        .map(|path| path.canonicalize().map_err(|e| format!("cannot watch {}: {e}", path.display())));
    let roots = roots.collect::<Result<Vec<_>, _>>()?;
    let (sender, changes) = unbounded_channel();
    let (ignore, seen_from) = (watch.ignore.clone(), roots.clone());
    let heed = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if matches!(event.kind, EventKind::Access(_) | EventKind::Modify(notify::event::ModifyKind::Metadata(_))) {
            return;
        }
        for path in event.paths {
            let below = seen_from.iter().find_map(|root| path.strip_prefix(root).ok());
            if below.is_some_and(|below| !is_ignored(below, &ignore)) {
                // The receiver ends with the process.
                let _ = sender.send(path);
            }
        }
    };
    let mut watcher = notify::recommended_watcher(heed).map_err(|e| format!("cannot watch files: {e}"))?;
    // Directory by directory, so that nothing is spent on those that are ignored.
    let mut todo = roots.clone();
    let mut count = 0;
    while let Some(path) = todo.pop() {
        count += 1;
        if count > MOST_DIRECTORIES {
            return Err(format!(
                "there are more than {MOST_DIRECTORIES} directories to watch; name some with watch.paths, or ignore some"
            ));
        }
        watcher.watch(&path, RecursiveMode::NonRecursive).map_err(|e| format!("cannot watch {}: {e}", path.display()))?;
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_ignored(Path::new(&entry.file_name()), &watch.ignore) {
                todo.push(entry.path());
            }
        }
    }
    Ok(Watched { _watcher: watcher, changes, delay: watch.delay.map_or(Duration::from_millis(200), |delay| delay.0) })
}

impl Watched {
    /// Waits until something has changed and nothing changes any more; returns what it was.
    pub(crate) async fn changed(&mut self) -> Option<String> {
        let first = self.changes.recv().await?;
        while let Ok(Some(_)) = timeout(self.delay, self.changes.recv()).await {}
        Some(first.display().to_string())
    }
}

fn is_ignored(below: &Path, more: &[String]) -> bool {
    let names = below.components().filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None });
    let patterns: Vec<&str> = IGNORED.into_iter().chain(more.iter().map(String::as_str)).collect();
    let fits = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with('.') || patterns.iter().any(|pattern| matches(pattern, &name))
    };
    names.into_iter().any(fits) || more.iter().any(|pattern| below.starts_with(pattern))
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
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
        let more = ["*.tmp".to_owned(), "a*b*c".to_owned(), "src/gen".to_owned()];
        for ignored in ["node_modules/x/y.js", ".git/HEAD", "x.log", "d/x.tmp", "axxbyyc", "src/gen/x.js", "x~"] {
            assert!(is_ignored(Path::new(ignored), &more), "{ignored}");
        }
        for heeded in ["server.js", "src/x.ts", "logs.js", "acb", "tmp/x"] {
            assert!(!is_ignored(Path::new(heeded), &more), "{heeded}");
        }
    }
}
