//! `GET /events`: the events of apps as they happen, as server-sent events.
//!
//! An app is followed once, for all clients together, and only while there is one.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};

use super::Admin;
use super::apps::{Which, unavailable};
use crate::apps::App;
use crate::control::client;
use crate::control::protocol::{Answer, Envelope, Request, VERSION};

/// The most clients at a time.
const MAX_CLIENTS: usize = 64;
/// The most events that wait for a client which reads slowly.
const MAX_QUEUED: usize = 1024;
/// The longest event, in bytes.
const MAX_EVENT: u64 = 8 << 20;
/// The interval between comments that keep a connection open.
const COMMENT_INTERVAL: Duration = Duration::from_secs(10);
/// The interval between looks for apps that have been started since.
const APPS_INTERVAL: Duration = Duration::from_secs(2);

type Events = broadcast::Sender<Arc<str>>;

/// The apps that are followed.
pub(super) struct Streams {
    followed: Arc<Mutex<HashMap<String, Events>>>,
    places: Arc<Semaphore>,
}

impl Default for Streams {
    fn default() -> Streams {
        Streams { followed: Arc::default(), places: Arc::new(Semaphore::new(MAX_CLIENTS)) }
    }
}

impl Streams {
    /// Follows the events of an app.
    fn follow(&self, app: &str) -> broadcast::Receiver<Arc<str>> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(events) = followed.get(app) {
            return events.subscribe();
        }
        let (events, receiver) = broadcast::channel(MAX_QUEUED);
        followed.insert(app.to_owned(), events.clone());
        let (all, app) = (self.followed.clone(), app.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                _ = pass_on(&app, &events) => {}
                // Nobody is there any more.
                () = events.closed() => {}
            }
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&app);
        });
        receiver
    }
}

/// Passes the events of an app on until it ends.
async fn pass_on(app: &str, events: &Events) -> io::Result<()> {
    let name = app.to_owned();
    let connected = tokio::task::spawn_blocking(move || client::stream_to(&name)).await;
    let stream = connected.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    let mut stream = BufReader::new(UnixStream::from_std(stream)?);
    let request = Envelope { troop: VERSION, on_behalf_of: None, request: Request::Events };
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await?;
    loop {
        line.clear();
        if (&mut stream).take(MAX_EVENT).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        match serde_json::from_slice(&line)? {
            Answer::Event(event) => drop(events.send(as_text(app, event))),
            Answer::Done(_) | Answer::Failed(_) => return Ok(()),
        }
    }
}

/// Returns an event in the form of server-sent events.
fn as_text(app: &str, mut event: Value) -> Arc<str> {
    if let Value::Object(fields) = &mut event {
        fields.insert("app".into(), app.into());
    }
    let name = event["event"].as_str().unwrap_or("other");
    format!("event: {name}\ndata: {event}\n\n").into()
}

/// `GET /events`.
pub(super) async fn events(
    State(admin): State<Arc<Admin>>,
    Query(which): Query<Which>,
) -> Response {
    let Ok(place) = admin.streams.places.clone().try_acquire_owned() else {
        let text = format!("{MAX_CLIENTS} clients follow the events already\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let apps = match admin.apps.all().await {
        Ok(apps) => apps,
        Err(e) => return unavailable(&e),
    };
    if let Some(name) = &which.app
        && !apps.iter().any(|app| app.name() == name)
    {
        return (StatusCode::NOT_FOUND, "there is no such app\n").into_response();
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(feed(admin, which, sender));
    let body = Body::new(Stream::new(receiver, place));
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// Feeds a client until it goes.
async fn feed(admin: Arc<Admin>, which: Which, sender: mpsc::Sender<Bytes>) {
    let mut fed: HashMap<String, tokio::task::JoinHandle<()>> = HashMap::new();
    let mut look = tokio::time::interval(APPS_INTERVAL);
    let mut comment = tokio::time::interval(COMMENT_INTERVAL);
    let drained = admin.drained();
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = sender.closed() => break,
            () = &mut drained => break,
            _ = comment.tick() => {
                if sender.send(Bytes::from_static(b":\n\n")).await.is_err() {
                    break;
                }
            }
            _ = look.tick() => {
                fed.retain(|_, task| !task.is_finished());
                let Ok(apps) = admin.apps.all().await else { continue };
                let is_meant = |app: &&App| {
                    matches!(app, App::Running(_))
                        && which.app.as_deref().is_none_or(|name| name == app.name())
                };
                for app in apps.iter().filter(is_meant) {
                    fed.entry(app.name().to_owned()).or_insert_with(|| {
                        let events = admin.streams.follow(app.name());
                        tokio::spawn(feed_from(app.name().to_owned(), events, sender.clone()))
                    });
                }
            }
        }
    }
    fed.into_values().for_each(|task| task.abort());
}

async fn feed_from(
    app: String,
    mut events: broadcast::Receiver<Arc<str>>,
    sender: mpsc::Sender<Bytes>,
) {
    loop {
        let text = match events.recv().await {
            Ok(text) => Bytes::copy_from_slice(text.as_bytes()),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                let event = json!({ "event": "missed", "missed": lost });
                Bytes::copy_from_slice(as_text(&app, event).as_bytes())
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if sender.send(text).await.is_err() {
            return;
        }
    }
}

/// The body of an answer that does not end by itself.
pub(super) struct Stream {
    receiver: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    pub(super) fn new(receiver: mpsc::Receiver<Bytes>, place: OwnedSemaphorePermit) -> Stream {
        Stream { receiver, _place: place }
    }
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.receiver.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
