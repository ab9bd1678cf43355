//! `troop run`.

use troop::{Cluster, Error, Stdio};

use crate::args::Run;
use crate::log::Log;
use crate::program;

pub(crate) fn run(args: Run) -> Result<(), Error> {
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
    if let Some(policy) = args.policy {
        builder = builder.policy(policy);
    }
    let mut log = Log::new(args.log);
    builder.on_event(move |event| log.event(event)).run()
}
