//! Apps that serve a directory: `script: "serve"`, and the list `static` beside the apps of a file.

use serde_json::{Map, Value, json};

use crate::args::Pages;
use crate::config::app::App;
use crate::restart;

/// The script that stands for PM2's own server of files.
pub(super) const SCRIPT: &str = "serve";

/// The port, unless one is given.
const PORT: &str = "8080";

/// Whether PM2's server is meant, and not the program of that name from npm, which has options. Many
/// files have both.
pub(super) fn is_meant(script: &str, args: &[String], app: &App) -> bool {
    let has_variables = app.env.keys().any(|name| name.starts_with("PM2_SERVE_"));
    script == SCRIPT && (has_variables || !has_options(args))
}

fn has_options(args: &[String]) -> bool {
    args.iter().any(|arg| arg.starts_with('-'))
}

/// Has an app run troop's server of files, as its variables and its arguments say: the directory, the
/// port and the host. Returns warnings.
pub(super) fn apply(app: &mut App, args: &[String]) -> Vec<String> {
    let variable = |name: &str| {
        let name = format!("PM2_SERVE_{name}");
        let own = app.env.get(&name).cloned().or_else(|| std::env::var(name).ok());
        own.filter(|value| !value.is_empty())
    };
    let args = if has_options(args) { &[] } else { args };
    let or_arg = |name: &str, at: usize| variable(name).or_else(|| args.get(at).cloned());
    let directory = or_arg("PATH", 0).unwrap_or_else(|| ".".into());
    // As in PM2, anything but a number means the usual port.
    let port = or_arg("PORT", 1).filter(|port| port.parse::<u16>().is_ok());
    let port = port.unwrap_or_else(|| PORT.into());
    let address = match or_arg("HOST", 2) {
        Some(host) if host.contains(':') => format!("[{host}]:{port}"),
        Some(host) => format!("{host}:{port}"),
        None => port,
    };
    let is_on = |name: &str| variable(name).is_some_and(|value| value == "true");
    let pages = Pages {
        spa: is_on("SPA"),
        homepage: variable("HOMEPAGE"),
        basic_auth: is_on("BASIC_AUTH"),
    };
    let mut warnings = Vec::new();
    if is_on("FTP") {
        warnings.push(
            "PM2_SERVE_FTP has no effect: directories without an index.html are not listed".into(),
        );
    }
    // Whoever has written that does not expect everybody to read the files.
    if let Some(value) = variable("BASIC_AUTH").filter(|value| value != "true" && value != "false")
    {
        warnings.push(format!(
            "PM2_SERVE_BASIC_AUTH is {value:?}, so no password is asked for, as in PM2: that needs \"true\""
        ));
    }
    app.program = restart::program().display().to_string();
    app.args = ["serve-files".to_owned()].into_iter().chain(pages.args()).collect();
    app.args.extend([directory, address]);
    app.node_args.clear();
    // It is a worker of troop's, in PM2's fork mode, too.
    app.alone = None;
    warnings
}

/// Returns the apps of the list `static`.
pub(super) fn apps(list: Option<Value>) -> Vec<Value> {
    let list = match list {
        Some(Value::Array(list)) => list,
        one => one.into_iter().collect(),
    };
    list.iter().filter_map(Value::as_object).map(of_static).collect()
}

fn of_static(served: &Map<String, Value>) -> Value {
    let login = served.get("basic_auth").filter(|login| !login.is_null());
    let of_login = |name: &str| login.and_then(|login| login.get(name));
    let variables = [
        ("PORT", served.get("port")),
        ("HOST", served.get("host")),
        ("PATH", served.get("path")),
        ("SPA", served.get("spa")),
        ("FTP", served.get("ftp")),
        ("BASIC_AUTH", login.map(|_| &Value::Bool(true))),
        ("BASIC_AUTH_USERNAME", of_login("username")),
        ("BASIC_AUTH_PASSWORD", of_login("password")),
    ];
    let env: Map<String, Value> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((format!("PM2_SERVE_{name}"), value?.clone())))
        .filter(|(_, value)| !value.is_null())
        .collect();
    let port = served.get("port").map_or_else(|| PORT.into(), super::plain::plain);
    let name = served.get("name").cloned();
    let name = name.unwrap_or_else(|| format!("static-page-server-{port}").into());
    json!({ "name": name, "script": SCRIPT, "env": env })
}
