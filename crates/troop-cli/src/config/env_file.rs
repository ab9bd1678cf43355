//! Files with environment variables: `NAME=VALUE` per line, as systemd, docker and node read them,
//! without expansion.

use std::path::Path;

use super::source;

/// Reads a file. Errors do not show values, which may be secret.
pub(crate) fn read(file: &Path) -> Result<Vec<(String, String)>, String> {
    let shown = file.display();
    let text = source::text(file)?;
    parse(&text).map_err(|(line, what)| format!("{shown}: line {line}: {what}"))
}

pub(crate) fn parse(text: &str) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) =
            line.split_once('=').ok_or((number, "it must have the form NAME=VALUE"))?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err((number, "this cannot be the name of a variable"));
        }
        variables.push((
            name.to_owned(),
            unquoted(value.trim()).ok_or((number, "a quotation is not closed"))?,
        ));
    }
    Ok(variables)
}

/// Returns a value without its quotes, or up to a comment.
fn unquoted(value: &str) -> Option<String> {
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else {
        let end = value.find(" #").unwrap_or(value.len());
        return Some(value[..end].trim_end().to_owned());
    };
    let mut text = String::new();
    let mut rest = value[1..].chars();
    while let Some(c) = rest.next() {
        match c {
            c if c == quote => return Some(text),
            '\\' if quote == '"' => match rest.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_are() {
        let text = "# comment\nA=1\nexport B = two words \nC='a # b' # c\nD=\"x\\n\\\"y\"\nE=a$b${c}\nF=\nG=x # y\n";
        let read = parse(text).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "a # b"),
            ("D", "x\n\"y"),
            ("E", "a$b${c}"),
            ("F", ""),
            ("G", "x"),
        ];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(parse("A=1\nsecret").unwrap_err().0, 2);
        assert_eq!(parse("A='open").unwrap_err(), (1, "a quotation is not closed"));
    }
}
