//! Refuses settings that would have no effect.

use std::path::Path;

use signal_hook::consts::{SIGKILL, SIGSTOP};

use super::{InspectPort, Setup, Stdio};
use crate::error::{Error, Result};

impl Setup {
    /// Checks that everything that was set has an effect.
    ///
    /// # Errors
    /// [`Error::Settings`] names a setting that has none, and says what to do.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |setting: &str, reason: String| {
            Err(Error::Settings(format!("Setup::{setting} has no effect {reason}")))
        };
        if self.get_sandbox().is_some() && !self.get_no_new_privileges() {
            return Err(Error::Settings(
                "a sandbox needs no_new_privileges, which is turned off".into(),
            ));
        }
        if !self.cluster.is_supervised {
            const WHY: &str = "without Builder::workers: only supervised workers have slots; ";
            if !self.slot_variables.is_empty() {
                let instead = "number the workers by Fork::env";
                return refuse("slot_variable", format!("{WHY}{instead}"));
            }
            if !self.counting_variables.is_empty() {
                let instead = "set the number by Fork::env";
                return refuse("counting_variable", format!("{WHY}{instead}"));
            }
            if self.get_cpus().len() > 1 {
                let instead = "list the CPUs of all workers as one entry";
                return refuse("cpus", format!("beyond its first entry {WHY}{instead}"));
            }
        }
        if matches!(self.get_inspect_port(), InspectPort::Fixed(_)) && !self.is_node() {
            let program = self.get_program().unwrap_or(Path::new("this program"));
            let reason = format!("on {}, which is not called node", program.display());
            return refuse("inspect_port", reason);
        }
        if self.is_alone() && self.has_activation() {
            let reason =
                "on workers that get sockets by activation, which are no part of a cluster anyway";
            return refuse("alone", reason.into());
        }
        if self.is_alone() && self.get_program().is_none() {
            return Err(Error::Settings(
                "Setup::alone needs a program or a script: copies of this program would not know that they are workers, and start workers in \
                 their turn"
                    .into(),
            ));
        }
        self.check_signals()?;
        self.check_streams()
    }

    /// Refuses signals that no program can handle: they ask nobody for anything.
    fn check_signals(&self) -> Result<()> {
        let signals = [
            (
                "report_signal",
                self.report_signal,
                "choose one that makes the program write a report, such as SIGUSR2",
            ),
            (
                "stop_signal",
                self.stop_signal,
                "choose one that asks workers to finish, such as SIGTERM; Builder::grace limits their time, after which they get SIGKILL",
            ),
            (
                "kill_signal",
                self.kill_signal,
                "leave it out, as workers get SIGKILL anyway when Builder::grace is over, or choose another one, such as SIGQUIT",
            ),
        ];
        for (setting, signal, advice) in signals {
            let name = match signal {
                Some(SIGKILL) => "SIGKILL",
                Some(SIGSTOP) => "SIGSTOP",
                _ => continue,
            };
            return Err(Error::Settings(format!(
                "Setup::{setting} cannot be {name}: no program can handle it; {advice}"
            )));
        }
        Ok(())
    }

    fn check_streams(&self) -> Result<()> {
        let refuse = |setting: &str, stdio: Stdio, reason: &str| {
            Err(Error::Settings(format!("Setup::{setting} cannot be Stdio::{stdio:?}: {reason}")))
        };
        let input = self.get_stdin();
        if matches!(input, Stdio::Forward | Stdio::Capture | Stdio::Collect) {
            return refuse("stdin", input, "that is for what workers write; use Stdio::Pipe");
        }
        if self.get_stdout() == Stdio::Capture {
            let why = "lines are kept of standard error only; use Stdio::Null or Stdio::Pipe";
            return refuse("stdout", Stdio::Capture, why);
        }
        for (setting, stdio) in [("stdout", self.get_stdout()), ("stderr", self.get_stderr())] {
            if stdio == Stdio::Collect && !self.cluster.has_output {
                let why =
                    "nothing takes what is collected; set Builder::output, or use Stdio::Forward";
                return refuse(setting, stdio, why);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sandbox;
    use super::*;

    #[test]
    fn a_setting_without_effect_is_named_and_what_to_do() {
        let sandbox = Sandbox { write: Some(Vec::new()), ..Sandbox::default() };
        let cases: [(Setup, &str); 12] = [
            (Setup::new().slot_variable("N"), "Fork::env"),
            (Setup::new().counting_variable("PORT", 1), "Fork::env"),
            (Setup::new().cpus([vec![0], vec![1]]), "one entry"),
            (Setup::new().inspect_port(InspectPort::Fixed(9000)), "not called node"),
            (Setup::new().stdin(Stdio::Collect), "Stdio::Pipe"),
            (Setup::new().stdout(Stdio::Capture), "Stdio::Null"),
            (Setup::new().stdout(Stdio::Collect), "Builder::output"),
            (Setup::new().stderr(Stdio::Collect), "Builder::output"),
            (Setup::new().stop_signal(SIGKILL), "such as SIGTERM"),
            (Setup::new().stop_signal(SIGSTOP), "SIGSTOP: no program can handle it"),
            (Setup::new().kill_signal(SIGKILL), "leave it out"),
            (Setup::new().sandbox(sandbox).no_new_privileges(false), "no_new_privileges"),
        ];
        for (setup, advice) in cases {
            let error = setup.check().unwrap_err().chain();
            assert!(error.contains(advice), "{error}");
            // Neither does it count when it comes as a change.
            assert!(Setup::new().program("x").merge(setup).check().is_err());
        }
        let copies = Setup::new().alone(true).check().unwrap_err().chain();
        assert!(copies.contains("needs a program or a script"), "{copies}");
        assert!(Setup::new().script("x.js").alone(true).check().is_ok());
        let mut setup = Setup::new().slot_variable("N").cpus([vec![0], vec![1]]);
        setup.cluster.is_supervised = true;
        setup.cluster.has_output = true;
        assert!(setup.stdout(Stdio::Collect).stderr(Stdio::Capture).check().is_ok());
        assert!(Setup::new().script("x.js").inspect_port(InspectPort::Fixed(1)).check().is_ok());
    }
}
