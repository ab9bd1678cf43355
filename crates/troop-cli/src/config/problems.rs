//! What keeps an app from starting on this machine.

use std::path::Path;

use super::app::App;
use super::{NO_POLICY, clashes, env_file, foreign, is_on_path, own_cpus};

/// A reason why an app cannot start, with the option that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) option: &'static str,
    pub(crate) text: String,
}

impl App {
    /// Returns what would keep the app from starting on this machine.
    pub(crate) fn problems(&self, file: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |option: &'static str, text: String| problems.push(Problem { option, text });
        if !self.fits_bind() {
            add("policy", NO_POLICY.into());
        }
        let (directory, program) = (self.directory(file), self.program(file));
        if !directory.is_dir() {
            add("cwd", format!("there is no directory {}", directory.display()));
        } else if program.is_absolute() && !program.exists() {
            let hint = foreign::command_line(&self.program).map(|hint| format!("; {hint}"));
            let hint = hint.unwrap_or_default();
            add("program", format!("there is no program {}{hint}", program.display()));
        }
        for e in self.env_file.iter().filter_map(|file| env_file::read(&directory.join(file)).err())
        {
            add("env_file", e);
        }
        for (name, value) in &self.env {
            if let Some(text) = crate::preflight::too_long(name, name.len() + value.len() + 2) {
                add("env", text);
            }
        }
        if program.components().count() == 1 && !is_on_path(&program) {
            let installed = crate::command::installed(&program, &directory);
            let instead = installed
                .map(|found| format!("npm has installed {}", found.display()))
                .or_else(|| foreign::command_line(&self.program))
                .map(|instead| format!("; {instead}"));
            add(
                "program",
                format!(
                    "there is no program {} on the PATH{}",
                    program.display(),
                    instead.unwrap_or_default()
                ),
            );
        }
        if let Some(name) = &self.user
            && uzers::get_user_by_name(name).is_none()
            && name.parse::<u32>().is_err()
        {
            add("user", format!("there is no user {name:?}"));
        }
        if let Some(name) = &self.group
            && uzers::get_group_by_name(name).is_none()
            && name.parse::<u32>().is_err()
        {
            add("group", format!("there is no group {name:?}"));
        }
        if !self.node_args.is_empty()
            && !crate::program::is_script(&program)
            && !program.ends_with("node")
            && crate::program::first_line(&program).is_none()
        {
            add(
                "node_args",
                format!(
                    "node_args are for scripts that run under node, and {} is none",
                    program.display()
                ),
            );
        }
        let unsupported = self.sandbox.unsupported().filter(|_| !self.sandbox.best_effort);
        for text in unsupported.into_iter().chain(self.sandbox_problems(&directory)) {
            add("sandbox", text);
        }
        let own = own_cpus();
        if let Some(cpu) =
            self.cpu_sets().unwrap_or_default().into_iter().flatten().find(|cpu| !own.contains(cpu))
        {
            add("cpus", format!("there is no CPU {cpu} that may be used"));
        }
        let watched =
            self.watch.iter().flat_map(|watch| &watch.paths).map(|path| directory.join(path));
        // Before a pattern there must be a directory.
        let watched = watched.map(|path| match path.exists() {
            true => path,
            false => crate::watch::split(&path).0,
        });
        for path in watched.filter(|path| !path.exists()) {
            add("watch", format!("there is no {} to watch", path.display()));
        }
        for text in clashes::within(self) {
            add("bind", text);
        }
        let in_the_way = crate::pid_files::problem(self, &directory);
        for text in clashes::of_pid_files(self).into_iter().chain(in_the_way) {
            add("pid_file", text);
        }
        problems
    }
}
