//! Programs that cluster themselves: as workers of troop they are no primaries, so a part of them
//! does not run.

use serde::Deserialize;

/// The most characters of a place that is shown.
const MAX_PLACE: usize = 200;

/// What the script of Node workers says of such a program.
#[derive(Debug, Deserialize)]
struct Notice {
    name: String,
    at: String,
}

/// Returns what to tell of a program, if a message of a worker is this notice.
pub(crate) fn hint(message: &str) -> Option<String> {
    if !message.starts_with(r#"{"troop":"primary-part","#) {
        return None;
    }
    let Notice { name, at } = serde_json::from_str(message).ok()?;
    let at: String = at.chars().take(MAX_PLACE).collect();
    Some(format!(
        "the program clusters itself: it asks for cluster.{name} ({at}). As a worker it is no primary, so what it does as one does not happen. \
         Have it listen in every process and leave these to troop; or use the package @troop/cluster in place of node:cluster and start it without troop, as `troop run -w 0` does (PM2's fork mode runs such programs alone, too)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_notice_of_the_script_is_one() {
        let text =
            hint(r#"{"troop":"primary-part","name":"isPrimary","at":"/srv/a.js:3:5"}"#).unwrap();
        assert!(text.contains("cluster.isPrimary (/srv/a.js:3:5)"), "{text}");
        for other in [r#"{"troop":"primary-part","name":1}"#, r#""ready""#, "{}", ""] {
            assert_eq!(hint(other), None, "{other}");
        }
    }
}
