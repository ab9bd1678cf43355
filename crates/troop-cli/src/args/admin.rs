//! Arguments of `troop admin`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;

use crate::config::{self, Time};
use crate::names;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop admin                          on 127.0.0.1:9900
  troop admin 0.0.0.0:9900 --host ops.example.com
  troop admin /run/troop-admin.sock    a Unix socket
  troop admin --verbs reload,scale     and POST /apps/web/reload, POST /apps/web/scale
  troop admin --worker-metrics web     and /metrics has what its workers count
  troop admin --show-token             for the header Authorization: Bearer TOKEN
  troop admin --alert 'mail -s \"$TROOP_ALERT_TEXT\" ops@example.com'
  troop admin --alert ./tell --test-alert
  troop admin --alert-webhook https://hooks.slack.com/services/… --test-alert")]
pub(crate) struct Admin {
    /// The port (of this machine alone), address and port, or path
    #[arg(value_name = "PORT|ADDR|PATH", default_value = "127.0.0.1:9900")]
    pub(crate) address: String,

    /// Name of the app
    #[arg(short, long, value_parser = names::app, default_value = "admin")]
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) options: AdminOptions,

    /// Print the token and start nothing
    #[arg(long)]
    pub(crate) show_token: bool,

    /// Tell of a test by --alert and --alert-webhook, print how it ended, and start nothing
    #[arg(long, requires = "told", conflicts_with = "show_token")]
    pub(crate) test_alert: bool,

    /// Do not wait until the app is ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop run troop serve-admin 127.0.0.1:9900   what troop admin starts, in the foreground")]
pub(crate) struct ServeAdmin {
    /// The address and port, or path
    pub(crate) address: String,

    #[command(flatten)]
    pub(crate) options: AdminOptions,
}

// What is answered, and to whom.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AdminOptions {
    /// Show these apps only [default: all]
    #[arg(long = "app", value_name = "APP,…", value_delimiter = ',', value_parser = names::app)]
    pub(crate) apps: Vec<String>,

    /// Verbs that clients with the token may ask for [default: none]
    #[arg(long, value_name = "VERB,…", value_delimiter = ',')]
    pub(crate) verbs: Vec<AdminVerb>,

    /// Apps whose workers keep metrics of their own, by prom-client: /metrics has their sum [default: none]
    #[arg(long, value_name = "APP,…", value_delimiter = ',', value_parser = names::app)]
    pub(crate) worker_metrics: Vec<String>,

    /// Names by which clients know this machine, besides addresses and localhost
    #[arg(long = "host", value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,

    /// The file with the token; it is made if it is not there [default: admin.token beside the records
    /// of apps]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) alerts: AlertOptions,
}

// Who is told when something is wrong.
#[derive(Debug, Clone, Default, Args)]
#[command(group = ArgGroup::new("told").args(["command", "webhook"]).multiple(true))]
pub(crate) struct AlertOptions {
    /// Shell command to run for each alert, with its JSON on standard input, and with
    /// TROOP_ALERT_TEXT, TROOP_ALERT_APP, TROOP_ALERT_KIND and TROOP_ALERT_STATE
    #[arg(long = "alert", value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) command: Option<String>,

    /// URL to post each alert to, by curl; @FILE: the file that has it, where no list of processes shows it
    #[arg(long = "alert-webhook", value_name = "URL|@FILE", value_parser = webhook)]
    pub(crate) webhook: Option<String>,

    /// What is posted: all of the alert, or its text as Slack, Mattermost and others take it [default: json,
    /// and slack for hooks.slack.com]
    #[arg(long = "alert-form", value_name = "FORM", requires = "webhook")]
    pub(crate) form: Option<AlertForm>,

    /// What is an alert [default: down,degraded,crash-loop,reload-failed]
    #[arg(
        long = "alert-on",
        value_name = "KIND,…",
        value_delimiter = ',',
        hide_possible_values = true,
        requires = "told"
    )]
    pub(crate) kinds: Vec<AlertKind>,

    /// Time for which an app must be down or degraded before it is an alert [default: 10s]
    #[arg(
        long = "alert-after",
        value_name = "TIME",
        value_parser = config::time,
        requires = "told"
    )]
    pub(crate) after: Option<Time>,
}

/// What is posted of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AlertForm {
    Json,
    Slack,
}

/// Checks a URL, or the name of a file with one.
fn webhook(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err("it has control characters".into());
    }
    match text.strip_prefix('@') {
        // The worker runs in another directory.
        Some(file) => match std::path::absolute(file) {
            Ok(path) => Ok(format!("@{}", path.display())),
            Err(e) => Err(e.to_string()),
        },
        None if ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) => {
            Ok(text.to_owned())
        }
        None => {
            Err("it must begin with http:// or https://, or with @ before a file's name".into())
        }
    }
}

/// A kind of alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AlertKind {
    /// An app has crashed, was given up, or does not answer
    Down,
    /// An app has fewer ready workers than it should have, or clients cannot reach an address
    Degraded,
    /// Workers keep ending unexpectedly
    CrashLoop,
    ReloadFailed,
    /// A worker failed its health check
    Unhealthy,
    /// A worker does not take its connections
    Hung,
    /// A worker ended by itself with a failure, or was killed by somebody else
    Died,
    /// Lines of output could not be written
    LogLost,
}

impl AlertKind {
    /// Those that are told unless others are asked for.
    const USUAL: [AlertKind; 4] =
        [AlertKind::Down, AlertKind::Degraded, AlertKind::CrashLoop, AlertKind::ReloadFailed];

    /// Returns what has happened, in words.
    pub(crate) fn happening(self) -> &'static str {
        match self {
            AlertKind::Down => "it is down",
            AlertKind::Degraded => "it is degraded",
            AlertKind::CrashLoop => "workers keep ending",
            AlertKind::ReloadFailed => "a reload failed",
            AlertKind::Unhealthy => "a worker failed its health check",
            AlertKind::Hung => "a worker does not take its connections",
            AlertKind::Died => "a worker died",
            AlertKind::LogLost => "lines of output were lost",
        }
    }
}

impl fmt::Display for AlertKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AlertKind::Down => "down",
            AlertKind::Degraded => "degraded",
            AlertKind::CrashLoop => "crash-loop",
            AlertKind::ReloadFailed => "reload-failed",
            AlertKind::Unhealthy => "unhealthy",
            AlertKind::Hung => "hung",
            AlertKind::Died => "died",
            AlertKind::LogLost => "log-lost",
        })
    }
}

impl AlertOptions {
    /// Returns what is an alert.
    pub(crate) fn wanted(&self) -> Vec<AlertKind> {
        if self.kinds.is_empty() { AlertKind::USUAL.to_vec() } else { self.kinds.clone() }
    }

    /// Returns the time for which a state must last.
    pub(crate) fn after(&self) -> Duration {
        self.after.map_or(Duration::from_secs(10), |after| after.0)
    }

    /// Returns them as arguments of `troop serve-admin`.
    fn args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        if let Some(command) = &self.command {
            args.push(format!("--alert={command}").into());
        }
        if let Some(webhook) = &self.webhook {
            args.push(format!("--alert-webhook={webhook}").into());
        }
        if let Some(form) = self.form {
            let form = if form == AlertForm::Slack { "slack" } else { "json" };
            args.push(format!("--alert-form={form}").into());
        }
        if !self.kinds.is_empty() {
            let kinds: Vec<_> = self.kinds.iter().map(ToString::to_string).collect();
            args.push(format!("--alert-on={}", kinds.join(",")).into());
        }
        if let Some(after) = self.after {
            args.push(format!("--alert-after={}ms", after.0.as_millis()).into());
        }
        args
    }
}

/// A verb that clients may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdminVerb {
    Reload,
    Restart,
    Scale,
    Start,
    Stop,
}

impl fmt::Display for AdminVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AdminVerb::Reload => "reload",
            AdminVerb::Restart => "restart",
            AdminVerb::Scale => "scale",
            AdminVerb::Start => "start",
            AdminVerb::Stop => "stop",
        })
    }
}

impl Admin {
    /// Returns the address on which the worker listens: a port alone is one of this machine alone.
    pub(crate) fn listens_on(&self) -> String {
        match self.address.parse::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => self.address.clone(),
        }
    }

    /// Returns the arguments of the `troop start` that runs the worker with this program.
    pub(crate) fn as_start(&self, program: PathBuf) -> Vec<OsString> {
        let mut args: Vec<OsString> =
            ["start", "--name", &self.name, "--workers", "1"].map(Into::into).into();
        args.extend(self.json.then(|| "--json".into()));
        args.extend(self.no_wait.then(|| "--no-wait".into()));
        args.extend([program.into_os_string(), "--".into(), "serve-admin".into()]);
        args.extend(self.options.args());
        args.push(self.listens_on().into());
        args
    }
}

impl AdminOptions {
    /// Returns them as arguments of `troop serve-admin`.
    fn args(&self) -> Vec<OsString> {
        let verbs: Vec<_> = self.verbs.iter().map(ToString::to_string).collect();
        let lists = [
            ("--app", &self.apps),
            ("--verbs", &verbs),
            ("--worker-metrics", &self.worker_metrics),
            ("--host", &self.hosts),
        ];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let mut args: Vec<OsString> =
            lists.map(|(name, list)| format!("{name}={}", list.join(",")).into()).collect();
        if let Some(file) = &self.token_file {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            args.extend(["--token-file".into(), file.into_os_string()]);
        }
        args.extend(self.alerts.args());
        args
    }
}
