//! The apps that the words of `start` and `run` are for.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::{Choice, only};
use crate::args::{Env, Run, Start};
use crate::program::is_script;
use crate::{command, config, default_file, log, names, resolve};

/// The verb whose words are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Run,
}

/// An app that is started.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The command line on which its word is the program.
    pub(crate) run: Run,
    pub(crate) choice: Choice,
    /// Apps of its file that are started before it.
    pub(crate) after: Vec<String>,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Verb::Start { "start" } else { "run" })
    }
}

impl Planned {
    pub(crate) fn shown(&self) -> String {
        match (&self.choice.app, &self.run.program) {
            (app, Some(program)) if app.is_empty() => program.to_string_lossy().into_owned(),
            (app, _) => app.clone(),
        }
    }

    /// Returns the name that the app has unless it is taken.
    pub(crate) fn name(&self) -> String {
        match (&self.run.name, &self.choice.app, &self.run.program) {
            (Some(name), ..) => name.clone(),
            (None, app, Some(program)) if app.is_empty() => {
                let directory = self.run.cwd.as_deref().unwrap_or(Path::new("."));
                let command = command::of(program.clone(), self.run.args.clone(), directory);
                names::of_program(&command.named_by)
            }
            (None, app, _) => app.clone(),
        }
    }
}

/// Arranges the words of `start`: what stands behind a program that is found on the `PATH` are its
/// arguments (`start npm run dev`), and a program may stand behind `--`.
pub(crate) fn words_of_start(args: &mut Start) {
    if args.run.program.is_none() && args.run.config.is_none() && !args.args.is_empty() {
        args.run.program = Some(args.args.remove(0));
    }
    let is_command =
        args.run.config.is_none() && args.run.program.as_deref().is_some_and(is_command);
    if is_command && !args.more.is_empty() {
        args.args.splice(0..0, args.more.drain(..));
    }
}

/// Whether a word is a program that is found on the `PATH`, or that npm has installed, and nothing in
/// this directory.
pub(crate) fn is_command(word: &OsStr) -> bool {
    let path = Path::new(word);
    let has_slash = word.as_encoded_bytes().contains(&b'/');
    if has_slash || path.exists() || default_file::is_app(word).unwrap_or(true) {
        return false;
    }
    config::is_on_path(path) || command::installed(path, Path::new(".")).is_some()
}

/// Splits the words of `run` behind the program: into further programs or apps of a file, and the
/// program's arguments. Several scripts are programs, as for `start`, unless they stand behind `--`.
pub(crate) fn words_of_run(run: &mut Run, words: Vec<OsString>) -> Vec<OsString> {
    let typed: Vec<_> = std::env::args_os().collect();
    let before = typed.len().checked_sub(words.len() + 1).and_then(|at| typed.get(at));
    let is_separated = before.is_some_and(|word| word == "--");
    let is_existing_script =
        |word: &OsString| is_script(Path::new(word)) && Path::new(word).is_file();
    let are_apps = run.config.is_some()
        || run.program.as_ref().is_some_and(|program| {
            let is_file =
                config::format_of(Path::new(program)).is_some() && Path::new(program).is_file();
            let is_app =
                !Path::new(program).exists() && default_file::is_app(program).unwrap_or(false);
            is_file || is_app
        });
    let are_scripts = || {
        run.program.as_ref().is_some_and(is_existing_script) && words.iter().all(is_existing_script)
    };
    if !is_separated && (are_apps || are_scripts()) {
        run.args = Vec::new();
        return words;
    }
    run.args = words;
    Vec::new()
}

/// Has a process run the one app of its command line that was chosen for it.
pub(crate) fn choose(run: &mut Run, more: &[OsString], choice: &Choice) {
    if let Some(word) = choice.word.checked_sub(1) {
        run.program = more.get(word).cloned();
    }
    if choice.app.is_empty() {
        return;
    }
    // Another word may name another app of the file.
    if let Ok(Some((file, Some(_)))) = resolve::file_of(run) {
        (run.config, run.program) = (Some(file), None);
    }
    run.only = vec![choice.app.clone()];
}

/// Returns the apps of a command line, each with the command line on which its word is the program.
pub(crate) fn plan(run: &Run, more: &[OsString], verb: Verb) -> Result<Vec<Planned>, String> {
    // A PM2 file is read with the chosen environment.
    for env in &run.env {
        if let Env::Chosen(name) = env {
            config::choose_environment(name);
        }
    }
    if let (Some(file), Some(program)) = (&run.config, &run.program)
        && !file.exists()
    {
        let program = program.to_string_lossy();
        return Err(format!(
            "there is no file {}; if -c is an option of {program}, it stands behind `--`: troop {verb} {program} -- -c …",
            file.display()
        ));
    }
    let option = more.iter().map(|word| word.to_string_lossy()).find(|word| word.starts_with('-'));
    if let Some(option) = option {
        let program = run.program.clone().unwrap_or_default();
        return Err(format!(
            "{option} stands behind names of apps: options come before {}",
            program.to_string_lossy()
        ));
    }
    let mut run = run.clone();
    let mut more: Vec<&OsString> = more.iter().collect();
    if let Some((file, app)) = resolve::file_of(&run)?.filter(|_| !more.is_empty()) {
        let apps = config::read(&file)?;
        let is_app = |word: &&OsString| word.to_str().is_some_and(|word| apps.contains_key(word));
        if more.iter().all(|word| is_app(word) || !Path::new(word).exists()) {
            let text = |name: &OsString| name.to_string_lossy().into_owned();
            run.only.extend(app.iter().map(text));
            run.only.extend(more.drain(..).map(text));
            if app.is_some() && run.config.is_none() {
                run.config = Some(file);
            }
            if app.is_some() {
                run.program = None;
            }
        }
    }
    if let Some(word) = more.iter().find(|word| !Path::new(word).exists()) {
        let program = run.program.clone().unwrap_or_default();
        let missing = word.to_string_lossy().into_owned();
        let line = [program].into_iter().chain(["--".into()]).chain(more.into_iter().cloned());
        let line: Vec<_> = line.map(|word| word.to_string_lossy().into_owned()).collect();
        let line = shlex::try_join(line.iter().map(String::as_str)).unwrap_or_default();
        return Err(format!(
            "there is no file {missing}; the program's own arguments stand behind `--`: troop {verb} {line}"
        ));
    }
    if run.name.is_some() && !more.is_empty() {
        return Err("--name is for one program".into());
    }
    let mut planned = Vec::new();
    for word in 0..=more.len() {
        let mut run = run.clone();
        if word > 0 {
            run.program = Some(more[word - 1].clone());
        }
        for (app, after) in apps(&run)? {
            planned.push(Planned { run: run.clone(), choice: Choice { word, app }, after });
        }
    }
    Ok(planned)
}

/// Returns the apps of a file that are selected, each with those that it starts after.
fn selected(
    file: &Path,
    mut apps: config::Apps,
    wanted: &[String],
) -> Result<Vec<(String, Vec<String>)>, String> {
    let names: Vec<_> = apps.keys().cloned().collect();
    let is_started = |name: &String| {
        !wanted.is_empty() || apps.get(name).is_none_or(|app| app.autostart != Some(false))
    };
    let (started, others): (Vec<_>, Vec<_>) = names.iter().cloned().partition(is_started);
    for name in others {
        log::line(&format!(
            "troop: {name} is not started, as its autostart is false: `--only {name}` starts it"
        ));
    }
    let wanted = only(started, wanted).map_err(|name| resolve::no_app(file, &name, &names))?;
    let after = |name: &String| apps.remove(name).map(|app| app.after).unwrap_or_default();
    let afters: Vec<_> = wanted.iter().map(after).collect();
    Ok(wanted.into_iter().zip(afters).collect())
}

/// Returns the apps of a word, each with those that it starts after; an empty name stands for a
/// program without a file.
fn apps(run: &Run) -> Result<Vec<(String, Vec<String>)>, String> {
    Ok(match resolve::file_of(run)? {
        Some((_, None)) if run.pm2.names_interpreter() => {
            return Err("--interpreter is for a program that is named on the command line".into());
        }
        Some((file, None)) => {
            let (apps, warnings) = config::read_with_warnings(&file)?;
            warnings
                .iter()
                .for_each(|warning| log::line(&format!("troop: {}: {warning}", file.display())));
            let of_namespace = match (&run.config, &run.program) {
                (None, Some(word)) if Path::new(word) != file => default_file::namespace(word)?,
                _ => Vec::new(),
            };
            let only = if run.only.is_empty() { &of_namespace } else { &run.only };
            selected(&file, apps, only)?
        }
        _ => vec![(String::new(), Vec::new())],
    })
}
