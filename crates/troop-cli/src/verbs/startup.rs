//! `troop startup` and `troop unstartup`: write systemd units, and remove them.

mod hardening;
mod needed;
mod undo;
mod unit;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use self::unit::quoted;
use super::write::replace;
use crate::args::Startup;
use crate::config::{self, App};
use crate::{log, suggest};
pub(crate) use undo::unstartup;

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
        let text =
            unit::text(name, app, &file, &program, is_root, args.env.as_deref(), args.hardened)?;
        if args.print && args.json {
            let _ = writeln!(
                out,
                "{}",
                json!({ "unit": format!("{}.service", unit::name(name)), "text": text })
            );
            continue;
        }
        if args.print {
            let _ = write!(out, "# {}.service\n{text}", unit::name(name));
            continue;
        }
        let path = directory.join(format!("{}.service", unit::name(name)));
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
        // One that was named is to be started.
        let is_started = |app: &App| args.app.is_some() || app.autostart != Some(false);
        let (started, others): (Vec<_>, Vec<_>) = apps.iter().partition(|(_, app)| is_started(app));
        let names = |apps: Vec<(&String, &App)>| {
            let names = apps.into_iter().map(|(name, _)| quoted(&unit::name(name)));
            names.collect::<Vec<_>>().join(" ")
        };
        let enable = match started.is_empty() {
            true => String::new(),
            false => format!(" && systemctl{user} enable --now {}", names(started)),
        };
        let _ = writeln!(out, "Now: systemctl{user} daemon-reload{enable}");
        if !others.is_empty() {
            let names = names(others);
            let _ =
                writeln!(out, "Not enabled, as autostart is false: systemctl{user} start {names}");
        }
    }
    Ok(())
}

/// Writes the unit that starts the apps which `troop save` has saved.
fn startup_of_saved(args: &Startup) -> Result<(), String> {
    if args.env.is_some() {
        return Err("--env is for a PM2 file: name it with --config".into());
    }
    if args.hardened {
        return Err("--hardened is for the apps of a file, of which it is known what they need: `troop init` writes troop.toml".into());
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
