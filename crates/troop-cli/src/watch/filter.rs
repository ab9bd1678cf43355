//! Which changes of files count.

use std::path::{Component, Path, PathBuf};

use fast_glob::glob_match;

use crate::config::Watch;

/// Names that are always ignored, besides those that begin with a dot.
const IGNORED: [&str; 7] =
    ["node_modules", "target", "__pycache__", "*.log", "*.log.*", "*.pid", "*~"];
/// Decides which changes count.
#[derive(Debug, Clone)]
pub(super) struct WatchFilter {
    /// Watched files, and directories with everything below them.
    pub(super) roots: Vec<Root>,
    pub(super) ignore: Vec<String>,
    /// Files that troop itself writes.
    pub(super) own: Vec<PathBuf>,
    /// Directories of troop's own: control sockets, records, logs.
    pub(super) hidden: Vec<PathBuf>,
}

/// A watched file or directory.
#[derive(Debug, Clone)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// The app's directory.
    directory: PathBuf,
    /// What counts below it; everything if that is not set.
    pattern: Option<String>,
}

/// Splits a path before its first part with a pattern in it.
pub(crate) fn split(path: &Path) -> (PathBuf, Option<String>) {
    let is_pattern =
        |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let plain: PathBuf = path.components().take_while(|part| !is_pattern(part)).collect();
    let rest = path.strip_prefix(&plain).ok().filter(|rest| !rest.as_os_str().is_empty());
    let pattern = rest.map(|rest| rest.to_string_lossy().into_owned());
    (plain, pattern)
}

/// Returns the paths to watch, if they exist.
pub(super) fn roots(watch: &Watch, cwd: Option<&Path>) -> Result<Vec<Root>, String> {
    let cwd = cwd.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let found = |path: &Path| {
        path.canonicalize().map_err(|e| format!("cannot watch {}: {e}", path.display()))
    };
    let cwd = found(&cwd)?;
    let paths = if watch.paths.is_empty() { vec![PathBuf::new()] } else { watch.paths.clone() };
    let root = |path: &PathBuf| {
        let whole = cwd.join(path);
        // A name may have such signs in it.
        let (path, pattern) = match split(path) {
            (plain, Some(pattern)) if !whole.exists() => (cwd.join(plain), Some(pattern)),
            _ => (whole, None),
        };
        Ok(Root { path: found(&path)?, directory: cwd.clone(), pattern })
    };
    paths.iter().map(root).collect()
}

impl WatchFilter {
    /// Whether a change of this path counts.
    pub(super) fn matches(&self, path: &Path) -> bool {
        self.is_watched(path, |root, below| {
            let fits = |pattern: &String| glob_match(pattern, &*below.to_string_lossy());
            // A new directory may have files that count.
            root.pattern.as_ref().is_none_or(fits) || path.is_dir()
        })
    }

    /// Whether something in this directory may count.
    pub(super) fn is_in(&self, directory: &Path) -> bool {
        self.is_watched(directory, |_, _| true)
    }

    fn is_watched(&self, path: &Path, fits: impl Fn(&Root, &Path) -> bool) -> bool {
        let is_own = |own: &PathBuf| path.to_string_lossy().starts_with(&*own.to_string_lossy());
        let is_below = |root: &Root| {
            path == root.path
                || path
                    .strip_prefix(&root.path)
                    .is_ok_and(|below| !is_ignored(root, below, &self.ignore) && fits(root, below))
        };
        let is_hidden = |directory: &PathBuf| path.starts_with(directory);
        !self.own.iter().any(is_own)
            && !self.hidden.iter().any(is_hidden)
            && self.roots.iter().any(is_below)
    }
}

/// Whether a path below a root is ignored. A pattern without a slash is one of names, another one of
/// paths, in the root or in the app's directory, with everything below them; those behind `!` are
/// exceptions.
fn is_ignored(root: &Root, below: &Path, more: &[String]) -> bool {
    let names: Vec<_> = below
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy()),
            _ => None,
        })
        .collect();
    let whole = root.path.join(below);
    let in_app = whole.strip_prefix(&root.directory).unwrap_or(below);
    let paths = below.ancestors().chain(in_app.ancestors());
    let paths: Vec<_> = paths.map(|path| path.to_string_lossy()).collect();
    let whole: Vec<_> = whole.ancestors().map(|path| path.to_string_lossy()).collect();
    let fits = |pattern: &str| {
        let pattern = pattern.strip_prefix("./").unwrap_or(pattern).trim_end_matches('/');
        let candidates = match pattern {
            "" => return false,
            pattern if pattern.starts_with('/') => &whole,
            pattern if pattern.contains('/') => &paths,
            _ => &names,
        };
        candidates.iter().any(|path| glob_match(pattern, &**path))
    };
    let is_usual = names.iter().any(|name| name.starts_with('.')) || IGNORED.into_iter().any(fits);
    let (exceptions, more): (Vec<&str>, Vec<&str>) =
        more.iter().map(String::as_str).partition(|pattern| pattern.starts_with('!'));
    let is_exception = |pattern: &str| fits(pattern.trim_start_matches('!'));
    (is_usual || more.into_iter().any(fits)) && !exceptions.into_iter().any(is_exception)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_told_by_its_name() {
        let more = [
            "*.tmp",
            "a*b*c",
            "src/gen",
            "./logs",
            "data/*.db",
            "./cache/",
            "**/*.test.js",
            "deep/**/gen/*",
            "img/*.{png,jpg}",
            "v?.txt",
            "[xy].md",
            "/srv/app/abs",
            "!keep.tmp",
        ]
        .map(str::to_owned);
        let at = |path: &str| Root {
            path: Path::new("/srv/app").join(path),
            directory: "/srv/app".into(),
            pattern: None,
        };
        let root = &at("");
        let more_in_src = ["src/tmp", "./src/gen/**"].map(str::to_owned);
        for (below, is) in [("tmp/x.js", true), ("gen/x.js", true), ("x.js", false)] {
            assert_eq!(is_ignored(&at("src"), Path::new(below), &more_in_src), is, "{below}");
        }
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
            "a.test.js",
            "src/b.test.js",
            "deep/gen/x",
            "deep/a/b/gen/x",
            "img/x.png",
            "v1.txt",
            "x.md",
            "abs/x",
        ] {
            assert!(is_ignored(root, Path::new(ignored), &more), "{ignored}");
        }
        for filter in [
            "server.js",
            "src/x.ts",
            "logs.js",
            "acb",
            "tmp/x",
            "data/x.js",
            "other/data.txt",
            "img/x.gif",
            "v12.txt",
            "z.md",
            "sub/keep.tmp",
            "data/x/y.db",
        ] {
            assert!(!is_ignored(root, Path::new(filter), &more), "{filter}");
        }
    }

    #[test]
    fn patterns_select_files_below_the_directory_before_them() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("src/deep")).unwrap();
        std::fs::write(home.path().join("a[1].js"), "").unwrap();
        let paths = ["src/**/*.{js,ts}", "*.json", "a[1].js"].map(PathBuf::from).to_vec();
        let watch = Watch { paths, ..Watch::default() };
        let roots = roots(&watch, Some(home.path())).unwrap();
        let at = |path: &str| home.path().canonicalize().unwrap().join(path);
        let filter =
            WatchFilter { roots, ignore: Vec::new(), own: Vec::new(), hidden: vec![at("src/run")] };
        for path in
            ["src/a.js", "src/running.js", "src/deep/b.ts", "package.json", "a[1].js", "src/deep"]
        {
            assert!(filter.matches(&at(path)), "{path}");
        }
        for path in ["src/a.css", "b.js", "src/package.json", "a1.js", "src/run/a.js"] {
            assert!(!filter.matches(&at(path)), "{path}");
        }
        let missing = Watch { paths: vec!["lib/**/*.js".into()], ..Watch::default() };
        assert!(super::roots(&missing, Some(home.path())).unwrap_err().contains("lib"));
    }
}
