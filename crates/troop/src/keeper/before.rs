//! What the keeper has for itself, and engines and workers do not.

use troop_sys::process;

/// What this process has changed for itself, and engines, and so workers, have as it was before.
pub(super) struct Before {
    /// How likely it is that the system kills a process when it runs out of memory
    /// (`/proc/PID/oom_score_adj`). This one is the last of all, where that is allowed.
    oom_score: Option<String>,
    /// The soft limit on descriptors. Here it is the hard one, which an engine's is later: each
    /// descriptor that an engine has may be held.
    pub(super) descriptors: Option<u64>,
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The lowest score of a process that the system may kill at all.
const LOWEST_SCORE: &str = "-999";

impl Before {
    /// Changes it.
    pub(super) fn of_this_process() -> Before {
        let oom_score = std::fs::read_to_string(OOM_SCORE).ok();
        Before { oom_score, descriptors: process::raise_descriptor_limit() }
    }

    /// What the former program of this process has changed.
    pub(super) fn of_former(oom_score: Option<i32>, descriptors: Option<u64>) -> Before {
        Before { oom_score: oom_score.map(|score| score.to_string()), descriptors }
    }

    pub(super) fn oom_score(&self) -> Option<i32> {
        self.oom_score.as_ref()?.trim().parse().ok()
    }

    /// Starts an engine.
    pub(super) fn start<T>(&self, start: impl FnOnce() -> T) -> T {
        let score = self.oom_score.as_deref();
        // It may be raised by everybody, and lowered by root.
        score.into_iter().for_each(|score| drop(std::fs::write(OOM_SCORE, score)));
        process::lower_descriptor_limit(self.descriptors);
        let started = start();
        let _ = process::raise_descriptor_limit();
        if self.oom_score().is_some_and(|score| score > -999) {
            let _ = std::fs::write(OOM_SCORE, LOWEST_SCORE);
        }
        started
    }
}
