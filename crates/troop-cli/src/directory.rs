//! The working directory, by the path that the user has come by.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// The directory as of the start of this process.
static CURRENT: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Returns the path of the working directory with its symbolic links (`PWD`, as shells keep it), if
/// it has any: after `cd current`, a link to a release, relative paths lead to the release that is
/// the current one by then.
pub(crate) fn by_links() -> Option<&'static Path> {
    let find = || {
        let named = PathBuf::from(std::env::var_os("PWD")?);
        let own = std::env::current_dir().ok()?;
        (named != own && leads_to(&named, &own)).then_some(named)
    };
    CURRENT.get_or_init(find).as_deref()
}

/// Whether a path is absolute, plain, and that of a directory.
fn leads_to(named: &Path, own: &Path) -> bool {
    let is_plain = named.is_absolute()
        && !named.components().any(|part| matches!(part, Component::ParentDir | Component::CurDir));
    let is_same = || {
        let (named, own) = (named.metadata().ok()?, own.metadata().ok()?);
        Some((named.dev(), named.ino()) == (own.dev(), own.ino()))
    };
    is_plain && is_same() == Some(true)
}

/// Returns a path by these links.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    by_links().map_or_else(|| path.to_owned(), |directory| directory.join(path))
}

/// Returns the working directory.
pub(crate) fn current() -> std::io::Result<PathBuf> {
    by_links().map_or_else(std::env::current_dir, |directory| Ok(directory.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_path_of_the_same_directory_counts() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir_all(at("release")).unwrap();
        std::fs::create_dir_all(at("other")).unwrap();
        std::os::unix::fs::symlink("release", at("current")).unwrap();
        let own = at("release");
        assert!(leads_to(&at("current"), &own));
        assert!(!leads_to(&at("other"), &own) && !leads_to(&at("gone"), &own));
        assert!(!leads_to(&at("other/../current"), &own) && !leads_to(Path::new("current"), &own));
    }
}
