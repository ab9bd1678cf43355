//! `troop run`.

use troop::{Cluster, Error, Stdio};

use crate::args::{Chosen, Run};
use crate::log::Log;
use crate::program;

pub(crate) fn run(args: Run) -> Result<(), Error> {
    let debugged = is_debugged(&args);
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
    builder.on_event(move |event| log.event(event)).run()
}

/// Whether Node's inspector is asked for.
fn is_debugged(args: &Run) -> bool {
    let options = args.env.iter().filter(|(name, _)| name == "NODE_OPTIONS").map(|(_, value)| value.clone());
    let options = options.chain(std::env::var_os("NODE_OPTIONS"));
    args.args.iter().cloned().chain(options).any(|text| text.to_string_lossy().contains("--inspect"))
}
