//! Decides what is an alert, from what is seen of the apps.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use troop::snapshot::Phase;

use crate::apps::App;
use crate::args::AlertKind;
use crate::records::{End, Ending};
use crate::verbs::probe::why_not_ready;

/// Unexpected ends of workers within [`CRASH_WINDOW`] that are a crash loop.
const CRASHES: u64 = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Minimum time between two alerts about the same happening. What comes meanwhile is told by the next.
const REPEAT_INTERVAL: Duration = Duration::from_secs(300);

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alert {
    pub(super) app: String,
    pub(super) kind: AlertKind,
    pub(super) state: State,
    /// How often it has happened since it was told last.
    pub(super) count: u64,
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A state that lasts has begun.
    Firing,
    /// It is over.
    Resolved,
    /// Something has happened.
    Happened,
}

/// What is seen of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    name: String,
    /// Why it serves nobody.
    down: Option<String>,
    /// Why it serves with less than it should.
    degraded: Option<String>,
    /// Counters, if it runs.
    counts: Option<Counts>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Counts {
    restarts: u64,
    last_end: Option<String>,
    happened: BTreeMap<AlertKind, u64>,
}

impl Seen {
    fn of(app: &App) -> Seen {
        let name = app.name().to_owned();
        match app {
            App::Silent(_) => {
                Seen { name, down: Some("it does not answer".into()), ..Seen::default() }
            }
            App::Ended(_, end) => Seen { name, down: why_down(end), ..Seen::default() },
            App::Running(app) => {
                let events = &app.counts.events;
                let sum = |names: &[&str]| names.iter().filter_map(|name| events.get(*name)).sum();
                let ends = |how: &str| app.counts.ends.get(how).copied().unwrap_or_default();
                let happened = [
                    (AlertKind::ReloadFailed, sum(&["reload-failed", "roll-back-failed"])),
                    (AlertKind::Unhealthy, sum(&["unhealthy"])),
                    (AlertKind::Hung, sum(&["stalled"])),
                    (AlertKind::Died, ends("failed") + ends("killed")),
                    (AlertKind::LogLost, app.lost_lines),
                ];
                let degraded = (app.snapshot.phase == Phase::Degraded).then(|| why_not_ready(app));
                Seen {
                    name,
                    down: None,
                    degraded: degraded.flatten(),
                    counts: Some(Counts {
                        restarts: app.snapshot.restarts,
                        last_end: app.snapshot.last_end.clone(),
                        happened: happened.into(),
                    }),
                }
            }
        }
    }
}

/// Why an app that has ended should run. Others were stopped, or have done their work.
fn why_down(end: &End) -> Option<String> {
    let what = match end.how {
        Ending::Failed => "it has failed",
        Ending::Crashed => "it has crashed",
        Ending::Stopped | Ending::Finished => return None,
    };
    Some(match &end.reason {
        Some(reason) => format!("{what}: {reason}"),
        None => what.into(),
    })
}

/// What was seen of an app, and what was told of it.
#[derive(Debug, Default)]
struct Known {
    /// States that last, since when, and whether that was told.
    lasting: BTreeMap<AlertKind, (Instant, bool)>,
    /// Restarts of the last minute, as they were counted.
    restarts: VecDeque<(Instant, u64)>,
    /// What has happened: how often when it was told last, and when that was.
    told: BTreeMap<AlertKind, (u64, Option<Instant>)>,
}

/// The rules, with what they remember.
#[derive(Debug)]
pub(super) struct Rules {
    kinds: Vec<AlertKind>,
    /// Time for which a state must last.
    after: Duration,
    known: BTreeMap<String, Known>,
}

impl Rules {
    pub(super) fn new(kinds: Vec<AlertKind>, after: Duration) -> Rules {
        Rules { kinds, after, known: BTreeMap::new() }
    }

    /// Takes note of all apps as they are now. Returns what is to be told, in order.
    pub(super) fn note(&mut self, now: Instant, apps: &[App]) -> Vec<Alert> {
        self.note_seen(now, &apps.iter().map(Seen::of).collect::<Vec<_>>())
    }

    fn note_seen(&mut self, now: Instant, apps: &[Seen]) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for app in apps {
            let known = self.known.entry(app.name.clone()).or_default();
            known.note(now, app, self.after, &mut alerts);
        }
        self.known.retain(|name, known| {
            let is_listed = apps.iter().any(|app| app.name == *name);
            if !is_listed {
                let gone = Seen { name: name.clone(), ..Seen::default() };
                known.note(now, &gone, self.after, &mut alerts);
            }
            is_listed
        });
        alerts.retain(|alert| self.kinds.contains(&alert.kind));
        alerts
    }
}

impl Known {
    fn note(&mut self, now: Instant, app: &Seen, after: Duration, alerts: &mut Vec<Alert>) {
        let crashes = self.crashes(now, app.counts.as_ref());
        let states = [
            (AlertKind::Down, app.down.clone(), after),
            (AlertKind::Degraded, app.degraded.clone(), after),
            (AlertKind::CrashLoop, crashes, Duration::ZERO),
        ];
        for (kind, why, after) in states {
            alerts.extend(self.state(now, app, kind, why, after));
        }
        for (kind, count) in app.counts.iter().flat_map(|counts| &counts.happened) {
            alerts.extend(self.happened(now, &app.name, *kind, *count));
        }
    }

    /// Returns why the app is in a crash loop, if it is.
    fn crashes(&mut self, now: Instant, counts: Option<&Counts>) -> Option<String> {
        let Some(Counts { restarts, last_end, .. }) = counts else {
            self.restarts.clear();
            return None;
        };
        // They count from 0 again after a restart, or `troop reset`.
        if self.restarts.back().is_some_and(|(_, before)| before > restarts) {
            self.restarts.clear();
        }
        self.restarts.push_back((now, *restarts));
        while self.restarts.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= CRASH_WINDOW) {
            self.restarts.pop_front();
        }
        let first = self.restarts.front().map_or(*restarts, |(_, first)| *first);
        let recent = restarts - first;
        let end = last_end.as_ref().map(|end| format!("; the last: {end}")).unwrap_or_default();
        (recent >= CRASHES).then(|| {
            let within = CRASH_WINDOW.as_secs();
            format!("{recent} workers ended unexpectedly within {within} s{end}")
        })
    }

    /// Notes whether a state lasts, and why.
    fn state(
        &mut self,
        now: Instant,
        app: &Seen,
        kind: AlertKind,
        why: Option<String>,
        after: Duration,
    ) -> Option<Alert> {
        let name = app.name.clone();
        match why {
            Some(why) => {
                let (since, is_told) = self.lasting.entry(kind).or_insert((now, false));
                if *is_told || now.duration_since(*since) < after {
                    return None;
                }
                *is_told = true;
                let text = format!("{name}: {why}");
                Some(Alert { app: name, kind, state: State::Firing, count: 1, text })
            }
            None => {
                let (since, is_told) = self.lasting.remove(&kind)?;
                let lasted = now.duration_since(since).as_secs();
                let text = format!("{name}: {kind} no more, after {lasted} s");
                is_told.then_some(Alert { app: name, kind, state: State::Resolved, count: 1, text })
            }
        }
    }

    /// Notes how often something has happened. What was before the first look is no news.
    fn happened(&mut self, now: Instant, app: &str, kind: AlertKind, count: u64) -> Option<Alert> {
        let (before, told) = self.told.entry(kind).or_insert((count, None));
        *before = if count < *before { 0 } else { *before };
        let more = count - *before;
        if more == 0 || told.is_some_and(|at| now.duration_since(at) < REPEAT_INTERVAL) {
            return None;
        }
        (*before, *told) = (count, Some(now));
        let times = if more == 1 { String::new() } else { format!(" ({more} times)") };
        let text = format!("{app}: {}{times}; `troop logs {app}` has more", kind.happening());
        Some(Alert { app: app.into(), kind, state: State::Happened, count: more, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        use std::sync::OnceLock;
        static START: OnceLock<Instant> = OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    fn rules() -> Rules {
        let all = <AlertKind as clap::ValueEnum>::value_variants().to_vec();
        Rules::new(all, Duration::from_secs(10))
    }

    fn running(restarts: u64, happened: &[(AlertKind, u64)]) -> Seen {
        let happened = happened.iter().copied().collect();
        let counts = Counts { restarts, last_end: Some("exit code 1".into()), happened };
        Seen { name: "web".into(), counts: Some(counts), ..Seen::default() }
    }

    fn with(degraded: Option<&str>, down: Option<&str>) -> Seen {
        let (degraded, down) = (degraded.map(Into::into), down.map(Into::into));
        Seen { name: "web".into(), degraded, down, counts: None }
    }

    fn told(alerts: &[Alert]) -> Vec<(AlertKind, State, &str)> {
        alerts.iter().map(|alert| (alert.kind, alert.state, alert.text.as_str())).collect()
    }

    #[test]
    fn a_state_is_told_once_when_it_has_lasted_and_once_when_it_is_over() {
        let mut rules = rules();
        let bad = [with(Some("1 of 2 workers ready"), None)];
        assert!(rules.note_seen(at(0), &bad).is_empty());
        assert!(rules.note_seen(at(9), &bad).is_empty());
        let alerts = rules.note_seen(at(10), &bad);
        let firing = (AlertKind::Degraded, State::Firing, "web: 1 of 2 workers ready");
        assert_eq!(told(&alerts), [firing]);
        assert!(rules.note_seen(at(500), &bad).is_empty());
        let alerts = rules.note_seen(at(501), &[with(None, None)]);
        let text = "web: degraded no more, after 501 s";
        assert_eq!(told(&alerts), [(AlertKind::Degraded, State::Resolved, text)]);
        // What does not last is no alert, and has no end.
        assert!(rules.note_seen(at(600), &bad).is_empty());
        assert!(rules.note_seen(at(605), &[with(None, None)]).is_empty());
        assert!(rules.note_seen(at(615), &bad).is_empty());
    }

    #[test]
    fn an_app_that_is_down_is_told_and_so_is_its_deletion() {
        let mut rules = rules();
        let down = [with(None, Some("it has crashed"))];
        assert!(rules.note_seen(at(0), &down).is_empty());
        let firing = (AlertKind::Down, State::Firing, "web: it has crashed");
        assert_eq!(told(&rules.note_seen(at(10), &down)), [firing]);
        let alerts = rules.note_seen(at(20), &[]);
        let text = "web: down no more, after 20 s";
        assert_eq!(told(&alerts), [(AlertKind::Down, State::Resolved, text)]);
        assert!(rules.note_seen(at(21), &[]).is_empty());
    }

    #[test]
    fn five_unexpected_ends_within_a_minute_are_a_crash_loop() {
        let mut rules = rules();
        for (time, restarts) in [(0, 100), (20, 102), (40, 104), (90, 105)] {
            assert!(rules.note_seen(at(time), &[running(restarts, &[])]).is_empty(), "{time}");
        }
        let text = "web: 5 workers ended unexpectedly within 60 s; the last: exit code 1";
        let alerts = rules.note_seen(at(100), &[running(109, &[])]);
        assert_eq!(told(&alerts), [(AlertKind::CrashLoop, State::Firing, text)]);
        assert!(rules.note_seen(at(110), &[running(120, &[])]).is_empty());
        let alerts = rules.note_seen(at(171), &[running(120, &[])]);
        assert_eq!((alerts[0].kind, alerts[0].state), (AlertKind::CrashLoop, State::Resolved));
        // They count from 0 again.
        assert!(rules.note_seen(at(172), &[running(4, &[])]).is_empty());
    }

    #[test]
    fn what_happens_again_soon_is_told_together() {
        let mut rules = rules();
        let failed = |count| [running(0, &[(AlertKind::ReloadFailed, count)])];
        assert!(rules.note_seen(at(0), &failed(7)).is_empty(), "it was before");
        let text = "web: a reload failed; `troop logs web` has more";
        let happened = (AlertKind::ReloadFailed, State::Happened, text);
        assert_eq!(told(&rules.note_seen(at(1), &failed(8))), [happened]);
        assert!(rules.note_seen(at(2), &failed(9)).is_empty());
        assert!(rules.note_seen(at(100), &failed(10)).is_empty());
        let alerts = rules.note_seen(at(301), &failed(10));
        assert_eq!(alerts.len(), 1);
        assert_eq!(alerts[0].count, 2);
        assert!(alerts[0].text.contains("a reload failed (2 times)"), "{}", alerts[0].text);
        // After a restart it counts from 0.
        assert!(rules.note_seen(at(700), &failed(0)).is_empty());
        assert_eq!(rules.note_seen(at(701), &failed(1)).len(), 1);
    }

    #[test]
    fn only_what_was_asked_for_is_told() {
        let mut rules = Rules::new(vec![AlertKind::Down], Duration::ZERO);
        let bad = [with(Some("1 of 2 workers ready"), None)];
        assert!(rules.note_seen(at(0), &bad).is_empty());
        assert_eq!(rules.note_seen(at(1), &[with(None, Some("it has failed"))]).len(), 1);
    }
}
