//! The apps, as their primaries answer; kept for a moment, so that many clients cost an app no more
//! than one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::Admin;
use crate::apps::{self, App};
use crate::verbs::list;

/// Time for which answers are kept.
const KEPT_FOR: Duration = Duration::from_millis(250);

/// Why the apps cannot be inspected.
pub(super) type LookError = Arc<str>;

pub(super) struct Apps {
    /// The apps that are shown; all if it is empty.
    only: Vec<String>,
    kept: Mutex<Option<(Instant, Arc<Vec<App>>)>>,
}

impl Apps {
    pub(super) fn new(only: Vec<String>) -> Apps {
        Apps { only, kept: Mutex::new(None) }
    }

    /// Whether an app is one of those that are shown.
    pub(super) fn includes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Returns all apps. One look serves all who ask meanwhile.
    pub(super) async fn all(self: &Apps) -> Result<Arc<Vec<App>>, LookError> {
        let mut kept = self.kept.lock().await;
        if let Some((at, apps)) = &*kept
            && at.elapsed() < KEPT_FOR
        {
            return Ok(apps.clone());
        }
        let looked = tokio::task::spawn_blocking(apps::all).await;
        let mut apps = looked.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        apps.retain(|app| self.includes(app.name()));
        let apps = Arc::new(apps);
        *kept = Some((Instant::now(), apps.clone()));
        Ok(apps)
    }
}

/// The app that a request is about; all of them without one.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    pub(super) app: Option<String>,
}

/// Answers when the apps cannot be inspected.
pub(super) fn unavailable(e: &LookError) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response()
}

/// `GET /snapshot`: as `troop ls --json` has them, without their numbers.
pub(super) async fn snapshot(
    State(admin): State<Arc<Admin>>,
    Query(which): Query<Which>,
) -> Response {
    let apps = match admin.apps.all().await {
        Ok(apps) => apps,
        Err(e) => return unavailable(&e),
    };
    let is_meant = |app: &&App| which.app.as_deref().is_none_or(|name| name == app.name());
    let as_json = |app: &App| {
        let mut app = list::as_json(app, None);
        // Numbers of apps are for people, and change.
        app.as_object_mut().map(|fields| fields.remove("id"));
        app
    };
    let found: Vec<Value> = apps.iter().filter(is_meant).map(as_json).collect();
    if found.is_empty() && which.app.is_some() {
        return (StatusCode::NOT_FOUND, "there is no such app\n").into_response();
    }
    json_answer(StatusCode::OK, &json!(found))
}

pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response {
    let kind = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (status, kind, format!("{value}\n")).into_response()
}
