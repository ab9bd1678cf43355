//! The web page: files that are the same for everybody, and tell nothing.

use axum::body::Body;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, VARY, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};

/// A file of the page.
pub(super) struct File {
    name: &'static str,
    kind: &'static str,
    tag: &'static str,
    gzip: &'static [u8],
}

mod built {
    use super::File;

    include!(concat!(env!("OUT_DIR"), "/page.rs"));
}

/// What the page may do: ask this server, and show what comes with it. It has no script, style or image of
/// others, and none in its text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (REFERRER_POLICY, "no-referrer"),
    (X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // Another version has other files.
    (CACHE_CONTROL, "no-cache"),
];

/// What takes the place of a page that this program was built without.
const MISSING: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>troop</title>\
<h1>troop admin</h1>\
<p>This troop was built without its web page. From its source, with npm:</p>\
<pre>cd crates/troop-cli/page\nnpm ci\nnpm run build\ncargo install --path ..</pre>\
<p>Everything else is here: <a href=/ready>/ready</a>, <a href=/live>/live</a>, <a href=/metrics>/metrics</a>, \
and <code>troop top</code> in a terminal.</p>";

/// `GET /`.
pub(super) async fn index(headers: HeaderMap) -> Response {
    if built::FILES.is_empty() {
        return with_headers(
            ([(CONTENT_TYPE, "text/html; charset=utf-8")], MISSING).into_response(),
        );
    }
    file(Path("index.html".into()), headers).await
}

/// `GET /page/FILE`.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(file) = built::FILES.iter().find(|file| file.name == name) else {
        return (StatusCode::NOT_FOUND, "not found\n").into_response();
    };
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = [(ETAG, file.tag), (VARY, "accept-encoding")];
    if text(IF_NONE_MATCH).is_some_and(|known| known.contains(file.tag)) {
        return with_headers((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    if !text(ACCEPT_ENCODING).is_some_and(|all| all.contains("gzip") || all.contains('*')) {
        let text = "this is there with Accept-Encoding: gzip alone\n";
        return (StatusCode::NOT_ACCEPTABLE, text).into_response();
    }
    let kind = [(CONTENT_TYPE, file.kind), (CONTENT_ENCODING, "gzip")];
    with_headers((tag, kind, Body::from(file.gzip)).into_response())
}

fn with_headers(mut answer: Response) -> Response {
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}
