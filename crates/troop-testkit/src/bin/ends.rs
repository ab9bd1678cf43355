//! A program whose `main` returns an error of troop, of the kind that its argument names.

use std::time::Duration;

use troop::setup::Stdio;
use troop::supervise::RestartPolicy;
use troop::{Cluster, Error, Fork, Setup, WorkerId};

fn main() -> troop::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let arg = |n: usize| args.get(n).map_or("", String::as_str);
    match arg(1) {
        "listen" => troop::worker()?.block_on(async |worker| {
            worker.listen(arg(2)).await?;
            Ok(())
        }),
        "spawn" => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let cluster =
                    Cluster::builder().setup(Setup::new().program("/no/such/program")).start()?;
                cluster.fork(Fork::new()).await?;
                Ok(())
            })
        }
        "never starts" => {
            Cluster::builder().workers(1).setup(Setup::new().program("/no/such/program")).run()
        }
        "never ready" => {
            let script = "echo starting >&2; echo 'Error: no database' >&2; exit 3";
            Cluster::builder()
                .workers(1)
                .setup(Setup::new().program("sh").args(["-c", script]).stderr(Stdio::Capture))
                .restart(RestartPolicy::new(1).max_ends(1))
                .run()
        }
        "settings" => Cluster::builder().workers(0).run(),
        "role" => troop::role().map(drop),
        "role twice" => {
            let _role = troop::role()?;
            troop::role().map(drop)
        }
        "role with threads" => {
            let (until, wait) = std::sync::mpsc::channel::<()>();
            let other = std::thread::spawn(move || wait.recv().is_err());
            let role = troop::role().map(drop);
            drop(until);
            let _ = other.join();
            role
        }
        "primary without role" => Cluster::builder().run(),
        "own I/O" => std::fs::read("/no/such/file").map(drop).map_err(Error::from),
        "JSON" => serde_json::from_str("maybe").map_err(Error::from),
        "out of memory" => Err(Error::OutOfMemory),
        "over memory" => Err(Error::OverMemory(64)),
        "closed" => Err(Error::Closed),
        "full" => Err(Error::Full),
        "timed out" => Err(Error::TimedOut(Duration::from_secs(5))),
        "refused" => Err(Error::Refused("not\nnow".into())),
        "handle refused" => Err(Error::HandleRefused),
        "undelivered" => Err(Error::Undelivered(17)),
        "no worker" => Err(Error::NoWorker(WorkerId(7))),
        "over" => Err(Error::ClusterOver),
        "privileged port" => Err(Error::Listen {
            address: "0.0.0.0:80".into(),
            source: std::io::ErrorKind::PermissionDenied.into(),
        }),
        "short" => Err(Error::Short {
            doing: "accept connections",
            advice: "they wait; raise the limit on descriptors".into(),
            times: 3,
            source: std::io::Error::from_raw_os_error(libc::EMFILE),
        }),
        other => Err(Error::Settings(format!("there is no end called {other:?}"))),
    }
}
