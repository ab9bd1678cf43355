//! Programs that cluster themselves: as workers of troop they are no primaries, so a part of them
//! does not run.

use serde::Deserialize;

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

    /// Whether the program itself asks, so that it is certain to have such a part.
    pub(crate) fn is_certain(&self) -> bool {
        !self.package
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

#[cfg(test)]
mod tests {
    use super::*;

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
