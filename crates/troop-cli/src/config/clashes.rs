//! Options that are in each other's way: addresses, pid files and log files of one app or of several, and
//! weights.

use std::path::{Path, PathBuf};

use super::app::App;
use super::{Apps, Workers};
use crate::logs::paths as logs;
use crate::pid_files;

/// An address to listen on.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    is_udp: bool,
    host: &'a str,
    /// A port or a path.
    at: &'a str,
}

impl<'a> Place<'a> {
    /// Parses an address of `bind`, which was checked before. `None` for sockets from systemd, and
    /// for a port that the system chooses.
    fn of(text: &'a str) -> Option<Place<'a>> {
        let place = text.split_once('=').map_or(text, |(_, place)| place);
        let (is_udp, place) =
            place.strip_prefix("udp:").map_or((false, place), |rest| (true, rest));
        if place == "systemd" || place.starts_with("systemd:") {
            return None;
        }
        let is_path = place.starts_with(['/', '@', '.']);
        let (host, at) = match place.rsplit_once(':') {
            Some((host, port)) if !is_path => (host, port),
            _ => ("", place),
        };
        (at != "0").then_some(Place { is_udp, host, at })
    }

    /// Whether only one of them can be bound.
    fn clashes(&self, other: &Place<'_>) -> bool {
        let is_any = |host: &str| ["", "*", "0.0.0.0", "[::]"].contains(&host);
        let same_host = self.host == other.host || is_any(self.host) || is_any(other.host);
        self.is_udp == other.is_udp && self.at == other.at && same_host
    }
}

/// Returns what is in the way within an app.
pub(super) fn within(app: &App) -> Vec<String> {
    let places: Vec<_> = app.bind.iter().map(|text| (text, Place::of(text))).collect();
    let mut found = Vec::new();
    for (at, (text, place)) in places.iter().enumerate() {
        let Some(place) = place else { continue };
        let before = places[..at]
            .iter()
            .find(|(_, other)| other.as_ref().is_some_and(|other| place.clashes(other)));
        if let Some((other, _)) = before {
            found.push(format!("{text:?} cannot be bound beside {other:?}"));
        }
    }
    found
}

/// Returns why the primary and a worker cannot have the files that an app names.
pub(super) fn of_pid_files(app: &App) -> Option<String> {
    let primary = located(app, app.pid_file.as_ref()?);
    let workers = located(app, app.worker_pid_file.as_ref()?);
    is_of_a_worker(&primary, &workers)
        .then(|| format!("{} is the file of a worker, too, by worker_pid_file", primary.display()))
}

/// Returns the path of a pid file, to compare it with others of the same configuration file.
fn located(app: &App, path: &Path) -> PathBuf {
    let directory = app.cwd.as_deref().unwrap_or(Path::new("."));
    directory.join(path).components().collect()
}

/// Whether a path is that of some worker's file.
fn is_of_a_worker(path: &Path, workers: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pid"));
    let slot = name.and_then(|name| name.rsplit_once('-')?.1.parse().ok());
    pid_files::of_slot(workers, slot.unwrap_or(0)) == path
}

/// Returns the pid file of an app that another app has, too.
fn shared_pid_file(app: &App, other: &App) -> Option<String> {
    let mine = located(app, app.pid_file.as_ref()?);
    let is_primary = other.pid_file.as_ref().is_some_and(|path| located(other, path) == mine);
    let is_worker = || {
        let workers = other.worker_pid_file.as_ref();
        workers.is_some_and(|path| is_of_a_worker(&mine, &located(other, path)))
    };
    (is_primary || is_worker()).then(|| mine.display().to_string())
}

/// Whether workers of two apps have the same files, as in PM2, where numbers of workers go on from one
/// app to the next, they would not.
fn share_worker_pid_files(app: &App, other: &App) -> bool {
    let first = |app: &App| {
        let path = located(app, app.worker_pid_file.as_ref()?);
        Some(pid_files::of_slot(&path, 0))
    };
    first(app).is_some_and(|mine| first(other) == Some(mine))
}

/// Returns a log file of two apps.
fn shared_log_file(name: &str, app: &App, other_name: &str, other: &App) -> Option<String> {
    let of = |name: &str, app: &App| {
        logs::files(name, &app.output, app.cwd.as_deref().unwrap_or(Path::new("."))).files
    };
    let theirs = of(other_name, other);
    let shared =
        of(name, app).into_iter().find(|file| theirs.contains(file) && !logs::is_device(file))?;
    Some(shared.display().to_string())
}

/// Returns what is in the way of several apps: the later one, the option, and the reason.
pub(crate) fn among(apps: &Apps) -> Vec<(String, &'static str, String)> {
    let mut found = Vec::new();
    let all: Vec<_> = apps.iter().collect();
    for (at, (name, app)) in all.iter().enumerate() {
        for (other_name, other) in &all[..at] {
            for text in &app.bind {
                let Some(place) = Place::of(text) else { continue };
                let same =
                    |text: &&String| Place::of(text).is_some_and(|other| place.clashes(&other));
                if let Some(theirs) = other.bind.iter().find(same) {
                    let text =
                        format!("{text:?} cannot be bound beside {theirs:?} of app.{other_name}");
                    found.push(((*name).clone(), "bind", text));
                }
            }
            if let Some(file) = shared_pid_file(app, other) {
                let text = format!("{file} is a pid file of app.{other_name}, too");
                found.push(((*name).clone(), "pid_file", text));
            } else if let Some(file) = shared_pid_file(other, app) {
                let text = format!("{file} is a pid file of app.{other_name}, too");
                found.push(((*name).clone(), "worker_pid_file", text));
            }
        }
    }
    found
}

/// Returns what probably is in the way: ports in the environment, files of workers, and weights.
pub(crate) fn suspicious(apps: &Apps) -> Vec<(String, &'static str, String)> {
    let mut found = Vec::new();
    let port = |app: &App| app.env.get("PORT").filter(|port| *port != "0").cloned();
    let all: Vec<_> = apps.iter().collect();
    for (at, (name, app)) in all.iter().enumerate() {
        if let Some(mine) = port(app)
            && let Some((other, _)) =
                all[..at].iter().find(|(_, other)| port(other).as_ref() == Some(&mine))
        {
            let text =
                format!("PORT is {mine}, as in app.{other}: two apps cannot listen on one port");
            found.push(((*name).clone(), "env", text));
        }
        if let Some((other, _)) =
            all[..at].iter().find(|(_, other)| share_worker_pid_files(app, other))
        {
            let text = format!(
                "worker_pid_file is that of app.{other}, too: slots begin with 0 in each app, so both write the same files"
            );
            found.push(((*name).clone(), "worker_pid_file", text));
        }
        let shared = all[..at].iter().find_map(|(other_name, other)| {
            Some((other_name, shared_log_file(name, app, other_name, other)?))
        });
        if let Some((other, file)) = shared {
            let text = format!(
                "{file} is a log file of app.{other}, too: troop logs shows the lines of both, and each app rotates it by its own options"
            );
            found.push(((*name).clone(), "output", text));
        }
        if let Some(Workers::Number(workers)) = app.workers
            && app.weights.len() > workers
        {
            let text = format!("there are {} weights for {workers} workers", app.weights.len());
            found.push(((*name).clone(), "weights", text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tables::Output;

    fn app(bind: &[&str]) -> App {
        let bind = bind.iter().map(|text| (*text).to_owned()).collect();
        App { bind, ..App::new("x") }
    }

    #[test]
    fn addresses_are_bound_once() {
        for (one, other, clashes) in [
            ("8000", "8000", true),
            ("8000", "127.0.0.1:8000", true),
            ("web=8000", "[::]:8000", true),
            ("127.0.0.1:8000", "127.0.0.2:8000", false),
            ("8000", "8001", false),
            ("udp:8000", "8000", false),
            ("/run/a.sock", "/run/a.sock", true),
            ("/run/a.sock", "/run/b.sock", false),
            ("0", "0", false),
            ("systemd", "systemd", false),
        ] {
            assert_eq!(!within(&app(&[one, other])).is_empty(), clashes, "{one} {other}");
            let apps = Apps::from([("a".into(), app(&[one])), ("b".into(), app(&[other]))]);
            let found = among(&apps);
            assert_eq!(!found.is_empty(), clashes, "{found:?}");
            assert!(found.iter().all(|(name, option, _)| name == "b" && *option == "bind"));
        }
    }

    #[test]
    fn ports_of_two_apps_and_weights_without_workers_are_suspicious() {
        let mut web = app(&[]);
        web.env.insert("PORT".into(), "8000".into());
        (web.workers, web.weights) = (Some(Workers::Number(2)), vec![5, 100, 100]);
        let apps = Apps::from([("a".into(), web.clone()), ("b".into(), web)]);
        let found = suspicious(&apps);
        let options: Vec<_> =
            found.iter().map(|(name, option, _)| (name.as_str(), *option)).collect();
        assert_eq!(options, [("a", "weights"), ("b", "env"), ("b", "weights")]);
    }

    #[test]
    fn a_log_file_of_two_apps_is_suspicious_if_both_write_the_same_one() {
        let with = |cwd: &str, file: &str, per_worker: bool| {
            let file = (!file.is_empty()).then(|| PathBuf::from(file));
            let output = Output { file, per_worker, ..Output::default() };
            App { cwd: Some(cwd.into()), output, ..App::new("x") }
        };
        for (one, other, is_shared) in [
            (with("/srv", "", false), with("/srv", "", false), false),
            (with("/srv", "all.log", false), with("/opt", "all.log", false), true),
            (with("/srv", "logs/all.log", false), with("/opt", "logs/all.log", false), false),
            (with("/srv", "logs/all.log", false), with("/srv", "logs/all.log", true), false),
            (with("/srv", "/l/all.log", true), with("/opt", "/l/all.log", true), true),
            // Files of slots are in the directory of the app.
            (with("/srv", "all.log", true), with("/srv", "all.log", true), false),
            (with("/srv", "b.log", false), with("/srv", "", false), true),
            (with("/srv", "/dev/null", false), with("/srv", "/dev/null", false), false),
        ] {
            let apps = Apps::from([("a".into(), one), ("b".into(), other)]);
            let found = suspicious(&apps);
            let options: Vec<_> =
                found.iter().map(|(name, option, _)| (name.as_str(), *option)).collect();
            let expected: &[_] = if is_shared { &[("b", "output")] } else { &[] };
            assert_eq!(options, expected, "{apps:?}");
        }
    }

    #[test]
    fn a_pid_file_is_that_of_one_process() {
        let with = |cwd: &str, primary: &str, workers: &str| {
            let path =
                |text: &str| Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty());
            let (pid_file, worker_pid_file) = (path(primary), path(workers));
            App { cwd: path(cwd), pid_file, worker_pid_file, ..App::new("x") }
        };
        for (primary, workers, clashes) in [
            ("web.pid", "web.pid", false),
            ("web-1.pid", "./web.pid", true),
            ("web-x.pid", "web.pid", false),
            ("pids", "./pids", true),
            ("a/web-1.pid", "web.pid", false),
        ] {
            let app = with("", primary, workers);
            assert_eq!(of_pid_files(&app).is_some(), clashes, "{primary} {workers}");
        }
        for (one, other, option) in [
            (with("", "web.pid", ""), with("", "./web.pid", ""), Some("pid_file")),
            (with("/srv", "web.pid", ""), with("", "/srv/web.pid", ""), Some("pid_file")),
            (with("/srv", "web.pid", ""), with("", "web.pid", ""), None),
            (with("", "", "web.pid"), with("", "web-3.pid", ""), Some("pid_file")),
            (with("", "web-3.pid", ""), with("", "", "web.pid"), Some("worker_pid_file")),
        ] {
            let apps = Apps::from([("a".into(), one), ("b".into(), other)]);
            let found = among(&apps);
            assert_eq!(found.first().map(|(_, option, _)| *option), option, "{found:?}");
        }
        let apps = Apps::from([
            ("a".into(), with("", "", "web.pid")),
            ("b".into(), with("", "", "web-7.pid")),
        ]);
        assert_eq!(suspicious(&apps)[0].1, "worker_pid_file");
    }
}
