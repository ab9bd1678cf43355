//! `show` and `events`: show apps without changing them.

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use troop::snapshot::{ListenerSnapshot, Phase, Snapshot, WorkerSnapshot, WorkerState};
use troop::text::{self, escaped};

use super::cpu::{self, Cpu};
use super::list;
use super::table::{self, size, time};
use super::times;
use crate::args::{Events, Show};
use crate::control::client::{self, Client};
use crate::control::protocol::{AppSnapshot, Failure, Request};
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::records::millis;
use crate::{log, print};

/// Time in which an app must answer for a list of apps.
const LIST_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the snapshots of apps, in their order, or `None` with the name of each that does not
/// answer within a second. An app that ends meanwhile is left out.
pub(crate) fn answers(clients: &mut [Client]) -> Vec<(String, Option<AppSnapshot>)> {
    // Requested in parallel, so that apps without an answer do not delay the others.
    let Some((last, others)) = clients.split_last_mut() else { return Vec::new() };
    std::thread::scope(|scope| {
        let ask = |client: &mut Client| match client.snapshot_within(LIST_TIMEOUT) {
            Ok(app) => Some((client.name().to_owned(), Some(app))),
            Err(CliError::Failed(failure)) if failure.kind == "over" => None,
            Err(CliError::Io(_, e)) if e.kind() == io::ErrorKind::WouldBlock => {
                Some((client.name().to_owned(), None))
            }
            // The other apps are shown all the same.
            Err(error) => {
                log::line(&format!("troop: {error}"));
                Some((client.name().to_owned(), None))
            }
        };
        let asked: Vec<_> =
            others.iter_mut().map(|client| scope.spawn(move || ask(client))).collect();
        let last = ask(last);
        let others = asked.into_iter().filter_map(|asked| asked.join().ok().flatten());
        others.collect::<Vec<_>>().into_iter().chain(last).collect()
    })
}

/// The same, without those that do not answer, which are named on standard error.
pub(super) fn snapshots(clients: &mut [Client]) -> Vec<AppSnapshot> {
    let named = |(name, app): (String, Option<AppSnapshot>)| {
        if app.is_none() {
            log::line(&format!("troop: {name} is not answering"));
        }
        app
    };
    answers(clients).into_iter().filter_map(named).collect()
}

pub(crate) fn phase(snapshot: &Snapshot) -> &'static str {
    match snapshot.phase {
        Phase::Starting => "starting",
        Phase::Degraded => "degraded",
        Phase::Reloading => "reloading",
        Phase::Stopping => "stopping",
        Phase::Paused => "paused",
        _ => "running",
    }
}

/// Returns a line for each slot without a worker, with the time of the next restart.
fn vacancies(snapshot: &Snapshot) -> Vec<String> {
    let vacant = snapshot.vacant.iter();
    vacant
        .map(|vacant| {
            let slot = vacant.slot;
            match (&vacant.finished, vacant.retry_ms) {
                (Some(how), _) => format!("slot {slot}: no worker, the last one ended for good: {how}"),
                (None, Some(ms)) => {
                    let seconds = ms as f64 / 1000.0;
                    format!("slot {slot}: no worker, the next one in {seconds:.1} s ({} quick ends in a row)", vacant.quick_ends)
                }
                (None, None) => format!("slot {slot}: no worker"),
            }
        })
        .collect()
}

/// Returns the number of workers that serve and do not drain.
pub(crate) fn serving(snapshot: &Snapshot) -> usize {
    let is_up = |worker: &&WorkerSnapshot| {
        worker.ready.unwrap_or(matches!(worker.state, WorkerState::Online | WorkerState::Listening))
    };
    snapshot.workers.iter().filter(is_up).filter(|worker| worker.leaving_ms.is_none()).count()
}

pub(super) fn print_json(value: &impl serde::Serialize) {
    let _ = print::raw(&text::json(serde_json::to_string_pretty(value).unwrap_or_default()));
}

/// The column of workers with their CPU time.
const CPU: usize = 6;

/// Runs `troop show`.
pub(crate) fn show(args: &Show) -> Result<(), CliError> {
    let mut apps = Vec::new();
    let (app, worker) = client::target(args.app.as_deref())?;
    let found = targets::find(app);
    if let (Err(CliError::NoApp(_)), Some(word), false) = (&found, app, args.json) {
        describe_ended(word)?;
    }
    let mut clients = found?;
    let mut earlier = None;
    if let Some(time) = args.cpu {
        let looked = clients.iter_mut().map(Client::snapshot);
        earlier = Some(looked.collect::<Result<Vec<_>, _>>()?);
        std::thread::sleep(cpu::interval(time.0));
        // A client is for one request.
        clients = targets::find(app)?;
    }
    for mut client in clients {
        let mut app = client.snapshot()?;
        let cpu = earlier.as_ref().map(|earlier| {
            let before = earlier.iter().find(|before| before.name == app.name)?;
            Cpu::between(before, &app)
        });
        if let Some(number) = worker {
            app.snapshot.workers.retain(|worker| worker.id.0 == number);
            if app.snapshot.workers.is_empty() {
                return Err(CliError::Failed(Failure::new(
                    "no-worker",
                    format!("{} has no worker {number}", app.name),
                )));
            }
        }
        apps.push((app, cpu));
    }
    if args.json {
        let as_json = |(app, cpu): &(AppSnapshot, Option<Option<Cpu>>)| {
            let mut value = serde_json::to_value(app).unwrap_or_default();
            cpu.iter().flatten().for_each(|cpu| cpu.write_into(&mut value));
            value
        };
        print_json(&apps.iter().map(as_json).collect::<Vec<_>>());
        return Ok(());
    }
    for (at, (app, cpu)) in apps.iter().enumerate() {
        let mut out = std::io::stdout().lock();
        if at > 0 {
            let _ = writeln!(out);
        }
        let AppSnapshot {
            name,
            program,
            version,
            file,
            log,
            alone,
            lost_lines,
            total,
            schedule,
            snapshot,
            ..
        } = app;
        let _ = writeln!(out, "{name}: {}", escaped(program));
        let (pid, uptime) = (snapshot.pid, time(snapshot.uptime_ms));
        let keeper = snapshot.keeper_version.as_ref();
        let keeper =
            keeper.map_or_else(String::new, |keeper| format!(", keeper {}", escaped(keeper)));
        let memory = snapshot.usage.map_or_else(|| "?".into(), |usage| size(usage.rss));
        let used = snapshot.usage.map_or_else(|| "?".into(), |usage| time(usage.cpu_ms));
        let _ = writeln!(
            out,
            "{}, primary {pid} (troop {version}{keeper}) up {uptime}, {used} CPU, {memory} memory, {} restarts",
            times::state(app),
            snapshot.restarts
        );
        for line in schedule.iter().flat_map(times::lines) {
            let _ = writeln!(out, "{}", escaped(&line));
        }
        let at = match snapshot.own.join(", ") {
            at if at.is_empty() => at,
            at => format!(" on {}", escaped(&at)),
        };
        match *alone {
            true => drop(writeln!(out, "runs alone: listens by itself{at}")),
            false if !at.is_empty() => drop(writeln!(out, "its workers listen by themselves{at}")),
            false => {}
        }
        let (time, memory) = (time(total.cpu_ms), size(total.rss));
        let percent = match cpu {
            Some(cpu) => {
                format!(" ({} now)", cpu::shown(cpu.as_ref().map(|cpu| cpu.total)))
            }
            None => String::new(),
        };
        let _ = writeln!(out, "with its workers {time} CPU{percent}, {memory} memory");
        if let Some(end) = &snapshot.last_end {
            let _ = writeln!(out, "last unexpected end: {}", escaped(end));
        }
        if let Some(how) = &snapshot.last_crash {
            let times = troop::text::counted(snapshot.crashes, "time");
            let _ = writeln!(out, "its engine has ended {times}, and another one went on: {how}");
        }
        for lost in &snapshot.lost {
            let _ = writeln!(out, "lost {}: {}", escaped(&lost.address), escaped(&lost.reason));
        }
        for why in snapshot.listeners.iter().filter_map(|listener| listener.ignored.as_ref()) {
            let _ = writeln!(out, "{}", escaped(why));
        }
        vacancies(snapshot).iter().for_each(|vacancy| drop(writeln!(out, "{vacancy}")));
        if let Some(file) = file {
            let _ = writeln!(out, "described in {}", escaped(file));
        }
        if let Some(log) = log {
            let _ = writeln!(out, "logs to {}", escaped(log));
        }
        if *lost_lines > 0 {
            let _ = writeln!(out, "{lost_lines} lines of output were lost");
        }
        let _ = writeln!(out);
        drop(out);
        let mut rows: Vec<_> = snapshot.workers.iter().map(row).collect();
        let mut headings = vec![
            "SLOT",
            "WORKER",
            "PID",
            "STATE",
            "AGE",
            "GEN",
            "CPU",
            "MEMORY",
            "TAKEN",
            "OPEN",
            "WEIGHT",
            "LEAVES WITHIN",
        ];
        if let Some(cpu) = cpu {
            headings.insert(CPU + 1, "CPU%");
            for (row, worker) in rows.iter_mut().zip(&snapshot.workers) {
                let of = cpu.as_ref().and_then(|cpu| cpu.workers.get(&worker.id));
                row.insert(CPU + 1, cpu::shown(of.copied()));
            }
        }
        table::print(
            &headings,
            &[
                "SLOT", "WORKER", "PID", "AGE", "GEN", "CPU", "CPU%", "MEMORY", "TAKEN", "OPEN",
                "WEIGHT",
            ],
            &["WEIGHT", "GEN", "TAKEN", "CPU", "LEAVES WITHIN", "SLOT", "MEMORY"],
            &rows,
        );
        if !snapshot.listeners.is_empty() {
            let _ = writeln!(std::io::stdout().lock());
            let rows: Vec<_> = snapshot
                .listeners
                .iter()
                .map(|l| {
                    vec![l.address.clone(), policy(l), l.workers.to_string(), l.waiting.to_string()]
                })
                .collect();
            table::print(
                &["LISTENER", "POLICY", "WORKERS", "WAITING"],
                &["WORKERS", "WAITING"],
                &["WORKERS", "POLICY"],
                &rows,
            );
        }
    }
    Ok(())
}

/// Prints how apps were started that do not run.
fn describe_ended(word: &str) -> Result<(), CliError> {
    for target in targets::selected(word)? {
        let Target::Ended(record, end) = target else { continue };
        let state = list::state(&end, millis(SystemTime::now()));
        let _ = print::line(&format!("{}: {}", record.name, escaped(&record.program)));
        let _ = match &end.reason {
            // Several lines if it quotes a worker; each one is escaped.
            Some(reason) => print::line(&format!("{state}: {reason}")),
            None => print::line(&state),
        };
        if let Some(call) = &record.start {
            let args = call.args.iter().map(|arg| arg.to_os().to_string_lossy().into_owned());
            let args: Vec<_> = args.collect();
            let line = shlex::try_join(args.iter().map(String::as_str)).unwrap_or_default();
            let _ = print::line(&format!(
                "started by: troop {} (in {})",
                escaped(&line),
                escaped(&call.cwd.display().to_string())
            ));
        }
    }
    Ok(())
}

/// Returns the scheduling of a listener and, under `auto`, its mode.
fn policy(listener: &ListenerSnapshot) -> String {
    match &listener.mode {
        Some(mode) => {
            format!("{} ({} for {})", listener.scheduling, mode.mode, time(mode.age_ms))
        }
        None => listener.scheduling.clone(),
    }
}

fn state(worker: &WorkerSnapshot) -> String {
    match (worker.leaving_ms, worker.ready) {
        (Some(_), _) => "leaving".into(),
        (None, Some(false)) => "starting".into(),
        // It does not speak Node's protocol, which names the other states.
        (None, Some(true)) if worker.state == WorkerState::None => "running".into(),
        _ => worker.state.to_string(),
    }
}

fn row(worker: &troop::snapshot::WorkerSnapshot) -> Vec<String> {
    vec![
        worker.slot.to_string(),
        worker.id.to_string(),
        worker.pid.to_string(),
        state(worker),
        time(worker.age_ms),
        worker.generation.map(|generation| generation.to_string()).unwrap_or_default(),
        worker.usage.map_or_else(|| "?".into(), |usage| time(usage.cpu_ms)),
        worker.usage.map_or_else(|| "?".into(), |usage| size(usage.rss)),
        worker.stats.taken.to_string(),
        worker.stats.open.to_string(),
        worker.weight.to_string(),
        worker.leaving_ms.map(time).unwrap_or_default(),
    ]
}

/// Runs `troop events`.
pub(crate) fn events(args: &Events) -> Result<(), CliError> {
    let mut clients = targets::find(args.app.as_deref())?;
    let [client] = &mut clients[..] else {
        return Err(CliError::Usage("events are followed of one app at a time; name it".into()));
    };
    let print = |event: &Value| {
        let printed = match (args.json, event["text"].as_str()) {
            (true, _) => print::json(event),
            (false, Some(text)) => print::line(text),
            (false, None) => Ok(()),
        };
        if printed.is_err() {
            // Standard output is closed.
            #[expect(clippy::exit, reason = "as every filter does whose reader leaves")]
            std::process::exit(0);
        }
    };
    client.request(Request::Events, print).map(|_| ())
}
