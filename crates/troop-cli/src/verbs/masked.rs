//! Masks what is secret in an environment.

/// What is shown instead of a secret.
const MASK: &str = "***";

/// Parts of names whose values are secret.
const SECRET: [&str; 12] = [
    "SECRET",
    "TOKEN",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "PRIVATE",
    "AUTH",
    "COOKIE",
    "SALT",
    "DSN",
    "JWT",
];
/// Ends of words in names whose values are secret.
const SECRET_ENDS: [&str; 4] = ["KEY", "PASS", "PW", "PWD"];
/// What a private key in a value contains (PEM).
const PRIVATE_KEY: &str = "PRIVATE KEY-----";
/// A login without a password of at least this many bytes is taken for a token.
const MIN_TOKEN: usize = 16;

/// Returns what can be shown of a variable.
pub(crate) fn value(name: &str, value: &str) -> String {
    let is_directory = matches!(name, "PWD" | "OLDPWD") || name.ends_with("_PATH");
    if (!is_directory && is_secret(name)) || value.contains(PRIVATE_KEY) {
        return MASK.into();
    }
    without_pairs(&without_passwords(value))
}

fn is_secret(name: &str) -> bool {
    let upper = name.to_uppercase();
    let ends = |word: &str| SECRET_ENDS.iter().any(|end| word.ends_with(end));
    upper.split(|c: char| !c.is_alphanumeric()).any(ends)
        || SECRET.iter().any(|secret| upper.contains(secret))
}

/// Masks the password in each `scheme://user:password@host`, and the token in `https://token@host`.
fn without_passwords(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        rest = after;
        let Some(login) = login(after) else { continue };
        match login.split_once(':') {
            Some((user, _)) => shown.push_str(&format!("{user}:{MASK}")),
            None if login.len() >= MIN_TOKEN => shown.push_str(MASK),
            None => shown.push_str(login),
        }
        rest = &after[login.len()..];
    }
    shown + rest
}

/// Returns what stands before the `@` of a URL, without its scheme.
fn login(url: &str) -> Option<&str> {
    let end = |ends: &[char]| url.find(ends).unwrap_or(url.len());
    let authority = &url[..end(&['/', '?', '#', ' ', ','])];
    if let Some((login, _)) = authority.rsplit_once('@') {
        return Some(login);
    }
    // A password in which such a character is not written as `%2F`; a port is a number.
    let (_, after) = authority.split_once(':')?;
    let is_port = !after.is_empty() && after.bytes().all(|byte| byte.is_ascii_digit());
    let (login, _) = url[..end(&[' ', ','])].rsplit_once('@').filter(|_| !is_port)?;
    Some(login)
}

/// Masks the value of each `password=value` and `"password": "value"`.
fn without_pairs(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['=', ':']) {
        let (before, after) = rest.split_at(at);
        let (separator, after) = after.split_at(1);
        shown.push_str(before);
        shown.push_str(separator);
        rest = after;
        let name = before.trim_end();
        let bare = name.strip_suffix(['"', '\'']);
        let word =
            bare.unwrap_or(name).rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != '-');
        let word = word.into_iter().next().unwrap_or_default();
        if word.is_empty() || !is_secret(word) || (separator == ":" && bare.is_none()) {
            continue;
        }
        let value = rest.trim_start();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let inner = quote.map_or(value, |_| &value[1..]);
        let is_end =
            |c: char| quote.map_or(c.is_whitespace() || ";&,}".contains(c), |quote| c == quote);
        let end = inner.find(is_end).unwrap_or(inner.len());
        if end > 0 {
            shown.push_str(&rest[..rest.len() - value.len()]);
            shown.extend(quote);
            shown.push_str(MASK);
            rest = &inner[end..];
        }
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_are_masked_by_name_and_in_urls() {
        for (name, value, shown) in [
            ("API_KEY", "x", "***"),
            ("GITHUB_TOKEN", "x", "***"),
            ("DB_PASS", "x", "***"),
            ("session_secret", "x", "***"),
            ("SSH_AUTH_SOCK", "x", "***"),
            ("KEYBOARD", "us", "us"),
            ("PWD", "/srv", "/srv"),
            ("PORT", "8000", "8000"),
            ("URL", "postgres://me:pw@db/x", "postgres://me:***@db/x"),
            ("URL", "redis://:p@w@db", "redis://:***@db"),
            ("URLS", "a://b:c@d,e://f:g@h/i@j", "a://b:***@d,e://f:***@h/i@j"),
            ("URL", "https://x/a:b@c", "https://x/a:b@c"),
            ("URL", "https://x:80/a:b@c", "https://x:80/a:b@c"),
            ("URL", "db://me:p/w?@db/x", "db://me:***@db/x"),
            ("URL", "https://ghp_0123456789abcdef@host/x", "https://***@host/x"),
            ("URL", "ssh://git@host/x", "ssh://git@host/x"),
            ("ENCRYPTIONKEY", "x", "***"),
            ("signingKey", "x", "***"),
            ("CERTIFICATE", "a\n-----BEGIN RSA PRIVATE KEY-----\nb", "***"),
            ("OPTIONS", "host=a password=b user=c", "host=a password=*** user=c"),
            ("OPTIONS", "Server=a;Pwd=\"b c\";x=y", "Server=a;Pwd=\"***\";x=y"),
            ("URL", "https://x/?api_key=b&c=d", "https://x/?api_key=***&c=d"),
            (
                "CONFIG",
                "{\"db\": {\"password\": \"a:b\", \"port\": 1}}",
                "{\"db\": {\"password\": \"***\", \"port\": 1}}",
            ),
            ("LS_COLORS", "di=01;34:ln=01", "di=01;34:ln=01"),
            (
                "ARGS",
                "--max-http-header-size=1 --title=a=b",
                "--max-http-header-size=1 --title=a=b",
            ),
        ] {
            assert_eq!(super::value(name, value), shown, "{name}={value}");
        }
    }
}
