//! `save` and `resurrect`: keep the list of apps beyond the end of the system.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use signal_hook::consts::SIGINT;
use troop::text::counted;

use super::operate::report;
use super::show::snapshots;
use crate::args::{Resurrect, Save};
use crate::control::client::Client;
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::records::listed::{self, Listed};
use crate::records::store::Store;
use crate::records::{Record, saved};
use crate::{log, start};

fn doing(e: std::io::Error) -> CliError {
    CliError::Io("save the list of apps".into(), e)
}

/// Runs `troop save`.
pub(crate) fn save(args: &Save) -> Result<(), CliError> {
    let is_kept = |app: &Listed| app.end.is_none() && app.record.start.is_some();
    let mut apps: Vec<_> =
        listed::all().map_err(doing)?.into_iter().filter(is_kept).map(|app| app.record).collect();
    if apps.is_empty() && !args.force {
        return Err(CliError::Failed(Failure::new(
            "failed",
            "no app that `troop start` has started is running; --force saves an empty list",
        )));
    }
    let mut clients = Vec::new();
    for record in &apps {
        clients.extend(Client::connect(&record.name)?);
    }
    for app in snapshots(&mut clients) {
        apps.iter_mut()
            .filter(|record| record.name == app.name)
            .for_each(|record| record.scaled = app.scaled);
    }
    let store = Store::create().map_err(doing)?;
    let _lock = store.lock().map_err(doing)?;
    saved::write(&store, &apps).map_err(doing)?;
    let names: Vec<_> = apps.iter().map(|app| app.name.as_str()).collect();
    report(args.json, &json!({ "saved": names }), || match names.is_empty() {
        true => "saved an empty list".into(),
        false => format!("saved {}: {}", counted(names.len(), "app"), names.join(", ")),
    });
    Ok(())
}

/// Runs `troop resurrect`.
pub(crate) fn resurrect(args: &Resurrect) -> Result<(), CliError> {
    let saved = match Store::find().map_err(doing)? {
        Some(store) => saved::read(&store).map_err(doing)?,
        None => None,
    };
    let Some(saved) = saved else {
        return Err(CliError::Failed(Failure::new(
            "failed",
            "nothing was saved: see `troop save`",
        )));
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, interrupted.clone())
        .map_err(|e| CliError::Io("catch signals".into(), e))?;
    let mut last = None;
    // The failure of one app does not keep the others from starting.
    let mut fail = |e: CliError| {
        if let Some(before) = last.replace(e) {
            log::line(&format!("troop: {before}"));
        }
    };
    let after: Vec<_> =
        saved.iter().map(|record| (record.name.clone(), record.after.clone())).collect();
    let ranks = start::ranks(&after);
    let mut groups: BTreeMap<Option<usize>, Vec<Record>> = BTreeMap::new();
    for record in saved {
        groups.entry(ranks.get(&record.name).copied()).or_default().push(record);
    }
    for group in groups.into_values() {
        let mut starting = Vec::new();
        for record in group {
            if interrupted.load(Ordering::Acquire) {
                break;
            }
            if Client::connect(&record.name)?.is_some() {
                let state = json!({ "name": record.name, "state": "running" });
                report(args.json, &state, || format!("{}: runs already", record.name));
                continue;
            }
            match start::spawn_again(&record) {
                Ok(primary) => starting.push(primary),
                Err(e) => fail(e),
            }
        }
        for primary in starting {
            if let Err(e) = primary.finish(args.no_wait, args.json, &interrupted) {
                fail(e);
            }
        }
    }
    last.map_or(Ok(()), Err)
}
