//! Verbs of PM2 that there is no other one for: `jlist`, `pid`, `env`, `flush` and `reset`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid as ProcessId, Signal, kill_process};
use serde_json::{Value, json};
use troop::program::safe_path::{Directory, Safety, split};
use troop::program::within::within;
use troop::snapshot::{Phase, Snapshot, WorkerSnapshot};
use troop::text::escaped;

use super::each::each;
use super::masked;
use super::show::{print_json, snapshots};
use crate::args::{EnvOf, Flush, Pid, Reset};
use crate::control::client::Client;
use crate::control::protocol::{AppSnapshot, Request};
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::logs::paths;
use crate::print;
use crate::records::{End, Ending, Record, listed, millis};

/// The longest environment that is read, in bytes, and the time to read it. The kernel starts no
/// program with more than 6 MiB, but a process can have others read anything of its memory instead,
/// also pages without end and such as never come.
const MAX_ENVIRONMENT: u64 = 8 * 1024 * 1024;
const ENVIRONMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs `troop jlist` and `prettylist`.
pub(crate) fn jlist(is_pretty: bool) -> Result<(), CliError> {
    let (mut clients, mut list) = (Vec::new(), Vec::new());
    for target in targets::everything()? {
        match target {
            Target::Running(client) => clients.push(client),
            Target::Ended(record, end) => list.push(of_ended(&record, &end)),
        }
    }
    let known = listed::all().unwrap_or_default();
    let now = millis(SystemTime::now());
    for app in snapshots(&mut clients) {
        let record = known.iter().map(|known| &known.record).find(|record| record.name == app.name);
        list.extend(app.snapshot.workers.iter().map(|worker| of_worker(&app, worker, record, now)));
    }
    list.sort_by_key(|entry| entry["pm_id"].as_u64());
    if is_pretty {
        print_json(&list);
    } else {
        let _ = print::json(&Value::Array(list));
    }
    Ok(())
}

/// Returns the state of a worker in PM2's words.
fn status(snapshot: &Snapshot, worker: &WorkerSnapshot) -> &'static str {
    match (snapshot.phase, worker.leaving_ms, worker.ready) {
        (Phase::Stopping, ..) | (_, Some(_), _) => "stopping",
        (_, None, Some(false)) => "launching",
        _ => "online",
    }
}

fn of_worker(
    app: &AppSnapshot,
    worker: &WorkerSnapshot,
    record: Option<&Record>,
    now: u64,
) -> Value {
    let usage = worker.usage;
    let log = app.log.as_deref().and_then(|log| paths::of_slot(Path::new(log), worker.slot));
    let log = log.map(|log| log.display().to_string());
    let cpu = usage.map_or(0.0, |usage| usage.cpu_ms as f64 / worker.age_ms.max(1) as f64 * 100.0);
    json!({
        "pid": worker.pid,
        "name": app.name,
        "pm_id": record.map(|record| record.id),
        "monit": {
            "memory": usage.map_or(0, |usage| usage.rss),
            "cpu": (cpu * 10.0).round() / 10.0,
        },
        "pm2_env": {
            "name": app.name,
            "namespace": record.and_then(|record| record.namespace.as_deref()).unwrap_or("default"),
            "status": status(&app.snapshot, worker),
            "restart_time": app.snapshot.restarts,
            "unstable_restarts": 0,
            "pm_uptime": now.saturating_sub(worker.age_ms),
            "created_at": now.saturating_sub(app.snapshot.uptime_ms),
            "exec_mode": if app.alone { "fork_mode" } else { "cluster_mode" },
            "instances": app.snapshot.wanted,
            "NODE_APP_INSTANCE": worker.slot,
            "pm_exec_path": app.program,
            "pm_out_log_path": log.or_else(|| app.log.clone()),
            "pm_pid": app.snapshot.pid,
        },
    })
}

fn of_ended(record: &Record, end: &End) -> Value {
    let status = match end.how {
        Ending::Stopped | Ending::Finished => "stopped",
        Ending::Failed | Ending::Crashed => "errored",
    };
    json!({
        "pid": 0,
        "name": record.name,
        "pm_id": record.id,
        "monit": { "memory": 0, "cpu": 0 },
        "pm2_env": {
            "name": record.name,
            "namespace": record.namespace.as_deref().unwrap_or("default"),
            "status": status,
            "restart_time": 0,
            "unstable_restarts": 0,
            "exec_mode": "cluster_mode",
            "instances": record.workers,
            "pm_exec_path": record.program,
        },
    })
}

/// Runs `troop pid`.
pub(crate) fn pid(args: &Pid) -> Result<(), CliError> {
    let mut clients = targets::find(Some(args.app.as_deref().unwrap_or("all")))?;
    for app in snapshots(&mut clients) {
        for worker in &app.snapshot.workers {
            let _ = print::raw(&worker.pid.to_string());
        }
    }
    Ok(())
}

/// Runs `troop env`.
pub(crate) fn env(args: &EnvOf) -> Result<(), CliError> {
    for target in targets::some(args.app.as_deref())? {
        let variables = match target {
            Target::Running(mut client) => of_process(&mut client)?,
            Target::Ended(record, _) => {
                let variables = record.start.iter().flat_map(|call| &call.env);
                let text =
                    |text: &crate::records::Text| text.to_os().to_string_lossy().into_owned();
                variables.map(|(name, value)| (text(name), text(value))).collect()
            }
        };
        for (name, value) in variables {
            let shown = masked::value(&name, &value);
            let _ = print::line(&format!("{}: {}", escaped(&name), escaped(&shown)));
        }
    }
    Ok(())
}

/// Reads the environment of an app's first worker.
fn of_process(client: &mut Client) -> Result<Vec<(String, String)>, CliError> {
    let name = client.name().to_owned();
    let snapshot = client.snapshot()?.snapshot;
    let pid = snapshot.workers.first().map_or(snapshot.pid, |worker| worker.pid);
    let read = move || environment(File::open(format!("/proc/{pid}/environ"))?);
    let bytes = within(ENVIRONMENT_TIMEOUT, read).map_err(|e| {
        let e = match e.kind() {
            io::ErrorKind::TimedOut => {
                io::Error::other(format!("process {pid} does not let it be read in time"))
            }
            _ => e,
        };
        CliError::Io(format!("read the environment of {name}"), e)
    })?;
    let variables = bytes.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    let mut variables: Vec<_> = variables
        .filter_map(|variable| {
            let text = String::from_utf8_lossy(variable).into_owned();
            text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    variables.sort();
    Ok(variables)
}

/// Reads an environment.
fn environment(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_ENVIRONMENT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_ENVIRONMENT {
        return Err(io::Error::other(format!(
            "it has more than {MAX_ENVIRONMENT} bytes, so the process shows something else as its environment"
        )));
    }
    Ok(bytes)
}

/// Runs `troop flush`.
pub(crate) fn flush(args: &Flush) -> Result<(), CliError> {
    let words = if args.apps.is_empty() { vec!["all".into()] } else { args.apps.clone() };
    each(&words, |target| {
        let name = target.name().to_owned();
        let (files, primary): (Vec<PathBuf>, _) = match target {
            Target::Running(mut client) => {
                let pid = client.snapshot()?.snapshot.pid;
                let mut again = Client::connect(&name)?
                    .ok_or_else(|| CliError::NoApp(format!("{name} has ended")))?;
                let answer = again.request(Request::Logs, |_| {})?;
                let files = ["file", "error_file"].iter().filter_map(|key| answer[*key].as_str());
                let files = files.flat_map(|file| paths::expanded(file.into(), 0));
                (files.map(|(file, _)| file).collect(), Some(pid))
            }
            Target::Ended(..) => {
                (paths::recorded(&name).into_iter().map(|(file, _)| file).collect(), None)
            }
        };
        for file in &files {
            empty(file).map_err(|e| CliError::Io(format!("empty {}", file.display()), e))?;
        }
        // It continues at the new end of the files.
        if let Some(pid) = primary.and_then(|pid| ProcessId::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::USR1);
        }
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        let _ = print::line(&match files.is_empty() {
            true => format!("{name}: there are no log files"),
            false => format!("{name}: emptied {}", files.join(", ")),
        });
        Ok(())
    })
}

/// Empties a log file, which is reached as it is when it is written.
fn empty(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let Some(directory) = Directory::find(&parent, Safety::Links)? else { return Ok(()) };
    if directory.entry(&name)?.is_none_or(|found| !found.is_file()) {
        return Ok(());
    }
    directory.append(&name, 0o640)?.0.set_len(0)
}

/// Runs `troop reset`.
pub(crate) fn reset(args: &Reset) -> Result<(), CliError> {
    each(&args.apps, |target| {
        let name = target.name().to_owned();
        if let Target::Running(mut client) = target {
            client.request(Request::Reset, |_| {})?;
        }
        let _ = print::line(&format!("{name}: reset"));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_without_end_is_not_read_to_it() {
        assert_eq!(environment(&b"A=1\0"[..]).unwrap(), b"A=1\0");
        let e = environment(io::repeat(b'x')).unwrap_err();
        assert!(e.to_string().contains("more than 8388608 bytes"), "{e}");
    }
}
