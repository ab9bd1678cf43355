//! What a process has used so far: CPU time and memory, from `/proc`.

use std::fs;
use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::peer::Result;

/// CPU time of all threads of a process. Threads that have ended are not in it.
pub(crate) fn time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}

/// The threads of a process.
fn threads(pid: u32) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| Pid::from_raw(thread.file_name().to_str()?.parse().ok()?)).collect()
}

/// The processors that this process may use.
pub(crate) fn available() -> Result<CpuSet> {
    Ok(sched_getaffinity(None)?)
}

/// The first two of them, each by itself.
pub(crate) fn two_of(all: &CpuSet) -> Result<[CpuSet; 2]> {
    let mut single = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).map(|cpu| {
        let mut set = CpuSet::new();
        set.set(cpu);
        set
    });
    let (first, second) = (single.next(), single.next());
    Ok([first.ok_or("there is no processor")?, second.ok_or("this needs two processors")?])
}

/// Lets the threads that a process has, and those that they start later, use these processors only.
pub(crate) fn confine(pid: u32, to: &CpuSet) {
    // Those that fail have ended meanwhile.
    for thread in threads(pid) {
        let _ = sched_setaffinity(Some(thread), to);
    }
}

/// The same for the thread that calls.
pub(crate) fn confine_caller(to: &CpuSet) -> Result<()> {
    Ok(sched_setaffinity(None, to)?)
}

/// CPU time of each of these processes.
pub(crate) fn times(pids: &[u32]) -> Vec<Duration> {
    pids.iter().map(|pid| time(*pid)).collect()
}

/// The processes that a process has started and that still run.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

/// CPU time of a process and of all that it has started, and those have started.
pub(crate) fn whole(pid: u32) -> Duration {
    time(pid) + children(pid).into_iter().map(whole).sum::<Duration>()
}

/// Memory of a process in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// All pages that it has in memory.
    pub(crate) resident: f64,
    /// The same, with pages that others have too counted by its share.
    pub(crate) proportional: f64,
}

/// Memory of a process now.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    Some(Memory { resident: field("Rss:")?, proportional: field("Pss:")? })
}
