//! `troop run`.

use std::os::unix::net::UnixListener;
use std::path::Path;

use troop::{ActivationSocket, Cluster, Error};

use crate::args::Run;
use crate::control::place::{self, Claim, Unclaimed};
use crate::control::server::{self, Identity};
use crate::log::{self, Log};
use crate::{notify, plan};

/// Why it did not run, or does not any more.
#[derive(Debug)]
pub(crate) enum Refused {
    /// What was typed, or what the file says, makes no sense.
    Nonsense(String),
    /// An app of this name runs.
    Taken(String),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Refused {
        Refused::Failed(e)
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Nonsense(text) => f.write_str(text),
            Refused::Taken(name) => write!(f, "an app {name:?} runs already: see `troop ls`, or choose another --name"),
            Refused::Failed(e) => f.write_str(&e.chain()),
        }
    }
}

pub(crate) fn run(args: Run) -> Result<(), Refused> {
    let (plan, source) = plan::plan(args).map_err(Refused::Nonsense)?;
    let mut builder =
        Cluster::builder().workers(plan.workers).setup(plan.setup()?).grace(plan.grace).weights(plan.weights.clone());
    if plan.is_debugged() {
        // A worker that stands at a breakpoint does not answer, and must not be killed for it.
        builder = builder.hung_after(None);
    }
    if let Some(policy) = plan.policy.clone() {
        builder = builder.scheduling(policy);
    }
    for (listener, policy) in plan.listeners.clone() {
        let listener = listener.parse().map_err(|e: troop::BadScheduling| Refused::Nonsense(e.to_string()))?;
        builder = builder.scheduling_of(listener, policy);
    }
    if !plan.bind.is_empty() {
        let sockets = plan.bind.iter().map(|text| ActivationSocket::bind(text)).collect::<Result<Vec<_>, _>>()?;
        for socket in &sockets {
            log::say(&format!("troop: listening on {socket}"));
        }
        builder = builder.activation(sockets);
    }
    let mut log = Log::new(plan.log);
    let claim = match claim(plan.name.as_deref(), Path::new(&plan.program)) {
        Ok(claim) => Some(claim),
        Err(Unclaimed::Taken) => return Err(Refused::Taken(plan.name.unwrap_or_default())),
        Err(Unclaimed::Io(e)) => {
            // In a container, say, where nothing can be written. It serves all the same.
            log::say(&format!("troop: without a control socket, so that `troop ls` and others do not find this app: {e}"));
            None
        }
    };
    if notify::is_wanted() {
        builder = builder.on_start(|cluster| {
            if let Err(e) = notify::start(cluster) {
                log::say(&format!("troop: cannot tell systemd how it goes: {e}"));
            }
        });
    }
    let mut _claimed = None;
    if let Some((claim, listener)) = claim {
        let identity = Identity { name: claim.name.clone(), plan, source };
        builder = builder.on_start(move |cluster| {
            if let Err(e) = server::start(listener, cluster, identity) {
                log::say(&format!("troop: cannot answer `troop ls` and others: {e}"));
            }
        });
        _claimed = Some(claim);
    }
    Ok(builder.on_event(move |event| log.event(event)).run()?)
}

fn claim(name: Option<&str>, program: &Path) -> Result<(Claim, UnixListener), Unclaimed> {
    match name {
        Some(name) => place::claim(name, true),
        None => place::claim(&place::name_of(program), false),
    }
}
