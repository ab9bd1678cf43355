//! Who may ask for what: the token, the names of this host, and pages of other sites.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, HOST, HeaderName, HeaderValue, ORIGIN, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Admin;

/// Says from which kind of page a browser sends a request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Says for what a browser sends a request.
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// What needs no token, and tells something.
const PUBLIC: [&str; 3] = ["/ready", "/live", "/metrics"];

pub(super) struct Access {
    token: String,
    /// Names of this host, besides `localhost` and addresses.
    hosts: Vec<String>,
    /// Whether only processes of this machine reach it by TCP, browsers among them.
    is_local: bool,
}

impl Access {
    pub(super) fn new(token: String, hosts: &[String], address: &str) -> Access {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_local = host == "localhost" || host.parse().is_ok_and(|at: IpAddr| at.is_loopback());
        Access { token, hosts: hosts.to_vec(), is_local }
    }

    /// Whether a `Host` is this server's. With other names a page of a stranger, whose name leads to
    /// this address, could read answers (DNS rebinding).
    fn is_own(&self, host: &str) -> bool {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port),
            _ => (host, ""),
        };
        let address = name.trim_start_matches('[').trim_end_matches(']');
        port.bytes().all(|byte| byte.is_ascii_digit())
            && (name.eq_ignore_ascii_case("localhost")
                || address.parse::<IpAddr>().is_ok()
                || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(name)))
    }

    /// Whether this is the token.
    pub(super) fn is_token(&self, given: &str) -> bool {
        crate::files::is_same(given.as_bytes(), self.token.as_bytes())
    }

    /// Whether a request has the token.
    fn has_token(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
        crate::files::is_authorized(given, &format!("Bearer {}", self.token))
    }
}

/// Refuses requests for other hosts, and such that pages of other sites send.
pub(super) async fn of_this_host(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let text = |name: HeaderName| text(headers, &name);
    let host = text(HOST).or_else(|| request.uri().authority().map(|at| at.as_str()));
    // HTTP/1.0 has none, and no browser speaks that.
    // Elsewhere everybody can read what needs no token, under any name (a probe's, Prometheus's).
    let is_guarded = admin.access.is_local || !PUBLIC.contains(&request.uri().path());
    if let Some(host) = host
        && is_guarded
        && !admin.access.is_own(host)
    {
        return refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this host is not known by that name: troop admin --host NAME allows it\n",
        );
    }
    let is_foreign_page = match (text(ORIGIN), host) {
        (Some(origin), Some(host)) => {
            let is_own = |(scheme, from): (&str, &str)| {
                ["http", "https"].contains(&scheme) && from.eq_ignore_ascii_case(host)
            };
            !origin.split_once("://").is_some_and(is_own)
        }
        (Some(_), None) => true,
        // Links lead here from anywhere: the page itself tells nothing.
        (None, _) if is_opened(&request) => false,
        (None, _) => text(FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none"),
    };
    if is_foreign_page {
        return refused(StatusCode::FORBIDDEN, "a page of another site must not ask for this\n");
    }
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Returns a header's text, which is empty if there are several of them, or if it is no text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    Some(first.to_str().ok().filter(|_| all.next().is_none()).unwrap_or_default())
}

/// Whether a browser opens the page in a window of its own.
fn is_opened(request: &Request) -> bool {
    let is_document = |value: &HeaderValue| value == "document";
    request.method() == Method::GET
        && request.uri().path() == "/"
        && request.headers().get(FETCH_DEST).is_some_and(is_document)
}

/// Refuses requests without the token, and without a session of those who gave it.
pub(super) async fn with_token(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    if admin.access.has_token(headers) || admin.sessions.has(headers, Instant::now()) {
        return next.run(request).await;
    }
    let mut answer = refused(
        StatusCode::UNAUTHORIZED,
        "this needs the token, as Authorization: Bearer TOKEN; troop admin --show-token prints it\n",
    );
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

fn refused(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_addresses_localhost_and_the_names_that_were_given() {
        let access = Access::new(String::new(), &["ops.example.com".into()], "127.0.0.1:1");
        for (host, is_own) in [
            ("localhost:9900", true),
            ("LOCALHOST", true),
            ("127.0.0.1:9900", true),
            ("[::1]:9900", true),
            ("[::1]", true),
            ("10.0.0.7", true),
            ("ops.example.com:9900", true),
            ("evil.example.com:9900", false),
            ("localhost.evil.example.com", false),
            ("127.0.0.1.evil.example.com:9900", false),
            ("localhost:9900:evil", false),
            ("", false),
        ] {
            assert_eq!(access.is_own(host), is_own, "{host:?}");
        }
        for (address, is_local) in [
            ("127.0.0.1:9900", true),
            ("[::1]:9900", true),
            ("localhost:9900", true),
            ("0.0.0.0:9900", false),
            ("10.0.0.7:9900", false),
            ("/run/admin.sock", false),
        ] {
            assert_eq!(Access::new(String::new(), &[], address).is_local, is_local, "{address}");
        }
    }
}
