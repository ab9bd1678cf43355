//! The apps that a word on the command line selects.

use std::path::Path;

use regex_lite::Regex;

/// An app, as far as words can name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) name: &'a str,
    /// The number that `troop ls` shows.
    pub(crate) id: Option<u32>,
    pub(crate) namespace: Option<&'a str>,
    /// The configuration file, without links.
    pub(crate) file: Option<&'a Path>,
}

/// Returns the names of the apps that a word selects: a name, a number, `all`, a `/pattern/`, a
/// namespace, or a configuration file. A name overrides the others.
///
/// # Errors
/// If the pattern is invalid.
pub(crate) fn names(word: &str, apps: &[Named<'_>]) -> Result<Vec<String>, String> {
    let all = |fits: &dyn Fn(&Named<'_>) -> bool| {
        apps.iter().filter(|app| fits(app)).map(|app| app.name.to_owned()).collect::<Vec<_>>()
    };
    let named = all(&|app| app.name == word);
    if !named.is_empty() {
        return Ok(named);
    }
    if word == "all" {
        return Ok(all(&|_| true));
    }
    if let Some(pattern) = pattern(word) {
        let pattern =
            Regex::new(pattern).map_err(|e| format!("{word} is no regular expression: {e}"))?;
        return Ok(all(&|app| pattern.is_match(app.name)));
    }
    if let Ok(id) = word.parse::<u32>() {
        return Ok(all(&|app| app.id == Some(id)));
    }
    let in_namespace = all(&|app| app.namespace == Some(word));
    if !in_namespace.is_empty() {
        return Ok(in_namespace);
    }
    let Ok(file) = Path::new(word).canonicalize() else { return Ok(Vec::new()) };
    Ok(all(&|app| app.file == Some(&file)))
}

/// Returns the pattern of a word such as `/web/`.
pub(crate) fn pattern(word: &str) -> Option<&str> {
    word.strip_prefix('/')?.strip_suffix('/').filter(|pattern| !pattern.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_are_selected_by_name_number_pattern_namespace_and_file() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().canonicalize().unwrap().join("ecosystem.json");
        std::fs::write(&file, "").unwrap();
        let app = |name, id, namespace, file| Named { name, id: Some(id), namespace, file };
        let apps = [
            app("web", 0, None, Some(file.as_path())),
            app("web-2", 1, Some("shop"), None),
            app("jobs", 2, Some("shop"), Some(file.as_path())),
            app("1", 7, None, None),
        ];
        let typed = file.display().to_string();
        for (word, expected) in [
            ("web", &["web"][..]),
            ("2", &["jobs"]),
            ("1", &["1"]),
            ("all", &["web", "web-2", "jobs", "1"]),
            ("/web/", &["web", "web-2"]),
            ("/^(jobs|1)$/", &["jobs", "1"]),
            ("shop", &["web-2", "jobs"]),
            (&typed, &["web", "jobs"]),
            ("we", &[]),
            ("/x/", &[]),
            ("9", &[]),
            ("//", &[]),
        ] {
            assert_eq!(names(word, &apps).unwrap(), expected, "{word}");
        }
        assert!(names("/(/", &apps).unwrap_err().contains("no regular expression"));
    }
}
