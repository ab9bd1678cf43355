//! The checks of an app's sandbox: its paths are resolved as at a start, by the engine's own code.

use std::path::{Path, PathBuf};

use troop::program::safe_path::{FileId, UnsafePath, file_id};
use troop::program::sandbox::{Paths, Resolved};

use super::App;
use super::inspect::Found;
use crate::program::is_script;

impl App {
    fn sandbox_paths(&self, directory: &Path) -> Paths {
        let seen_from = |paths: &Option<Vec<PathBuf>>| -> Vec<PathBuf> {
            paths.iter().flatten().map(|path| directory.join(path)).collect()
        };
        Paths::resolve(&seen_from(&self.sandbox.read), &seen_from(&self.sandbox.write))
    }

    /// Returns what would keep every worker from starting.
    pub(super) fn sandbox_problems(&self, directory: &Path) -> Vec<String> {
        if self.sandbox.read.is_none() && self.sandbox.write.is_none() {
            return Vec::new();
        }
        let Paths { read, write } = self.sandbox_paths(directory);
        let read = read.iter().filter_map(|(path, resolved)| match resolved {
            Resolved::Through(above) => Some(format!(
                "sandbox.read: {} {} {} of sandbox.write, and who may change that could put anything else there; list one of them, or a directory beside it",
                path.display(),
                if path.starts_with(above) { "is below" } else { "leads through" },
                above.display()
            )),
            _ => unreachable("read", path, resolved),
        });
        let write = write.iter().filter_map(|(path, resolved)| match resolved {
            Resolved::Through(above) => (path == above).then(|| {
                format!(
                    "sandbox.write: {} leads through itself, and who may change it could put anything else there; name the directory without `..`",
                    path.display()
                )
            }),
            _ => unreachable("write", path, resolved),
        });
        read.chain(write).collect()
    }

    /// Says which files that troop writes are in directories that workers may exchange.
    fn files_in_sandbox<'a>(
        &self,
        directory: &Path,
        write: impl Iterator<Item = &'a Path> + Clone,
    ) -> Vec<String> {
        let output = &self.output;
        let files = [
            ("output.file", &output.file),
            ("output.error_file", &output.error_file),
            ("output.all_file", &output.all_file),
            ("pid_file", &self.pid_file),
            ("worker_pid_file", &self.worker_pid_file),
        ];
        let mut warnings = Vec::new();
        for (option, file) in files {
            let Some(file) = file else { continue };
            if option.starts_with("output") && file.components().count() == 1 {
                // It is in troop's own directory.
                continue;
            }
            let file: PathBuf = directory.join(file).components().collect();
            let Some(parent) = file.parent() else { continue };
            let above = write.clone().find(|path| parent.starts_with(path) && parent != *path);
            if let Some(above) = above {
                warnings.push(format!(
                    "{option}: {} is below {} of sandbox.write, so workers could put a link in place of its directory, and troop would write where that leads; name a file directly in {}, or elsewhere",
                    file.display(),
                    above.display(),
                    above.display()
                ));
            }
        }
        warnings
    }

    /// Finds out whether workers can read and execute their program, and what is not as it looks.
    pub(super) fn inspect_sandbox(
        &self,
        directory: &Path,
        program: &Path,
        executed: Option<&Path>,
        found: &mut Found,
    ) {
        let Paths { read, write } = self.sandbox_paths(directory);
        let is_plain = |path: &Path, above: &Path| {
            path.strip_prefix(above).is_ok_and(|rest| {
                rest.components().all(|part| matches!(part, std::path::Component::Normal(_)))
            })
        };
        for (path, resolved) in &write {
            if let Resolved::Through(above) = resolved
                && path != above
                && !is_plain(path, above)
            {
                found.warnings.push(format!(
                    "sandbox.write: {} leads through {}, where workers could change it, so only what is below {} can be written",
                    path.display(),
                    above.display(),
                    above.display()
                ));
            }
        }
        found
            .warnings
            .extend(self.files_in_sandbox(directory, write.iter().map(|(path, _)| &**path)));
        if self.sandbox.read.is_none() {
            return;
        }
        let (readable, writable) = (ids(&read), ids(&write));
        let mut find = |path: &Path, cannot: &str, all: &[&[FileId]]| {
            // The kernel asks about what is executed or read in the end, and not about the way.
            let Ok(real) = path.canonicalize() else { return };
            if !is_below(&real, all) {
                let by =
                    if real == path { String::new() } else { format!(" ({})", path.display()) };
                found.problems.push(format!(
                    "sandbox.read: workers cannot {cannot} {}{by}, which is not below any of it",
                    real.display()
                ));
            }
        };
        if let Some(executed) = executed {
            find(executed, "execute", &[&readable]);
        }
        if is_script(program) {
            find(program, "read", &[&readable, &writable]);
        }
    }
}

/// Returns what is wrong with a path that cannot be reached.
fn unreachable(field: &str, path: &Path, resolved: &Resolved) -> Option<String> {
    let Resolved::Failed(e) = resolved else { return None };
    Some(if e.kind() == std::io::ErrorKind::NotFound {
        format!("sandbox.{field}: there is no {}", path.display())
    } else if UnsafePath::is_cause_of(e) {
        format!("sandbox.{field}: {e}")
    } else {
        format!("sandbox.{field}: cannot use {}: {e}", path.display())
    })
}

fn ids(paths: &[(PathBuf, Resolved)]) -> Vec<FileId> {
    let held = paths.iter().filter_map(|(_, resolved)| match resolved {
        Resolved::Held(held) => Some(file_id(&held.found)),
        _ => None,
    });
    held.collect()
}

/// Whether a real path is one of these, or below one, as the kernel sees it: by what each directory
/// on the way is.
fn is_below(real: &Path, all: &[&[FileId]]) -> bool {
    real.ancestors().any(|at| {
        let id = at.metadata().map(|found| file_id(&found));
        id.is_ok_and(|id| all.iter().any(|ids| ids.contains(&id)))
    })
}
