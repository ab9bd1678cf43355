//! Programs that cluster themselves: as workers of troop they are no primaries, so a part of them
//! does not run.
//!
//! One that is to be a primary if it wants to (`alone = "auto"`) is known by its text, before it is
//! executed, or else by what it asks for then, and is executed a second time.

use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;
use troop::Cluster;

use crate::app::LeftApp;
use crate::config::{Alone, source};
use crate::log;
use crate::program::is_script;
use crate::resolve::ResolvedApp;
use crate::restart::{ALONE_VARIABLE, RestartRequest};
use crate::start::StartupReporter;

/// Why the app of this process runs alone, if its program was to choose.
static WHY: OnceLock<Option<String>> = OnceLock::new();

/// Decides whether the app of this process runs alone, if its program is to choose. A former engine
/// has decided it for all that follow.
pub(crate) fn decide(app: &ResolvedApp, left: Option<&LeftApp>) {
    let told = left
        .and_then(|left| left.alone.clone())
        .or_else(|| std::env::var(ALONE_VARIABLE).ok())
        .or_else(|| if left.is_none() { Notice::of_program(app)?.change().into() } else { None });
    let _ = WHY.set(told.filter(|_| matches!(app.app.alone, Some(Alone::IfPrimary(_)))));
}

/// Returns why the app of this process runs alone, if its program has chosen that.
pub(crate) fn why() -> Option<&'static str> {
    WHY.get()?.as_deref()
}

/// The most characters of a place that is shown.
const MAX_PLACE: usize = 200;

/// What the script of Node workers says of such a program.
#[derive(Debug, Deserialize)]
pub(crate) struct Notice {
    name: String,
    at: String,
    /// A package asks, and nothing listens.
    #[serde(default)]
    package: bool,
}

impl Notice {
    /// Returns the notice, if a message of a worker is one.
    pub(crate) fn of(message: &str) -> Option<Notice> {
        if !message.starts_with(r#"{"troop":"primary-part","#) {
            return None;
        }
        let Notice { name, at, package } = serde_json::from_str(message).ok()?;
        let place = |text: String| text.chars().take(MAX_PLACE).filter(|c| *c != '\0').collect();
        Some(Notice { name: place(name), at: place(at), package })
    }

    /// Returns what a program that is to choose says before it is executed.
    fn of_program(app: &ResolvedApp) -> Option<Notice> {
        let program = Path::new(&app.program);
        if !matches!(app.app.alone, Some(Alone::IfPrimary(_))) || !is_script(program) {
            return None;
        }
        let path = app.cwd.as_deref().unwrap_or(Path::new(".")).join(program);
        let read = path.clone();
        // What cannot be read is found out when it is executed.
        let text = source::answered(move || source::text(&read)).ok()?;
        let (name, line) = asked_in(&text)?;
        Some(Notice { name: name.into(), at: format!("{}:{line}", path.display()), package: false })
    }

    /// Whether the program itself asks, so that it is certain to have such a part.
    fn is_certain(&self) -> bool {
        !self.package
    }

    /// Tells of the program, or has it run alone, if it may: then there is a cluster.
    pub(crate) fn tell(
        &self,
        cluster: Option<&Cluster>,
        restarting: &RestartRequest,
        reporter: Option<&StartupReporter>,
    ) {
        match cluster.filter(|_| self.is_certain()) {
            Some(cluster) => {
                let reports = reporter.is_some_and(StartupReporter::postpone);
                restarting.request_alone(self.change(), reports);
                drop(cluster.stop());
            }
            None => {
                let hint = self.hint();
                log::line(&format!("troop: {hint}"));
                reporter.iter().for_each(|reporter| reporter.note_hint(hint.clone()));
            }
        }
    }

    /// Returns what to tell of a program that stays a worker.
    pub(crate) fn hint(&self) -> String {
        let Notice { name, at, package } = self;
        if *package {
            return format!(
                "a package of the program asks for cluster.{name} ({at}), and nothing listens so far. If the program clusters itself by that \
                 package, let it be a primary, with --alone (`alone = true`): as a worker it is none"
            );
        }
        format!(
            "the program clusters itself: it asks for cluster.{name} ({at}). As a worker it is no primary, so what it does as one does not happen. \
             Have it listen in every process and leave these to troop; or let it be a primary itself, with --alone (`alone = true`); or use the \
             package @troop/cluster in place of node:cluster, with --alone, too"
        )
    }

    /// Returns what to tell of one that runs alone from now on.
    pub(crate) fn change(&self) -> String {
        let Notice { name, at, .. } = self;
        format!(
            "the program clusters itself: it asks for cluster.{name} ({at}). It runs alone, as in PM2's fork mode, so that it is a primary: it \
             listens by itself, and a reload stops it first. exec_mode: \"cluster\" makes it a worker"
        )
    }
}

/// Returns what a program asks for in its text, and in which line, if it is certain to be the primary of a
/// cluster.
fn asked_in(text: &str) -> Option<(&'static str, usize)> {
    const ASKED: [&str; 3] = ["isPrimary", "isMaster", "fork"];
    let loads = |line: &str| {
        ["cluster", "node:cluster"].iter().any(|module| {
            ['\'', '"'].iter().any(|quote| {
                ["require(", "import(", "from ", "from"]
                    .iter()
                    .any(|way| line.contains(&format!("{way}{quote}{module}{quote}")))
            })
        })
    };
    let is_asked = |line: &str, name: &str| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        line.match_indices(name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let is_word = !before.ends_with(is_part) && !after.starts_with(is_part);
            // Other modules have a `fork`, too.
            is_word && (name != "fork" || before.ends_with("cluster."))
        })
    };
    let lines: Vec<_> = code(text).collect();
    if !lines.iter().any(|line| loads(line)) {
        return None;
    }
    let asks = |(number, line): (usize, &String)| {
        let name = ASKED.into_iter().find(|name| is_asked(line, name))?;
        Some((name, number + 1))
    };
    lines.iter().enumerate().find_map(asks)
}

/// Returns the lines of a program without its comments. Strings with such signs are shortened, too.
fn code(text: &str) -> impl Iterator<Item = String> {
    let mut is_comment = false;
    text.lines().map(move |line| {
        let (mut rest, mut code) = (line, String::new());
        loop {
            if is_comment {
                let Some((_, after)) = rest.split_once("*/") else { return code };
                (rest, is_comment) = (after, false);
            }
            let end = ["//", "/*"].iter().filter_map(|sign| rest.find(sign)).min();
            let Some(end) = end else { return code + rest };
            code += &rest[..end];
            if rest[end..].starts_with("//") {
                return code;
            }
            (rest, is_comment) = (&rest[end + 2..], true);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_certain_to_be_a_primary_is_known_by_its_text() {
        for (text, found) in [
            (
                "const cluster = require('cluster');\n\nif (cluster.isMaster) {}",
                Some(("isMaster", 3)),
            ),
            ("import cluster from \"node:cluster\";\ncluster.isPrimary", Some(("isPrimary", 2))),
            ("const { isPrimary } = require('node:cluster')", Some(("isPrimary", 1))),
            ("import{isPrimary as p}from'cluster'", Some(("isPrimary", 1))),
            ("/* if\n */ require('cluster') // a\n.fork(); cluster.fork()", Some(("fork", 3))),
            // What others call so, and what does not run.
            ("new Redis({ mode: 'cluster' }).isMaster", None),
            ("require('cluster').isWorker; require('child_process').fork('a')", None),
            ("require('cluster'); const isMasterNode = 1, myisPrimary = 2", None),
            ("// require('cluster').isPrimary", None),
            ("/* require('cluster')\n.isPrimary\n*/ cluster.isPrimary", None),
            ("require('cluster') /* cluster.fork() */; // isPrimary", None),
            ("", None),
        ] {
            assert_eq!(asked_in(text), found, "{text}");
        }
    }

    #[test]
    fn only_the_notice_of_the_script_is_one() {
        let notice =
            Notice::of(r#"{"troop":"primary-part","name":"isPrimary","at":"/srv/a.js:3:5"}"#);
        let notice = notice.unwrap();
        for text in [notice.hint(), notice.change()] {
            assert!(text.contains("cluster.isPrimary (/srv/a.js:3:5)"), "{text}");
        }
        for other in [r#"{"troop":"primary-part","name":1}"#, r#""ready""#, "{}", ""] {
            assert!(Notice::of(other).is_none(), "{other}");
        }
    }
}
