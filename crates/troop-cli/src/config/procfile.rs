//! Reads a `Procfile`, as Heroku and foreman do: `name: command` per line.

use std::path::PathBuf;

use super::Apps;
use super::app::App;
use super::values::Workers;

/// Characters that only a shell interprets.
const FOR_SHELL: [char; 18] =
    ['$', '&', '|', ';', '<', '>', '(', ')', '*', '?', '[', ']', '{', '}', '~', '`', '#', '!'];
/// Characters that make a line more than one command.
const SEVERAL: [char; 4] = ['&', '|', ';', '('];

pub(super) fn parse(text: &str, has_env: bool) -> Result<Apps, String> {
    let mut apps = Apps::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {number}: {what}");
        let (name, command) =
            line.split_once(':').ok_or_else(|| wrong("it must have the form `name: command`"))?;
        let (name, command) = (name.trim(), command.trim());
        if command.is_empty() {
            return Err(wrong("there is no command"));
        }
        let mut app = app(command);
        // One worker, as Procfiles mean it; `-w` or `troop.toml` sets more.
        app.workers = Some(Workers::Number(1));
        if has_env {
            app.env_file.push(PathBuf::from(".env"));
        }
        if apps.insert(name.to_owned(), app).is_some() {
            return Err(wrong(&format!("there is a {name} already")));
        }
    }
    Ok(apps)
}

/// Returns the app of a command line.
pub(crate) fn app(command: &str) -> App {
    let words = shlex::split(command).filter(|words| {
        !command.contains(FOR_SHELL) && !words.first().is_some_and(|w| w.contains('='))
    });
    match words.as_deref() {
        Some([program, args @ ..]) => App { args: args.to_vec(), ..App::new(program) },
        // `exec` makes the program the worker, rather than a shell that waits for it.
        _ => {
            let exec =
                if command.contains(SEVERAL) || command.contains('=') { "" } else { "exec " };
            App { args: vec!["-c".into(), format!("{exec}{command}")], ..App::new("sh") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_run_as_they_are_or_in_a_shell() {
        let apps =
            parse("# all of it\nweb: node server.js --name 'a b'\n\njobs: exec ./jobs --port $PORT\nboth: a && b\n", false)
                .unwrap();
        let line = |name: &str| (apps[name].program.clone(), apps[name].args.clone());
        let words =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(line("web"), ("node".into(), words(&["server.js", "--name", "a b"])));
        assert_eq!(line("jobs"), ("sh".into(), words(&["-c", "exec exec ./jobs --port $PORT"])));
        assert_eq!(line("both"), ("sh".into(), words(&["-c", "a && b"])));
        for bad in ["web", "web:", "web: a\nweb: b"] {
            assert!(parse(bad, false).unwrap_err().starts_with("line "), "{bad}");
        }
    }
}
