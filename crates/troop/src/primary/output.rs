//! Reads the standard output and error of workers, forwards it or hands it to the program, and
//! keeps the end of standard error.

mod marked;
mod save;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, PipeReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_core::WorkerId;
use troop_core::text::{tells_of_error, tells_of_used_address};
use troop_sys::poll::{EventFd, Interest, Poller};

use self::marked::MarkedLines;
use self::save::Pause;
pub(crate) use self::save::{Paused, SavedOutput};
use super::wake::Wake;

/// Limits of the kept end of standard error, per worker.
const MAX_LINES: usize = 40;
pub(crate) const MAX_BYTES: usize = 16 * 1024;
/// The most characters of a line that are shown: of minified JavaScript, Node quotes all of it.
const MAX_LINE: usize = 500;
/// Lines that are shown behind an earlier one which says more.
const MAX_LINES_BEHIND: usize = 10;

/// The end of the standard error of a worker.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    state: Mutex<(VecDeque<u8>, bool)>,
    ended: Condvar,
    /// Drivers to wake when the stream ends.
    waiting: Mutex<Vec<Weak<Wake>>>,
}

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.extend(&bytes[bytes.len().saturating_sub(MAX_BYTES)..]);
        let surplus = state.0.len().saturating_sub(MAX_BYTES);
        state.0.drain(..surplus);
    }

    fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.iter().copied().collect()
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.ended.notify_all();
        let waiting =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.iter().filter_map(Weak::upgrade).for_each(|wake| wake.wake());
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Wakes the driver at the end of the stream.
    pub(crate) fn wake_at_end(&self, wake: Weak<Wake>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(wake);
    }

    pub(crate) fn text(&self, patience: Duration) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .ended
            .wait_timeout_while(state, patience, |(_, ended)| !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = state.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        shown(&text)
    }
}

/// Returns the last lines. If none of them says why a program has failed, as at the end of a long
/// backtrace, but an earlier line does, they are that one and fewer of the last.
fn shown(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (before, last) = lines.split_at(lines.len().saturating_sub(MAX_LINES));
    let signs: [fn(&str) -> bool; 2] = [tells_of_used_address, tells_of_error];
    for sign in signs {
        if last.iter().any(|line| sign(line)) {
            break;
        }
        let Some(at) = before.iter().rposition(|line| sign(line)) else { continue };
        let behind = &lines[lines.len() - MAX_LINES_BEHIND..];
        let between = lines.len() - MAX_LINES_BEHIND - at - 1;
        return format!("{}\n[{between} more lines]\n{}", cut(before[at]), joined(behind));
    }
    joined(last)
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| cut(line)).collect::<Vec<_>>().join("\n")
}

/// Returns the beginning of a long line, unless it tells of an address, perhaps at its end.
fn cut(line: &str) -> Cow<'_, str> {
    match line.char_indices().nth(MAX_LINE) {
        Some((end, _)) if !tells_of_used_address(line) => Cow::Owned(format!("{}…", &line[..end])),
        _ => Cow::Borrowed(line),
    }
}

/// The worker and the stream that output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Source {
    /// The worker.
    pub worker: WorkerId,
    /// Its slot, if it is supervised.
    pub slot: Option<u32>,
    /// Whether it is standard error; otherwise it is standard output.
    pub error: bool,
}

/// Receives the output of workers with [`Stdio::Collect`](crate::setup::Stdio::Collect): see
/// [`Builder::output`](crate::Builder::output).
///
/// It is called in a separate thread. While a call takes long, workers that fill their pipes wait;
/// the primary does not.
///
/// ```
/// use troop::setup::{Output, Source, Stdio};
/// use troop::{Cluster, Setup};
///
/// /// Counts the bytes that workers write.
/// struct Count(usize);
///
/// impl Output for Count {
///     fn write(&mut self, _: Source, bytes: &[u8]) {
///         self.0 += bytes.len();
///     }
///
///     fn end(&mut self, source: Source) {
///         println!("worker {} has written its last; {} bytes so far", source.worker, self.0);
///     }
/// }
///
/// let builder = Cluster::builder()
///     .setup(Setup::new().stdout(Stdio::Collect).stderr(Stdio::Collect))
///     .output(Count(0));
/// # drop(builder);
/// ```
pub trait Output: Send {
    /// Receives bytes as they were written. A line may come in several calls.
    fn write(&mut self, source: Source, bytes: &[u8]);

    /// Called when the last process has closed the stream, usually because the worker has ended.
    fn end(&mut self, source: Source);

    /// Returns what has come of a line without its end, if this keeps it until the rest comes. When
    /// another program image goes on with the primary ([`Cluster::replace`](crate::Cluster::replace)),
    /// its output gets these bytes once more, before the rest.
    fn unfinished(&self, source: Source) -> Vec<u8> {
        let _ = source;
        Vec::new()
    }
}

/// The destination of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// To this process's standard output or error.
    Forwarded,
    /// The same, where that is a terminal and the worker runs as another user.
    Marked,
    Remembered,
    /// To the program's [`Output`].
    Collected,
}

struct Stream {
    pipe: Arc<PipeReader>,
    /// Whether its worker has ended, so that other processes hold the other end of the pipe.
    is_left: bool,
    source: Source,
    tail: Option<Arc<Tail>>,
    fate: Fate,
    /// What another primary had read of a line without its end.
    unfinished: Vec<u8>,
}

#[derive(Default)]
struct Streams {
    open: BTreeMap<u64, Stream>,
    /// Streams whose pipes were closed before they ended.
    dismissed: Vec<Stream>,
    /// Whether no more streams will be added.
    no_more: bool,
    /// Whether the thread has found nothing to read since then.
    is_drained: bool,
    /// Whether the thread reads nothing for now, and what it has of unfinished lines.
    pause: Pause,
}

/// The token of the descriptor that wakes the thread.
const EVENT_FD: u64 = 0;
/// Maximum number of streams of ended workers that processes left behind hold open. The oldest are
/// closed when there are more.
const MAX_LEFT: usize = 32;

/// State shared with the thread.
#[derive(Default)]
struct Shared {
    streams: Mutex<Streams>,
    drained: Condvar,
    /// A pause has begun or ended.
    paused: Condvar,
}

fn lock(streams: &Mutex<Streams>) -> MutexGuard<'_, Streams> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        lock(&self.shared.streams).no_more = true;
        self.event_fd.signal();
    }
}

/// Waits until all output that workers have written so far is copied.
pub(crate) struct Drained(Arc<Shared>);

impl Drained {
    /// Blocks until the output is copied, at most for `timeout`.
    pub(crate) fn wait(self, timeout: Duration) {
        drop(self.0.drained.wait_timeout_while(lock(&self.0.streams), timeout, |s| !s.is_drained));
    }
}

/// The thread that copies output. If the destination is slow, workers wait, as with an inherited
/// stream; the primary does not.
pub(crate) struct Forwarder {
    poller: Arc<Poller>,
    shared: Arc<Shared>,
    last: u64,
    event_fd: Arc<EventFd>,
}

impl Forwarder {
    pub(crate) fn start(output: Option<Box<dyn Output>>) -> io::Result<Forwarder> {
        let poller = Poller::new()?;
        // The thread waits on a copy of the descriptor, so that it can be added to without a lock.
        let waiting = poller.try_clone()?;
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let event_fd = Arc::new(EventFd::new()?);
        poller.add(&event_fd, EVENT_FD, Interest::Read)?;
        let heard = event_fd.clone();
        std::thread::Builder::new()
            .name("troop-output".into())
            .stack_size(256 * 1024)
            .spawn(move || copy(waiting, &theirs, &heard, output))?;
        Ok(Forwarder { poller: Arc::new(poller), shared, last: EVENT_FD, event_fd })
    }

    /// Adds a stream. Returns the kept end of it, if it is standard error.
    pub(crate) fn add(
        &mut self,
        pipe: PipeReader,
        source: Source,
        fate: Fate,
    ) -> io::Result<Option<Arc<Tail>>> {
        self.last += 1;
        let tail = source.error.then(|| Arc::new(Tail::default()));
        let mut streams = lock(&self.shared.streams);
        self.poller.add(&pipe, self.last, Interest::Read)?;
        let (pipe, unfinished) = (Arc::new(pipe), Vec::new());
        let stream = Stream { pipe, is_left: false, source, tail: tail.clone(), fate, unfinished };
        streams.open.insert(self.last, stream);
        Ok(tail)
    }

    /// Ends the thread when all output is read: of ended workers to the end of the stream, of
    /// processes left behind what is in the pipe.
    pub(crate) fn finish(self) -> Drained {
        Drained(self.shared.clone())
    }

    /// Handles the end of a worker. Processes that it has left behind may go on writing, up to a
    /// limit of such streams.
    pub(crate) fn ended(&self, worker: WorkerId) {
        let mut streams = lock(&self.shared.streams);
        streams
            .open
            .values_mut()
            .filter(|stream| stream.source.worker == worker)
            .for_each(|stream| stream.is_left = true);
        let left: Vec<u64> = streams
            .open
            .iter()
            .filter(|(_, stream)| stream.is_left)
            .map(|(token, _)| *token)
            .collect();
        let surplus = left.len().saturating_sub(MAX_LEFT);
        for token in &left[..surplus] {
            let Some(stream) = streams.open.remove(token) else { continue };
            self.poller.remove(&stream.pipe).unwrap_or_default();
            streams.dismissed.push(stream);
        }
        if surplus > 0 {
            self.event_fd.signal();
        }
    }
}

impl Stream {
    fn end(self, output: &mut Option<Box<dyn Output>>) {
        drop(self.pipe);
        if let (Fate::Collected, Some(output)) = (self.fate, output) {
            output.end(self.source);
        }
        self.tail.iter().for_each(|tail| tail.end());
    }
}

/// Prints output of workers. A closed stream of the primary cannot be reported.
fn print(source: Source, bytes: &[u8]) {
    if source.error {
        drop(io::stderr().lock().write_all(bytes));
    } else {
        let mut out = io::stdout().lock();
        drop(out.write_all(bytes).and_then(|()| out.flush()));
    }
}

fn copy(
    mut poller: Poller,
    shared: &Shared,
    event_fd: &EventFd,
    mut output: Option<Box<dyn Output>>,
) {
    let streams = &shared.streams;
    let (mut ready, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let mut marked = BTreeMap::<u64, MarkedLines>::new();
    let mut timeout = None;
    while poller.wait(timeout, &mut ready).is_ok() {
        save::pause(shared, &output, &marked);
        let was_idle = ready.is_empty();
        for event in ready.drain(..) {
            if event.token == EVENT_FD {
                event_fd.clear();
                let mut streams = lock(streams);
                let dismissed = std::mem::take(&mut streams.dismissed);
                marked.retain(|token, _| streams.open.contains_key(token));
                drop(streams);
                dismissed.into_iter().for_each(|stream| stream.end(&mut output));
                continue;
            }
            // Read outside the lock: adding a stream must not wait for a slow terminal.
            let stream = lock(streams).open.get_mut(&event.token).map(|s| {
                let unfinished = std::mem::take(&mut s.unfinished);
                (s.pipe.clone(), s.source, s.tail.clone(), s.fate, unfinished)
            });
            // Otherwise it was dismissed a moment ago.
            let Some((pipe, source, tail, fate, unfinished)) = stream else { continue };
            let mut pass = |bytes: &[u8]| match (fate, &mut output) {
                (Fate::Forwarded, _) => print(source, bytes),
                (Fate::Marked, _) => {
                    print(source, &marked.entry(event.token).or_default().add(bytes));
                }
                (Fate::Collected, Some(output)) => output.write(source, bytes),
                _ => {}
            };
            if !unfinished.is_empty() {
                pass(&unfinished);
            }
            match (&*pipe).read(&mut buffer) {
                Ok(n) if n > 0 => {
                    let bytes = &buffer[..n];
                    tail.iter().for_each(|tail| tail.push(bytes));
                    pass(bytes);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    // A copy that is held for another engine would have the end reported on and on.
                    poller.remove(&pipe).unwrap_or_default();
                    drop(pipe);
                    if let Some(lines) = marked.remove(&event.token) {
                        print(source, &lines.end());
                    }
                    let ended = lock(streams).open.remove(&event.token);
                    ended.into_iter().for_each(|stream| stream.end(&mut output));
                }
            }
        }
        let mut streams = lock(streams);
        if !streams.no_more {
            continue;
        }
        let is_over = streams.open.is_empty() && streams.dismissed.is_empty();
        if is_over || was_idle {
            streams.is_drained = true;
            shared.drained.notify_all();
        }
        if is_over {
            return;
        }
        // One poll without waiting shows whether anything is left.
        timeout = if streams.is_drained { None } else { Some(Duration::ZERO) };
    }
    lock(streams).is_drained = true;
    shared.drained.notify_all();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::primary::saved::Writer;

    /// Accepts one write for each message on the channel.
    struct Slow(mpsc::Receiver<()>, Arc<Mutex<usize>>);

    impl Output for Slow {
        fn write(&mut self, _: Source, bytes: &[u8]) {
            let _ = self.0.recv();
            *self.1.lock().unwrap() += bytes.len();
        }

        fn end(&mut self, _: Source) {}
    }

    #[test]
    fn the_reason_is_shown_also_where_a_long_backtrace_or_line_is_beside_it() {
        let frames = |n: usize| (0..n).map(|n| format!("{n}: frame\n")).collect::<String>();
        let reason = "RuntimeError: Address already in use (os error 98)";
        let far = shown(&format!("starting\n{reason}\n\nStack backtrace:\n{}", frames(60)));
        let lines: Vec<_> = far.lines().collect();
        assert_eq!((lines[0], lines[1], lines.len()), (reason, "[52 more lines]", 12));
        assert_eq!(lines[11], "59: frame");
        // An address in use says more than another error.
        let both = format!("{reason}\n{}Error: it failed\n{}", frames(50), frames(30));
        assert!(shown(&both).starts_with(reason));
        // Whatever the last lines say.
        let near = shown(&format!("{reason}\n{}{reason}\n{}", frames(60), frames(30)));
        assert_eq!((near.lines().count(), near.matches(reason).count()), (40, 1));
        assert_eq!(shown(&frames(60)).lines().count(), 40);
        assert_eq!(shown(&format!("{reason}\n{}", frames(3))).lines().count(), 4);
        assert_eq!(shown(""), "");
        let minified = format!("{}\nSyntaxError: no export\n", "é".repeat(5000));
        assert_eq!(shown(&minified), format!("{}…\nSyntaxError: no export", "é".repeat(500)));
        let json = format!("{{\"a\":\"{}\",\"err\":\"EADDRINUSE :::80\"}}", "x".repeat(5000));
        assert_eq!(shown(&json), json);
    }

    #[test]
    fn the_last_output_of_a_worker_is_read_before_the_end() {
        let (let_it, taken) = (mpsc::channel(), Arc::<Mutex<usize>>::default());
        let output = Slow(let_it.1, taken.clone());
        let mut forwarder = Forwarder::start(Some(Box::new(output))).unwrap();
        let source = Source { worker: WorkerId(1), slot: None, error: false };
        // One worker has ended; a process that another one has left behind still holds its pipe.
        let (pipes, mut writers): (Vec<_>, Vec<_>) = (0..2).map(|_| io::pipe().unwrap()).unzip();
        for pipe in pipes {
            forwarder.add(pipe, source, Fate::Collected).unwrap();
        }
        for writer in &mut writers {
            writer.write_all(&[b'x'; 50_000]).unwrap();
        }
        let left_behind = writers.pop();
        drop(writers);
        let drained = forwarder.finish();
        let waiting = std::thread::spawn(move || drained.wait(Duration::from_secs(60)));
        assert_eq!(*taken.lock().unwrap(), 0);
        drop(let_it.0);
        waiting.join().unwrap();
        assert_eq!(*taken.lock().unwrap(), 100_000);
        drop(left_behind);
    }

    #[test]
    fn an_end_is_reported_once_also_of_a_pipe_of_which_another_process_has_a_copy() {
        let mut forwarder = Forwarder::start(None).unwrap();
        let (pipe, writer) = io::pipe().unwrap();
        let copy = pipe.try_clone().unwrap();
        let source = Source { worker: WorkerId(1), slot: None, error: true };
        let tail = forwarder.add(pipe, source, Fate::Collected).unwrap().unwrap();
        drop(writer);
        tail.text(Duration::from_secs(60));
        assert!(tail.has_ended());
        let mut ready = Vec::new();
        forwarder.poller.try_clone().unwrap().wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty(), "{ready:?}");
        drop(copy);
    }

    /// Passes lines on when they are complete.
    #[derive(Default)]
    struct Lines(Vec<u8>, Arc<Mutex<Vec<String>>>);

    impl Output for Lines {
        fn write(&mut self, _: Source, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
            while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
                let line = self.0.drain(..=end).collect();
                self.1.lock().unwrap().push(String::from_utf8(line).unwrap());
            }
        }

        fn end(&mut self, _: Source) {
            self.1.lock().unwrap().push("end".into());
        }

        fn unfinished(&self, _: Source) -> Vec<u8> {
            self.0.clone()
        }
    }

    #[test]
    fn a_line_of_which_half_was_read_is_complete_where_another_one_goes_on() {
        let taken = Arc::<Mutex<Vec<String>>>::default();
        let start = || {
            let lines = Lines(Vec::new(), taken.clone());
            Forwarder::start(Some(Box::new(lines))).unwrap()
        };
        let source = Source { worker: WorkerId(1), slot: Some(0), error: true };
        let (pipe, mut writer) = io::pipe().unwrap();
        let mut forwarder = start();
        let mut tail = forwarder.add(pipe, source, Fate::Collected).unwrap().unwrap();
        let mut former = Vec::new();
        for round in 0..20 {
            write!(writer, "half of {round}").unwrap();
            let mut state = Writer::default();
            let paused = forwarder.pause().unwrap();
            let saved = forwarder.save(&mut state).unwrap();
            // What comes meanwhile is read by the other one.
            write!(writer, " and the rest of {round}\nhalf").unwrap();
            let mut next = start();
            let tails = next.restore(saved, &mut state.read()).unwrap();
            assert_eq!(tails.len(), 1);
            tail = tails[0].1.clone();
            writeln!(writer, " a line").unwrap();
            let lines = || taken.lock().unwrap().len();
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            while lines() < 2 * (round + 1) {
                assert!(std::time::Instant::now() < deadline, "{:?}", taken.lock().unwrap());
                std::thread::yield_now();
            }
            // As where a process is executed in its place: this one reads nothing more.
            former.push((paused, std::mem::replace(&mut forwarder, next)));
        }
        drop(writer);
        forwarder.finish().wait(Duration::from_secs(60));
        let expected = (0..20).flat_map(|round| {
            [format!("half of {round} and the rest of {round}\n"), "half a line\n".into()]
        });
        let expected: Vec<_> = expected.chain(["end".into()]).collect();
        assert_eq!(*taken.lock().unwrap(), expected);
        assert!(tail.text(Duration::ZERO).ends_with("half of 19 and the rest of 19\nhalf a line"));
    }

    #[test]
    fn an_output_that_takes_nothing_holds_up_the_end_for_a_while_only() {
        let (let_it, taken) = (mpsc::channel::<()>(), Arc::<Mutex<usize>>::default());
        let mut forwarder =
            Forwarder::start(Some(Box::new(Slow(let_it.1, taken.clone())))).unwrap();
        let (pipe, mut writer) = io::pipe().unwrap();
        let source = Source { worker: WorkerId(1), slot: None, error: false };
        forwarder.add(pipe, source, Fate::Collected).unwrap();
        writer.write_all(b"x").unwrap();
        forwarder.finish().wait(Duration::from_millis(10));
        assert_eq!(*taken.lock().unwrap(), 0);
    }
}
