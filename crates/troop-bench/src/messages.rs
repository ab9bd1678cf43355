//! Messages between a primary and a worker: throughput and round-trip time.

use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use troop::message::WorkerEvent;
use troop::{Cluster, Event, Fork, Setup};

use crate::peer::{Peer, Result, node, ourselves};
use crate::table::{Table, median, number, times};
use crate::{Options, cpu};

/// About a hundred bytes of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    n: usize,
    kind: String,
    name: String,
    value: f64,
    host: String,
    ok: bool,
}

impl Note {
    fn new() -> Note {
        Note {
            n: 0,
            kind: "metric".into(),
            name: "requests.served".into(),
            value: 1234.5,
            host: "worker-1.example.org".into(),
            ok: true,
        }
    }
}

/// The names of the tests, and what they measure.
pub(crate) const TESTS: [(&str, &str); 3] =
    [("up", "worker to primary"), ("down", "primary to worker"), ("trip", "there and back")];

type Contender = (&'static str, fn(&str, &str) -> Result<Command>);

/// The last peer makes round trips only.
const CONTENDERS: [Contender; 4] = [
    ("Node", |test, count| Ok(node("messages.js", &[test, count]))),
    ("troop", |test, count| ourselves(&["messages", test, count])),
    ("bare socket pair, blocking", |test, count| ourselves(&["socketpair", test, count])),
    ("bare socket pair in tokio", |test, count| {
        ourselves(&["socketpair", &format!("{test}-in-runtime"), count])
    }),
];

/// A measured peer.
pub(crate) struct Run {
    /// Microseconds per message or round trip.
    pub(crate) took: f64,
    /// CPU time of both processes, in the same unit.
    pub(crate) cpu: f64,
    lost: f64,
}

/// Runs a peer once.
pub(crate) fn measure(command: Command, count: usize) -> Result<Run> {
    let mut peer = Peer::start(command)?;
    peer.wait_for("ready")?;
    let both: Vec<u32> = peer.workers().into_iter().chain([peer.pid()]).collect();
    let before: Duration = cpu::times(&both).iter().sum();
    peer.go()?;
    let answer = peer.wait_for("done")?;
    let after: Duration = cpu::times(&both).iter().sum();
    let [nanoseconds, lost] = answer[..] else {
        return Err("a peer's answer is incomplete".into());
    };
    // What was lost does not count as done.
    let each = |nanoseconds: f64| nanoseconds / 1e3 / (count as f64 - lost);
    Ok(Run { took: each(nanoseconds), cpu: each((after - before).as_nanos() as f64), lost })
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    println!("## Messages\n");
    println!(
        "One primary, one worker, objects of about 100 bytes; CPU of both processes together.\n"
    );
    let mut table = Table::new(&[
        "",
        "messages/s",
        "x Node",
        "µs each",
        "/ limit",
        "CPU µs each",
        "/ Node",
        "lost %",
    ]);
    for (test, title) in TESTS {
        let count = options.count(if test == "trip" { 10_000 } else { 500_000 });
        let contenders = &CONTENDERS[..if test == "trip" { 4 } else { 3 }];
        let mut runs: [Vec<Run>; 4] = Default::default();
        for _ in 0..options.repeat() {
            for ((name, command), runs) in contenders.iter().zip(&mut runs) {
                let run = measure(command(test, &count.to_string())?, count);
                runs.push(run.map_err(|e| format!("{title}, {name}: {e}"))?);
            }
        }
        for (at, (name, _)) in contenders.iter().enumerate() {
            let of = |what: fn(&Run) -> f64| median(runs[at].iter().map(what));
            let against = |other: usize, what: fn(&Run) -> f64| {
                times(median(
                    runs[at].iter().zip(&runs[other]).map(|(run, other)| what(run) / what(other)),
                ))
            };
            table.row(vec![
                format!("{title}: {name}"),
                number(of(|r| 1e6 / r.took)),
                against(0, |r| 1.0 / r.took),
                number(of(|r| r.took)),
                against(2, |r| r.took),
                number(of(|r| r.cpu)),
                against(0, |r| r.cpu),
                number(100.0 * of(|r| r.lost) / count as f64),
            ]);
        }
    }
    table.print();
    Ok(())
}

/// Runs the peer: a primary in a tokio program.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn primary(test: &str, count: usize) -> Result<()> {
    let setup = Setup::new().args(["peer", "messages-worker", test, &count.to_string()]);
    let cluster = Cluster::builder().setup(setup).start()?;
    let mut events = cluster.events();
    let worker = cluster.fork(Fork::new()).await?;
    let mut note = Note::new();
    for round in [count.div_ceil(10), count] {
        if round == count {
            println!("ready");
            std::io::stdin().read_line(&mut String::new())?;
        }
        let begin = Instant::now();
        let (expected, mut lost) = (if test == "up" { round } else { 1 }, 0);
        match test {
            "trip" => {
                for n in 0..round {
                    note.n = n;
                    let _: Note = worker.request(&note, Duration::from_secs(10)).await?;
                }
            }
            "down" => {
                for n in 0..round {
                    note.n = n;
                    worker.send(&note).await?;
                }
            }
            _ => worker.send(&note).await?,
        }
        let mut seen = if test == "trip" { expected } else { 0 };
        while seen < expected {
            match events.recv().await.ok_or("the cluster is over")? {
                Event::Message { message, .. } => {
                    let note: Note = message.decode()?;
                    seen += 1;
                    if test == "down" {
                        lost += note.n as u64;
                    }
                }
                Event::Lagged { missed: n, .. } => {
                    seen += n as usize;
                    lost += n;
                }
                _ => {}
            }
        }
        if round == count {
            println!("done {} {lost}", begin.elapsed().as_nanos());
        }
    }
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Runs its worker.
pub(crate) fn worker(test: &str, count: usize) -> Result<()> {
    troop::worker()?.block_on(async |worker| {
        let mut rounds = [count.div_ceil(10), count].into_iter();
        let (mut left, mut lost, mut note) = (rounds.next().unwrap_or(0), 0, Note::new());
        while let Some(event) = worker.next_event().await {
            match event {
                WorkerEvent::Request(request) => {
                    let note: Note = request.decode()?;
                    request.reply(&note)?;
                }
                WorkerEvent::Message(message) if test == "down" => {
                    let _: Note = message.decode()?;
                    left -= 1;
                }
                WorkerEvent::Message(_) => {
                    for n in 0..left {
                        note.n = n;
                        worker.send(&note).await?;
                    }
                    left = 0;
                }
                WorkerEvent::Lagged { missed: n, .. } => {
                    lost += n as usize;
                    left -= n as usize;
                }
                _ => {}
            }
            if left == 0 && test != "trip" {
                left = rounds.next().unwrap_or(0);
                if test == "down" {
                    // The answer tells how many were lost.
                    note.n = std::mem::take(&mut lost);
                    worker.send(&note).await?;
                }
            }
        }
        Ok(())
    })
}
