//! Arguments of verbs that are there because PM2 has them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::config::{self, Workers};
use crate::names;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop jlist | jq -r '.[] | select(.pm2_env.status != \"online\") | .name'")]
pub(crate) struct Jlist {}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop prettylist")]
pub(crate) struct Prettylist {}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop pid web                        one line per worker
  troop pid                            of all apps")]
pub(crate) struct Pid {
    /// The app [default: all apps]
    pub(crate) app: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop env web")]
pub(crate) struct EnvOf {
    /// The app; optional when there is only one
    pub(crate) app: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop flush web
  troop flush                          of all apps")]
pub(crate) struct Flush {
    /// The apps [default: all apps]
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop reset web
  troop reset all")]
pub(crate) struct Reset {
    /// The apps; optional when there is only one
    #[arg(value_name = "APP")]
    pub(crate) apps: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop ping")]
pub(crate) struct Ping {}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop kill                           the same as troop stop all")]
pub(crate) struct Kill {}

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

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop attach web                     input is for its only worker
  troop attach web:3                   for worker 3, as `troop show` numbers them
  troop attach web ';'                 lines end with this instead of a newline
  echo reload-rules | troop attach web")]
pub(crate) struct Attach {
    /// The app, or one worker of it (`web:3`); optional when there is only one
    pub(crate) app: Option<String>,

    /// What ends each line for the worker [default: a newline]
    pub(crate) separator: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop serve dist                     on port 8080
  troop serve dist 80 --spa            index.html for each page that there is not
  troop serve dist 127.0.0.1:8000 -n docs
  PM2_SERVE_BASIC_AUTH_USERNAME=me PM2_SERVE_BASIC_AUTH_PASSWORD=secret troop serve dist --basic-auth")]
pub(crate) struct Serve {
    /// The directory
    #[arg(default_value = ".")]
    pub(crate) directory: PathBuf,

    /// The port, or address and port
    #[arg(value_name = "PORT|ADDR", default_value = "8080")]
    pub(crate) address: String,

    /// Name of the app [default: static-page-server-PORT]
    #[arg(short, long, value_parser = names::app)]
    pub(crate) name: Option<String>,

    /// Number of workers, or `auto` for one per usable CPU [default: 1]
    #[arg(short, long, value_name = "N|auto", value_parser = config::workers)]
    pub(crate) workers: Option<Workers>,

    #[command(flatten)]
    pub(crate) pages: Pages,

    /// Refused: everyone who lists processes would read it
    #[arg(long, hide = true, value_name = "TEXT", value_parser = not_typed, visible_alias = "basic-auth-password")]
    pub(crate) basic_auth_username: Option<String>,

    /// Do not wait until the app is ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop run -w 4 troop serve-files dist 8080   what troop serve starts, in the foreground")]
pub(crate) struct ServeFiles {
    /// The directory
    pub(crate) directory: PathBuf,

    /// The port, or address and port
    pub(crate) address: String,

    #[command(flatten)]
    pub(crate) pages: Pages,
}

// What is answered, and to whom.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Pages {
    /// Answer requests for missing files with the homepage, for a single-page app
    #[arg(long)]
    pub(crate) spa: bool,

    /// The file that is sent for `/` [default: index.html]
    #[arg(long, value_name = "FILE")]
    pub(crate) homepage: Option<String>,

    /// Ask for the user name and password that the variables PM2_SERVE_BASIC_AUTH_USERNAME and
    /// PM2_SERVE_BASIC_AUTH_PASSWORD have
    #[arg(long)]
    pub(crate) basic_auth: bool,
}

impl Pages {
    /// Returns them as arguments of `troop serve-files`.
    pub(crate) fn args(&self) -> impl Iterator<Item = String> {
        let homepage = self.homepage.iter().map(|page| format!("--homepage={page}"));
        let flags = [(self.spa, "--spa"), (self.basic_auth, "--basic-auth")];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
        flags.map(|(_, flag)| flag.to_owned()).chain(homepage)
    }
}

fn not_typed(_: &str) -> Result<String, String> {
    Err("everyone who lists processes would read it: set PM2_SERVE_BASIC_AUTH_USERNAME and PM2_SERVE_BASIC_AUTH_PASSWORD in the environment, and type --basic-auth".into())
}

impl Serve {
    /// Returns the arguments of the `troop start` that serves the directory with this program.
    pub(crate) fn as_start(&self, program: PathBuf, directory: PathBuf) -> Vec<OsString> {
        let port = self.address.rsplit(':').next().unwrap_or_default();
        let name = self.name.clone().unwrap_or_else(|| format!("static-page-server-{port}"));
        let workers = self.workers.unwrap_or(Workers::Number(1)).to_string();
        let mut args: Vec<OsString> =
            ["start", "--name", &name, "--workers", &workers].map(Into::into).into();
        args.extend(self.json.then(|| "--json".into()));
        args.extend(self.no_wait.then(|| "--no-wait".into()));
        args.extend([program.into_os_string(), "--".into(), "serve-files".into()]);
        args.extend(self.pages.args().map(OsString::from));
        args.extend([directory.into_os_string(), self.address.clone().into()]);
        args
    }
}
