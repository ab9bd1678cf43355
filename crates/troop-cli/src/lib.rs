//! The program `troop`, which runs any program as a cluster. It is a library only for the fuzz
//! targets, and has no stable API.

mod admin;
mod app;
mod apps;
mod args;
mod build;
mod command;
mod config;
mod control;
mod default_file;
mod directory;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod in_use;
mod kept;
mod launcher;
mod libraries;
mod log;
mod logs;
mod moves;
mod names;
mod notify;
mod pid_files;
mod preflight;
mod primary_part;
mod print;
mod program;
mod records;
mod resolve;
mod restart;
mod run;
mod signals;
mod socket_access;
mod start;
mod suggest;
mod together;
mod verbs;
mod watch;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser};
use troop::keeper::Place;

use args::{Command, Deferred};
use error::{CliError, RunError};
use verbs::{
    attach, check, elsewhere, exec_activated, init, lifecycle, list, man, operate, pm2, probe,
    save, send, show, startup, top, wait,
};

/// Parses the command line, runs the verb and returns the exit code.
pub fn main() -> ExitCode {
    // Before anything else: a keeper needs nothing of all this.
    match troop::keeper::enter() {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(e) => {
            log::line(&format!("troop: cannot start (--no-keeper does without): {e}"));
            return ExitCode::FAILURE;
        }
    }
    // In a primary the driver's thread allocates, and in verbs hardly anything does.
    troop::program::own_code::use_one_arena();
    let typed = args::typed::arranged(std::env::args_os().collect(), start::is_command);
    let args::Troop { command, .. } = args::Troop::try_parse_from(typed).unwrap_or_else(|mut e| {
        match elsewhere::answer(&mut e) {
            Some(answer) => log::line(&format!("troop: {answer}")),
            None => drop(e.print()),
        }
        let is_start = std::env::args().nth(1).is_some_and(|verb| verb == "start");
        if e.kind() == ErrorKind::UnknownArgument && is_start {
            let shown = match e.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(arg)) => arg,
                _ => "--option",
            };
            log::line(&format!(
                "tip: the program's own arguments stand behind `--`: troop start PROGRAM -- {shown}"
            ));
        }
        std::process::exit(e.exit_code())
    });
    let is_quiet = match &command {
        Command::Ls(args) => args.show.quiet,
        Command::Show(args) => args.quiet,
        Command::Wait(args) => args.quiet,
        _ => false,
    };
    if !matches!(command, Command::Run(_)) && std::env::var_os(start::VARIABLE).is_none() {
        config::execute_once();
    }
    let result = match command {
        Command::Run(Deferred(mut args)) => {
            if let Some(text) = args.refused() {
                log::line(&format!("troop: {text}"));
                return ExitCode::from(2);
            }
            let more = start::words_of_run(&mut args.run, args.args);
            return foreground(args.run, &more, args.keep_going);
        }
        // The primary that `troop start` has spawned in the background.
        Command::Start(Deferred(mut args)) if std::env::var_os(start::VARIABLE).is_some() => {
            // How it was called the first time does not say who waits now.
            let is_resumed = std::env::var_os(start::RESUMED_VARIABLE).is_some();
            args.run.unawaited = args.no_wait && !is_resumed;
            start::words_of_start(&mut args);
            args.run.args = std::mem::take(&mut args.args);
            let choice = start::chosen();
            start::choose(&mut args.run, &args.more, &choice);
            return run(args.run, &choice, Place::Background);
        }
        Command::Start(Deferred(mut args)) => {
            start::words_of_start(&mut args);
            args.run.args = std::mem::take(&mut args.args);
            if args.no_daemon {
                return foreground(args.run, &args.more, false);
            }
            match start::known(&args) {
                Ok(Some(words)) => lifecycle::start_known(&words, &args),
                Ok(None) => start::start(&args),
                Err(e) => Err(e),
            }
        }
        Command::ExecActivated(args) => Err(exec_activated::exec(&args)),
        Command::Completions(args) => {
            // clap panics on a closed standard output, so the script is generated in memory.
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut args::Troop::command(), "troop", &mut script);
            let _ = std::io::stdout().write_all(&script);
            Ok(())
        }
        Command::Man(args) => man::man(&args.directory),
        Command::Check(args) => check::check(&args).map_err(CliError::Usage),
        Command::Init(args) => init::init(&args).map_err(CliError::Usage),
        Command::Startup(args) => startup::startup(&args).map_err(CliError::Usage),
        Command::Unstartup(args) => startup::unstartup(&args).map_err(CliError::Usage),
        Command::Logs(args) => logs::show::logs(&args),
        Command::Restart(args) => lifecycle::restart_apps(&args),
        Command::Ls(args) if args.show.quiet => probe::probe(&args.show),
        Command::Show(args) if args.quiet => probe::probe(&args),
        Command::Ls(args) => list::ls(&args),
        Command::Show(args) => show::show(&args),
        Command::Top(args) => top::top(&args),
        Command::Wait(args) => wait::wait(&args),
        Command::Events(args) => show::events(&args),
        Command::Upgrade(args) => lifecycle::upgrade(&args),
        Command::Reload(args) => lifecycle::reload(&args),
        Command::Scale(args) => operate::scale(&args),
        Command::Stop(args) => lifecycle::stop(&args),
        Command::Delete(args) => lifecycle::delete(&args),
        Command::Save(args) => save::save(&args),
        Command::Resurrect(args) => save::resurrect(&args),
        Command::Jlist(_) => pm2::jlist(false),
        Command::Prettylist(_) => pm2::jlist(true),
        Command::Pid(args) => pm2::pid(&args),
        Command::Env(args) => pm2::env(&args),
        Command::Flush(args) => pm2::flush(&args),
        Command::Reset(args) => pm2::reset(&args),
        Command::Ping(_) => {
            let _ = print::line("pong");
            Ok(())
        }
        Command::Kill(_) => lifecycle::kill(),
        Command::SendSignal(Deferred(args)) => operate::signal(&args.into()),
        Command::Attach(Deferred(args)) => attach::attach(args.app, args.separator.as_deref(), 0),
        Command::Serve(args) => lifecycle::serve(&args),
        Command::ServeFiles(args) => {
            return match files::run(&args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    log::line(&format!("troop: {}", e.chain()));
                    ExitCode::FAILURE
                }
            };
        }
        Command::Admin(args) => admin::start(&args),
        Command::ServeAdmin(args) => {
            return match admin::run(&args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    log::line(&format!("troop: {}", e.chain()));
                    ExitCode::FAILURE
                }
            };
        }
        Command::Policy(args) => operate::policy(&args),
        Command::Signal(args) => operate::signal(&args),
        Command::Send(args) => send::send(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !is_quiet {
                log::line(&format!("troop: {error}"));
            }
            ExitCode::from(error.code())
        }
    }
}

/// Runs an app, or several.
fn foreground(mut what: args::Run, more: &[OsString], keep_going: bool) -> ExitCode {
    let chosen = [together::VARIABLE, kept::CHOSEN_VARIABLE].map(std::env::var);
    if let Some(chosen) = chosen.into_iter().find_map(Result::ok) {
        let choice = start::Choice::decode(&chosen);
        start::choose(&mut what, more, &choice);
        return run(what, &choice, Place::Foreground);
    }
    match start::plan(&what, more, start::Verb::Run) {
        Ok(apps) if apps.len() > 1 => together::run(&apps, keep_going),
        Ok(mut apps) => {
            let (what, choice) = apps.pop().map_or((what, start::Choice::default()), |only| {
                let (mut what, choice) = (only.run, only.choice);
                if !choice.app.is_empty() {
                    what.only = vec![choice.app.clone()];
                }
                (what, choice)
            });
            run(what, &choice, Place::Foreground)
        }
        Err(text) => {
            log::line(&in_use::with_tip(format!("troop: {text}")));
            // As for an app whose options are invalid.
            ExitCode::from(2)
        }
    }
}

fn run(what: args::Run, choice: &start::Choice, place: Place) -> ExitCode {
    let code = match kept::be_kept(&what, choice, place).and_then(|()| run::run(what)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Refused) => ExitCode::FAILURE,
        Err(e) => {
            if let (Place::Background, RunError::Usage(reason)) = (place, &e) {
                start::tell_refused(reason);
            }
            log::line(&in_use::with_tip(format!("troop: {e}")));
            ExitCode::from(match e {
                // As clap does for invalid arguments.
                RunError::Usage(_) => 2,
                RunError::Ended(code, _) => code.max(1),
                _ => 1,
            })
        }
    };
    log::finish();
    code
}
