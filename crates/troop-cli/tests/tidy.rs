//! Checks of the repository itself: files stay small, links resolve, options and verbs are
//! documented, and names and prose keep to the field's language.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Lines that a source file may have, unless it is data.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The files of the project with one of these endings. What is built or installed is left out.
fn files(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut directories = vec![root()];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let skipped = ["target", "node_modules", "nodes", "corpus", "artifacts", "seeds"];
            if name.starts_with('.') || skipped.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                found.push((entry.path().strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 5, "the project's files are not where they were");
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn files_are_short() {
    let long: Vec<_> = files(&[".rs", ".js", ".mjs"])
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:?}");
}

#[test]
fn comments_stand_by_themselves() {
    let empty = concat!("See the", " module.");
    let found: Vec<_> = files(&[".rs"])
        .into_iter()
        .filter(|(_, text)| text.contains(empty))
        .map(|(path, _)| path)
        .collect();
    assert!(found.is_empty(), "a comment says no more than {empty:?}: {found:?}");
}

/// Phrases without a subject, and private words for what has a name in the field, with what to
/// write instead. Each is written in two parts, so that this file does not contain it.
const IDIOMS: [([&str; 2], &str); 8] = [
    (["looked", " at"], "checked, read, inspected"),
    (["looked", " whether"], "checked whether"),
    (["held", " to be"], "counts as"),
    (["in", " earnest"], "what differs"),
    (["by", " chance"], "randomly"),
    (["cannot", " be meant"], "invalid"),
    (["made", " anew"], "created again"),
    (["feel", " the pulse"], "probe"),
];

#[test]
fn comments_and_documents_use_the_words_of_the_field() {
    let mut found = Vec::new();
    for (path, text) in files(&[".rs", ".js", ".md"]) {
        // A phrase may go on in the next line of a comment.
        let words =
            text.split_whitespace().filter(|word| !word.chars().all(|c| "/!*#".contains(c)));
        let text = words.collect::<Vec<_>>().join(" ");
        for ([start, end], instead) in IDIOMS {
            let phrase = format!("{start}{end}");
            if text.contains(&phrase) {
                found.push(format!("{}: {phrase:?}; write: {instead}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn constants_are_named_by_what_they_bound() {
    let is_mood = |name: &str| {
        name.split('_')
            .any(|word| matches!(word, "MOST" | "LONGEST" | "PATIENCE" | "LOOK" | "EVERY"))
    };
    let mut found = Vec::new();
    for (path, text) in files(&[".rs", ".js"]) {
        for line in text.lines() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "const");
            let Some(name) = words.nth(1) else { continue };
            let name = name.trim_end_matches(':');
            if is_mood(name) {
                found.push(format!("{}: {name}; see MAX_…, …_TIMEOUT, …_INTERVAL", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// rustdoc makes one long heading of a heading and the text on its line.
#[test]
fn headings_of_doc_comments_stand_on_their_own_line() {
    let mut joined = Vec::new();
    for (path, text) in files(&[".rs"]) {
        let mut in_code = false;
        for line in text.lines().map(str::trim_start) {
            let Some(comment) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
            else {
                in_code = false;
                continue;
            };
            in_code ^= comment.trim_start().starts_with("```");
            let Some(heading) = comment.strip_prefix(" # ").filter(|_| !in_code) else { continue };
            let usual = ["Errors ", "Panics ", "Safety ", "Cancelling ", "Examples "];
            if usual.iter().any(|usual| heading.starts_with(usual))
                || heading.contains(['`', '['])
                || heading.len() > 40
            {
                joined.push((path.clone(), line.to_owned()));
            }
        }
    }
    assert!(joined.is_empty(), "headings joined with text: {joined:?}");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The targets of a document's links, but for code.
fn links(text: &str) -> Vec<String> {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code
    });
    let targets = |line: &str| -> Vec<String> {
        line.split("](")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
            .collect()
    };
    lines.flat_map(targets).collect()
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for (document, text) in files(&[".md"]) {
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().unwrap().join(path),
            };
            let target = root().join(target);
            let has_heading = || {
                let text = std::fs::read_to_string(&target).unwrap_or_default();
                text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if !target.exists() || (!heading.is_empty() && !has_heading()) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The options of an app, as the schema has them: names, and names of tables with theirs.
fn options() -> Vec<(Option<String>, String)> {
    let schema: Value = serde_json::from_str(&read("docs/troop.schema.json")).unwrap();
    let definitions = schema["$defs"].as_object().unwrap();
    let properties = |definition: &Value| -> Vec<(String, Value)> {
        definition["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let mut options = Vec::new();
    for (name, property) in properties(&definitions["App"]) {
        let text = property.to_string();
        for (definition, value) in definitions {
            if text.contains(&format!("\"#/$defs/{definition}\"")) {
                options.extend(
                    properties(value).into_iter().map(|(inner, _)| (Some(name.clone()), inner)),
                );
            }
        }
        options.push((None, name));
    }
    assert!(options.len() > 50, "{options:?}");
    options
}

#[test]
fn every_option_is_documented() {
    let text = read("docs/tool.md");
    let words: BTreeSet<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .collect();
    let missing: Vec<_> =
        options().into_iter().filter(|(_, name)| !words.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/tool.md does not name {missing:?}");
}

#[test]
fn every_option_in_documents_exists() {
    let known: BTreeSet<String> = options().into_iter().map(|(_, name)| name).collect();
    let mut unknown = Vec::new();
    for document in ["README.md", "docs/tool.md", "docs/scheduling.md"] {
        let text = read(document);
        for block in text
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        {
            let names =
                block.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = "));
            let names =
                names.map(|(name, _)| name.trim()).filter(|name| !name.contains([' ', '"']));
            let unknown_ones =
                names.filter(|name| name.split('.').any(|part| !known.contains(part)));
            unknown.extend(unknown_ones.map(|name| format!("{document}: {name}")));
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_verb_is_documented() {
    let program =
        std::process::Command::new(env!("CARGO_BIN_EXE_troop")).arg("--help").output().unwrap();
    let help = String::from_utf8(program.stdout).unwrap();
    let verbs: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| {
            line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split_whitespace().next()
        })
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() > 15, "{help}");
    let text = read("docs/tool.md");
    let missing: Vec<_> =
        verbs.into_iter().filter(|verb| !text.contains(&format!("`{verb}"))).collect();
    assert!(missing.is_empty(), "docs/tool.md does not name {missing:?}");
}

#[test]
fn tests_that_the_guarantees_name_exist() {
    let readme = read("README.md");
    let guarantees =
        readme.split("\n## ").find(|part| part.starts_with("What it guarantees")).unwrap();
    let listed = guarantees.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let is_name = |word: &&str| {
        word.contains(['_', ':']) || matches!(*word, "attacks" | "messages" | "floods")
    };
    let names: Vec<&str> =
        listed.flat_map(|line| line.split('`').skip(1).step_by(2)).filter(is_name).collect();
    assert!(names.len() > 5, "{names:?}");
    let sources = files(&[".rs"]);
    for name in names {
        let (file, module) =
            name.split_once("::").map_or((name, None), |(file, module)| (file, Some(module)));
        let exists = sources.iter().any(|(path, text)| match module {
            Some(module) => path.ends_with(format!("tests/{file}/{module}.rs")),
            None => {
                path.ends_with(format!("tests/{file}.rs"))
                    || path.ends_with(format!("tests/{file}/main.rs"))
                    || text.contains(&format!("fn {file}("))
            }
        });
        assert!(exists, "README.md names {name}, which is neither a test nor a file of tests");
    }
}

#[test]
fn the_root_of_the_crate_has_the_names_that_most_programs_need_and_no_others() {
    let source = read("crates/troop/src/lib.rs");
    let names: Vec<&str> = source
        .split("\npub use ")
        .skip(1)
        .filter_map(|text| text.split(';').next())
        .flat_map(|path| path.rsplit("::").next().unwrap_or(path).split(','))
        .map(|name| name.trim_matches(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|name| !name.is_empty())
        // Modules whose files are among those of workers.
        .filter(|name| !["blocking", "net"].contains(name))
        .collect();
    assert!((15..=25).contains(&names.len()), "{} names: {names:?}", names.len());
}

#[test]
fn each_fault_names_a_test_that_causes_it() {
    let sources = files(&[".rs"]);
    let list = read("docs/faults.md");
    let (mut rows, mut missing) = (0, Vec::new());
    for row in list.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        rows += 1;
        let number: usize = row.split('|').nth(1).unwrap().trim().parse().unwrap();
        assert_eq!(number, rows, "{row}");
        let tests = row.split('|').rfind(|cell| !cell.trim().is_empty()).unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            let is_there = |(_, text): &(PathBuf, String)| text.contains(&format!("fn {name}("));
            if !sources.iter().any(is_there) {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(rows > 50 && missing.is_empty(), "{rows} faults; no such tests: {missing:?}");
}
