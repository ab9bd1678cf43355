//! `troop startup --hardened`: takes from an app's unit what the app does not need.

use std::path::{Path, PathBuf};

use super::needed::Needed;
use super::unit::{quoted, without_dots};
use crate::config::App;

/// Where other users' files are, which are hidden unless the app needs some.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// What is private to the unit unless the app needs some of it.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// What holds for each app. A user's service manager cannot do more than this: the other settings
/// would hide from troop whom files belong to.
const ALWAYS: &str = "\
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
# The last four are for the workers' sandbox.
SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
SystemCallErrorNumber=EPERM
UMask=0027
";

/// What holds for system units besides.
const SYSTEM: &str = "\
DevicePolicy=closed
PrivateDevices=yes
PrivateMounts=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
StateDirectory=troop
StateDirectoryMode=0700
LogsDirectory=troop
LogsDirectoryMode=0750
";

/// Returns the settings that restrict an app.
///
/// # Errors
/// If a path cannot be written in a unit.
pub(super) fn lines(
    app: &App,
    file: &Path,
    needed: &Needed,
    is_root: bool,
) -> Result<String, String> {
    let mut lines = String::from("# `systemd-analyze security` rates this.\n");
    // Where it is false, workers may execute programs that gain privileges.
    if app.no_new_privileges != Some(false) {
        lines.push_str("NoNewPrivileges=yes\n");
    }
    lines.push_str(ALWAYS);
    if !is_root {
        return Ok(lines);
    }
    lines.push_str(SYSTEM);
    let has_user = app.user.is_some() || app.group.is_some();
    let mut capabilities = vec!["CAP_NET_BIND_SERVICE"];
    if has_user {
        capabilities.extend(["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"]);
        // The program may be in a directory that only the workers' user can enter.
        capabilities.push("CAP_DAC_READ_SEARCH");
    }
    if app.nice.is_some_and(|nice| nice < 0) {
        capabilities.push("CAP_SYS_NICE");
    }
    if !app.limits.is_empty() {
        capabilities.push("CAP_SYS_RESOURCE");
    }
    lines.push_str(&format!("CapabilityBoundingSet={}\n", capabilities.join(" ")));
    if app.cgroup.is_default() {
        lines.push_str("ProtectControlGroups=yes\n");
    }
    if !has_user {
        // troop must see its workers.
        lines.push_str("ProtectProc=invisible\n");
    }
    let directory = without_dots(app.directory(file));
    let used: Vec<PathBuf> = [file.to_owned(), directory.clone(), directory.join(&app.program)]
        .into_iter()
        .chain(app.env_file.iter().map(|path| directory.join(path)))
        .chain(std::env::current_exe().ok())
        .chain(needed.places().map(Path::to_owned))
        .collect();
    let real = used.iter().filter_map(|path| path.canonicalize().ok());
    let used: Vec<_> = real.chain(used.iter().cloned()).chain(written(app, &directory)).collect();
    let uses =
        |places: &[&str]| used.iter().any(|path| places.iter().any(|at| path.starts_with(at)));
    lines.push_str(match uses(&HOMES) {
        true => "ProtectHome=read-only\n",
        false => "ProtectHome=yes\n",
    });
    if !uses(&TEMPORARY) {
        lines.push_str("PrivateTmp=yes\n");
    }
    // Control sockets, and the script of Node workers.
    let mut writable = vec!["/run".to_owned()];
    for path in std::iter::once(directory.clone()).chain(written(app, &directory)) {
        let path = path.to_str().filter(|path| !path.contains(char::is_control));
        let path = path.ok_or_else(|| format!("{} is no plain text", directory.display()))?;
        // One that is missing is no error.
        let path = quoted(&format!("-{path}"));
        if !writable.contains(&path) {
            writable.push(path);
        }
    }
    lines.push_str(&format!("ReadWritePaths={}\n", writable.join(" ")));
    Ok(lines)
}

/// Returns the directories besides its own where the app, or troop for it, writes.
fn written(app: &App, directory: &Path) -> Vec<PathBuf> {
    let output = &app.output;
    let logs = [&output.file, &output.error_file, &output.all_file];
    let logs = logs.into_iter().flatten().filter(|path| path.components().count() > 1);
    let addresses = app.bind.iter().chain(&app.may_listen).chain(app.listeners.keys());
    let sockets = addresses.filter_map(|address| {
        let address = address.split_once('=').map_or(address.as_str(), |(_, address)| address);
        let address = address.strip_prefix("udp:").unwrap_or(address);
        address.contains('/').then(|| Path::new(address))
    });
    let pids = [&app.pid_file, &app.worker_pid_file].into_iter().flatten();
    let files = logs.chain(pids).map(PathBuf::as_path).chain(sockets);
    let above = files.filter_map(Path::parent).map(|path| directory.join(path));
    let free = app.sandbox.write.iter().flatten().map(|path| directory.join(path));
    let all = above.chain(free).map(without_dots);
    all.filter(|path| !path.starts_with(directory) && !path.starts_with("/dev")).collect()
}
