//! The primary's side of a record: it is written when the app starts, and says how the app has
//! ended.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::process::Identity;
use super::store::{Store, bounded};
use super::{End, Ending, Record, StartCall, Text, free_id, millis, own_env};
use crate::control::sockets::{self, Claim};
use crate::resolve::{ResolvedApp, Source};
use crate::start;

/// Interval in which a primary shows that it is alive, so that the time of a crash is known.
const SIGN_OF_LIFE_INTERVAL: Duration = Duration::from_secs(15);

/// The variable by which a primary gets the number that its app should have, so that apps which
/// start side by side have theirs in order.
pub(crate) const ID_VARIABLE: &str = "TROOP_APP_ID";

/// Keeps the record of the app that this process runs.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    record: Record,
    /// The record that there was before.
    before: Option<Record>,
    is_forgotten: AtomicBool,
    /// The environment that replaces that of the start.
    env: Mutex<Option<Vec<(Text, Text)>>>,
}

impl Keeper {
    /// Writes the record of an app that starts.
    pub(crate) fn begin(name: &str, app: &ResolvedApp, source: &Source) -> io::Result<Keeper> {
        let (name, app, source) = (name.to_owned(), app.clone(), source.clone());
        bounded(move || Keeper::try_begin(&name, &app, &source))
    }

    fn try_begin(name: &str, app: &ResolvedApp, source: &Source) -> io::Result<Keeper> {
        let store = Store::create()?;
        let _lock = store.lock()?;
        let before = store.read(name);
        store.remove_unfinished(name);
        let ids = || {
            let taken: Vec<_> = store.all()?.iter().map(|record| record.id).collect();
            let wished = std::env::var(ID_VARIABLE).ok().and_then(|id| id.parse().ok());
            let wished = wished.filter(|id| !taken.contains(id));
            Ok::<_, io::Error>(wished.unwrap_or_else(|| free_id(taken)))
        };
        let record = Record {
            id: before.as_ref().map_or_else(ids, |before| Ok(before.id))?,
            name: name.to_owned(),
            namespace: app.app.namespace.clone(),
            program: std::path::Path::new(&app.program).display().to_string(),
            workers: app.workers(),
            file: source.file().map(absolute),
            after: app.app.after.clone(),
            start: app.background.then(|| call(app)).transpose()?,
            primary: Identity::own(),
            runtime: absolute(sockets::path()),
            scaled: None,
            end: None,
        };
        store.write(&record)?;
        Ok(Keeper {
            store,
            record,
            before,
            is_forgotten: AtomicBool::new(false),
            env: Mutex::default(),
        })
    }

    /// Goes on with the record of this app, which another process of it has written.
    pub(crate) fn resume(name: &str) -> io::Result<Keeper> {
        let name = name.to_owned();
        bounded(move || {
            let store = Store::create()?;
            let record = store.read(&name).filter(|record| record.primary == Identity::own());
            let record = record.ok_or(io::ErrorKind::NotFound)?;
            let (is_forgotten, env) = (AtomicBool::new(false), Mutex::default());
            Ok(Keeper { store, record, before: None, is_forgotten, env })
        })
    }

    /// Has the record removed at the end: `troop delete`.
    pub(crate) fn forget(&self) {
        self.is_forgotten.store(true, Ordering::Release);
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.is_forgotten.load(Ordering::Acquire)
    }

    /// Writes how the app has ended. Failures are ignored: the app is then listed as crashed.
    pub(crate) fn end(self: &Arc<Keeper>, how: Ending, reason: Option<String>) {
        let end = End { how, at_ms: millis(SystemTime::now()), reason };
        let keeper = self.clone();
        let _ = bounded(move || keeper.try_end(end));
    }

    fn try_end(&self, end: End) -> io::Result<()> {
        let _lock = self.store.lock()?;
        if !self.is_own() {
            return Ok(());
        }
        if self.is_forgotten() || self.record.start.is_none() {
            return self.store.remove(&self.record.name);
        }
        self.store.write(&Record { end: Some(end), ..self.current() })
    }

    /// Has the app started again with another environment. Failures are ignored: it is then started
    /// with the one before.
    pub(crate) fn update_env(self: &Arc<Keeper>, env: Vec<(Text, Text)>) {
        *self.env.lock().unwrap_or_else(PoisonError::into_inner) = Some(env);
        let keeper = self.clone();
        let _ = bounded(move || {
            let _lock = keeper.store.lock()?;
            match keeper.is_own() {
                true => keeper.store.write(&keeper.current()),
                false => Ok(()),
            }
        });
    }

    fn current(&self) -> Record {
        let mut record = self.record.clone();
        let env = self.env.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(call), Some(env)) = (&mut record.start, env) {
            call.env = env;
        }
        record
    }

    /// Takes a start back that has failed: an app that was known before remains so.
    pub(crate) fn take_back(self: &Arc<Keeper>, reason: String) {
        let end =
            End { how: Ending::Failed, at_ms: millis(SystemTime::now()), reason: Some(reason) };
        let keeper = self.clone();
        let _ = bounded(move || keeper.try_take_back(end));
    }

    fn try_take_back(&self, end: End) -> io::Result<()> {
        let _lock = self.store.lock()?;
        match &self.before {
            _ if !self.is_own() => Ok(()),
            Some(before) if before.start.is_some() => {
                self.store.write(&Record { end: Some(end), ..before.clone() })
            }
            _ => self.store.remove(&self.record.name),
        }
    }

    /// Whether the record is of this process, and was not replaced or removed by another one.
    fn is_own(&self) -> bool {
        self.store
            .read(&self.record.name)
            .is_some_and(|record| record.primary == self.record.primary)
    }
}

/// Returns how this process was called.
fn call(app: &ResolvedApp) -> io::Result<StartCall> {
    Ok(StartCall {
        args: std::env::args_os().skip(1).map(|arg| Text::from(arg.as_os_str())).collect(),
        cwd: crate::directory::current()?,
        env: own_env(),
        app: std::env::var(start::VARIABLE).unwrap_or_default(),
        timeout_ms: start::start_timeout(app).as_millis().try_into().unwrap_or(u64::MAX),
    })
}

fn absolute(path: impl AsRef<std::path::Path>) -> PathBuf {
    let path = path.as_ref();
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Shows that this process is alive, by the time of change of its lock file, until the process ends. The
/// file is another one, where that of the start was removed with its directory.
pub(crate) async fn show_life(claim: Arc<Mutex<Claim>>) {
    loop {
        let lock = claim.lock().unwrap_or_else(PoisonError::into_inner).lock_file();
        let _ = lock.and_then(|lock| lock.set_modified(SystemTime::now()));
        tokio::time::sleep(SIGN_OF_LIFE_INTERVAL).await;
    }
}
