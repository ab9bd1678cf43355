//! log4js: its workers send log events to the primary, which writes them. Under troop nobody does, as
//! the program's configuration is known in workers only. In its mode for PM2 one worker writes, to whom
//! the others' events are passed on, as `pm2-intercom` does it.

use serde::Deserialize;
use serde::de::IgnoredAny;
use troop::WorkerHandle;

use super::Forbidden;

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "topic")]
    _topic: IgnoredAny,
    #[serde(rename = "data")]
    _data: String,
    cmd: Forbidden,
}

/// Returns the worker that writes what `from` has sent: the one in slot 0, in the mode for PM2. Without that
/// mode none does.
pub(super) fn writer<'a>(
    text: &str,
    from: &WorkerHandle,
    workers: &'a [WorkerHandle],
) -> Option<&'a WorkerHandle> {
    if !is_for_worker(text) || from.slot() == 0 {
        return None;
    }
    let serves = |worker: &&WorkerHandle| {
        worker.slot() == 0
            && worker.is_connected()
            && worker.exited_after_disconnect() != Some(true)
    };
    workers.iter().filter(serves).min_by_key(|worker| worker.id())
}

/// Whether an event is one of the mode for PM2: others name their worker.
fn is_for_worker(text: &str) -> bool {
    // Quotes of what the program logs are escaped once more.
    !text.contains(r#"\"cluster\":"#)
        && serde_json::from_str::<Head>(text).is_ok_and(|head| head.cmd.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_the_mode_for_pm2_name_no_worker() {
        let of =
            |data: &str| is_for_worker(&format!(r#"{{"topic":"log4js:message","data":{data}}}"#));
        assert!(of(r#""[{\"data\":\"1\"},[\"2\"],\"{\\\"cluster\\\":1}\"]""#));
        assert!(!of(r#""[{\"cluster\":\"1\"}]""#));
        assert!(!of(r#""[]","cmd":"NODE_CLUSTER""#));
        assert!(!of("7"));
    }
}
