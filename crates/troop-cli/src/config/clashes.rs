//! Options that are in each other's way: addresses of one app or of several, and weights.

use super::app::App;
use super::{Apps, Workers};

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
        }
    }
    found
}

/// Returns what probably is in the way: ports in the environment, and weights.
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
}
