//! Options that have no effect beside others.

use super::app::App;
use super::tables::{Alone, Health, KillMode, Ready, To, When};

impl App {
    /// Returns what is set and has no effect, with the reason and what to do.
    pub(crate) fn ineffective(&self) -> Vec<String> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        if !self.bind.is_empty() {
            found.extend(self.ineffective_with_bind());
        }
        if self.alone == Some(Alone::Is(true)) {
            found.extend(self.ineffective_alone());
        }
        found.extend(self.ineffective_restarts());
        found.extend(self.ineffective_output());
        let is_weighted = self.policy.iter().chain(self.listeners.values());
        if !self.weights.is_empty()
            && self.bind.is_empty()
            && !is_weighted.into_iter().any(troop::Scheduling::is_weighted)
        {
            found.push((
                "weights",
                "under round-robin, auto and shared; choose a policy that goes by weights, such as weighted",
            ));
        }
        let never_hung = self.hang_timeout.is_some_and(|limit| limit.0.is_zero());
        if self.report_signal.is_some()
            && self.health.is_none()
            && (never_hung || !self.bind.is_empty())
        {
            found.push(("report_signal", "where no worker is found unhealthy or hung; set health"));
        }
        if self.recycle.jitter.is_some()
            && self.recycle.age.is_none()
            && self.recycle.connections.is_none()
        {
            found.push(("recycle.jitter", "without recycle.age or recycle.connections"));
        }
        let chooses_itself =
            |health: &Health| health.command.is_some() && health.listener.is_some();
        if self.health.as_ref().is_some_and(chooses_itself) {
            found.push(("health.listener", "with a command, which chooses itself what it tests"));
        }
        if self.cron.is_none() && self.overlap.is_some() {
            found.push(("overlap", "without cron"));
        }
        if self.cron.is_none() && self.run_at_start {
            found.push(("run_at_start", "without cron: programs run from the start"));
        }
        if self.cron.is_some() && self.recycle.cron.is_some() {
            found.push(("recycle.cron", "with cron: each run is a new worker"));
        }
        if self.assume_ready.is_some()
            && !matches!(self.ready, Some(Ready::Message | Ready::Notify))
        {
            found.push(("assume_ready", "unless ready is \"message\" or \"notify\""));
        }
        if self.kill_mode == Some(KillMode::Process) && self.cgroup != Default::default() {
            found.push(("kill_mode", "as \"process\" with cgroup: all processes in it end"));
        }
        if self.kill_mode == Some(KillMode::Group) && self.cgroup != Default::default() {
            found.push(("kill_mode", "as \"group\" with cgroup: all processes in it end"));
        }
        if self.socket_mode.is_some() && !self.bind.iter().any(|at| at.contains('/')) {
            found.push(("socket_mode", "without a path in bind"));
        }
        if self.kill_mode == Some(KillMode::Process) && self.stop_group.is_some() {
            found.push(("stop_group", "with kill_mode = \"process\": others go on"));
        }
        if self.sandbox.best_effort && self.sandbox.settings().is_empty() {
            found.push(("sandbox.best_effort", "without read, write or deny_system_calls"));
        }
        found.iter().map(|(key, why)| format!("{key} has no effect {why}")).collect()
    }

    fn ineffective_with_bind(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        const SOCKETS: &str = "with bind: its sockets are all that workers get";
        let hangs = self.hang_timeout.is_some_and(|limit| !limit.0.is_zero());
        [
            ("fds", !self.fds.is_empty(), SOCKETS),
            ("may_listen", !self.may_listen.is_empty(), SOCKETS),
            (
                "drain_spread",
                self.drain_spread.is_some(),
                "with bind: workers have no channel to be told by; grace limits their time",
            ),
            (
                "shutdown_with_message",
                self.shutdown_with_message,
                "with bind: workers have no channel to get the message by; set stop_signal",
            ),
            (
                "move_connections",
                self.move_connections.is_some(),
                "with bind: workers have no channel to send connections by",
            ),
            (
                "rebalance",
                self.rebalance.is_some(),
                "with bind: workers have no channel to send connections by",
            ),
            (
                "hang_timeout",
                hangs,
                "with bind: workers have no channel to give a sign of life by; a health command tests them",
            ),
            (
                "restart.keep_listeners",
                self.restart.keep_listeners == Some(false),
                "with bind: its sockets stay open for as long as the app runs",
            ),
        ]
        .into_iter()
        .filter(|(_, is_set, _)| *is_set)
        .map(|(key, _, why)| (key, why))
    }

    fn ineffective_alone(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        const LISTENS: &str =
            "with alone: the program listens by itself, and troop has no part in that";
        const NO_PART: &str =
            "with alone: the program is no part of a cluster, which could ask it for that";
        let hangs = self.hang_timeout.is_some_and(|limit| !limit.0.is_zero());
        [
            ("bind", !self.bind.is_empty(), LISTENS),
            ("policy", self.policy.is_some(), LISTENS),
            ("listeners", !self.listeners.is_empty(), LISTENS),
            ("may_listen", !self.may_listen.is_empty(), LISTENS),
            ("fds", !self.fds.is_empty(), LISTENS),
            ("move_connections", self.move_connections.is_some(), NO_PART),
            ("rebalance", self.rebalance.is_some(), NO_PART),
            ("drain_spread", self.drain_spread.is_some(), NO_PART),
            ("hang_timeout", hangs, NO_PART),
            ("recycle.connections", self.recycle.connections.is_some(), LISTENS),
            ("restart.keep_listeners", self.restart.keep_listeners == Some(false), LISTENS),
            (
                "health",
                self.health.as_ref().is_some_and(|health| health.command.is_none()),
                "as http or tcp with alone: troop does not know where the program listens; use health.command",
            ),
            (
                "ready",
                self.ready == Some(Ready::Listening),
                "as \"listening\" with alone: troop does not know where the program listens",
            ),
        ]
        .into_iter()
        .filter(|(_, is_set, _)| *is_set)
        .map(|(key, _, why)| (key, why))
    }

    fn ineffective_restarts(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        const NEVER: &str = "with restart.when = \"never\"";
        let restart = &self.restart;
        let never = restart.when == Some(When::Never);
        let is_capped = restart
            .delay
            .zip(restart.max_delay)
            .is_some_and(|(delay, longest)| delay.0 > longest.0);
        [
            ("restart.delay", never && restart.delay.is_some(), NEVER),
            ("restart.max_delay", never && restart.max_delay.is_some(), NEVER),
            ("restart.min_uptime", never && restart.min_uptime.is_some(), NEVER),
            ("restart.final_codes", never && !restart.final_codes.is_empty(), NEVER),
            ("restart.delay", !never && is_capped, "above restart.max_delay; raise that, too"),
        ]
        .into_iter()
        .filter(|(_, is_set, _)| *is_set)
        .map(|(key, _, why)| (key, why))
    }

    fn ineffective_output(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        const NO_FILE: &str = "unless output.to is \"files\"";
        const NO_ROTATION: &str =
            "with output.rotate_size = 0 and without output.rotate_age: nothing is rotated";
        let output = &self.output;
        let elsewhere = output.to.is_some_and(|to| to != To::Files);
        let unrotated =
            output.rotate_size.is_some_and(|size| size.0 == 0) && output.rotate_age.is_none();
        [
            ("output.file", elsewhere && output.file.is_some(), NO_FILE),
            ("output.error_file", elsewhere && output.error_file.is_some(), NO_FILE),
            ("output.all_file", elsewhere && output.all_file.is_some(), NO_FILE),
            ("output.events_apart", elsewhere && output.events_apart, NO_FILE),
            ("output.per_worker", elsewhere && output.per_worker, NO_FILE),
            ("output.rotate_size", elsewhere && output.rotate_size.is_some(), NO_FILE),
            ("output.rotate_age", elsewhere && output.rotate_age.is_some(), NO_FILE),
            ("output.keep", elsewhere && output.keep.is_some(), NO_FILE),
            ("output.total", elsewhere && output.total.is_some(), NO_FILE),
            ("output.keep", !elsewhere && unrotated && output.keep.is_some(), NO_ROTATION),
            ("output.total", !elsewhere && unrotated && output.total.is_some(), NO_ROTATION),
        ]
        .into_iter()
        .filter(|(_, is_set, _)| *is_set)
        .map(|(key, _, why)| (key, why))
    }
}

#[cfg(test)]
mod tests {
    use super::super::from_toml;

    #[test]
    fn an_option_without_effect_is_named_and_what_to_do() {
        let bound = "bind = [\"8000\"]\n";
        for (text, key, advice) in [
            ("weights = [5]", "weights", "such as weighted"),
            ("weights = [5]\npolicy = \"shared\"", "weights", "such as weighted"),
            ("report_signal = \"USR2\"\nhang_timeout = 0", "report_signal", "health"),
            ("recycle = { jitter = 0.5, memory = \"1G\" }", "recycle.jitter", "recycle.age"),
            ("health = { command = \"x\", listener = \"80\" }", "health.listener", "itself"),
            ("sandbox = { best_effort = true }", "sandbox.best_effort", "read"),
            ("restart = { when = \"never\", delay = 1 }", "restart.delay", "never"),
            ("restart = { when = \"never\", min_uptime = 1 }", "restart.min_uptime", "never"),
            ("restart = { when = \"never\", final_codes = [1] }", "restart.final_codes", "never"),
            ("restart = { delay = 9, max_delay = 1 }", "restart.delay", "max_delay"),
            ("output = { to = \"journal\", file = \"x\" }", "output.file", "files"),
            ("output = { to = \"terminal\", keep = 1 }", "output.keep", "files"),
            ("output = { to = \"journal\", all_file = \"x\" }", "output.all_file", "files"),
            ("output = { to = \"journal\", events_apart = true }", "output.events_apart", "files"),
            ("overlap = \"skip\"", "overlap", "cron"),
            ("run_at_start = true", "run_at_start", "cron"),
            ("cron = \"0 4 * * *\"\nrecycle = { cron = \"0 4 * * *\" }", "recycle.cron", "cron"),
            ("assume_ready = 1", "assume_ready", "message"),
            ("kill_mode = \"process\"\ncgroup = { processes = 1 }", "kill_mode", "cgroup"),
            (&format!("{bound}socket_mode = \"0660\""), "socket_mode", "path"),
            ("kill_mode = \"process\"\nstop_group = true", "stop_group", "go on"),
            ("output = { rotate_size = 0, keep = 1 }", "output.keep", "rotate_age"),
            (&format!("{bound}fds = [3]"), "fds", "sockets"),
            (&format!("{bound}may_listen = [\"80\"]"), "may_listen", "sockets"),
            (&format!("{bound}drain_spread = 1"), "drain_spread", "grace"),
            (&format!("{bound}move_connections = true"), "move_connections", "no channel"),
            (&format!("{bound}rebalance = false"), "rebalance", "no channel"),
            (&format!("{bound}hang_timeout = 1"), "hang_timeout", "health command"),
            (&format!("{bound}restart = {{ keep_listeners = false }}"), "keep_listeners", "open"),
            (&format!("{bound}report_signal = \"USR2\""), "report_signal", "health"),
            ("alone = true\npolicy = \"p2c\"", "policy", "listens by itself"),
            ("alone = true\nmove_connections = true", "move_connections", "no part of a cluster"),
            ("alone = true\nhealth = { http = \"/\" }", "health", "health.command"),
            ("alone = true\nready = \"listening\"", "ready", "listens"),
        ] {
            let app = from_toml(&format!("[app.x]\nprogram = \"x\"\n{text}")).unwrap();
            let found = app["x"].ineffective().join("; ");
            let named = format!("{key} has no effect ");
            assert!(found.contains(&named) && found.contains(advice), "{text}: {found:?}");
            assert!(!found.contains(';') || found.matches("has no effect").count() == 1, "{found}");
        }
    }

    #[test]
    fn options_that_go_together_are_not_objected_to() {
        for text in [
            "weights = [5]\npolicy = \"p2c\"",
            "weights = [5]\nlisteners = { \"80\" = \"weighted\" }",
            "weights = [5]\npolicy = \"steered\"\nbind = [\"8000\"]",
            "bind = [\"8000\"]\nhang_timeout = 0\nrecycle = { age = \"1d\", connections = 100 }",
            "bind = [\"8000\"]\npolicy = \"least-connections\"\nweights = [5]",
            "bind = [\"8000\"]\nhealth = { command = \"x\" }\nreport_signal = \"USR2\"",
            "output = { file = \"x\", keep = 2 }",
            "restart = { delay = 1 }\nreport_signal = \"USR2\"",
            "alone = \"auto\"\npolicy = \"p2c\"\nhealth = { http = \"/\" }",
            "alone = true\nhealth = { command = \"x\" }\nready = \"message\"\nmax_surge = 1",
        ] {
            let app = from_toml(&format!("[app.x]\nprogram = \"x\"\n{text}")).unwrap();
            assert_eq!(app["x"].ineffective(), Vec::<String>::new(), "{text}");
        }
    }
}
