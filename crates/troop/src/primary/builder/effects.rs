//! A setting that would have no effect is an error, never ignored.

use super::{Builder, SIGNALS};
use crate::activation::ActivationSocket;
use crate::error::{Error, Result};
use crate::primary::policies::{HealthTest, ReadyWhen, ReplacePolicy};
use crate::setup::ClusterPart;
use troop_core::policy::Scheduling;

/// A setting that has no effect, and why.
type Ineffective = (&'static str, &'static str);

fn refuse(setting: &str, reason: &str) -> Result<()> {
    Err(Error::Settings(format!("Builder::{setting} has no effect {reason}")))
}

impl Builder {
    pub(super) fn cluster_part(&self, is_supervised: bool) -> ClusterPart {
        ClusterPart {
            activation: self.activation.clone(),
            is_supervised,
            has_output: self.output.is_some(),
        }
    }

    /// Refuses what only [`Builder::run`] does.
    ///
    /// # Errors
    /// [`Error::Settings`] names the setting.
    pub(super) fn check_observers(&self, way: &'static str, elsewhere: &str) -> Result<()> {
        let only_run = [
            ("on_event", !self.observers.is_empty()),
            ("leave_signals", !self.left_signals.is_empty()),
            ("reap_orphans", self.reap_orphans.is_some()),
        ];
        if self.restored.is_some() {
            let why = "only Builder::run goes on with the state of another program";
            return refuse("restore", &format!("with Builder::{way}: {why}"));
        }
        match only_run.iter().find(|(_, is_set)| *is_set) {
            Some((setting, _)) => refuse(
                setting,
                &format!("with Builder::{way}: {elsewhere}, and signals are left alone"),
            ),
            None => Ok(()),
        }
    }

    /// Checks that everything that was set has an effect.
    ///
    /// # Errors
    /// [`Error::Settings`] names a setting that has none, and says what to do.
    pub(super) fn check(&self, is_supervised: bool) -> Result<()> {
        let mut setup = self.setup.clone();
        setup.cluster = self.cluster_part(is_supervised);
        setup.check()?;
        let unhandled = |signal: &&i32| SIGNALS.iter().all(|(handled, _)| handled != *signal);
        if let Some(signal) = self.left_signals.iter().find(unhandled) {
            let name = signal_hook::low_level::signal_name(*signal);
            let name = name.map_or_else(|| format!("signal {signal}"), str::to_owned);
            return refuse(
                "leave_signals",
                &format!("on {name}, which Builder::run does not handle: leave it out"),
            );
        }
        let ineffective = None
            .or_else(|| self.ineffective_unsupervised().filter(|_| !is_supervised))
            .or_else(|| self.ineffective_with_activation())
            .or_else(|| self.ineffective_elsewhere());
        ineffective.map_or(Ok(()), |(setting, reason)| refuse(setting, reason))
    }

    fn ineffective_unsupervised(&self) -> Option<Ineffective> {
        let ReplacePolicy { ready_when, ready_timeout, .. } = self.replace;
        let rest = ReplacePolicy::default().ready_when(ready_when).ready_timeout(ready_timeout);
        if self.replace != rest {
            return Some((
                "replace",
                "without Builder::workers, but for ready_when and ready_timeout: the program replaces workers itself",
            ));
        }
        let settings = [
            ("restart", self.restart.is_some()),
            ("recycle", self.recycle.is_some()),
            ("weights", !self.weights.is_empty()),
            ("grace", self.grace.is_some()),
            ("drain_spread", self.drain_spread.is_some()),
            ("drain_delay", self.drain_delay.is_some()),
            ("activation_by_connections", self.activation_by_connections),
        ];
        let (setting, _) = settings.into_iter().find(|(_, is_set)| *is_set)?;
        Some((setting, "without Builder::workers: the program starts and ends workers itself"))
    }

    /// Workers with sockets by activation have no channel, and accept by themselves.
    fn ineffective_with_activation(&self) -> Option<Ineffective> {
        const ACCEPT: &str = "with Builder::activation: workers accept by themselves, and the kernel chooses among them; \
             ActivationSocket::bind_steered has it choose evenly, or by weight";
        const LISTEN: &str =
            "with Builder::activation: its sockets are all that workers get from the primary";
        const SILENT: &str = "with Builder::activation: workers have no channel to give a sign of life by; \
             Builder::health with a command tests them";
        const READY: &str = "with Builder::activation, where ready_when is Listening or Message: workers have no channel to say so by; \
             choose Auto or Notified";
        const TEST: &str = "with Builder::activation, but for HealthTest::Command: workers have no channel to hand a connection over by";
        const STAY: &str =
            "with Builder::activation: its sockets stay open for as long as the cluster runs";
        const TOLD: &str = "with Builder::activation: workers have no channel to be told by, and get SIGTERM; Builder::grace limits their time";
        let sockets = self.activation.as_ref()?;
        let is_steered = sockets.iter().any(ActivationSocket::is_steered);
        let is_set = |setting| self.explicit.contains(setting);
        let needs_channel =
            matches!(self.replace.ready_when, ReadyWhen::Listening | ReadyWhen::Message);
        let connects =
            self.health.as_ref().is_some_and(|check| !matches!(check.test, HealthTest::Command(_)));
        let settings = [
            ("scheduling", is_set("scheduling"), ACCEPT),
            ("scheduling_of", !self.config.listeners.is_empty(), ACCEPT),
            ("auto_limits", is_set("auto_limits"), ACCEPT),
            ("pending_limit", is_set("pending_limit"), ACCEPT),
            ("weights", !self.weights.is_empty() && !is_steered, ACCEPT),
            ("activation_by_connections", self.activation_by_connections && !is_steered, ACCEPT),
            ("inherited", !self.inherited.is_empty(), LISTEN),
            ("may_listen", self.config.may_listen.is_some(), LISTEN),
            ("keep_listeners", is_set("keep_listeners") && !self.config.keep_listeners, STAY),
            ("hang_timeout", is_set("hang_timeout") && self.config.hang_timeout.is_some(), SILENT),
            ("replace", needs_channel, READY),
            ("health", connects, TEST),
            ("drain_spread", self.drain_spread.is_some(), TOLD),
            ("rebalance", is_set("rebalance"), ACCEPT),
        ];
        let (setting, _, reason) = settings.into_iter().find(|(_, is_set, _)| *is_set)?;
        Some((setting, reason))
    }

    fn ineffective_elsewhere(&self) -> Option<Ineffective> {
        let is_weighted = self.config.scheduling.is_weighted()
            || self.config.listeners.iter().any(|(_, scheduling)| scheduling.is_weighted());
        if !self.weights.is_empty() && self.activation.is_none() && !is_weighted {
            return Some((
                "weights",
                "under round robin, auto and shared scheduling: set Builder::scheduling to one that goes by weights, such as Scheduling::Weighted",
            ));
        }
        if self.activation_by_connections && self.activation.is_none() {
            return Some((
                "activation_by_connections",
                "without Builder::activation: set Builder::scheduling to Scheduling::LeastConnections",
            ));
        }
        let is_auto = self.config.scheduling == Scheduling::Auto
            || self.config.listeners.iter().any(|(_, scheduling)| *scheduling == Scheduling::Auto);
        if self.explicit.contains("auto_limits") && !is_auto {
            return Some((
                "auto_limits",
                "without Scheduling::Auto: set Builder::scheduling to it",
            ));
        }
        let is_command =
            |check: &crate::supervise::HealthCheck| matches!(check.test, HealthTest::Command(_));
        if self.health.as_ref().is_some_and(|check| is_command(check) && check.listener.is_some()) {
            return Some((
                "health",
                "with both HealthTest::Command and a listener: a command chooses itself what it tests",
            ));
        }
        None
    }
}
