//! `troop attach`: follows the output of an app, and passes input on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::mpsc::channel;

use troop::text::counted;

use crate::args::Logs;
use crate::control::client::{self, Client};
use crate::control::protocol::{Failure, Request};
use crate::control::targets;
use crate::error::CliError;
use crate::log;
use crate::logs::show::{self, Input};

/// Runs `troop attach`. Shows this many lines that there are already.
pub(crate) fn attach(
    word: Option<String>,
    separator: Option<&str>,
    lines: usize,
) -> Result<(), CliError> {
    follow(word, separator, lines, is_piped())
}

/// The same for `troop start --attach`, which is there for the output: it goes on without input.
pub(crate) fn attach_started(word: Option<String>, lines: usize) -> Result<(), CliError> {
    follow(word, None, lines, false)
}

/// Follows the output and passes input on; with `ends`, until the input does.
fn follow(
    word: Option<String>,
    separator: Option<&str>,
    lines: usize,
    ends: bool,
) -> Result<(), CliError> {
    let (app, worker) = client::target(word.as_deref())?;
    let mut clients = targets::find(app)?;
    let logs = |name: String| Logs {
        app: Some(name),
        follow: true,
        nostream: false,
        lines,
        err: false,
        out: false,
        slot: None,
        raw: false,
        json: false,
    };
    let [client] = &mut clients[..] else {
        if ends {
            let text = "input is for a worker of one app: name it";
            return Err(CliError::Usage(text.into()));
        }
        log::line("troop: following the output of all apps; input is for one that is named");
        return show::logs(&logs("all".to_owned()));
    };
    let name = client.name().to_owned();
    let workers = client.snapshot()?.snapshot.workers;
    // A worker that is replaced and its successor have one slot.
    let slots: BTreeSet<_> = workers.iter().map(|worker| worker.slot).collect();
    let whose = match (worker, slots.len()) {
        (Some(number), _) => format!("lines of input are passed on to worker {number}"),
        (None, 0 | 1) => "lines of input are passed on to its worker".to_owned(),
        (None, several) if ends => {
            let number = workers.first().map(|worker| worker.id.0).unwrap_or_default();
            return Err(CliError::Usage(format!(
                "input is for one of the {several} workers of {name}: name it, as in `troop attach {name}:{number}`"
            )));
        }
        (None, several) => format!(
            "to pass lines of input on, name one of its {several} workers: troop attach {name}:NUMBER"
        ),
    };
    log::line(&format!("troop: following the output of {name}; {whose}"));
    let (to, separator) = (name.clone(), separator.unwrap_or("\n").to_owned());
    let ((begin, begun), (passing, over)) = (channel(), channel());
    let passed = std::thread::spawn(move || {
        // What the worker answers is shown.
        let _ = begun.recv();
        let result = pass_input(&to, worker, &separator);
        // Otherwise the output is followed for ever.
        if ends {
            let _ = passing.send(());
        }
        result
    });
    show::logs_with_input(&logs(name), Some(&Input { begin, over }))?;
    passed.join().unwrap_or(Ok(()))
}

/// Whether standard input is a pipe, a socket or a file, whose end is the end of what is to be done.
fn is_piped() -> bool {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let kind = input.and_then(|input| File::from(input).metadata()).map(|found| found.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket() || kind.is_file())
}

/// Passes lines of standard input on until it ends. On a terminal, that ends this process.
fn pass_input(name: &str, worker: Option<u32>, end: &str) -> Result<(), CliError> {
    let input = std::io::stdin();
    let (mut line, mut lost) = (Vec::new(), 0);
    loop {
        line.clear();
        match input.lock().read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) if input.is_terminal() => {
                #[expect(clippy::exit, reason = "the other thread follows the output for ever")]
                std::process::exit(0);
            }
            Ok(0) | Err(_) if lost == 0 => return Ok(()),
            Ok(0) | Err(_) => {
                let text = format!("{name}: {} not passed on", counted(lost, "line"));
                return Err(CliError::Failed(Failure::new("failed", text)));
            }
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text).to_owned() + end;
        if let Err(e) = pass(name, worker, text) {
            lost += 1;
            log::line(&format!("troop: not passed on: {e}"));
        }
    }
}

fn pass(name: &str, worker: Option<u32>, text: String) -> Result<(), CliError> {
    let client = Client::connect(name)?;
    let mut client = client.ok_or_else(|| CliError::NoApp(format!("{name} does not run")))?;
    client.request(Request::Input { text, worker }, |_| {}).map(|_| ())
}
