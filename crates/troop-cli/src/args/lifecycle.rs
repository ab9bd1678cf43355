//! Arguments of the verbs that stop, start and replace apps that are known.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::{self, Time};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop stop web                       drain, at most for the grace period
  troop stop web --quick               kill the workers
  troop stop web jobs 3                several, by name or by the number in `troop ls`
  troop stop all")]
pub(crate) struct Stop {
    /// The apps: names, numbers, `/patterns/`, namespaces, files, or `all`; optional when there is
    /// only one
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,

    /// Of a file with several apps, only these; may be repeated
    #[arg(long, value_name = "APP,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// Kill the workers instead of draining them
    #[arg(long)]
    pub(crate) quick: bool,

    /// Do not wait until the app has ended
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop delete web                     also one that is stopped
  troop delete all --quick             kill the workers")]
pub(crate) struct Delete {
    #[command(flatten)]
    pub(crate) stop: Stop,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop restart web                    apply all changes of its configuration
  troop restart web jobs 3             several, by name or by the number in `troop ls`
  troop restart ecosystem.config.js    its apps; those that do not run are started
  troop restart all                    those that were stopped too")]
pub(crate) struct Restart {
    /// The apps: names, numbers, `/patterns/`, namespaces, files, or `all`; optional when there is
    /// only one
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,

    /// Take the environment of this shell instead of that of the first start
    #[arg(short = 'a', long)]
    pub(crate) update_env: bool,

    #[command(flatten)]
    pub(crate) of_file: OfFile,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop reload web                     all workers
  troop reload ecosystem.config.js     its apps; those that do not run are started
  troop reload web:3                   one worker
  troop reload web --allow-moved       the new workers may listen elsewhere

Exit codes: 0 when all workers were replaced, 1 if not, 2 for an invalid configuration, 3 if there is no such app.")]
pub(crate) struct Reload {
    /// The apps: names, numbers, `/patterns/`, namespaces, files, or `all`; or one worker
    /// (`web:3`); optional when there is only one app
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,

    /// Let the new workers listen on other addresses; an address without a worker is closed
    #[arg(long)]
    pub(crate) allow_moved: bool,

    /// Start the new workers with the environment of this shell instead of that of the first start
    #[arg(long)]
    pub(crate) update_env: bool,

    #[command(flatten)]
    pub(crate) of_file: OfFile,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo install --locked --path crates/troop-cli && troop upgrade all
  troop upgrade web --path /opt/troop-0.2/troop
  troop upgrade web --keeper

Exit codes: 0 when the app was upgraded, 1 if not, 3 if there is no such app.")]
pub(crate) struct Upgrade {
    /// The apps: names, numbers, `/patterns/`, namespaces, or `all`; optional when there is only one app
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,

    /// The program to go on with [default: the file that the app was started from]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) path: Option<PathBuf>,

    /// Upgrade the keeper, the small process that keeps the one which does the work, and nothing else
    #[arg(long)]
    pub(crate) keeper: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

// Options of verbs that can be given a file with apps.
#[derive(Debug, Clone, Args)]
pub(crate) struct OfFile {
    /// Of a file with several apps, only these; may be repeated
    #[arg(long, value_name = "APP,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// Use the environment of this name in a PM2 file for apps that are started
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop save
  troop save --force                   also if no app runs")]
pub(crate) struct Save {
    /// Save an empty list if no app runs
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop resurrect                      at boot, by the unit of `troop startup`")]
pub(crate) struct Resurrect {
    /// Do not wait until the apps are ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop wait web                       until all of its workers are ready
  troop wait web jobs --timeout 1m
  troop wait web --for stopped && rm -r /srv/web

Exit codes: 0 when the apps are in that state, 1 if an app cannot get there, also because it has failed, 3 if there is no such app or, with --for ready, it was stopped or has finished, 4 when the timeout has passed.")]
pub(crate) struct Wait {
    /// The apps: names, numbers, `/patterns/`, namespaces, files, or `all` that run; optional when
    /// there is only one
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,

    /// The state to wait for
    #[arg(long = "for", value_enum, value_name = "STATE", default_value = "ready")]
    pub(crate) state: WaitFor,

    /// Time to wait at most [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = config::time)]
    pub(crate) timeout: Option<Time>,

    /// Print nothing
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The states that `troop wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitFor {
    /// As many workers are ready as there should be
    Ready,
    /// The app does not run
    Stopped,
}
