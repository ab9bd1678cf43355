//! The text of an app's unit.

use std::path::{Component, Path, PathBuf};

use super::hardening;
use super::needed::Needed;
use crate::config::{App, When};

/// Returns a path without `..`, which systemd rejects. Links stay: they may lead to another release
/// later.
pub(super) fn without_dots(path: PathBuf) -> PathBuf {
    let is_parent = |part: Component<'_>| part == Component::ParentDir;
    if path.components().any(is_parent) { path.canonicalize().unwrap_or(path) } else { path }
}

/// Returns the name of an app's unit. systemd allows no other letters in it.
pub(super) fn name(app: &str) -> String {
    let mut name = "troop-".to_owned();
    for c in app.chars() {
        if c.is_ascii() {
            name.push(c);
        } else {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes)
                .bytes()
                .for_each(|byte| name.push_str(&format!("\\x{byte:02x}")));
        }
    }
    name
}

/// Quotes a path or an argument for `systemd.service(5)`.
pub(super) fn quoted(text: &str) -> String {
    let escaped =
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if escaped.contains([' ', '\t', '\'', '"', ';']) { format!("\"{escaped}\"") } else { escaped }
}

/// Returns the unit of an app.
///
/// # Errors
/// If a path cannot be written in one.
pub(super) fn text(
    name: &str,
    app: &App,
    file: &Path,
    program: &Path,
    is_root: bool,
    environment: Option<&str>,
    hardened: bool,
) -> Result<String, String> {
    // A newline would begin another setting.
    let is_plain = |text: &&str| !text.contains(char::is_control);
    let plain = |path: &Path| {
        path.to_str()
            .filter(is_plain)
            .map(str::to_owned)
            .ok_or_else(|| format!("{path:?} is no plain text"))
    };
    let file = &without_dots(file.to_owned());
    let (program, config) = (quoted(&plain(program)?), quoted(&plain(file)?));
    let chosen = environment.map_or_else(String::new, |name| format!(" --env {}", quoted(name)));
    let directory = plain(&without_dots(app.directory(file)))?.replace('%', "%%");
    // Longer than the grace period, so that troop kills workers, not systemd.
    let delay = app.drain_delay.map_or(0, |delay| delay.0.as_secs());
    let stop = delay + app.grace.map_or(30, |grace| grace.0.as_secs()) + 10;
    let start = app.ready_timeout.map_or(30, |time| time.0.as_secs()).saturating_mul(2).max(90);
    let needed = Needed::of(app, file);
    let path = needed.path().map_or_else(String::new, |path| {
        format!("Environment={}\n", quoted(&format!("PATH={path}")))
    });
    let hardening = match hardened {
        true => hardening::lines(app, file, &needed, is_root)?,
        false => String::new(),
    };
    let delegate = if app.cgroup.is_default() {
        ""
    } else {
        "# Workers have control groups of their own.\nDelegate=yes\n"
    };
    let target = if is_root { "multi-user.target" } else { "default.target" };
    let others: Vec<_> =
        app.after.iter().map(|app| format!(" {}.service", quoted(&self::name(app)))).collect();
    let others = others.concat();
    // A program that runs once is not run again, whatever has come of it.
    let restart = if app.restart.when == Some(When::Never) { "no" } else { "on-failure" };
    Ok(format!(
        "[Unit]
Description=troop: {name}
After=network-online.target{others}
Wants=network-online.target{others}

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run{chosen} --config {config} {name}
ExecReload={program} reload {name}
WorkingDirectory={directory}
{path}Restart={restart}
RestartSec=2
# troop tells its workers itself, and ends what they leave behind.
KillMode=mixed
TimeoutStartSec={start}
TimeoutStopSec={stop}
WatchdogSec=30
LimitNOFILE=1048576
# Lines of workers that begin with <0> are no emergencies.
SyslogLevelPrefix=no
{delegate}{hardening}
[Install]
WantedBy={target}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_units_are_those_that_systemd_allows() {
        assert_eq!(name("api.v2_x-1"), "troop-api.v2_x-1");
        assert_eq!(name("é"), "troop-\\xc3\\xa9");
    }

    #[test]
    fn what_systemd_would_expand_is_escaped() {
        for (plain, written) in [
            ("/usr/bin/troop", "/usr/bin/troop"),
            ("/a b/%c", "\"/a b/%%c\""),
            ("$x", "$$x"),
            ("a\"b", "\"a\\\"b\""),
        ] {
            assert_eq!(quoted(plain), written);
        }
    }
}
