//! `rate-limiter-flexible` in its cluster mode: the primary counts for all workers, as the library's
//! `RateLimiterMemory` does it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const CHANNEL: &str = "rate_limiter_flexible";

/// The most limiters of an app, and bytes of their names.
const MAX_LIMITERS: usize = 256;
const MAX_PREFIX: usize = 256;
/// The most keys of an app, bytes of one, and bytes of all of them. Beyond it the one is forgotten whose time
/// is over first.
const MAX_KEYS: usize = 100_000;
const MAX_KEY: usize = 4096;
const MAX_KEY_BYTES: usize = 16 << 20;
/// The longest identifier of a request.
const MAX_REQUEST: usize = 128;

/// What a limiter was made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Options {
    key_prefix: String,
    points: f64,
    /// In seconds.
    duration: f64,
    #[serde(default)]
    block_duration: f64,
    #[serde(default)]
    exec_evenly: bool,
    #[serde(default)]
    exec_evenly_min_delay_ms: f64,
}

/// A message of a worker.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    #[serde(default)]
    opts: Option<Options>,
    #[serde(default)]
    key_prefix: String,
    #[serde(default)]
    func: String,
    #[serde(default)]
    promise_id: String,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    key: Value,
    #[serde(default)]
    arg: Value,
    #[serde(default)]
    opts: Value,
}

/// What a worker is answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) message: Value,
    /// The time after which it is answered, if not at once.
    pub(super) after: Option<Duration>,
    /// Whether the next engine must know more than before.
    pub(super) is_new_limiter: bool,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    points: f64,
    until: Option<Instant>,
}

/// The state of a key after an operation.
struct State {
    consumed: f64,
    /// -1 if its time is never over.
    ms_before_next: f64,
    is_first: bool,
}

/// A key of a limiter, as one text.
type Key = Arc<str>;

#[derive(Debug, Default)]
pub(super) struct RateLimits {
    limiters: BTreeMap<String, Options>,
    records: HashMap<Key, Record>,
    /// Keys by the end of their time.
    ends: BTreeSet<(Instant, Key)>,
    bytes: usize,
}

impl RateLimits {
    /// Goes on with limiters of another engine; what they have counted starts anew.
    pub(super) fn with(limiters: Vec<Options>) -> RateLimits {
        let limiters = limiters.into_iter().map(|limiter| (limiter.key_prefix.clone(), limiter));
        RateLimits { limiters: limiters.take(MAX_LIMITERS).collect(), ..RateLimits::default() }
    }

    pub(super) fn options(&self) -> Vec<Options> {
        self.limiters.values().cloned().collect()
    }

    /// Returns the answer to a message. `None` if there is none, as the library's part would not answer, or
    /// as there are too many limiters or keys that never end.
    pub(super) fn answer(&mut self, text: &str, now: Instant) -> Option<Answer> {
        let request: Request = serde_json::from_str(text).ok()?;
        if let Some(options) = request.opts {
            return self.add(options);
        }
        if request.promise_id.len() > MAX_REQUEST {
            return None;
        }
        let limiter = self.limiters.get(&request.key_prefix)?.clone();
        self.forget_ended(now);
        let Data { key, arg, opts } = &request.data;
        let key = match key {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if key.len() > MAX_KEY {
            return None;
        }
        let prefix = &limiter.key_prefix;
        let key = Key::from(format!("{}:{prefix}:{key}", prefix.len()));
        let points = arg.as_f64().unwrap_or(1.0);
        let asked = opts["customDuration"].as_f64().filter(|duration| *duration >= 0.0);
        let duration = asked.unwrap_or(limiter.duration);
        let (mut is_resolved, mut after) = (true, None);
        let data = match request.func.as_str() {
            "consume" => {
                let mut state = self.add_points(&key, points, duration, now)?;
                let remaining = (limiter.points - state.consumed).max(0.0);
                if state.consumed > limiter.points {
                    is_resolved = false;
                    // Blocked only the first time.
                    if limiter.block_duration > 0.0 && state.consumed <= limiter.points + points {
                        state = self.set(&key, state.consumed, limiter.block_duration, now)?;
                    }
                } else if limiter.exec_evenly
                    && limiter.points > 0.0
                    && state.ms_before_next > 0.0
                    && !state.is_first
                {
                    let mut delay = (state.ms_before_next / (remaining + 2.0)).ceil();
                    if delay < limiter.exec_evenly_min_delay_ms {
                        delay = state.consumed * limiter.exec_evenly_min_delay_ms;
                    }
                    state.ms_before_next = (state.ms_before_next - delay).max(0.0);
                    after = Duration::try_from_secs_f64(delay / 1000.0).ok();
                }
                result(&state, if is_resolved { remaining } else { 0.0 })
            }
            "penalty" | "reward" => {
                let points = if request.func == "reward" { -points } else { points };
                let state = self.add_points(&key, points, duration, now)?;
                result(&state, (limiter.points - state.consumed).max(0.0))
            }
            "block" => {
                let state = self.set(&key, limiter.points + 1.0, arg.as_f64()?, now)?;
                result(&State { is_first: false, ..state }, 0.0)
            }
            "get" => match self.records.get(&key) {
                Some(record) => {
                    let state = state_of(record, now);
                    result(&state, (limiter.points - state.consumed).max(0.0))
                }
                None => Value::Null,
            },
            "delete" => json!(self.remove(&key)),
            _ => return None,
        };
        let kind = if is_resolved { "resolve" } else { "reject" };
        let message = json!({
            "channel": CHANNEL, "keyPrefix": request.key_prefix, "promiseId": request.promise_id,
            "type": kind, "data": data,
        });
        Some(Answer { message, after, is_new_limiter: false })
    }

    /// Adds a limiter. A known one with other options, as by a new version of the program, has
    /// these from now on.
    fn add(&mut self, options: Options) -> Option<Answer> {
        let prefix = options.key_prefix.clone();
        let is_known = self.limiters.contains_key(&prefix);
        if prefix.len() > MAX_PREFIX || (!is_known && self.limiters.len() >= MAX_LIMITERS) {
            return None;
        }
        let is_new_limiter = self.limiters.get(&prefix) != Some(&options);
        self.limiters.insert(prefix.clone(), options);
        let message = json!({ "channel": CHANNEL, "type": "init", "keyPrefix": prefix });
        Some(Answer { message, after: None, is_new_limiter })
    }

    fn add_points(&mut self, key: &Key, points: f64, duration: f64, now: Instant) -> Option<State> {
        match self.records.get_mut(key) {
            Some(record) => {
                record.points += points;
                Some(state_of(record, now))
            }
            None => self.set(key, points, duration, now),
        }
    }

    /// Sets the points of a key for a number of seconds; 0: for good. `None` if there is no room.
    fn set(&mut self, key: &Key, points: f64, duration: f64, now: Instant) -> Option<State> {
        self.remove(key);
        while self.records.len() >= MAX_KEYS || self.bytes + key.len() > MAX_KEY_BYTES {
            let (_, first) = self.ends.first()?.clone();
            self.remove(&first);
        }
        let time = Duration::try_from_secs_f64(duration).ok().filter(|time| !time.is_zero());
        let until = time.and_then(|time| now.checked_add(time));
        self.records.insert(key.clone(), Record { points, until });
        self.bytes += key.len();
        if let Some(until) = until {
            self.ends.insert((until, key.clone()));
        }
        let ms_before_next = if duration == 0.0 { -1.0 } else { duration * 1000.0 };
        Some(State { consumed: points, ms_before_next, is_first: true })
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(record) = self.records.remove(key) else { return false };
        self.bytes -= key.len();
        if let Some(until) = record.until {
            self.ends.remove(&(until, key.clone()));
        }
        true
    }

    fn forget_ended(&mut self, now: Instant) {
        while let Some((until, key)) = self.ends.first()
            && *until <= now
        {
            let key = key.clone();
            self.remove(&key);
        }
    }
}

fn state_of(record: &Record, now: Instant) -> State {
    let left = record.until.map(|until| until.saturating_duration_since(now));
    // As many whole milliseconds as the library would say.
    let ms_before_next = left.map_or(-1.0, |left| (left.as_secs_f64() * 1000.0).ceil());
    State { consumed: record.points, ms_before_next, is_first: false }
}

fn result(state: &State, remaining: f64) -> Value {
    json!({
        "remainingPoints": remaining, "msBeforeNext": state.ms_before_next,
        "consumedPoints": state.consumed, "isFirstInDuration": state.is_first,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Limits(RateLimits, Instant);

    impl Limits {
        fn new(options: &Value) -> Limits {
            let mut limits = Limits(RateLimits::default(), Instant::now());
            assert!(limits.init(options).is_new_limiter);
            limits
        }

        fn init(&mut self, options: &Value) -> Answer {
            let text = json!({ "channel": CHANNEL, "type": "init", "opts": options }).to_string();
            self.0.answer(&text, self.1).unwrap()
        }

        fn ask(&mut self, func: &str, key: &Value, arg: &Value) -> Option<Answer> {
            let data = json!({ "key": key, "arg": arg, "opts": {} });
            let request = json!({
                "channel": CHANNEL, "keyPrefix": "p", "func": func, "promiseId": "1", "data": data,
            });
            self.0.answer(&request.to_string(), self.1)
        }

        /// How it was answered, the remaining and consumed points, and the milliseconds left.
        fn of(&mut self, func: &str, key: &str, arg: u64) -> (String, f64, f64, f64) {
            let message = self.ask(func, &json!(key), &json!(arg)).unwrap().message;
            let number = |name: &str| message["data"][name].as_f64().unwrap();
            let kind = message["type"].as_str().unwrap().to_owned();
            (kind, number("remainingPoints"), number("consumedPoints"), number("msBeforeNext"))
        }
    }

    fn options(more: &Value) -> Value {
        let mut options = json!({ "keyPrefix": "p", "points": 3, "duration": 10 });
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    }

    #[test]
    fn points_are_counted_until_their_time_is_over() {
        let mut limits = Limits::new(&options(&json!({})));
        let resolved = |remaining, consumed, ms| ("resolve".to_owned(), remaining, consumed, ms);
        assert_eq!(limits.of("consume", "a", 1), resolved(2.0, 1.0, 10_000.0));
        limits.1 += Duration::from_secs(4);
        assert_eq!(limits.of("consume", "a", 2), resolved(0.0, 3.0, 6000.0));
        assert_eq!(limits.of("consume", "b", 1), resolved(2.0, 1.0, 10_000.0));
        assert_eq!(limits.of("consume", "a", 1), ("reject".into(), 0.0, 4.0, 6000.0));
        assert_eq!(limits.of("reward", "a", 2), resolved(1.0, 2.0, 6000.0));
        assert_eq!(limits.of("penalty", "a", 1), resolved(0.0, 3.0, 6000.0));
        assert_eq!(limits.of("get", "a", 0), resolved(0.0, 3.0, 6000.0));
        limits.1 += Duration::from_secs(6);
        assert_eq!(limits.ask("get", &json!("a"), &json!(0)).unwrap().message["data"], json!(null));
        assert_eq!(limits.of("block", "a", 60), resolved(0.0, 4.0, 60_000.0));
        assert_eq!(limits.of("consume", "a", 1), ("reject".into(), 0.0, 5.0, 60_000.0));
        let delete = |limits: &mut Limits| {
            limits.ask("delete", &json!("a"), &json!(null)).unwrap().message["data"].clone()
        };
        assert_eq!((delete(&mut limits), delete(&mut limits)), (json!(true), json!(false)));
        // A number is the same key as its text.
        assert!(limits.ask("consume", &json!(7), &json!(1)).is_some());
        assert_eq!(limits.of("consume", "7", 1), resolved(1.0, 2.0, 10_000.0));
    }

    #[test]
    fn who_goes_beyond_is_blocked_once_and_evenly_spread_where_that_is_asked_for() {
        let mut limits = Limits::new(&options(&json!({ "blockDuration": 100 })));
        assert_eq!(limits.of("consume", "a", 4), ("reject".into(), 0.0, 4.0, 100_000.0));
        limits.1 += Duration::from_secs(50);
        assert_eq!(limits.of("consume", "a", 4), ("reject".into(), 0.0, 8.0, 50_000.0));

        let mut limits = Limits::new(&options(&json!({ "execEvenly": true })));
        let after =
            |limits: &mut Limits| limits.ask("consume", &json!("a"), &json!(1)).unwrap().after;
        assert_eq!(after(&mut limits), None);
        assert_eq!(after(&mut limits), Some(Duration::from_millis(3334)));
    }

    #[test]
    fn a_limiter_is_made_once_and_again_when_the_program_changes_it() {
        let mut limits = Limits::new(&options(&json!({})));
        assert!(!limits.init(&options(&json!({}))).is_new_limiter);
        limits.of("consume", "a", 3);
        assert!(limits.init(&options(&json!({ "points": 9 }))).is_new_limiter);
        assert_eq!(limits.of("consume", "a", 1).0, "resolve");
        // Another engine goes on with it.
        limits.0 = RateLimits::with(limits.0.options());
        assert_eq!(limits.of("consume", "a", 1), ("resolve".into(), 8.0, 1.0, 10_000.0));
        assert!(limits.0.answer(r#"{"keyPrefix":"other","func":"get"}"#, limits.1).is_none());
    }

    #[test]
    fn what_workers_can_make_it_keep_is_bounded() {
        let mut limits = Limits::new(&options(&json!({})));
        for number in 0..MAX_KEYS + 10 {
            limits.1 += Duration::from_nanos(1);
            assert!(limits.ask("consume", &json!(number), &json!(1)).is_some());
        }
        assert_eq!((limits.0.records.len(), limits.0.ends.len()), (MAX_KEYS, MAX_KEYS));
        let is_kept = |limits: &mut Limits, number: usize| {
            !limits.ask("get", &json!(number), &json!(0)).unwrap().message["data"].is_null()
        };
        assert!(!is_kept(&mut limits, 0) && is_kept(&mut limits, MAX_KEYS));
        assert!(limits.ask("consume", &json!("x".repeat(MAX_KEY + 1)), &json!(1)).is_none());
        for number in 0..2 * MAX_LIMITERS {
            let named = options(&json!({ "keyPrefix": number.to_string() }));
            let text = json!({ "channel": CHANNEL, "type": "init", "opts": named }).to_string();
            limits.0.answer(&text, limits.1);
        }
        assert_eq!(limits.0.limiters.len(), MAX_LIMITERS);
        // Keys that never end are not forgotten for others.
        let mut limits = Limits::new(&options(&json!({ "duration": 0 })));
        let key = |number: usize| json!(format!("{number}{}", "x".repeat(4000)));
        let most = (0..).take_while(|n| limits.ask("consume", &key(*n), &json!(1)).is_some());
        assert!(most.count() < MAX_KEY_BYTES / 4000 + 1);
        assert!(limits.ask("get", &key(0), &json!(0)).unwrap().message["data"].is_object());
    }
}
