//! What can be typed.

mod pm2;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Time};
use crate::control::place;
use run::chosen;
pub(crate) use run::{Chosen, Env, Foreground, Run};

/// One port, many processes, any language.
#[derive(Debug, Parser)]
#[command(name = "troop", version, about, max_term_width = 100)]
pub(crate) struct Troop {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Foreground),
    Start(Start),
    /// List the apps that run
    #[command(visible_aliases = ["list", "status"])]
    #[command(after_help = "Examples:\n  troop ls\n  troop ls --json | jq '.[].name'")]
    Ls(Look),
    /// Show an app: its workers, what they listen on, what they use
    #[command(visible_aliases = ["describe", "info"])]
    #[command(
        after_help = "Examples:\n  troop show web                       all of it\n  troop show web:3                     one worker, by its number"
    )]
    Show(Look),
    /// Follow what happens in an app
    Events(Events),
    Logs(Logs),
    Reload(Reload),
    Restart(Restart),
    Scale(Scale),
    Stop(Stop),
    Policy(Policy),
    Signal(Signal),
    Send(Send),
    Check(Check),
    Init(Init),
    Startup(Startup),
    Completions(Completions),
    /// Write manual pages into a directory, one for each command
    Man(Man),
}

/// Write a shell's completions to standard output
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop completions bash > /etc/bash_completion.d/troop
  troop completions fish > ~/.config/fish/completions/troop.fish")]
pub(crate) struct Completions {
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Where to
    pub(crate) directory: PathBuf,
}

/// Read a file with apps and say what is wrong with it, without starting anything
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop check                          the troop.toml that is here
  troop check ecosystem.config.js      what of a PM2 file means something here
  troop check --schema                 the JSON Schema of troop.toml, for editors")]
pub(crate) struct Check {
    /// The file: a troop.toml, PM2's ecosystem.config.js|cjs|json|yml, or a Procfile; a .js file is
    /// a program, and is run
    #[arg(default_value = crate::config::USUAL)]
    pub(crate) file: PathBuf,

    /// Write the JSON Schema of troop.toml instead
    #[arg(long)]
    pub(crate) schema: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a troop.toml to begin with
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop init                           for the program that seems to be here
  troop init server.js
  troop init --from ecosystem.config.js
  troop init --from Procfile")]
pub(crate) struct Init {
    /// The program
    #[arg(conflicts_with = "from")]
    pub(crate) program: Option<String>,

    /// Take the apps from this file: PM2's ecosystem.config.js|cjs|json|yml, or a Procfile
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,

    /// Write it there; `-` is standard output
    #[arg(short, long, default_value = crate::config::USUAL)]
    pub(crate) output: PathBuf,

    /// Even if there is one already
    #[arg(long)]
    pub(crate) force: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write systemd units, so that apps start with the machine
///
/// Each app becomes a service of its own, which systemd starts, reloads, watches and ends.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop startup                        all apps of the troop.toml that is here; as root for the system, else for the user
  troop startup web --print            only show it")]
pub(crate) struct Startup {
    /// The app; by default all of the file
    pub(crate) app: Option<String>,

    /// The file with the apps
    #[arg(short, long, value_name = "FILE", default_value = crate::config::USUAL)]
    pub(crate) config: PathBuf,

    /// The environment of this name in a PM2 file
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<String>,

    /// Where to; by default /etc/systemd/system for root, else ~/.config/systemd/user
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Write to standard output, and nowhere else
    #[arg(long)]
    pub(crate) print: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Start apps in the background, and wait until they are ready
///
/// The same as `troop run`, but it comes back: with exit code 0 when all workers are ready, or with
/// the reason why they are not. What the workers print goes into files: `troop logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop start server.js -i max --name web
  troop start server.js -- --port 8000   the program's own arguments stand behind `--`
  troop start                          all apps of the troop.toml that is here
  troop start ecosystem.config.js --env production
  troop start web                      the app web of the troop.toml that is here")]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) run: Run,

    /// The program's arguments; or, behind a file with several apps, the one that is meant
    #[arg(last = true)]
    pub(crate) args: Vec<OsString>,

    /// Do not wait until it is ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// End an app and start it again, with everything that its file says now
///
/// For what a reload cannot change. Clients are refused or wait meanwhile; `troop reload` loses
/// nobody.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop restart web                    what only another start can change is used
  troop restart all")]
pub(crate) struct Restart {
    /// The app's name, or `all`; optional when there is only one
    pub(crate) app: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what an app's workers have printed, and what happened to them
#[derive(Debug, Args)]
#[command(visible_alias = "tail")]
#[command(after_help = "Examples:
  troop logs web -f                    and go on showing
  troop logs web --lines 100 --err     the last 100 lines of standard error
  troop logs all -f")]
pub(crate) struct Logs {
    /// The app's name, or `all`; optional when there is only one
    pub(crate) app: Option<String>,

    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// How many lines
    #[arg(short = 'n', long, default_value_t = 15)]
    pub(crate) lines: usize,

    /// Only standard error
    #[arg(long)]
    pub(crate) err: bool,

    /// Only standard output
    #[arg(long)]
    pub(crate) out: bool,

    /// Only of the worker in this slot
    #[arg(long, value_name = "N")]
    pub(crate) slot: Option<u32>,

    /// Print lines to a terminal as they are, with escape sequences that it obeys [default: only
    /// colours]
    #[arg(long)]
    pub(crate) raw: bool,

    /// One JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Look at one app or all.
#[derive(Debug, Args)]
pub(crate) struct Look {
    /// The app's name
    pub(crate) app: Option<String>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop events web                     until the app ends
  troop events web --json | jq         a line of JSON for each event")]
pub(crate) struct Events {
    /// The app's name; optional when there is only one
    pub(crate) app: Option<String>,

    /// One JSON object per line, as `troop run --log json` writes them
    #[arg(long)]
    pub(crate) json: bool,

    /// Taken for granted; accepted because other tools need it
    #[arg(short, long, hide = true)]
    pub(crate) follow: bool,
}

/// Replace an app's workers, without losing a connection
///
/// Each old worker leaves only after its successor serves. If a new one does not come up, or does
/// not listen on an address that the old ones share, the old ones go on, and this says why. Waits
/// until it is done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop reload web                     with what its file says now
  troop reload web:3                   one worker
  troop reload web --allow-moved       the new workers may listen elsewhere

Exit codes: 0 when all workers were replaced, 1 if not, 3 if there is no such app.")]
pub(crate) struct Reload {
    /// The app's name, or `all`, or one worker of it (`web:3`); optional when there is only one
    pub(crate) app: Option<String>,

    /// Let the new workers listen elsewhere than the old ones; an address that nobody listens on
    /// any more is closed
    #[arg(long)]
    pub(crate) allow_moved: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Change how many workers an app has
#[derive(Debug, Args)]
#[command(allow_missing_positional = true, allow_negative_numbers = true)]
#[command(after_help = "Examples:
  troop scale 8                        the only app gets 8 workers
  troop scale web +2                   two more
  troop scale web -1                   one less; the last one finishes its requests
  troop scale web 0                    none; its listeners stay open, and clients wait")]
pub(crate) struct Scale {
    /// The app's name; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) app: Option<String>,

    /// How many, or with a sign, how many more or less
    #[arg(value_name = "N|+N|-N", value_parser = to)]
    pub(crate) to: To,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum To {
    Workers(usize),
    By(i64),
}

/// End an app: its workers finish what they serve
#[derive(Debug, Args)]
#[command(visible_alias = "delete", alias = "del")]
#[command(after_help = "Examples:
  troop stop web                       waits until all is served, at most the grace
  troop stop web --quick               at once
  troop stop all")]
pub(crate) struct Stop {
    /// The app's name, or `all`; optional when there is only one
    pub(crate) app: Option<String>,

    /// At once, whatever is being served
    #[arg(long)]
    pub(crate) quick: bool,

    /// Do not wait until it has ended
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Change how a running app's connections are spread
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  troop policy web least-connections
  troop policy web 8000=sticky:cookie=sid")]
pub(crate) struct Policy {
    /// The app's name; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) app: Option<String>,

    /// As for `troop run --policy`
    #[arg(value_name = "[ADDR=]POLICY", value_parser = chosen)]
    pub(crate) policy: Chosen,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Send a message to an app's workers
///
/// A Node worker gets it by `process.on('message')`, a Rust worker by `Worker::next_event`. What is
/// no JSON is sent as text. With --ask, an answer of each worker is waited for: Rust workers answer
/// a `Request`; a Node worker gets `{ troop: 'request', id, body }`, and answers by
/// `process.send({ troop: 'reply', id, body })`.
#[derive(Debug, Args)]
#[command(override_usage = "troop send [OPTIONS] [APP] <MESSAGE>")]
#[command(after_help = "Examples:
  troop send web '{\"flush\": \"users\"}'
  troop send web:3 read-again
  troop send web --ask '\"how are you\"'

Exit codes: 0, or 1 if it could not be sent to all, or not all have answered.")]
pub(crate) struct Send {
    /// The app's name, or one worker of it (`web:3`), optional when there is only one; and the
    /// message: JSON, or text
    #[arg(value_name = "MESSAGE", num_args = 1..=2, required = true)]
    words: Vec<String>,

    /// Wait for the answers
    #[arg(long)]
    pub(crate) ask: bool,

    /// How long to wait for them
    #[arg(long, value_name = "TIME", value_parser = config::time, default_value = "10s", requires = "ask")]
    pub(crate) timeout: Time,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Send {
    /// The app, if it was named, and the message.
    pub(crate) fn words(&self) -> (Option<&str>, &str) {
        match &self.words[..] {
            [app, message] => (Some(app), message),
            words => (None, words.first().map_or("", String::as_str)),
        }
    }
}

/// Send a signal to an app's workers
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  troop signal web USR2                to all workers
  troop signal web:3 KILL              to one; it is replaced")]
pub(crate) struct Signal {
    /// The app's name; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) app: Option<String>,

    /// Its name, with or without SIG, or its number
    #[arg(value_name = "SIGNAL", value_parser = signal)]
    pub(crate) signal: i32,

    /// Only to this one, by its number
    #[arg(long, value_name = "N")]
    pub(crate) worker: Option<u32>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What an app may be called.
pub(crate) const NAME_RULE: &str = "it must consist of up to 64 letters, digits, `.`, `_` and `-`, begin with none of `.-`, and not be `all`";

fn name(text: &str) -> Result<String, String> {
    if place::is_name(text) {
        return Ok(text.into());
    }
    Err(NAME_RULE.into())
}

fn to(text: &str) -> Result<To, String> {
    let to = if text.starts_with(['+', '-']) {
        text.parse().ok().map(To::By)
    } else {
        text.parse().ok().map(To::Workers)
    };
    to.ok_or_else(|| "it must be a number, with or without a sign".into())
}

pub(crate) fn signal(text: &str) -> Result<i32, String> {
    let plain = text.trim_start_matches("SIG");
    let known = |number: &i32| {
        troop::event::signal_name(*number)
            .is_some_and(|name| name.trim_start_matches("SIG") == plain)
    };
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=64).contains(number))
        .or_else(|| (1..=64).find(known));
    number.ok_or_else(|| "there is no such signal".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn what_can_be_typed_makes_sense() {
        super::Troop::command().debug_assert();
    }

    #[test]
    fn every_verb_shows_how_it_is_used() {
        let command = super::Troop::command();
        let without = command.get_subcommands().filter(|verb| {
            verb.get_after_help().is_none_or(|help| !help.to_string().contains("Examples:"))
        });
        let names: Vec<_> = without.map(clap::Command::get_name).collect();
        assert!(names.is_empty(), "{names:?}");
    }
}
