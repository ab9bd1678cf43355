//! The bounded queue of log lines, and the thread that writes them.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use troop::text;

use super::file::LogFile;
use super::journal::Journal;
use super::line::{self, Origin};
use super::paths::Routes;
use crate::config::{Form, LogFormat};
use crate::log;

/// The size of the queue in bytes; further lines are dropped and counted.
const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// The size of the queue for the primary's own lines on standard error, in bytes and in lines.
const MAX_OWN_BYTES: usize = 1024 * 1024;
const MAX_OWN_LINES: usize = 4096;
/// What a line counts beyond its own bytes where lines are queued one by one, since a worker can
/// print any number of empty ones.
const LINE_OVERHEAD: usize = 64;
/// Interval between writes to files while lines keep coming: each takes more of them.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// Time that the last lines have to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The destination of lines.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Files, and which of them lines go to.
    Files(Vec<LogFile>, Routes),
    /// Standard output and standard error.
    Terminal,
    Journal(Journal),
    /// Standard error, for the primary's own lines in the foreground, which already have this
    /// format.
    Own(LogFormat),
}

/// The limits of the queue, in bytes and in lines.
#[derive(Debug, Clone, Copy)]
struct Bound {
    bytes: usize,
    lines: usize,
}

/// The queued lines.
#[derive(Debug, Default)]
struct QueuedLines {
    /// Formatted lines, by the number of their destination.
    formatted: Vec<Vec<u8>>,
    formatted_bytes: usize,
    /// Lines for the journal, which takes them one by one.
    single: Vec<(Origin, Vec<u8>)>,
    single_bytes: usize,
    /// The numbers of the files of slots, by the number of what stands for them.
    of_slots: BTreeMap<(usize, u32), usize>,
    /// Those that the thread does not have yet.
    new: Vec<(usize, u32)>,
    /// The size of all queued lines, in bytes.
    lines: usize,
    /// The number of dropped lines since the last one that was written.
    dropped: u64,
    /// Lines were dropped because the queue was full. This is reported as soon as there is room,
    /// not only with the next line.
    overflowed: bool,
    /// The queued reports of dropped lines, and the number of lines that they report.
    notices: u64,
    told: u64,
    ended: bool,
    /// The thread is to end.
    closing: bool,
}

impl QueuedLines {
    fn is_empty(&self) -> bool {
        self.formatted.iter().all(Vec::is_empty) && self.single.is_empty()
    }

    fn clear(&mut self) {
        self.formatted.iter_mut().for_each(Vec::clear);
        self.single.clear();
    }

    /// Returns the number of the destination of lines of this origin: where each slot has a file, that
    /// of its own.
    fn place(&mut self, number: usize, each: &[usize], origin: Origin) -> usize {
        let (Origin::Out(slot) | Origin::Err(slot)) = origin else { return number };
        if each.is_empty() || !each.contains(&number) {
            return number;
        }
        *self.of_slots.entry((number, slot)).or_insert_with(|| {
            self.formatted.push(Vec::new());
            self.new.push((number, slot));
            self.formatted.len() - 1
        })
    }

    /// Replaces the lines that were written and keeps their buffers, so that nothing is allocated.
    fn take(&mut self, waiting: &mut QueuedLines) {
        self.formatted.resize_with(waiting.formatted.len(), Vec::new);
        std::mem::swap(&mut waiting.formatted, &mut self.formatted);
        std::mem::swap(&mut waiting.single, &mut self.single);
        self.new.append(&mut waiting.new);
        (waiting.formatted_bytes, waiting.single_bytes, waiting.lines) = (0, 0, 0);
        self.notices = std::mem::take(&mut waiting.notices);
        self.told = std::mem::take(&mut waiting.told);
    }
}

/// A bounded queue of log lines, emptied by one writer thread. Printing never waits for a disk.
#[derive(Debug)]
pub(crate) struct LogQueue {
    waiting: Mutex<QueuedLines>,
    more: Condvar,
    /// The thread has written everything and ended.
    done: Condvar,
    form: Form,
    bound: Bound,
    /// The format of the primary's own lines.
    own: Option<LogFormat>,
    /// The destinations of lines.
    routes: Routes,
    /// Lines are queued one by one.
    single: bool,
    /// Whether standard output and standard error are terminals, which must not interpret escape
    /// sequences of workers.
    terminals: [bool; 2],
    dropped: AtomicU64,
    reopen: AtomicBool,
    path: Option<PathBuf>,
}

/// Appends lines that share one time.
pub(crate) struct Lines<'a> {
    queue: &'a LogQueue,
    waiting: MutexGuard<'a, QueuedLines>,
    time: String,
    /// The prefix of the last origin, cached because most lines come from the same one.
    prefix: Option<(Origin, Vec<u8>)>,
    /// A formatted line that goes to several destinations.
    line: Vec<u8>,
}

/// Returns the number of destinations of a sink.
fn destinations(sink: &Sink) -> usize {
    match sink {
        Sink::Files(files, _) => files.len(),
        Sink::Terminal => 2,
        Sink::Own(_) | Sink::Journal(_) => 1,
    }
}

impl LogQueue {
    /// Starts the thread that writes.
    pub(crate) fn start(sink: Sink, form: Form) -> io::Result<Arc<LogQueue>> {
        let queue = Arc::new(LogQueue {
            waiting: Mutex::new(QueuedLines {
                formatted: vec![Vec::new(); destinations(&sink)],
                ..QueuedLines::default()
            }),
            more: Condvar::new(),
            done: Condvar::new(),
            form,
            bound: match &sink {
                Sink::Own(_) => Bound { bytes: MAX_OWN_BYTES, lines: MAX_OWN_LINES },
                _ => Bound { bytes: MAX_QUEUED_BYTES, lines: usize::MAX },
            },
            own: if let Sink::Own(format) = sink { Some(format) } else { None },
            routes: match &sink {
                Sink::Files(_, routes) => routes.clone(),
                Sink::Terminal => {
                    Routes { out: vec![0], err: vec![1], events: vec![0], each: Vec::new() }
                }
                Sink::Journal(_) | Sink::Own(_) => {
                    Routes { out: vec![0], err: vec![0], events: vec![0], each: Vec::new() }
                }
            },
            single: matches!(sink, Sink::Journal(_)),
            terminals: match &sink {
                Sink::Terminal => [io::stdout().is_terminal(), io::stderr().is_terminal()],
                _ => [false; 2],
            },
            dropped: AtomicU64::new(0),
            reopen: AtomicBool::new(false),
            path: match &sink {
                Sink::Files(files, _) => files.first().map(|file| file.path().to_owned()),
                _ => None,
            },
        });
        let theirs = queue.clone();
        let write = move || theirs.write(sink);
        std::thread::Builder::new()
            .name("troop-logs".into())
            .stack_size(256 * 1024)
            .spawn(write)?;
        Ok(queue)
    }

    /// Returns the path of the log file, if there is one.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// Returns the number of lines that were dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Reopens the log files, which have been moved.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        // The thread either has not looked yet or is waiting already.
        drop(self.lock());
        self.more.notify_one();
    }

    /// Returns the format of lines. In a file that has nothing else, those of the primary have their
    /// time.
    fn form_of(&self, origin: Origin) -> Form {
        let is_apart =
            origin == Origin::Event && self.path.is_some() && self.routes.has_events_apart();
        if is_apart && self.form == Form::Plain { Form::Prefixed } else { self.form }
    }

    fn lock(&self) -> MutexGuard<'_, QueuedLines> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lines(&self) -> Lines<'_> {
        let time = if self.form == Form::Plain { String::new() } else { line::now() };
        Lines { queue: self, waiting: self.lock(), time, prefix: None, line: Vec::new() }
    }

    /// Writes the queued lines and ends the thread.
    pub(crate) fn finish(&self) {
        let mut waiting = self.lock();
        if std::mem::replace(&mut waiting.closing, true) {
            return;
        }
        waiting.ended = true;
        self.more.notify_one();
        let is_open = |waiting: &mut QueuedLines| waiting.ended;
        drop(self.done.wait_timeout_while(waiting, FLUSH_TIMEOUT, is_open));
    }

    fn write(&self, mut sink: Sink) {
        let mut taken = QueuedLines::default();
        let mut taken_at: Option<Instant> = None;
        loop {
            {
                let mut waiting = self.lock();
                while waiting.is_empty() && !waiting.overflowed && !waiting.ended {
                    if self.reopen.swap(false, Ordering::Relaxed)
                        && let Sink::Files(files, _) = &mut sink
                    {
                        // Without the lock, because a file that cannot be opened is reported in a
                        // line.
                        drop(waiting);
                        files.iter_mut().for_each(LogFile::reopen);
                        waiting = self.lock();
                        continue;
                    }
                    waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                }
                if waiting.is_empty() && waiting.overflowed {
                    // The thread has written everything, so there is room.
                    drop(waiting);
                    self.lines().write_dropped();
                    waiting = self.lock();
                }
                if waiting.ended && waiting.is_empty() {
                    waiting.ended = false;
                    drop(waiting);
                    self.done.notify_all();
                    return;
                }
                let is_busy = taken_at.is_some_and(|at| at.elapsed() < GATHER_TIME);
                if is_busy && !waiting.ended && matches!(sink, Sink::Files(..)) {
                    drop(waiting);
                    std::thread::sleep(GATHER_TIME);
                    waiting = self.lock();
                }
                taken.take(&mut waiting);
                taken_at = Some(Instant::now());
            }
            if self.reopen.swap(false, Ordering::Relaxed)
                && let Sink::Files(files, _) = &mut sink
            {
                files.iter_mut().for_each(LogFile::reopen);
            }
            if let Sink::Files(files, _) = &mut sink {
                for (number, slot) in taken.new.drain(..) {
                    if let Some(file) = files.get(number).map(|file| file.of_slot(slot)) {
                        files.push(file);
                    }
                }
            }
            let failed = self.write_once(&mut sink, &taken);
            taken.clear();
            if failed > 0 {
                let dropped = failed.saturating_sub(taken.notices);
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
                self.lock().dropped += dropped + taken.told;
                // There is no room; the thread does not ask again at once.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Writes lines and returns the number of those that could not be written.
    fn write_once(&self, sink: &mut Sink, taken: &QueuedLines) -> u64 {
        let count = |bytes: &[u8]| memchr::memchr_iter(b'\n', bytes).count() as u64;
        let mut dropped = 0;
        let mut tried = |result: io::Result<()>, bytes: &[u8]| {
            if result.is_err() {
                dropped += count(bytes);
            }
        };
        match sink {
            Sink::Files(files, _) => {
                for (file, bytes) in files.iter_mut().zip(&taken.formatted) {
                    tried(file.write(bytes), bytes);
                }
            }
            Sink::Terminal => {
                let streams = [rustix::stdio::stdout(), rustix::stdio::stderr()];
                for (stream, bytes) in streams.into_iter().zip(&taken.formatted) {
                    tried(write_all(stream, bytes), bytes);
                }
            }
            Sink::Own(_) => {
                for bytes in &taken.formatted {
                    tried(write_all(rustix::stdio::stderr(), bytes), bytes);
                }
            }
            Sink::Journal(journal) => {
                dropped += taken
                    .single
                    .iter()
                    .filter(|(origin, line)| journal.write(*origin, line).is_err())
                    .count() as u64;
            }
        }
        dropped
    }
}

/// Writes to a stream that other processes share and may have made non-blocking. Bypasses the
/// standard library, whose lock would block every thread that prints while nobody reads.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;
    while !bytes.is_empty() {
        match rustix::io::write(stream, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // The next write reports the error.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(stream, PollFlags::OUT)], None);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

impl Lines<'_> {
    /// Queues a line, in pieces if it is too long.
    pub(crate) fn split(&mut self, origin: Origin, line: &[u8], max_bytes: usize) {
        if line.len() <= max_bytes {
            self.push(origin, line);
        } else {
            line.chunks(max_bytes).for_each(|piece| self.push(origin, piece));
        }
    }

    /// Queues a line without its newline. Each line of an event is queued by itself, so that every
    /// line has a prefix.
    pub(crate) fn push(&mut self, origin: Origin, line: &[u8]) {
        if origin == Origin::Event && line.contains(&b'\n') {
            line.split(|byte| *byte == b'\n').for_each(|line| self.push_one(origin, line));
        } else {
            self.push_one(origin, line);
        }
    }

    fn push_one(&mut self, origin: Origin, line: &[u8]) {
        let (waiting, bound) = (&mut *self.waiting, self.queue.bound);
        let bytes = waiting.formatted_bytes + waiting.single_bytes + line.len();
        if bytes > bound.bytes || waiting.lines >= bound.lines {
            waiting.dropped += 1;
            waiting.overflowed = true;
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if waiting.dropped > 0 || waiting.overflowed {
            self.write_dropped();
        }
        self.add(origin, line);
    }

    fn write_dropped(&mut self) {
        self.waiting.overflowed = false;
        let dropped = std::mem::take(&mut self.waiting.dropped);
        if dropped == 0 {
            return;
        }
        let text = match self.queue.own {
            None => format!(
                "troop: {dropped} lines were dropped here, as they could not be written fast enough, or at all"
            ),
            Some(format) => log::dropped(format, dropped),
        };
        self.add(Origin::Event, text.as_bytes());
        self.waiting.notices += 1;
        self.waiting.told += dropped;
    }

    fn add(&mut self, origin: Origin, line: &[u8]) {
        let waiting = &mut *self.waiting;
        waiting.lines += 1;
        if self.queue.single {
            waiting.single_bytes += line.len() + LINE_OVERHEAD;
            waiting.single.push((origin, line.to_vec()));
            return;
        }
        let routes = self.queue.routes.of(origin);
        let form = self.queue.form_of(origin);
        if form != Form::Plain && self.time.is_empty() {
            self.time = line::now();
        }
        if form != Form::Json && self.prefix.as_ref().is_none_or(|(of, _)| *of != origin) {
            self.prefix = Some((origin, line::prefix(form, &self.time, origin)));
        }
        let prefix = self.prefix.as_ref().map_or(&[][..], |(_, prefix)| prefix);
        let each = &self.queue.routes.each;
        match *routes {
            // Nearly always.
            [only] => {
                let only = waiting.place(only, each, origin);
                let is_terminal = self.queue.terminals.get(only).is_some_and(|is_one| *is_one);
                if let Some(to) = waiting.formatted.get_mut(only) {
                    let before = to.len();
                    format(to, form, prefix, &self.time, origin, line, is_terminal);
                    waiting.formatted_bytes += to.len() - before;
                }
            }
            _ => {
                self.line.clear();
                format(&mut self.line, form, prefix, &self.time, origin, line, false);
                for at in routes {
                    let at = waiting.place(*at, each, origin);
                    if let Some(to) = waiting.formatted.get_mut(at) {
                        to.extend_from_slice(&self.line);
                        waiting.formatted_bytes += self.line.len();
                    }
                }
            }
        }
    }
}

/// Appends a line in its format.
fn format(
    to: &mut Vec<u8>,
    form: Form,
    prefix: &[u8],
    time: &str,
    origin: Origin,
    line: &[u8],
    is_terminal: bool,
) {
    if form == Form::Json {
        line::write_json(to, time, origin, line);
        return;
    }
    to.extend_from_slice(prefix);
    if is_terminal {
        to.extend_from_slice(text::terminal_line(&String::from_utf8_lossy(line)).as_bytes());
    } else {
        to.extend_from_slice(line);
    }
    to.push(b'\n');
}

impl Drop for Lines<'_> {
    fn drop(&mut self) {
        self.queue.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use troop::program::safe_path::Safety;

    use super::super::file::Rotation;
    use super::*;

    fn one_file() -> Routes {
        Routes { out: vec![0], err: vec![0], events: vec![0], each: Vec::new() }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_nobody_waits_for_it() {
        let rotation = Rotation { size: 0, age: None, keep: 1, total: None };
        let queue = LogQueue::start(
            Sink::Files(
                vec![LogFile::new("/dev/full".into(), rotation, Safety::Links)],
                one_file(),
            ),
            Form::Prefixed,
        )
        .unwrap();
        for _ in 0..100 {
            queue.lines().push(Origin::Out(0), b"a line");
        }
        queue.finish();
        assert_eq!(queue.dropped(), 100);
    }

    #[test]
    fn empty_lines_for_a_journal_that_does_not_keep_up_are_bounded_too() {
        let queue = LogQueue {
            waiting: Mutex::default(),
            more: Condvar::new(),
            done: Condvar::new(),
            form: Form::Plain,
            bound: Bound { bytes: MAX_QUEUED_BYTES, lines: usize::MAX },
            own: None,
            routes: one_file(),
            single: true,
            terminals: [false; 2],
            dropped: AtomicU64::new(0),
            reopen: AtomicBool::new(false),
            path: None,
        };
        {
            let mut lines = queue.lines();
            (0..200_000).for_each(|_| lines.push(Origin::Out(0), b""));
        }
        let waiting = queue.lock().single.len();
        assert!(
            waiting <= MAX_QUEUED_BYTES / LINE_OVERHEAD + 1
                && queue.dropped() as usize == 200_000 - waiting,
            "{waiting} lines wait"
        );
    }

    #[test]
    fn more_than_may_wait_is_lost_and_the_loss_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let rotation = Rotation { size: 0, age: None, keep: 1, total: None };
        let queue = LogQueue::start(
            Sink::Files(vec![LogFile::new(path.clone(), rotation, Safety::Links)], one_file()),
            Form::Plain,
        )
        .unwrap();
        let line = vec![b'x'; 1024 * 1024];
        {
            // The thread cannot take lines meanwhile.
            let mut lines = queue.lines();
            (0..20).for_each(|_| lines.push(Origin::Out(0), &line));
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(&path).map_or(0, |found| found.len()) < 7 * 1024 * 1024 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        queue.lines().push(Origin::Out(0), b"the last");
        queue.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        let dropped: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("troop: ")?.split(' ').next()?.parse().ok())
            .unwrap();
        assert_eq!(
            (dropped, text.lines().filter(|line| line.starts_with('x')).count() as u64 + dropped),
            (queue.dropped(), 20)
        );
        assert!(text.ends_with("\nthe last\n"));
    }
}
