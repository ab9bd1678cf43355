//! `troop start`.

use std::ffi::OsString;

use clap::{Args, Parser as _};

use super::{Command, Deferred, OfFile, Run, Troop};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop start server.js -i max --name web
  troop start server.js -- --port 8000   the program's own arguments follow `--`
  troop start                          all apps of the troop.toml in this directory
  troop start ecosystem.config.js --env production --only api
  troop start web                      the app web of that file, or one that was stopped
  troop start \"npm run dev\"            a whole command
  troop start api.js jobs.js           several programs
  troop start .                        the main file, or `npm start`, of the package.json here")]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) run: Run,

    /// More programs or files; after a file with several apps, names of some
    pub(crate) more: Vec<OsString>,

    /// The program's arguments; after a file with several apps, names of some
    #[arg(last = true)]
    pub(crate) args: Vec<OsString>,

    /// Do not wait until the app is ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Run the app in the foreground, as `troop run` does
    #[arg(long, visible_alias = "no-daemonize")]
    pub(crate) no_daemon: bool,

    /// Accepted because `run` has it: the others go on here
    #[arg(long, hide = true)]
    pub(crate) keep_going: bool,

    /// Follow the output when the app is ready
    #[arg(long, conflicts_with_all = ["no_wait", "no_daemon"])]
    pub(crate) attach: bool,

    /// Start an app that was stopped with the environment of this shell
    #[arg(short = 'a', long)]
    pub(crate) update_env: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// The arguments that mean the same, if those of this process do not.
    #[arg(skip)]
    pub(crate) typed: Option<Vec<OsString>>,
}

impl Start {
    /// Returns the command line that starts these apps of a file.
    pub(crate) fn of_file(
        file: &str,
        apps: &[String],
        chosen: &OfFile,
        json: bool,
    ) -> Result<Start, clap::Error> {
        let mut typed: Vec<OsString> = ["start", "--config", file].map(OsString::from).into();
        if let Some(name) = &chosen.env {
            typed.extend(["--env".into(), name.into()]);
        }
        typed.extend(json.then(|| "--json".into()));
        typed.extend(["--only".into(), apps.join(",").into()]);
        Start::parsed(typed)
    }

    /// Parses a command line that this process was not called with.
    pub(crate) fn parsed(typed: Vec<OsString>) -> Result<Start, clap::Error> {
        let all = std::iter::once("troop".into()).chain(typed.iter().cloned());
        match Troop::try_parse_from(all)?.command {
            Command::Start(Deferred(mut start)) => {
                start.run.args = std::mem::take(&mut start.args);
                Ok(Start { typed: Some(typed), ..start })
            }
            _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
        }
    }
}
