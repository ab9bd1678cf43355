//! Answers requests for files. No path leads out of the directory: the kernel resolves it below the
//! open directory, links included.

use std::convert::Infallible;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue,
    IF_NONE_MATCH, LOCATION, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use troop::Error;

use super::body::Answer;
use super::path;
use crate::args::{Pages, ServeFiles};

/// Time for which a client may keep a connection open without a request, or take nothing of an
/// answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The variables with the user name and the password, as in PM2, which lists of processes do not show.
const USER_VARIABLE: &str = "PM2_SERVE_BASIC_AUTH_USERNAME";
const PASSWORD_VARIABLE: &str = "PM2_SERVE_BASIC_AUTH_PASSWORD";

struct Files {
    directory: OwnedFd,
    is_single_page: bool,
    homepage: PathBuf,
    /// The `Authorization` that requests must have.
    authorization: Option<String>,
}

/// Runs a worker that serves a directory.
///
/// # Errors
/// If this process is no worker, the directory cannot be opened, or the address cannot be bound.
pub(crate) fn run(args: &ServeFiles) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, &args.directory, flags, Mode::empty())
        .map_err(|e| Error::Settings(format!("cannot open {}: {e}", args.directory.display())))?;
    let Pages { spa, homepage, basic_auth } = &args.pages;
    let homepage = homepage.as_deref().unwrap_or("index.html");
    let files = Arc::new(Files {
        directory,
        is_single_page: *spa,
        homepage: homepage.trim_start_matches('/').into(),
        authorization: basic_auth.then(authorization).transpose()?,
    });
    let address = args.address.clone();
    troop::worker()?.block_on(async |worker| {
        let service = service_fn(move |request: Request<Incoming>| {
            let files = files.clone();
            async move { Ok::<_, Infallible>(files.answer(&request)) }
        });
        let listener = match address.parse::<u16>() {
            Ok(port) => worker.listen(port).await?,
            Err(_) => worker.listen(address.as_str()).await?,
        };
        troop::serve::hyper_within(listener, service, CLIENT_TIMEOUT).await;
        Ok(())
    })
}

/// Returns the `Authorization` of the user and password in PM2's variables.
pub(crate) fn authorization() -> Result<String, Error> {
    let variable = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.ok_or_else(|| Error::Settings(format!("--basic-auth: {name} is not set")))
    };
    let (user, password) = (variable(USER_VARIABLE)?, variable(PASSWORD_VARIABLE)?);
    Ok(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

/// Compares secrets in a time that depends on their lengths alone.
pub(crate) fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Whether a request has the wanted `Authorization`. Names of schemes have no case.
pub(crate) fn is_authorized(given: &[u8], wanted: &str) -> bool {
    let (scheme, secret) = wanted.split_once(' ').unwrap_or(("", wanted));
    let Some((theirs, given)) = given.split_at_checked(scheme.len()) else { return false };
    theirs.eq_ignore_ascii_case(scheme.as_bytes())
        && given.starts_with(b" ")
        && is_same(given.trim_ascii(), secret.as_bytes())
}

impl Files {
    fn answer(&self, request: &Request<Incoming>) -> Response<Answer> {
        if let Some(wanted) = &self.authorization {
            let given = request.headers().get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
            if !is_authorized(given, wanted) {
                let mut answer = text(StatusCode::UNAUTHORIZED, "unauthorized\n");
                let scheme = HeaderValue::from_static("Basic realm=\"files\", charset=\"UTF-8\"");
                answer.headers_mut().insert(WWW_AUTHENTICATE, scheme);
                return answer;
            }
        }
        let is_head = request.method() == Method::HEAD;
        if !is_head && request.method() != Method::GET {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let target = request.uri().path();
        let known = request.headers().get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
        let mut answer = match path::of(target) {
            Some(path) => self.file(&path, target.ends_with('/'), known),
            None => text(StatusCode::NOT_FOUND, "not found\n"),
        };
        if is_head {
            let length = answer.body().size_hint().exact().unwrap_or_default();
            if answer.status() != StatusCode::NOT_MODIFIED {
                answer.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            *answer.body_mut() = Answer::Text(None);
        }
        answer
    }

    fn file(&self, path: &Path, is_directory: bool, known: Option<&str>) -> Response<Answer> {
        match self.find(path) {
            Err(status) => refused(status),
            Ok(Some((file, found))) if found.is_file() && !is_directory => {
                sent(path, file, &found, known)
            }
            Ok(Some((_, found)))
                if found.is_dir() && (is_directory || path.as_os_str().is_empty()) =>
            {
                let page = match path.as_os_str().is_empty() {
                    true => self.homepage.clone(),
                    false => path.join("index.html"),
                };
                self.page(&page, known)
            }
            Ok(Some((_, found))) if found.is_dir() => {
                let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
                if let Ok(location) = HeaderValue::from_str(&path::of_directory(path)) {
                    answer.headers_mut().insert(LOCATION, location);
                }
                answer
            }
            Ok(_) => self.missing(known),
        }
    }

    fn page(&self, path: &Path, known: Option<&str>) -> Response<Answer> {
        match self.find(path) {
            Err(status) => refused(status),
            Ok(Some((file, found))) if found.is_file() => sent(path, file, &found, known),
            Ok(_) => self.missing(known),
        }
    }

    /// Answers for a file that there is not: with the page of a single-page app, or `404.html`.
    fn missing(&self, known: Option<&str>) -> Response<Answer> {
        let (page, known) = match self.is_single_page {
            true => (&*self.homepage, known),
            false => (Path::new("404.html"), None),
        };
        match self.find(page) {
            Err(status) => refused(status),
            Ok(Some((file, found))) if found.is_file() => {
                let mut answer = sent(page, file, &found, known);
                if !self.is_single_page {
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                }
                answer
            }
            Ok(_) => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Opens a file. `None` if there is none; the status if it cannot be opened, which says nothing
    /// about whether there is one.
    fn find(&self, path: &Path) -> Result<Option<(File, Metadata)>, StatusCode> {
        let e = match self.open(path) {
            Ok(found) => return Ok(Some(found)),
            Err(e) => e,
        };
        match Errno::from_io_error(&e) {
            Some(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::NAMETOOLONG
                // A link that leads out of the directory, or to itself.
                | Errno::XDEV
                | Errno::LOOP
                // A socket or a device that has taken the place of a file.
                | Errno::NXIO
                | Errno::NODEV,
            ) => Ok(None),
            Some(Errno::ACCESS | Errno::PERM) => Err(StatusCode::FORBIDDEN),
            // No descriptors or memory are left, for example.
            _ => Err(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// Opens a file below the directory for reading if it is regular. Others are only inspected: to open
    /// a pipe wakes the process that writes to it, and to open a device may have any effect.
    fn open(&self, path: &Path) -> io::Result<(File, Metadata)> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let open = |flags| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let flags = flags | OFlags::CLOEXEC;
            let file = File::from(openat2(&self.directory, path, flags, Mode::empty(), resolve)?);
            let found = file.metadata()?;
            Ok::<_, io::Error>((file, found))
        };
        let (place, found) = open(OFlags::PATH)?;
        if !found.is_file() {
            return Ok((place, found));
        }
        // Does not block either if something else has taken its place.
        open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }
}

fn refused(status: StatusCode) -> Response<Answer> {
    text(status, if status == StatusCode::FORBIDDEN { "forbidden\n" } else { "unavailable\n" })
}

fn text(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut answer = Response::new(Answer::Text(Some(text.into())));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

/// Sends a file, unless the client has it.
fn sent(path: &Path, file: File, found: &Metadata, known: Option<&str>) -> Response<Answer> {
    let tag = format!("\"{:x}-{:x}-{:x}\"", found.mtime(), found.mtime_nsec(), found.len());
    let is_known = known.is_some_and(|known| {
        known.trim() == "*"
            || known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag)
    });
    let mut answer = match is_known {
        true => Response::new(Answer::Text(None)),
        false => Response::new(Answer::File(file, found.len())),
    };
    if is_known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(path::media_type(path)));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Stored, but asked about each time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_asked_for_by_any_spelling_of_the_scheme_and_by_no_other_scheme() {
        let wanted = format!("Basic {}", BASE64_STANDARD.encode("u:p"));
        for (given, is_right) in [
            ("Basic dTpw", true),
            ("basic dTpw", true),
            ("BASIC  dTpw ", true),
            ("Basic dTpx", false),
            ("Basic dTpwcA==", false),
            ("Basic dTp", false),
            ("Basic", false),
            ("Basic ", false),
            ("BasicdTpw", false),
            ("Bearer dTpw", false),
            ("dTpw", false),
            ("", false),
        ] {
            assert_eq!(is_authorized(given.as_bytes(), &wanted), is_right, "{given:?}");
        }
    }
}
