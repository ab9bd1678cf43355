//! `troop admin`: readiness, metrics, events, verbs and a web page of all apps over HTTP.
//!
//! It is an app of its own, whose worker asks the other apps through their control sockets. What a
//! client sends reaches no primary but as a request that an operator could make. For the last hour each app
//! is asked every five seconds; otherwise one that nobody looks at does nothing for it.

mod access;
mod alerts;
mod apps;
mod events;
mod history;
mod logs;
mod metrics;
mod page;
mod probes;
mod sessions;
mod token;
mod verbs;
mod worker_metrics;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::sync::{Semaphore, watch};
use troop::Error;
use troop::serve::Limits;

use crate::args::{self, ServeAdmin, Start};
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::{print, restart, start};
use access::Access;
use apps::Apps;
use events::Streams;

/// Time for which a client may keep a connection open without a request, or take nothing of an
/// answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(20);

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 256;

/// The most requests that are being answered at a time; those of clients that follow events do not
/// count.
const MAX_REQUESTS: usize = 64;

/// The most probes that are being answered at a time, so that other clients leave some places for them.
const MAX_PROBES: usize = 64;

/// Time that alerts which are being told have when the worker drains.
const TELLING_TIMEOUT: Duration = Duration::from_secs(5);

/// What handlers share.
pub(super) struct Admin {
    access: Access,
    apps: Apps,
    streams: Streams,
    verbs: verbs::Verbs,
    sessions: sessions::Sessions,
    history: history::History,
    worker_metrics: worker_metrics::WorkerMetrics,
    log_places: Arc<Semaphore>,
    /// Whether the worker is to leave, for clients that would stay.
    draining: watch::Sender<bool>,
    requests: Semaphore,
    probes: Semaphore,
}

impl Admin {
    /// Waits until the worker is to leave.
    async fn drained(&self) {
        let _ = self.draining.subscribe().wait_for(|is_draining| *is_draining).await;
    }
}

/// Runs `troop admin`: starts an app of this program.
pub(crate) fn start(args: &args::Admin) -> Result<(), CliError> {
    if args.test_alert {
        return alerts::test(&args.options.alerts)
            .map_err(|e| CliError::Failed(Failure::new("failed", e)));
    }
    let token = token::read(args.options.token_file.as_deref());
    let token = token.map_err(CliError::Usage)?;
    if args.show_token {
        let _ = print::line(&token);
        return Ok(());
    }
    let start = Start::parsed(args.as_start(restart::program()));
    start::start(&start.map_err(|e| CliError::Usage(e.to_string()))?)
}

/// Runs the worker of `troop admin`.
///
/// # Errors
/// If this process is no worker, the token cannot be read or made, or the address cannot be bound.
pub(crate) fn run(args: &ServeAdmin) -> Result<(), Error> {
    let options = &args.options;
    let token = token::read(options.token_file.as_deref()).map_err(Error::Settings)?;
    let admin = Arc::new(Admin {
        access: Access::new(token, &options.hosts, &args.address),
        apps: Apps::new(options.apps.clone()),
        streams: Streams::default(),
        verbs: verbs::Verbs::new(&options.verbs),
        sessions: sessions::Sessions::new(&args.address),
        history: history::History::default(),
        worker_metrics: worker_metrics::WorkerMetrics::new(options.worker_metrics.clone()),
        log_places: logs::places(),
        draining: watch::Sender::new(false),
        requests: Semaphore::new(MAX_REQUESTS),
        probes: Semaphore::new(MAX_PROBES),
    });
    let address = args.address.clone();
    let limits = Limits::timeout(CLIENT_TIMEOUT).connections(MAX_CONNECTIONS).replacing_silent();
    troop::worker()?.block_on(async |worker| {
        let telling = alerts::start(&worker, admin.clone(), &options.alerts);
        tokio::spawn(history::keep(admin.clone()));
        let (draining, told) = (worker.draining(), admin.clone());
        tokio::spawn(async move {
            draining.await;
            told.draining.send_replace(true);
        });
        let routes = routes(admin);
        let service = service_fn(move |request: Request<Incoming>| {
            let routes = routes.clone();
            async move { Ok::<_, Infallible>(answer(routes, request).await) }
        });
        if address.starts_with(['/', '.']) {
            let listener = worker.listen_unix(address.as_str()).await?;
            troop::serve::hyper_within(listener, service, limits).await;
        } else {
            let listener = worker.listen(address.as_str()).await?;
            troop::serve::hyper_within(listener, service, limits).await;
        }
        if let Some(telling) = telling {
            let _ = tokio::time::timeout(TELLING_TIMEOUT, telling).await;
        }
        Ok(())
    })
}

async fn answer(routes: Router, request: Request<Incoming>) -> Response {
    use tower_service::Service as _;
    let mut routes = routes;
    match routes.call(request.map(axum::body::Body::new)).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

/// Everything but the probes, the metrics and the page without its data needs the token.
fn routes(admin: Arc<Admin>) -> Router {
    let guarded = Router::new()
        .route("/snapshot", get(apps::snapshot))
        .route("/events", get(events::events))
        .route("/history", get(history::history))
        .route("/logs", get(logs::logs))
        .route("/session", get(sessions::session))
        .route("/apps/{app}/{verb}", post(verbs::post))
        .layer(middleware::from_fn_with_state(admin.clone(), access::with_token));
    let probes = Router::new()
        .route("/ready", get(probes::ready))
        .route("/live", get(probes::live))
        .layer(middleware::from_fn_with_state(admin.clone(), bounded_probes));
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/", get(page::index))
        .route("/page/{file}", get(page::file))
        .route("/logout", post(sessions::logout))
        .merge(guarded)
        .layer(middleware::from_fn_with_state(admin.clone(), bounded))
        .merge(probes)
        // Outside of the places: a login that does not arrive would keep one.
        .route("/login", post(sessions::login))
        .layer(middleware::from_fn_with_state(admin.clone(), access::of_this_host))
        .with_state(admin)
}

/// Refuses requests while too many are being answered.
async fn bounded(
    State(admin): State<Arc<Admin>>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    within(&admin.requests, MAX_REQUESTS, request, next).await
}

/// The same for probes, which have places of their own.
async fn bounded_probes(
    State(admin): State<Arc<Admin>>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    within(&admin.probes, MAX_PROBES, request, next).await
}

async fn within(
    places: &Semaphore,
    most: usize,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let Ok(_place) = places.try_acquire() else {
        let text = format!("{most} requests are being answered already\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    next.run(request).await
}
