//! `troop startup`: writes systemd units.

use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use super::write::replace;
use crate::args::Startup;
use crate::config::{self, App, Format};
use crate::{log, suggest};

/// Writes a unit for each selected app.
///
/// # Errors
/// The reason, for people.
pub(crate) fn startup(args: &Startup) -> Result<(), String> {
    let usual = Path::new(config::DEFAULT_FILE);
    // PM2 is told the init system here.
    let names_app = args.app.as_deref().is_some_and(|app| app != "systemd");
    let file = match &args.config {
        Some(file) => file.as_path(),
        None if names_app || usual.exists() => usual,
        None => return startup_of_saved(args),
    };
    let file = std::path::absolute(crate::directory::resolved(file))
        .map_err(|e| format!("{}: {e}", file.display()))?;
    if let Some(environment) = &args.env {
        config::choose_environment(environment);
    }
    let mut apps = config::read(&file)?;
    config::warnings(&file, &apps)
        .iter()
        .for_each(|warning| log::line(&format!("troop: {warning}")));
    if let Some(name) = &args.app {
        let names: Vec<_> = apps.keys().cloned().collect();
        let app = apps.remove(name).ok_or_else(|| {
            let meant = suggest::app(name, names.iter().map(String::as_str));
            format!("{} has no app {name:?}, but {}{meant}", file.display(), names.join(", "))
        })?;
        apps = [(name.clone(), app)].into();
    }
    let is_root = rustix::process::geteuid().is_root();
    let directory = args.directory.clone().unwrap_or_else(|| usual_directory(is_root));
    let program =
        std::env::current_exe().map_err(|e| format!("cannot find out where troop is: {e}"))?;
    let mut out = std::io::stdout().lock();
    let mut written = Vec::new();
    for (name, app) in &apps {
        let text = unit(name, app, &file, &program, is_root, args.env.as_deref())?;
        if args.print && args.json {
            let _ = writeln!(
                out,
                "{}",
                json!({ "unit": format!("{}.service", unit_name(name)), "text": text })
            );
            continue;
        }
        if args.print {
            let _ = write!(out, "# {}.service\n{text}", unit_name(name));
            continue;
        }
        let path = directory.join(format!("{}.service", unit_name(name)));
        replace(&path, text.as_bytes(), 0o644)
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        written.push(path);
    }
    if args.json && !args.print {
        let _ = writeln!(out, "{}", json!({ "units": written }));
        return Ok(());
    }
    for path in &written {
        let _ = writeln!(out, "{}", path.display());
    }
    if !written.is_empty() {
        let user = if is_root { "" } else { " --user" };
        let names: Vec<_> = apps.keys().map(|name| quoted(&unit_name(name))).collect();
        let _ = writeln!(
            out,
            "Now: systemctl{user} daemon-reload && systemctl{user} enable --now {}",
            names.join(" ")
        );
    }
    Ok(())
}

/// Writes the unit that starts the apps which `troop save` has saved.
fn startup_of_saved(args: &Startup) -> Result<(), String> {
    if args.env.is_some() {
        return Err("--env is for a PM2 file: name it with --config".into());
    }
    let is_root = rustix::process::geteuid().is_root();
    let program =
        std::env::current_exe().map_err(|e| format!("cannot find out where troop is: {e}"))?;
    let text = unit_of_saved(&program, is_root)?;
    let mut out = std::io::stdout().lock();
    if args.print {
        let _ = match args.json {
            true => writeln!(out, "{}", json!({ "unit": SAVED_UNIT, "text": text })),
            false => write!(out, "# {SAVED_UNIT}\n{text}"),
        };
        return Ok(());
    }
    let path = args.directory.clone().unwrap_or_else(|| usual_directory(is_root)).join(SAVED_UNIT);
    replace(&path, text.as_bytes(), 0o644)
        .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    if args.json {
        let _ = writeln!(out, "{}", json!({ "units": [path] }));
        return Ok(());
    }
    let (user, linger) = if is_root { ("", "") } else { (" --user", " && loginctl enable-linger") };
    let _ = writeln!(
        out,
        "{}\nNow: systemctl{user} daemon-reload && systemctl{user} enable troop{linger}\n`troop save` saves the apps that run, which are started at boot",
        path.display()
    );
    Ok(())
}

/// The unit's name.
const SAVED_UNIT: &str = "troop.service";
/// Variables that say where apps are found, which the unit passes on.
const PLACES: [&str; 4] =
    ["TROOP_RUNTIME_DIR", "TROOP_STATE_DIR", "TROOP_LOG_DIR", "XDG_STATE_HOME"];

fn unit_of_saved(program: &Path, is_root: bool) -> Result<String, String> {
    let plain = |text: &str| match text.contains(char::is_control) {
        true => Err(format!("{text:?} is no plain text")),
        false => Ok(quoted(text)),
    };
    let program =
        plain(program.to_str().ok_or_else(|| format!("{} is no text", program.display()))?)?;
    let mut places = String::new();
    for name in PLACES {
        if let Ok(value) = std::env::var(name) {
            places.push_str(&format!("Environment={}\n", plain(&format!("{name}={value}"))?));
        }
    }
    let target = if is_root { "multi-user.target" } else { "default.target" };
    Ok(format!(
        "[Unit]
Description=troop: the apps that were saved
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} resurrect
ExecReload={program} reload all
ExecStop=-{program} stop all
{places}# Each app's primary ends its workers itself.
KillMode=mixed
TimeoutStartSec=infinity
TimeoutStopSec=infinity
LimitNOFILE=1048576

[Install]
WantedBy={target}
"
    ))
}

fn usual_directory(is_root: bool) -> PathBuf {
    if is_root {
        return "/etc/systemd/system".into();
    }
    let config =
        std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    config
        .unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".config"))
        .join("systemd/user")
}

/// Returns a path without `..`, which systemd rejects. Links stay: they may lead to another release
/// later.
fn without_dots(path: PathBuf) -> PathBuf {
    let is_parent = |part: Component<'_>| part == Component::ParentDir;
    if path.components().any(is_parent) { path.canonicalize().unwrap_or(path) } else { path }
}

/// Returns the name of an app's unit. systemd allows no other letters in it.
fn unit_name(app: &str) -> String {
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
fn quoted(text: &str) -> String {
    let escaped =
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if escaped.contains([' ', '\t', '\'', '"', ';']) { format!("\"{escaped}\"") } else { escaped }
}

fn unit(
    name: &str,
    app: &App,
    file: &Path,
    program: &Path,
    is_root: bool,
    environment: Option<&str>,
) -> Result<String, String> {
    // A newline would begin another setting.
    let is_plain = |text: &&str| !text.contains(char::is_control);
    let text = |path: &Path| {
        path.to_str()
            .filter(is_plain)
            .map(str::to_owned)
            .ok_or_else(|| format!("{path:?} is no plain text"))
    };
    let file = &without_dots(file.to_owned());
    let (program, config) = (quoted(&text(program)?), quoted(&text(file)?));
    let chosen = environment.map_or_else(String::new, |name| format!(" --env {}", quoted(name)));
    let directory = text(&without_dots(app.directory(file)))?.replace('%', "%%");
    // Longer than the grace period, so that troop kills workers, not systemd.
    let delay = app.drain_delay.map_or(0, |delay| delay.0.as_secs());
    let stop = delay + app.grace.map_or(30, |grace| grace.0.as_secs()) + 10;
    let start = app.ready_timeout.map_or(30, |time| time.0.as_secs()).saturating_mul(2).max(90);
    // Such a file needs node, which is found on the PATH of the shell.
    let path = match config::format_of(file) {
        Some(Format::Pm2) | None => std::env::var("PATH").ok(),
        _ if app.program.contains('/') && !app.program.ends_with("js") => None,
        _ => std::env::var("PATH").ok(),
    };
    let path = path.map_or_else(String::new, |path| {
        format!("Environment={}\n", quoted(&format!("PATH={path}")))
    });
    let delegate = if app.cgroup.is_default() {
        ""
    } else {
        "# Workers have control groups of their own.\nDelegate=yes\n"
    };
    let target = if is_root { "multi-user.target" } else { "default.target" };
    Ok(format!(
        "[Unit]
Description=troop: {name}
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run{chosen} --config {config} {name}
ExecReload={program} reload {name}
WorkingDirectory={directory}
{path}Restart=on-failure
RestartSec=2
# troop tells its workers itself, and ends what they leave behind.
KillMode=mixed
TimeoutStartSec={start}
TimeoutStopSec={stop}
WatchdogSec=30
LimitNOFILE=1048576
# Lines of workers that begin with <0> are no emergencies.
SyslogLevelPrefix=no
{delegate}
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
        assert_eq!(unit_name("api.v2_x-1"), "troop-api.v2_x-1");
        assert_eq!(unit_name("é"), "troop-\\xc3\\xa9");
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
