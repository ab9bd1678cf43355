//! `troop attach`: follows the output of an app, and passes input on.

use std::io::{BufRead as _, IsTerminal as _};

use crate::args::Logs;
use crate::control::client::{self, Client};
use crate::control::protocol::Request;
use crate::control::targets;
use crate::error::CliError;
use crate::{log, logs};

/// Runs `troop attach`. Shows this many lines that there are already.
pub(crate) fn attach(
    word: Option<String>,
    separator: Option<&str>,
    lines: usize,
) -> Result<(), CliError> {
    let (app, worker) = client::target(word.as_deref())?;
    let mut clients = targets::find(app)?;
    let name = match &mut clients[..] {
        [client] => {
            let name = client.name().to_owned();
            let whose = match (worker, client.snapshot()?.snapshot.workers.len()) {
                (Some(number), _) => format!("lines of input are passed on to worker {number}"),
                (None, 0 | 1) => "lines of input are passed on to its worker".to_owned(),
                (None, several) => format!(
                    "to pass lines of input on, name one of its {several} workers: troop attach {name}:NUMBER"
                ),
            };
            log::line(&format!("troop: following the output of {name}; {whose}"));
            let (to, end) = (name.clone(), separator.unwrap_or("\n").to_owned());
            std::thread::spawn(move || pass_input(&to, worker, &end));
            name
        }
        _ => {
            log::line("troop: following the output of all apps; input is for one that is named");
            "all".to_owned()
        }
    };
    logs::show::logs(&Logs {
        app: Some(name),
        follow: true,
        nostream: false,
        lines,
        err: false,
        out: false,
        slot: None,
        raw: false,
        json: false,
    })
}

/// Passes lines of standard input on until it ends. On a terminal, that ends this process.
fn pass_input(name: &str, worker: Option<u32>, end: &str) {
    let input = std::io::stdin();
    let mut line = Vec::new();
    loop {
        line.clear();
        match input.lock().read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) if input.is_terminal() => {
                #[expect(clippy::exit, reason = "the other thread follows the output for ever")]
                std::process::exit(0);
            }
            Ok(0) | Err(_) => return,
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text).to_owned() + end;
        if let Err(e) = pass(name, worker, text) {
            log::line(&format!("troop: not passed on: {e}"));
        }
    }
}

fn pass(name: &str, worker: Option<u32>, text: String) -> Result<(), CliError> {
    let client = Client::connect(name)?;
    let mut client = client.ok_or_else(|| CliError::NoApp(format!("{name} does not run")))?;
    client.request(Request::Input { text, worker }, |_| {}).map(|_| ())
}
