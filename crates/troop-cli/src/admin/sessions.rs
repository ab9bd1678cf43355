//! Browsers that have given the token.
//!
//! A browser sends its cookies to all ports of a host, so another user's server on this machine may see
//! them. A session therefore has two parts: a cookie, which no script can read, and a key, which the
//! browser keeps for pages of this port alone. Neither is of use without the other.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::{COOKIE, HeaderName, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Admin;
use super::apps::json_answer;
use super::verbs::client;
use crate::files::is_same;
use crate::log;

/// The most browsers at a time. A further one takes the place of the first.
const MAX_SESSIONS: usize = 64;
/// Time after which the token has to be given again.
const LASTS: Duration = Duration::from_secs(12 * 3600);
/// The longest body of a login, in bytes.
const MAX_BODY: usize = 4096;
/// Time in which it has to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The most logins at a time.
const MAX_LOGINS: usize = 4;
/// Time that a wrong token takes, so that tokens cannot be tried quickly.
const WRONG_TAKES: Duration = Duration::from_millis(500);
/// The header with the key.
const KEY: HeaderName = HeaderName::from_static("troop-key");

struct Session {
    cookie: String,
    key: String,
    begun: Instant,
}

pub(super) struct Sessions {
    all: Mutex<VecDeque<Session>>,
    /// The cookie's name. Servers of several ports have different ones.
    name: String,
    logins: Semaphore,
}

impl Sessions {
    pub(super) fn new(address: &str) -> Sessions {
        let port = address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let name = port.map_or("troop".into(), |port| format!("troop-{port}"));
        Sessions { all: Mutex::default(), name, logins: Semaphore::new(MAX_LOGINS) }
    }

    /// Begins a session. Returns its cookie and its key.
    fn begin(&self, now: Instant) -> io::Result<(String, String)> {
        let (cookie, key) = (random()?, random()?);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SESSIONS {
            all.pop_front();
        }
        all.push_back(Session { cookie: cookie.clone(), key: key.clone(), begun: now });
        Ok((cookie, key))
    }

    /// Returns the cookie of a request.
    fn cookie<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = all.flat_map(|text| text.split(';')).map(str::trim);
        pairs.find_map(|pair| pair.strip_prefix(&self.name)?.strip_prefix('='))
    }

    /// Whether a request belongs to a session.
    pub(super) fn has(&self, headers: &HeaderMap, now: Instant) -> bool {
        let (Some(cookie), Some(key)) = (self.cookie(headers), headers.get(KEY)) else {
            return false;
        };
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|session| now.duration_since(session.begun) < LASTS);
        // All are compared, so that the time does not depend on which one it is.
        all.iter().fold(false, |found, session| {
            let is_key = is_same(key.as_bytes(), session.key.as_bytes());
            found | (is_same(cookie.as_bytes(), session.cookie.as_bytes()) & is_key)
        })
    }

    fn end(&self, headers: &HeaderMap) {
        let cookie = self.cookie(headers).unwrap_or_default();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|session| !is_same(session.cookie.as_bytes(), cookie.as_bytes()));
    }

    /// Returns the header that sets the cookie, or has the browser forget it.
    fn set(&self, cookie: &str) -> String {
        let age = if cookie.is_empty() { "; Max-Age=0" } else { "" };
        format!("{}={cookie}; Path=/; HttpOnly; SameSite=Strict{age}", self.name)
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

#[derive(Debug, Deserialize)]
struct Login {
    token: String,
}

/// `POST /login`: begins a session with the token.
pub(super) async fn login(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let failed = |status: StatusCode, why: &str| json_answer(status, &json!({ "failed": why }));
    let client = client(request.extensions());
    let arriving = axum::body::to_bytes(request.into_body(), MAX_BODY);
    let Ok(Ok(body)) = timeout(BODY_TIMEOUT, arriving).await else {
        return failed(StatusCode::BAD_REQUEST, "the token is too long, or has not arrived");
    };
    // Not before it has arrived, or slow clients would keep others out.
    let Ok(Ok(_place)) = timeout(BODY_TIMEOUT, admin.sessions.logins.acquire()).await else {
        return failed(StatusCode::SERVICE_UNAVAILABLE, "others are logging in: try again");
    };
    let Ok(login) = serde_json::from_slice::<Login>(&body) else {
        return failed(StatusCode::BAD_REQUEST, "a login is JSON: {\"token\": \"...\"}");
    };
    if !admin.access.is_token(login.token.trim()) {
        tokio::time::sleep(WRONG_TAKES).await;
        log::line(&format!("troop: {client} gave a wrong token"));
        return failed(StatusCode::UNAUTHORIZED, "this is not the token");
    }
    let (cookie, key) = match admin.sessions.begin(Instant::now()) {
        Ok(session) => session,
        Err(e) => return failed(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    };
    log::line(&format!("troop: {client} logged in"));
    let answer = json_answer(StatusCode::OK, &json!({ "key": key }));
    ([(SET_COOKIE, admin.sessions.set(&cookie))], answer).into_response()
}

/// `POST /logout`: ends the session.
pub(super) async fn logout(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    // Servers of other ports see the cookie alone.
    if admin.sessions.has(&headers, Instant::now()) {
        admin.sessions.end(&headers);
    }
    let answer = json_answer(StatusCode::OK, &Value::Null);
    ([(SET_COOKIE, admin.sessions.set(""))], answer).into_response()
}

/// `GET /session`: what a client may do here.
pub(super) async fn session(State(admin): State<Arc<Admin>>) -> Response {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let verbs: Vec<_> = admin.verbs.allowed().iter().map(ToString::to_string).collect();
    let answer = json!({
        "host": host.trim(),
        "version": env!("CARGO_PKG_VERSION"),
        "verbs": verbs,
    });
    json_answer(StatusCode::OK, &answer)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(cookie: &str, key: &str) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        HeaderMap::from_iter([(COOKIE, value(cookie)), (KEY, value(key))])
    }

    #[test]
    fn a_session_needs_its_cookie_and_its_key_and_ends() {
        let (sessions, now) = (Sessions::new("127.0.0.1:9900"), Instant::now());
        let (cookie, key) = sessions.begin(now).unwrap();
        let (other, other_key) = sessions.begin(now).unwrap();
        let sent = format!("a=b; troop-9900={cookie}");
        assert!(sessions.has(&headers(&sent, &key), now));
        for (cookie, key) in [
            (sent.as_str(), other_key.as_str()),
            (&format!("troop-9900={other}"), &key),
            (&format!("troop-9901={cookie}"), &key),
            (&format!("troop-9900={cookie}x"), &key),
            ("troop-9900=", ""),
        ] {
            assert!(!sessions.has(&headers(cookie, key), now), "{cookie} {key}");
        }
        sessions.end(&headers(&sent, ""));
        assert!(!sessions.has(&headers(&sent, &key), now));
        let others = headers(&format!("troop-9900={other}"), &other_key);
        assert!(sessions.has(&others, now));
        assert!(!sessions.has(&others, now + LASTS));
    }

    #[test]
    fn sessions_are_bounded() {
        let (sessions, now) = (Sessions::new("/run/admin.sock"), Instant::now());
        let (cookie, key) = sessions.begin(now).unwrap();
        let first = headers(&format!("troop={cookie}"), &key);
        for _ in 1..MAX_SESSIONS {
            sessions.begin(now).unwrap();
        }
        assert!(sessions.has(&first, now));
        sessions.begin(now).unwrap();
        assert!(!sessions.has(&first, now));
        assert_eq!(sessions.all.lock().unwrap().len(), MAX_SESSIONS);
    }
}
