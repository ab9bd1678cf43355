//! CPU time and memory of processes, from `/proc`.

use std::fs;
use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::peer::Result;

/// Returns the CPU time of all running threads of a process.
pub(crate) fn time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}

/// Returns the threads of a process.
fn threads(pid: u32) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| Pid::from_raw(thread.file_name().to_str()?.parse().ok()?)).collect()
}

/// Returns the CPUs that this process may use.
pub(crate) fn available() -> Result<CpuSet> {
    Ok(sched_getaffinity(None)?)
}

/// Returns the first two of them, each in a separate set.
pub(crate) fn two_of(all: &CpuSet) -> Result<[CpuSet; 2]> {
    let mut single = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).map(|cpu| {
        let mut set = CpuSet::new();
        set.set(cpu);
        set
    });
    let (first, second) = (single.next(), single.next());
    Ok([first.ok_or("there is no processor")?, second.ok_or("this needs two processors")?])
}

/// Restricts the threads of a process, and those that they start later, to these CPUs.
pub(crate) fn confine(pid: u32, to: &CpuSet) {
    // Those that fail have ended meanwhile.
    for thread in threads(pid) {
        let _ = sched_setaffinity(Some(thread), to);
    }
}

/// Restricts the calling thread to these CPUs.
pub(crate) fn confine_caller(to: &CpuSet) -> Result<()> {
    Ok(sched_setaffinity(None, to)?)
}

/// Returns the CPU time of each of these processes.
pub(crate) fn times(pids: &[u32]) -> Vec<Duration> {
    pids.iter().map(|pid| time(*pid)).collect()
}

/// Returns the running children of a process.
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

/// Returns the CPU time of a process and all its descendants.
pub(crate) fn whole(pid: u32) -> Duration {
    time(pid) + children(pid).into_iter().map(whole).sum::<Duration>()
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident set size.
    pub(crate) resident: f64,
    /// Proportional set size: shared pages count by share.
    pub(crate) proportional: f64,
}

/// Returns the current memory of a process.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    Some(Memory { resident: field("Rss:")?, proportional: field("Pss:")? })
}
