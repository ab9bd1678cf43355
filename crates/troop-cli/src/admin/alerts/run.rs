//! Runs the command of an alert.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use troop::text::escaped;

use super::super::verbs::forget_worker;

/// Time in which a program must end.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes that are shown of what a program said.
const MAX_SAID: u64 = 500;
/// Interval at which it is checked whether it has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Runs a shell command with an alert as its input. What it prints goes where this process prints.
///
/// # Errors
/// The reason, for people.
pub(super) fn run(command: &str, alert: &Value) -> Result<(), String> {
    run_within(command, alert, TIMEOUT)
}

fn run_within(command: &str, alert: &Value, timeout: Duration) -> Result<(), String> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]);
    for name in ["app", "kind", "state", "text"] {
        let variable = format!("TROOP_ALERT_{}", name.to_ascii_uppercase());
        shell.env(variable, alert[name].as_str().unwrap_or_default());
    }
    give(shell, &format!("{alert}\n"), timeout).map_err(|e| format!("the command {e}"))
}

/// Runs a program in a process group of its own, which is killed as a whole after a time.
///
/// # Errors
/// How it ended, or why it did not start.
pub(super) fn give(mut program: Command, text: &str, timeout: Duration) -> Result<(), String> {
    program.stdin(Stdio::piped()).process_group(0);
    forget_worker(&mut program);
    let child = program.spawn().map_err(|e| format!("cannot be started: {e}"))?;
    let mut child = Running { child, has_ended: false };
    let deadline = Instant::now() + timeout;
    // It is less than a pipe takes.
    if let Some(mut input) = child.child.stdin.take() {
        match input.write_all(text.as_bytes()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                return Err(format!("cannot be written to: {e}"));
            }
            _ => {}
        }
    }
    loop {
        let status = child.child.try_wait().map_err(|e| format!("cannot be waited for: {e}"))?;
        if let Some(status) = status {
            child.has_ended = true;
            return match status.success() {
                true => Ok(()),
                false => Err(format!("ended with {status}{}", said(child.child.stderr.take()))),
            };
        }
        if Instant::now() >= deadline {
            return Err(format!("did not end within {} s, and was killed", timeout.as_secs()));
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

/// Returns what a program that has ended said, if that is piped.
fn said(errors: Option<ChildStderr>) -> String {
    let mut text = Vec::new();
    if let Some(errors) = errors {
        let _ = errors.take(MAX_SAID).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    if text.trim().is_empty() { String::new() } else { format!(": {}", escaped(text.trim())) }
}

/// A process group, which is killed when this is dropped.
struct Running {
    child: Child,
    has_ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its number is not reused before it is reaped.
        if !self.has_ended {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_gets_the_alert_as_data_and_never_as_a_part_of_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (input, variables) = (directory.path().join("input"), directory.path().join("env"));
        let text = "web: $(touch /tmp/never) `x` \"y\" 'z'; rm";
        let alert = json!({ "app": "web", "kind": "down", "state": "firing", "text": text });
        let command = format!(
            "cat > {}; printf '%s|%s|%s|%s' \"$TROOP_ALERT_APP\" \"$TROOP_ALERT_KIND\" \
             \"$TROOP_ALERT_STATE\" \"$TROOP_ALERT_TEXT\" > {}",
            input.display(),
            variables.display()
        );
        assert_eq!(run(&command, &alert), Ok(()));
        let input = std::fs::read_to_string(input).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), alert);
        let expected = format!("web|down|firing|{text}");
        assert_eq!(std::fs::read_to_string(variables).unwrap(), expected);
    }

    #[test]
    fn a_command_that_fails_reads_nothing_or_does_not_end_is_an_error_that_says_so() {
        assert_eq!(run("exit 0", &json!({})), Ok(()));
        assert!(run("exit 7", &json!({})).unwrap_err().contains("exit status: 7"));
        let late = run_within("sleep 1000 & sleep 1000", &json!({}), Duration::ZERO);
        assert!(late.unwrap_err().contains("did not end"));
    }
}
