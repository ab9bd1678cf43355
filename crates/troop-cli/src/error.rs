//! The errors of the program: of `run` ([`RunError`]) and of the other verbs ([`CliError`]).

use std::io;

use troop::Error;

use crate::control::protocol::Failure;

/// Why a verb has failed.
#[derive(Debug)]
pub(crate) enum CliError {
    /// There is no such app.
    NoApp(String),
    /// The command line or a file is invalid.
    Usage(String),
    /// The app has rejected the request, or could not carry it out.
    Failed(Failure),
    /// The app does not answer.
    Io(String, io::Error),
    /// It is not in the state that was asked for.
    NotReady(String),
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CliError::NoApp(text) | CliError::Usage(text) | CliError::NotReady(text) => {
                f.write_str(text)
            }
            CliError::Failed(failure) => f.write_str(&failure.message),
            CliError::Io(doing, e) => write!(f, "{doing}: {e}"),
        }
    }
}

/// Exit code for an app that does not run.
const NO_APP: u8 = 3;
/// Exit code for an app that is not in the state that was asked for.
const NOT_READY: u8 = 4;

impl CliError {
    /// Returns the exit code of a verb that has failed.
    pub(crate) fn code(&self) -> u8 {
        match self {
            CliError::NoApp(_) => NO_APP,
            CliError::NotReady(_) => NOT_READY,
            // As clap does for invalid arguments.
            CliError::Usage(_) => 2,
            CliError::Failed(failure) if failure.kind == "bad-request" => 2,
            CliError::Failed(_) | CliError::Io(..) => 1,
        }
    }

    /// The same error with the name of the app that it is about.
    pub(crate) fn of_app(self, name: &str) -> CliError {
        let named = |text: String| match text.starts_with(name) {
            true => text,
            false => format!("{name}: {text}"),
        };
        match self {
            CliError::NoApp(text) => CliError::NoApp(named(text)),
            CliError::Usage(text) => CliError::Usage(named(text)),
            CliError::NotReady(text) => CliError::NotReady(named(text)),
            CliError::Failed(failure) => {
                CliError::Failed(Failure { message: named(failure.message), ..failure })
            }
            CliError::Io(doing, e) => CliError::Io(named(doing), e),
        }
    }
}

/// Why an app did not start or has ended.
#[derive(Debug)]
pub(crate) enum RunError {
    /// The command line or the configuration file is invalid.
    Usage(String),
    /// Another app of this name is running.
    Taken(String),
    Failed(Error),
    /// All workers have ended and are not restarted, one of them with this exit code.
    Ended(u8, Error),
    /// This engine cannot go on with the app, and the other one says why.
    Refused,
}

impl From<Error> for RunError {
    fn from(e: Error) -> RunError {
        RunError::Failed(e)
    }
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunError::Usage(text) => f.write_str(text),
            RunError::Taken(name) => {
                write!(
                    f,
                    "an app {name:?} runs already: `troop reload {name}` replaces its workers; another --name starts a second one"
                )
            }
            RunError::Refused => f.write_str("the former engine goes on"),
            RunError::Failed(e) | RunError::Ended(_, e) => f.write_str(&e.chain()),
        }
    }
}
