//! `exec-activated`: gives a program behind a shell or npm the sockets that troop has passed.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use troop::program::inherited::{self, FIRST_ANNOUNCED};

use crate::args::ExecActivated;
use crate::control::protocol::Failure;
use crate::error::CliError;

/// Executes the program in place of this process. Returns only if that fails.
pub(crate) fn exec(args: &ExecActivated) -> CliError {
    let Some((program, rest)) = args.program.split_first() else {
        return CliError::Usage("name the program".into());
    };
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let count = match count(variable("LISTEN_FDS").as_deref()) {
        Ok(count) => count,
        Err(why) => return CliError::Usage(why),
    };
    // Kept until the program is executed.
    let _fetched = match missing(count) {
        None => Vec::new(),
        Some(number) => match fetch(variable("LISTEN_PID").as_deref(), number, count) {
            Ok(fetched) => fetched,
            Err(why) => return CliError::Failed(Failure::new("failed", why)),
        },
    };
    let e =
        Command::new(program).args(rest).env("LISTEN_PID", std::process::id().to_string()).exec();
    CliError::Failed(Failure::new(
        "failed",
        format!("cannot execute {}: {e}", Path::new(program).display()),
    ))
}

/// Returns the number of sockets that were passed.
fn count(listen_fds: Option<&str>) -> Result<i32, String> {
    let Some(text) = listen_fds else {
        return Err(
            "LISTEN_FDS is not set, so no sockets were passed: start the app with -b (`bind`), and let what is between troop and this program pass its environment on"
                .into(),
        );
    };
    match text.parse() {
        Ok(count @ 1..=inherited::MAX_ANNOUNCED) => Ok(count),
        _ => Err(format!("LISTEN_FDS is {text:?}, and not the number of sockets that were passed")),
    }
}

/// Returns the first number at which a passed socket should be and is none.
fn missing(count: i32) -> Option<i32> {
    let mut numbers = FIRST_ANNOUNCED..FIRST_ANNOUNCED + count;
    numbers.find(|number| !inherited::is_inheritable_socket(*number))
}

/// Gets the sockets from the process that they were passed to.
fn fetch(
    listen_pid: Option<&str>,
    number: i32,
    count: i32,
) -> Result<Vec<std::os::fd::OwnedFd>, String> {
    let closed =
        format!("descriptor {number} should be a socket (LISTEN_FDS is {count}), and is none here");
    let Some(pid) = listen_pid.and_then(|pid| pid.parse::<u32>().ok()) else {
        return Err(format!("{closed}, and LISTEN_PID does not say which process has the sockets"));
    };
    if pid == std::process::id() {
        return Err(format!("{closed}, and LISTEN_PID is this process"));
    }
    inherited::fetch(pid, count).map_err(|e| {
        format!(
            "{closed}: a program on the way has closed it (node does, and so npm), and it cannot be fetched from process {pid}: {e} (that needs the same user, and kernel.yama.ptrace_scope = 0 or CAP_SYS_PTRACE); start the program without what closes it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_sockets_is_a_positive_number() {
        assert_eq!(count(Some("2")), Ok(2));
        for bad in ["0", "-1", "x", "1025", "1 "] {
            assert!(count(Some(bad)).is_err_and(|why| why.contains(bad)), "{bad}");
        }
        assert!(count(None).unwrap_err().contains("-b"));
    }
}
