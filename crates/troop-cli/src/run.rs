//! `troop run`.

use std::os::unix::net::UnixListener;
use std::path::Path;

use troop::{Cluster, Error, Stdio};

use crate::args::{Chosen, Run};
use crate::control::place::{self, Claim, Unclaimed};
use crate::control::server::{self, Identity};
use crate::log::{self, Log};
use crate::program;

/// Why it did not run, or does not any more.
#[derive(Debug)]
pub(crate) enum Refused {
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
            Refused::Taken(name) => write!(f, "an app {name:?} runs already: see `troop ls`, or choose another --name"),
            Refused::Failed(e) => f.write_str(&e.chain()),
        }
    }
}

pub(crate) fn run(args: Run) -> Result<(), Refused> {
    let debugged = is_debugged(&args);
    let program = Path::new(&args.program).display().to_string();
    let mut setup = program::setup(&args.program, args.args)?
        // So that Ctrl-C reaches this process alone, which tells the workers in its own way.
        .own_process_group(true)
        .stdin(Stdio::Null)
        .stdout(if args.silent { Stdio::Null } else { Stdio::Inherit })
        .stderr(if args.silent { Stdio::Capture } else { Stdio::Forward });
    for (name, value) in args.env {
        setup = setup.env(name, value);
    }
    if let Some(cwd) = args.cwd {
        setup = setup.cwd(cwd);
    }
    let mut builder = Cluster::builder().workers(args.workers.0).setup(setup).grace(args.grace);
    if debugged {
        // A worker that stands at a breakpoint does not answer, and must not be killed for it.
        builder = builder.hung_after(None);
    }
    for Chosen { listeners, scheduling } in args.policy {
        builder = match listeners {
            Some(listeners) => builder.scheduling_of(listeners, scheduling),
            None => builder.scheduling(scheduling),
        };
    }
    builder = builder.weights(args.weights);
    let mut log = Log::new(args.log);
    let claim = match claim(args.name.as_deref(), Path::new(&args.program)) {
        Ok(claim) => claim,
        Err(Unclaimed::Taken) => {
            return Err(Refused::Taken(args.name.unwrap_or_default()));
        }
        Err(Unclaimed::Io(e)) => {
            // In a container, say, where nothing can be written. It serves all the same.
            log::say(&format!("troop: without a control socket, so that `troop ls` and others do not find this app: {e}"));
            None
        }
    };
    let mut _claimed = None;
    if let Some((claim, listener)) = claim {
        let identity = Identity { name: claim.name.clone(), program };
        builder = builder.on_start(move |cluster| {
            if let Err(e) = server::start(listener, cluster, identity) {
                log::say(&format!("troop: cannot answer `troop ls` and others: {e}"));
            }
        });
        _claimed = Some(claim);
    }
    Ok(builder.on_event(move |event| log.event(event)).run()?)
}

type Claimed = Option<(Claim, UnixListener)>;

fn claim(name: Option<&str>, program: &Path) -> Result<Claimed, Unclaimed> {
    match name {
        Some(name) => place::claim(name, true).map(Some),
        None => place::claim(&place::name_of(program), false).map(Some),
    }
}

/// Whether Node's inspector is asked for.
fn is_debugged(args: &Run) -> bool {
    let options = args.env.iter().filter(|(name, _)| name == "NODE_OPTIONS").map(|(_, value)| value.clone());
    let options = options.chain(std::env::var_os("NODE_OPTIONS"));
    args.args.iter().cloned().chain(options).any(|text| text.to_string_lossy().contains("--inspect"))
}
