//! The command line: verbs, options and their help.

mod admin;
mod deferred;
mod lifecycle;
mod pm2;
mod pm2_verbs;
mod run;
mod start;
mod top;
pub(crate) mod typed;
mod verbs;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

use crate::config::{self, Time};
use crate::names;
pub(crate) use admin::{Admin, AdminVerb, AlertForm, AlertKind, AlertOptions, ServeAdmin};
pub(crate) use deferred::Deferred;
pub(crate) use lifecycle::{
    Delete, OfFile, Reload, Restart, Resurrect, Save, Stop, Upgrade, Wait, WaitFor,
};
pub(crate) use pm2_verbs::{
    Attach, EnvOf, Flush, Jlist, Kill, Pages, Pid, Ping, Prettylist, Reset, SendSignal, Serve,
    ServeFiles,
};
use run::chosen;
pub(crate) use run::{Chosen, Env, Foreground, LogOption, Run};
pub(crate) use start::Start;
pub(crate) use top::Top;
pub(crate) use verbs::Command;

/// One port, many processes, any language.
#[derive(Debug, Parser)]
#[command(name = "troop", version, about, max_term_width = 100, disable_version_flag = true)]
pub(crate) struct Troop {
    /// Print the version
    #[arg(short = 'V', visible_short_alias = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop run -b 8000 -- sh -c '. ./env.sh && troop exec-activated -- gunicorn app:app'
  troop start -b 8000 npm -- start     with \"start\": \"troop exec-activated -- node server.js\"")]
pub(crate) struct ExecActivated {
    /// The program, searched for in PATH, and its arguments
    #[arg(
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    pub(crate) program: Vec<OsString>,
}

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
    /// The directory to write to
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop check                          the troop.toml in this directory, or else a PM2 file or Procfile
  troop check ecosystem.config.js      which options of a PM2 file are used
  troop check --schema                 the JSON Schema of troop.toml, for editors")]
pub(crate) struct Check {
    /// The file: a troop.toml, PM2's ecosystem.config.js|cjs|json|yml, or a Procfile. A .js file is
    /// executed by node [default: the one that `start` takes]
    pub(crate) file: Option<PathBuf>,

    /// The file, as for other verbs
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub(crate) config: Option<PathBuf>,

    /// Print the JSON Schema of troop.toml instead
    #[arg(long)]
    pub(crate) schema: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop init                           for the program found in this directory
  troop init server.js
  troop init --from ecosystem.config.js
  troop init --from Procfile")]
pub(crate) struct Init {
    /// The program to run [default: the one found in this directory]
    #[arg(conflicts_with = "from")]
    pub(crate) program: Option<String>,

    /// Convert this file: PM2's ecosystem.config.js|cjs|json|yml, or a Procfile
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,

    /// Write to this file; `-` is standard output
    #[arg(short, long, default_value = crate::config::DEFAULT_FILE)]
    pub(crate) output: PathBuf,

    /// Overwrite an existing file
    #[arg(long)]
    pub(crate) force: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop startup                        all apps of troop.toml; system units for root, else user units
  troop startup && troop save          without troop.toml: the apps that `troop start` has started
  troop startup --hardened             with few privileges: systemd-analyze security troop-web
  troop startup web --print            print the unit")]
pub(crate) struct Startup {
    /// The app [default: all apps of the file]
    pub(crate) app: Option<String>,

    /// Read apps from this file [default: troop.toml, if there is one]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Use the environment of this name in a PM2 file
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<String>,

    /// The directory to write to [default: /etc/systemd/system for root, else
    /// ~/.config/systemd/user]
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Take from the units what the apps do not need: privileges, system calls, files of others
    #[arg(long)]
    pub(crate) hardened: bool,

    /// Print the units instead of writing them
    #[arg(long)]
    pub(crate) print: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop unstartup                      of all apps of troop.toml; without one, of saved apps
  troop unstartup web")]
pub(crate) struct Unstartup {
    /// The app [default: all apps of the file]
    pub(crate) app: Option<String>,

    /// The file whose apps are meant [default: troop.toml, if there is one]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The directory to remove them from [default: /etc/systemd/system for root, else
    /// ~/.config/systemd/user]
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop logs                           all apps, and new lines as they are written
  troop logs web --nostream            the last lines
  troop logs web --lines 100 --err     the last 100 lines of standard error")]
pub(crate) struct Logs {
    /// The app's name, number, `/pattern/`, namespace or file [default: all apps]
    pub(crate) app: Option<String>,

    /// Print new lines as they are written, which is the default for apps that run
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Print only the lines that there are
    #[arg(long, visible_alias = "no-stream", conflicts_with = "follow")]
    pub(crate) nostream: bool,

    /// Number of lines to show
    #[arg(short = 'n', long, default_value_t = 15)]
    pub(crate) lines: usize,

    /// Show only standard error
    #[arg(long)]
    pub(crate) err: bool,

    /// Show only standard output
    #[arg(long)]
    pub(crate) out: bool,

    /// Show only the worker in this slot
    #[arg(long, value_name = "N")]
    pub(crate) slot: Option<u32>,

    /// Print only what the program wrote, as it is: no times, slots and events, and on a terminal
    /// with all escape sequences [default there: only colours]
    #[arg(long)]
    pub(crate) raw: bool,

    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

// Arguments of the verbs that show apps.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The app's name [default: all apps]
    pub(crate) app: Option<String>,

    /// Print nothing, and tell by the exit code whether all workers are ready
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Show the CPU that apps use, in percent of one CPU: look twice, with this time in between
    /// [default: 500ms]
    #[arg(
        long,
        value_name = "TIME",
        value_parser = config::time,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "500ms",
        conflicts_with = "quiet"
    )]
    pub(crate) cpu: Option<Time>,
}

// Arguments of `troop ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) show: Show,

    /// Print the list again and again, until Ctrl-C: on a terminal in place of the one before; with
    /// --json one line each time. Has CPU% since the list before
    #[arg(
        short,
        long,
        value_name = "TIME",
        value_parser = config::time,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1s",
        conflicts_with = "quiet"
    )]
    pub(crate) watch: Option<Time>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop events web                     until the app ends
  troop events web --json | jq         one line of JSON per event")]
pub(crate) struct Events {
    /// The app's name; optional when there is only one
    pub(crate) app: Option<String>,

    /// Print one JSON object per line, as `troop run --log json` does
    #[arg(long)]
    pub(crate) json: bool,

    /// Accepted because other tools need it; events are always followed
    #[arg(short, long, hide = true)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true, allow_negative_numbers = true)]
#[command(after_help = "Examples:
  troop scale 8                        the only app gets 8 workers
  troop scale web +2                   two more
  troop scale web -1                   one less; it drains first
  troop scale web 0                    none; its listeners stay open, and clients wait

Exit codes: 0 when as many workers are ready, 1 if not, 3 if there is no such app.")]
pub(crate) struct Scale {
    /// The app's name; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) app: Option<String>,

    /// Number of workers; with a sign, how many more or fewer
    #[arg(value_name = "N|+N|-N", value_parser = to)]
    pub(crate) to: To,

    /// Do not wait for the workers
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum To {
    Workers(usize),
    By(i64),
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  troop policy least-connections            the only app, all listeners
  troop policy web least-connections        the app web, all listeners
  troop policy web 8000=sticky:cookie=sid   the app web, its listeners on port 8000")]
pub(crate) struct Policy {
    /// The app's name; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) app: Option<String>,

    /// The policy, as for `troop run --policy`
    #[arg(value_name = "[ADDR=]POLICY", value_parser = chosen)]
    pub(crate) policy: Chosen,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "troop send [OPTIONS] [APP] <MESSAGE>")]
#[command(after_help = "Examples:
  troop send web '{\"flush\": \"users\"}'
  troop send web:3 read-again
  troop send web --ask '\"how are you\"'

Exit codes: 0, or 1 if a worker could not be reached or has not replied.")]
pub(crate) struct Send {
    /// The app or one worker of it (`web:3`), optional when there is only one app; then the message:
    /// JSON or text
    #[arg(value_name = "MESSAGE", num_args = 1..=2, required = true)]
    words: Vec<String>,

    /// Wait for replies and print them
    #[arg(long)]
    pub(crate) ask: bool,

    /// Time to wait for replies
    #[arg(long, value_name = "TIME", value_parser = config::time, default_value = "10s", requires = "ask")]
    pub(crate) timeout: Time,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Send {
    /// Returns the app, if it was named, and the message.
    pub(crate) fn words(&self) -> (Option<&str>, &str) {
        match &self.words[..] {
            [app, message] => (Some(app), message),
            words => (None, words.first().map_or("", String::as_str)),
        }
    }
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  troop signal web USR2                to all workers
  troop signal web:3 KILL              to one worker, which is then replaced")]
pub(crate) struct Signal {
    /// The app's name; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) app: Option<String>,

    /// Name of the signal, with or without SIG, or its number
    #[arg(value_name = "SIGNAL", value_parser = names::signal)]
    pub(crate) signal: i32,

    /// Send it only to the worker of this number
    #[arg(long, value_name = "N")]
    pub(crate) worker: Option<u32>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl From<SendSignal> for Signal {
    fn from(typed: SendSignal) -> Signal {
        Signal { app: typed.app, signal: typed.signal, worker: None, json: false }
    }
}

fn to(text: &str) -> Result<To, String> {
    let to = if text.starts_with(['+', '-']) {
        text.parse().ok().map(To::By)
    } else {
        text.parse().ok().map(To::Workers)
    };
    to.ok_or_else(|| "it must be a number, with or without a sign".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Troop::command().debug_assert();
    }

    #[test]
    fn options_are_built_only_for_the_verb_that_was_typed() {
        for verb in super::Troop::command().get_subcommands() {
            assert_eq!(verb.get_arguments().count(), 0, "{}", verb.get_name());
        }
    }

    #[test]
    fn verbs_say_the_same_of_themselves_as_the_list_of_verbs_does() {
        let listed = super::Troop::command();
        let mut built = super::Troop::command();
        built.build();
        for verb in listed.get_subcommands() {
            let name = verb.get_name();
            let own = built.find_subcommand(name).unwrap();
            assert_eq!(own.get_about().unwrap().to_string(), verb.get_about().unwrap().to_string());
            assert_eq!(
                own.get_long_about().map(ToString::to_string),
                verb.get_long_about().map(ToString::to_string),
                "{name}"
            );
        }
    }

    #[test]
    fn every_verb_shows_how_it_is_used() {
        let mut command = super::Troop::command().disable_help_subcommand(true);
        command.build();
        let without = command.get_subcommands().filter(|verb| {
            verb.get_after_help().is_none_or(|help| !help.to_string().contains("Examples:"))
        });
        let names: Vec<_> = without.map(clap::Command::get_name).collect();
        assert!(names.is_empty(), "{names:?}");
    }
}
