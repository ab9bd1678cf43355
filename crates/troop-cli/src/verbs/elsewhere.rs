//! Verbs of PM2 that troop has under another name or not at all: what to do instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Error};

use crate::args::Troop;
use crate::suggest;

/// Returns what to do instead of a verb that there is not. Removes a suggestion from another error
/// if it is not near enough to be what was meant.
pub(crate) fn answer(error: &mut Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    if error.kind() == ErrorKind::InvalidSubcommand {
        let verb = text(ContextKind::InvalidSubcommand)?;
        if let Some(instead) = instead(&verb) {
            return Some(format!("there is no verb {verb} here; {instead}"));
        }
        let command = Troop::command();
        let known = command
            .get_subcommands()
            .flat_map(|known| std::iter::once(known.get_name()).chain(known.get_visible_aliases()));
        let meant = match suggest::nearest(&verb, known) {
            Some(near) => format!("; did you mean {near}?"),
            None => "; `troop --help` lists the verbs".into(),
        };
        return Some(format!("there is no verb {verb}{meant}"));
    }
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(typed) = text(ContextKind::InvalidArg)
        && let Some(instead) = option_instead(&typed).or_else(|| of_start(&typed))
    {
        return Some(format!("there is no option {typed} here; {instead}"));
    }
    if let (Some(typed), Some(near)) =
        (text(ContextKind::InvalidArg), text(ContextKind::SuggestedArg))
        && suggest::nearest(typed.trim_start_matches('-'), [near.trim_start_matches('-')]).is_none()
    {
        error.remove(ContextKind::SuggestedArg);
        // It shows how the suggested option is used.
        error.remove(ContextKind::Usage);
    }
    None
}

/// Returns what a verb of PM2 that there is not is for here, in one line.
pub(crate) fn instead(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "id" => "`troop ls APP` shows the app's number",
        "slist" => "`troop jlist` prints the list as JSON",
        "sysmonit" | "sysinfos" => {
            "`troop ls` shows what apps use; the system itself is for vmstat, top and the like"
        }
        "reloadLogs" => {
            "troop rotates its logs itself (output.rotate_size); after another program has moved them, `kill -USR1 PID` with the primary's number in `troop ls`"
        }
        "update" | "updatePM2" | "deepUpdate" => {
            "there is no daemon to update: install the new version, then `troop restart APP` runs an app under it; what troop.toml says by now is applied by `troop reload all`"
        }
        "install" | "module:install" | "module:update" | "module:generate" | "module:uninstall"
        | "module:publish" | "publish" | "package" | "uninstall" | "install-otel"
        | "uninstall-otel" | "logrotate" => {
            "there are no modules: log rotation is built in (output.rotate_size), other programs are apps of their own"
        }
        "link" | "unlink" | "plus" | "login" | "logout" | "register" | "open" | "web"
        | "monitor" | "unmonitor" => {
            "there is no hosted service: `troop ls --json` and `troop events --json` are for programs that monitor apps"
        }
        "deploy" => {
            "copy the release by your own means, then `troop reload FILE` replaces its workers without dropping connections"
        }
        "report" => {
            "`troop show APP --json` and `troop logs APP --nostream` are what a report needs"
        }
        "inspect" => {
            "`troop run -w 0 --node-args=--inspect APP.js` runs a program under the debugger"
        }
        "profile:cpu" | "profile:mem" | "profile" => {
            "start the app with --node-args=--cpu-prof or --heap-prof; the files are written at the end of its workers"
        }
        "trigger" => "`troop send APP MESSAGE --ask` asks workers and prints their replies",
        "cleardump" => "`troop save --force` while no app runs saves an empty list",
        "set" | "get" | "conf" | "config" | "multiset" | "unset" => {
            "there are no settings of a daemon: options of an app are in troop.toml, or follow --set"
        }
        "backward" | "forward" | "pull" | "autoinstall" => {
            "troop does not know the program's repository: check the release out, then `troop reload APP`"
        }
        "reread" | "avail" => {
            "`troop check` reads the file and says what is wrong with it, `troop ls` lists the apps"
        }
        "shutdown" => "there is no daemon to shut down: `troop stop all` stops all apps",
        "fg" => {
            "`troop attach APP` follows an app and passes lines of input on, `troop run APP` runs one here"
        }
        "maintail" => "there is no daemon: `troop logs APP` has what troop says of an app, too",
        "clear" => "`troop flush APP` empties the log files of an app",
        "add" => "`troop start APP` starts an app of troop.toml, which is read anew each time",
        "remove" => "`troop delete APP` stops an app and forgets it",
        "version" => "`troop --version` prints it",
        "create" => "`troop init` writes a first troop.toml",
        "pull-and-restart" | "examples" | "autostart" | "unpackage" | "startJSON" => {
            "see `troop --help`"
        }
        _ => return None,
    })
}

/// Returns where an option of `start` belongs that was given to another verb, as PM2 lets `restart`
/// change an app.
fn of_start(option: &str) -> Option<&'static str> {
    let name = option.trim_start_matches('-');
    let mut command = Troop::command();
    let start = command.find_subcommand_mut("start")?;
    // Its options are built only then.
    start.build();
    let is_known = start.get_arguments().any(|known| match option.starts_with("--") {
        true => known.get_long() == Some(name),
        false => known.get_short().is_some_and(|short| name == short.to_string()),
    });
    is_known.then_some(
        "it is an option of `troop start` and `troop run`, or of the app in its file, which `troop reload APP` reads again",
    )
}

/// Returns what an option of PM2 that there is not is for here, in one line.
fn option_instead(option: &str) -> Option<&'static str> {
    Some(match option {
        "--no-autostart" => {
            "`autostart = false` in a file keeps an app from starting with the others"
        }
        "--ext" => "patterns say which files count: `watch.paths = [\"**/*.{js,json}\"]`",
        "--mini-list" | "-m" | "--sort" => {
            "`troop ls --json` is for programs: jq sorts and selects"
        }
        "--pid" | "-p" => "`troop pid APP` and `troop ls` show process numbers",
        "--hp" | "-u" | "--service-name" | "--wait-ip" => {
            "`troop startup` writes a unit for the user that calls it"
        }
        "--container" | "--dist" | "--dockerdaemon" | "--image-name" | "--fresh" => {
            "the command of a container is `troop run`"
        }
        "--timestamp" => {
            "lines have times where the app has `--format prefixed`, as in the background"
        }
        "--highlight" => "`troop logs APP | grep --color=always -E 'WORD|$'` marks a word",
        "-s" => {
            "nothing is printed with `> /dev/null`; `--silent` discards the output of the workers"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn verbs_that_there_are_have_no_substitute() {
        let command = crate::args::Troop::command();
        for verb in command.get_subcommands() {
            let names = std::iter::once(verb.get_name()).chain(verb.get_all_aliases());
            for name in names {
                assert_eq!(super::instead(name), None, "{name}");
            }
        }
    }
}
