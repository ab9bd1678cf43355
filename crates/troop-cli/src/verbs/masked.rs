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
    "APIKEY",
];

/// Returns what can be shown of a variable.
pub(crate) fn value(name: &str, value: &str) -> String {
    let upper = name.to_uppercase();
    let parts = upper.split(|c: char| !c.is_alphanumeric());
    let is_key = parts.clone().any(|part| matches!(part, "KEY" | "PASS" | "PW" | "PWD"));
    let is_directory = matches!(name, "PWD" | "OLDPWD") || name.ends_with("_PATH");
    if !is_directory && (is_key || SECRET.iter().any(|secret| upper.contains(secret))) {
        return MASK.into();
    }
    without_passwords(value)
}

/// Masks the password in each `scheme://user:password@host`.
fn without_passwords(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let authority = after.split(['/', '?', '#', ' ', ',']).next().unwrap_or_default();
        shown.push_str(before);
        shown.push_str("://");
        rest = after;
        if let Some((login, _)) = authority.rsplit_once('@')
            && let Some((user, _)) = login.split_once(':')
        {
            shown.push_str(&format!("{user}:{MASK}"));
            rest = &after[login.len()..];
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
        ] {
            assert_eq!(super::value(name, value), shown, "{name}={value}");
        }
    }
}
