//! `/ready` and `/live`, for load balancers and orchestrators: 200 or 503, with a reason in one line.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::Admin;
use super::apps::{Which, unavailable};
use crate::apps::App;
use crate::records::Ending;
use crate::verbs::probe::why_not_ready;

/// `GET /ready`: whether all apps, or one, have as many ready workers as they should have.
pub(super) async fn ready(State(admin): State<Arc<Admin>>, Query(which): Query<Which>) -> Response {
    probe(&admin, &which, "ready", |app| match app {
        // One that was scaled to 0 has all workers that it should have, and none that serves.
        App::Running(app) if app.snapshot.wanted == Some(0) => Some("it has no workers".into()),
        App::Running(app) => why_not_ready(app),
        App::Silent(_) => Some("it does not answer".into()),
        App::Ended(_, end) => why_ended(end.how),
    })
    .await
}

/// `GET /live`: whether the primaries of all apps, or of one, answer.
pub(super) async fn live(State(admin): State<Arc<Admin>>, Query(which): Query<Which>) -> Response {
    probe(&admin, &which, "live", |app| match app {
        App::Running(_) => None,
        App::Silent(_) => Some("it does not answer".into()),
        App::Ended(_, end) => why_ended(end.how),
    })
    .await
}

/// Why an app that does not run is not as it should be. Others were stopped, or have done their work.
fn why_ended(how: Ending) -> Option<String> {
    match how {
        Ending::Failed => Some("it has failed".into()),
        Ending::Crashed => Some("it has crashed".into()),
        Ending::Stopped | Ending::Finished => None,
    }
}

async fn probe(
    admin: &Admin,
    which: &Which,
    done: &str,
    why_not: impl Fn(&App) -> Option<String>,
) -> Response {
    let apps = match admin.apps.all().await {
        Ok(apps) => apps,
        Err(e) => return unavailable(&e),
    };
    let not = |text: String| {
        let line = troop::text::escaped(&text).to_string();
        (StatusCode::SERVICE_UNAVAILABLE, format!("{line}\n")).into_response()
    };
    if let Some(name) = &which.app {
        // One that was stopped serves nobody.
        return match apps.iter().find(|app| app.name() == name) {
            None => (StatusCode::NOT_FOUND, "there is no such app\n").into_response(),
            Some(app) => match why_not(app) {
                Some(why) => not(format!("{name}: {why}")),
                None if matches!(app, App::Ended(..)) => not(format!("{name}: it does not run")),
                None => format!("{done}\n").into_response(),
            },
        };
    }
    let first = apps.iter().find_map(|app| Some(format!("{}: {}", app.name(), why_not(app)?)));
    first.map_or_else(|| format!("{done}\n").into_response(), not)
}
