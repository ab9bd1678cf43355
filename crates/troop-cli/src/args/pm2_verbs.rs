//! Arguments of verbs that are there because PM2 has them.

use clap::Args;

use crate::names;

/// Print all workers as PM2's `jlist` does
///
/// One object per worker, or per app that does not run: `name`, `pid`, `pm_id` (the app's number),
/// `monit` (`cpu` in percent since the worker's start, `memory`) and `pm2_env` with `status`,
/// `restart_time`, `pm_uptime`. `troop ls --json` has more.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop jlist | jq -r '.[] | select(.pm2_env.status != \"online\") | .name'")]
pub(crate) struct Jlist {}

/// Print the same on several lines
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop prettylist")]
pub(crate) struct Prettylist {}

/// Print the process numbers of workers
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop pid web                        one line per worker
  troop pid                            of all apps")]
pub(crate) struct Pid {
    /// The app [default: all apps]
    pub(crate) app: Option<String>,
}

/// Print the environment of an app's workers, with secrets masked
///
/// Values of variables whose name says that they are secret, and passwords in URLs, are masked.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop env web")]
pub(crate) struct EnvOf {
    /// The app; optional when there is only one
    pub(crate) app: Option<String>,
}

/// Empty the log files of apps
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop flush web
  troop flush                          of all apps")]
pub(crate) struct Flush {
    /// The apps [default: all apps]
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,
}

/// Set the number of restarts of apps to 0
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop reset web
  troop reset all")]
pub(crate) struct Reset {
    /// The apps; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,
}

/// Print `pong`: there is no daemon that could fail to
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop ping")]
pub(crate) struct Ping {}

/// Stop all apps
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop kill                           the same as troop stop all")]
pub(crate) struct Kill {}

/// Send a signal to an app's workers: `troop signal` with its arguments the other way round
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop sendSignal SIGUSR2 web")]
pub(crate) struct SendSignal {
    /// Name of the signal, with or without SIG, or its number
    #[arg(value_parser = names::signal)]
    pub(crate) signal: i32,

    /// The app, or one worker of it (`web:3`); optional when there is only one
    pub(crate) app: Option<String>,
}

/// Follow the output of an app
///
/// Input is not passed on, because workers read from /dev/null.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop attach web")]
pub(crate) struct Attach {
    /// The app; optional when there is only one
    pub(crate) app: Option<String>,
}
