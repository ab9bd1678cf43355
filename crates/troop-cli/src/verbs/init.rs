//! `troop init`: writes a first `troop.toml`.

use std::io::{ErrorKind, Write as _};
use std::path::Path;

use serde_json::json;

use super::write::{create, replace};
use crate::args::Init;
use crate::config::{self, Apps, File};
use crate::names;

/// Programs to look for, the likeliest first.
const LIKELY: [&str; 9] = [
    "server.js",
    "app.js",
    "index.js",
    "main.js",
    "server.mjs",
    "server.ts",
    "src/server.js",
    "src/index.js",
    "dist/index.js",
];

/// Writes the file.
///
/// # Errors
/// The reason, for people.
pub(crate) fn init(args: &Init) -> Result<(), String> {
    let (text, names, warnings) = match &args.from {
        Some(from) => {
            let (apps, warnings) = config::read_with_warnings(from)?;
            let names: Vec<_> = apps.keys().cloned().collect();
            (written(apps, &from.display().to_string())?, names, warnings)
        }
        None => {
            let program = args
                .program
                .clone()
                .or_else(likely)
                .ok_or("which program? Name it: `troop init server.js`")?;
            let name = names::of_program(Path::new(&program));
            (template(&name, &program), vec![name], Vec::new())
        }
    };
    if args.output == Path::new("-") {
        let text = if args.json {
            json!({ "text": text, "apps": names, "warnings": warnings }).to_string() + "\n"
        } else {
            text
        };
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        return Ok(());
    }
    let shown = args.output.display();
    let text = text.as_bytes();
    let written = if args.force {
        replace(&args.output, text, 0o644)
    } else {
        create(&args.output, text, 0o644)
    };
    written.map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => format!(
            "{shown} is there already; --force writes over it, `-o -` writes to standard output"
        ),
        _ => format!("cannot write {shown}: {e}"),
    })?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let _ = writeln!(
            out,
            "{}",
            json!({ "file": args.output, "apps": names, "warnings": warnings })
        );
        return Ok(());
    }
    for warning in warnings {
        crate::log::line(&format!("troop: {warning}"));
    }
    let _ = writeln!(
        out,
        "{shown}: {}; `troop check` looks at it, `troop run` or `troop start` runs it",
        names.join(", ")
    );
    Ok(())
}

/// Returns the program that is most likely the app.
fn likely() -> Option<String> {
    let package = config::source::text(Path::new("package.json")).ok();
    let package: Option<serde_json::Value> =
        package.and_then(|text| serde_json::from_str(&text).ok());
    let main = package
        .and_then(|package| package["main"].as_str().map(str::to_owned))
        .filter(|main| Path::new(main).is_file());
    main.or_else(|| {
        LIKELY.iter().find(|name| Path::new(name).is_file()).map(|name| (*name).to_owned())
    })
}

fn written(apps: Apps, from: &str) -> Result<String, String> {
    let text = config::written(&File { app: apps })
        .map_err(|e| format!("cannot write it as TOML: {e}"))?;
    Ok(format!("# From {from}. All options: docs/tool.md. Check this file: troop check\n\n{text}"))
}

fn template(name: &str, program: &str) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned());
    let path = Path::new(program);
    // troop chooses only node by the ending; other interpreters must be named.
    let interpreter =
        crate::program::interpreter_of(path).filter(|_| !crate::program::is_executable(path));
    let (program, args) = match interpreter {
        Some(interpreter) => (text(interpreter), format!("args = [{}]", text(program))),
        None if path.is_file() && !crate::program::is_script(path) && !program.contains('/') => {
            (text(&format!("./{program}")), r##"# args = ["--port", "8000"]"##.to_owned())
        }
        None => (text(program), r##"# args = ["--port", "8000"]"##.to_owned()),
    };
    // TOML wants quotes around other letters.
    let key = if name.is_ascii() { name.to_owned() } else { format!("{name:?}") };
    format!(
        r#"# All options: docs/tool.md. Check this file: troop check

[app.{key}]
program = {program}
{args}
# workers = 4                         # default: one per CPU that may be used
# policy = "least-connections"        # default: auto
# env = {{ NODE_ENV = "production" }}
# grace = "30s"                       # to finish, before a worker is killed
# ready = "message"                   # ready is who calls process.send('ready'); default: who listens
# recycle = {{ memory = "500M", age = "1d" }}
# health = {{ http = "/health", every = "10s" }}
# output = {{ to = "files", rotate_size = "10M", keep = 5 }}
"#
    )
}
