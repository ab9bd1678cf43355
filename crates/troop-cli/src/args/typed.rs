//! What is typed, before it is parsed: whose the options are that stand behind a program.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Arg, Args as _};

use super::{Foreground, Start};

/// Returns a command line in which `run` leaves all options behind a program that is found on the
/// `PATH` to that program (`run sh -c '…'`), as `env` and `nice` do, unless a `--` separates them,
/// and in which `--watch DIR` is `--watch=DIR`, as PM2 reads it behind a program.
pub(crate) fn arranged(
    mut words: Vec<OsString>,
    is_command: impl Fn(&OsStr) -> bool,
) -> Vec<OsString> {
    let Some(verb) = words.get(1).and_then(|verb| verb.to_str()) else { return words };
    let is_run = verb == "run";
    if !is_run && verb != "start" {
        return words;
    }
    let Some(program) = program(&words, verb) else { return words };
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    if is_run
        && end == words.len()
        && words.get(program + 1).is_some_and(|next| next.as_encoded_bytes().starts_with(b"-"))
        && is_command(&words[program])
    {
        words.insert(program + 1, "--".into());
        return words;
    }
    let watch = (program..end).find(|at| words[*at] == "--watch");
    if let Some(at) = watch.filter(|at| *at + 1 < end && Path::new(&words[*at + 1]).is_dir()) {
        let directory = words.remove(at + 1);
        words[at].push("=");
        words[at].push(directory);
    }
    words
}

/// Returns the position of the program in a command line: the first word that is no option and no
/// value of one.
fn program(words: &[OsString], verb: &str) -> Option<usize> {
    let command = clap::Command::new("");
    let command = match verb {
        "run" => Foreground::augment_args(command),
        _ => Start::augment_args(command),
    };
    let mut by_name = HashMap::new();
    for arg in command.get_arguments() {
        for long in arg.get_long_and_visible_aliases().unwrap_or_default() {
            by_name.insert(format!("--{long}"), takes_value(arg));
        }
        for short in arg.get_short_and_visible_aliases().unwrap_or_default() {
            by_name.insert(format!("-{short}"), takes_value(arg));
        }
    }
    let mut at = 2;
    while let Some(word) = words.get(at) {
        let word = word.to_str().unwrap_or_default();
        if word == "--" {
            return None;
        }
        if !word.starts_with('-') || word == "-" {
            return Some(at);
        }
        // `-w4` and `--workers=4` have their value.
        at += if by_name.get(word) == Some(&true) { 2 } else { 1 };
    }
    None
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(line: &str) -> String {
        let words = shlex::split(line).unwrap().into_iter().map(OsString::from).collect();
        let is_command = |word: &OsStr| word == "sh" || word == "gunicorn";
        let words = super::arranged(words, is_command);
        words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_behind_a_program_of_the_path_are_its_own() {
        for (typed, read) in [
            ("troop run sh -c x", "troop run sh -- -c x"),
            (
                "troop run -w 4 -b 8000 gunicorn -c a.py app",
                "troop run -w 4 -b 8000 gunicorn -- -c a.py app",
            ),
            (
                "troop run --workers=4 -w4 --json sh -e x",
                "troop run --workers=4 -w4 --json sh -- -e x",
            ),
        ] {
            assert_eq!(arranged(typed), read);
        }
        for line in [
            "troop run sh x -c",
            "troop run sh -w 4 -- -c x",
            "troop run -- sh -c x",
            "troop run server.js -w 4",
            "troop run -c apps.toml web",
            "troop run -n sh -w 2",
            "troop start sh -n x",
            "troop ls sh -c",
            "troop",
        ] {
            assert_eq!(arranged(line), line);
        }
    }

    #[test]
    fn a_directory_behind_watch_is_its_value_as_in_pm2() {
        assert_eq!(
            arranged("troop start a.js --watch src -i 2"),
            "troop start a.js --watch=src -i 2"
        );
        for line in [
            "troop start a.js --watch none",
            "troop start --watch src",
            "troop start a.js -- --watch src",
        ] {
            assert_eq!(arranged(line), line);
        }
    }
}
