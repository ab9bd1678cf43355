//! Variables in the values of a `troop.toml`: `${NAME}` and `${NAME:-default}`.

use super::toml_file::Lookup;

/// The option whose text a shell reads, with the variables of workers (`health.command`).
pub(super) const FOR_SHELL: &str = "command";

/// Returns a text with the values of its variables; `None` if there are none in it. `$${` stands for
/// `${`.
///
/// # Errors
/// A variable that is not set, or what is none.
pub(super) fn expanded(text: &str, lookup: &Lookup<'_>) -> Result<Option<String>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let (mut rest, mut expanded) = (text, String::new());
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if before.ends_with('$') {
            expanded.push_str(before);
            expanded.push('{');
            rest = &from[2..];
            continue;
        }
        expanded.push_str(before);
        let end =
            from.find('}').ok_or("a variable has no `}` at its end; `$${` stands for `${`")?;
        let inner = &from[2..end];
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !is_name(name) {
            return Err(format!(
                "${{{inner}}} is no variable, which are ${{NAME}} and ${{NAME:-default}}; `$${{` stands for `${{`, and texts in '…' stay as they are"
            ));
        }
        let value = lookup(name).filter(|value| default.is_none() || !value.is_empty());
        match (value, default) {
            (Some(value), _) => expanded.push_str(&value),
            (None, Some(default)) => expanded.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the variable {name} is not set; ${{{name}:-default}} has a value for that, and texts in '…' stay as they are"
                ));
            }
        }
        rest = &from[end + 1..];
    }
    expanded.push_str(rest);
    Ok(Some(expanded))
}

/// Writes the texts of a value so that they are read as they are.
pub(super) fn escape(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) if text.contains("${") => {
            let escaped = text.replace("${", "$${");
            // Nothing is expanded in literal strings, which have no escapes either.
            if !is_literal(&escaped) {
                *text = escaped;
            }
        }
        toml::Value::Array(all) => all.iter_mut().for_each(escape),
        toml::Value::Table(all) => {
            for (name, value) in all {
                if !value.is_str() || name != FOR_SHELL {
                    escape(value);
                }
            }
        }
        _ => {}
    }
}

/// Whether a text is written as a literal string, as those with quotation marks are.
fn is_literal(text: &str) -> bool {
    let value = toml::Table::from_iter([("v".to_owned(), toml::Value::from(text))]);
    toml::to_string_pretty(&value).is_ok_and(|written| written.starts_with("v = '"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_their_values_or_defaults() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, value) in [
            ("plain $A {A}", None),
            ("${A}${A}", Some("11")),
            ("x${B:-y}z", Some("xyz")),
            ("${EMPTY:-y}", Some("y")),
            ("${EMPTY}", Some("")),
            ("${B:-}", Some("")),
            ("$${A} ${A}", Some("${A} 1")),
            ("$$${A}", Some("$${A}")),
        ] {
            assert_eq!(expanded(text, &lookup), Ok(value.map(str::to_owned)), "{text}");
        }
        for (text, part) in [("${B}", "B is not set"), ("${", "no `}`"), ("${a b}", "no variable")]
        {
            assert!(expanded(text, &lookup).unwrap_err().contains(part), "{text}");
        }
        for text in ["${A} \"x\"", "\\${A}", "${A}\n\"x\" '''", "'${A}'", "${A} '\"'", "${A}"] {
            let mut value = toml::Value::from(text);
            escape(&mut value);
            let file = toml::Table::from_iter([("v".to_owned(), value)]);
            let written = toml::to_string_pretty(&file).unwrap();
            let read = file["v"].as_str().unwrap();
            let read = match written.starts_with("v = '") {
                true => read.to_owned(),
                false => expanded(read, &lookup).unwrap().unwrap(),
            };
            assert_eq!(read, text, "{written}");
        }
        let mut value = toml::Value::String("a ${A} $${A} $${".into());
        let before = value.as_str().map(str::to_owned);
        escape(&mut value);
        assert_eq!(expanded(value.as_str().unwrap(), &lookup), Ok(before));
    }
}
