//! `@socket.io/cluster-adapter`: its part in the primary passes each message on to all other workers, and
//! an answer to the worker that has asked.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use troop::WorkerId;

use super::Forbidden;

/// The most adapters of a worker whose identifiers are known: it has one for each namespace.
const MAX_ADAPTERS: usize = 256;
/// The longest identifier.
const MAX_UID: usize = 64;

/// A message, as far as it says where it goes. A name that comes twice is an error.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(borrow, default, rename = "requesterUid")]
    requester: Option<Cow<'a, str>>,
    cmd: Forbidden,
}

/// The adapters of all workers.
#[derive(Default)]
pub(super) struct Adapters {
    /// Their identifiers, the last ones last.
    known: BTreeMap<WorkerId, VecDeque<Box<str>>>,
}

impl Adapters {
    /// Returns the workers that a message goes to.
    pub(super) fn to(&mut self, text: &str, from: WorkerId, workers: &[WorkerId]) -> Vec<WorkerId> {
        let Ok(Head { uid, requester, cmd: None }) = serde_json::from_str::<Head<'_>>(text) else {
            return Vec::new();
        };
        self.known.retain(|worker, _| workers.contains(worker));
        if !uid.is_empty() && uid.len() <= MAX_UID && workers.contains(&from) {
            let own = self.known.entry(from).or_default();
            if !own.iter().any(|known| **known == *uid) {
                own.push_back(uid.into());
                if own.len() > MAX_ADAPTERS {
                    own.pop_front();
                }
            }
        }
        let asked = requester.and_then(|requester| {
            let is_one = |uids: &VecDeque<Box<str>>| uids.iter().any(|uid| **uid == *requester);
            self.known.iter().find(|(_, uids)| is_one(uids)).map(|(worker, _)| *worker)
        });
        match asked {
            Some(worker) => vec![worker],
            // Those who have not asked ignore an answer.
            None => workers.iter().copied().filter(|worker| *worker != from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKERS: [WorkerId; 3] = [WorkerId(1), WorkerId(2), WorkerId(3)];

    #[test]
    fn a_message_goes_to_all_others_and_an_answer_to_who_has_asked() {
        let mut adapters = Adapters::default();
        let ask = r#"{"type":7,"uid":"a","nsp":"/","source":"_sio_adapter"}"#;
        let answer = r#"{"type":8,"uid":"b","source":"_sio_adapter","requesterUid":"a"}"#;
        // After an engine that has known the worker.
        assert_eq!(adapters.to(answer, WORKERS[1], &WORKERS), [WORKERS[0], WORKERS[2]]);
        assert_eq!(adapters.to(ask, WORKERS[0], &WORKERS), [WORKERS[1], WORKERS[2]]);
        assert_eq!(adapters.to(answer, WORKERS[1], &WORKERS), [WORKERS[0]]);
        // It has ended.
        assert_eq!(adapters.to(answer, WORKERS[1], &WORKERS[1..]), [WORKERS[2]]);
    }

    #[test]
    fn what_node_would_take_for_its_own_is_not_passed_on() {
        let mut adapters = Adapters::default();
        for text in [
            r#"{"cmd":"NODE_CLUSTER","source":"_sio_adapter"}"#,
            r#"{"cmd":null,"\u0063md":"NODE_CLUSTER","source":"_sio_adapter"}"#,
            r#"{"uid":"a","uid":"b","source":"_sio_adapter"}"#,
            r#"{"uid":7,"source":"_sio_adapter"}"#,
        ] {
            assert_eq!(adapters.to(text, WORKERS[0], &WORKERS), [], "{text}");
        }
    }

    #[test]
    fn the_number_of_known_adapters_is_bounded() {
        let mut adapters = Adapters::default();
        for number in 0..2 * MAX_ADAPTERS {
            adapters.to(&format!(r#"{{"uid":"{number}"}}"#), WORKERS[0], &WORKERS);
        }
        assert_eq!(adapters.known[&WORKERS[0]].len(), MAX_ADAPTERS);
    }
}
