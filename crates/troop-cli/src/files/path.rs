//! The file that a request names, and what kind of file it is.

use std::path::{Path, PathBuf};

/// Returns the relative path of a request's target. `None` if it is invalid, or would leave the
/// directory or name a hidden file, except below `.well-known`.
pub(super) fn of(target: &str) -> Option<PathBuf> {
    let target = target.split(['?', '#']).next()?;
    let bytes = decoded(target.strip_prefix('/')?)?;
    let text = String::from_utf8(bytes).ok()?;
    let mut path = PathBuf::new();
    for part in text.split('/').filter(|part| !part.is_empty()) {
        let is_hidden = part.starts_with('.') && part != ".well-known";
        if is_hidden || part.contains(['\0', '\\']) {
            return None;
        }
        path.push(part);
    }
    Some(path)
}

/// Decodes `%20` and so on.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    Some(bytes)
}

/// Returns the path of a directory's URL, relative to the server, for a redirect.
pub(super) fn of_directory(path: &Path) -> String {
    let mut location = String::new();
    for part in path.components() {
        location.push('/');
        for byte in part.as_os_str().as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    location.push(char::from(*byte));
                }
                byte => location.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    location + "/"
}

/// Returns the media type of a file, by its ending.
pub(super) fn media_type(path: &Path) -> &'static str {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" | "cjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "csv" => "text/csv; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wav" => "audio/wav",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_files_below_the_directory_and_no_hidden_ones() {
        for (target, path) in [
            ("/", Some("")),
            ("/a/b.html", Some("a/b.html")),
            ("//a///b", Some("a/b")),
            ("/a%20b%C3%A9?x=/../", Some("a bé")),
            ("/.well-known/x", Some(".well-known/x")),
            ("/../a", None),
            ("/a/%2e%2e/b", None),
            ("/.git/config", None),
            ("/a/.env", None),
            ("/a%00b", None),
            ("/%ff", None),
            ("/%2", None),
            ("/a%5cb", None),
            ("a", None),
            ("http://x/a", None),
            ("*", None),
        ] {
            assert_eq!(of(target).as_deref(), path.map(Path::new), "{target}");
        }
    }

    #[test]
    fn a_redirect_stays_on_the_server() {
        assert_eq!(of_directory(Path::new("a b/c")), "/a%20b/c/");
        assert_eq!(of_directory(&of("//evil.example/x").unwrap()), "/evil.example/x/");
    }
}
