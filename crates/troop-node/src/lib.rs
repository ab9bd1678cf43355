//! The engine of the npm package `@troop/cluster`: the crate `troop` behind Node-API, without logic
//! of its own. Programs see the JavaScript in `npm/`.
//!
//! Node starts the processes, and has a channel of its own to each, whose other end is here; the
//! channel to the worker is here too. Messages of programs are relayed, by JavaScript's own thread
//! if possible ([`troop::embed::RelayIo`]); listeners and connections are handled by a thread of
//! the engine, without JavaScript.

mod supervision;
mod text;
mod watch;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use napi::bindgen_prelude::{ArrayBuffer, Buffer, FnArgs, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Error, Result, Status};
use napi_derive::napi;
use supervision::{Order, Orders, ReloadOptions, Respawn, Supervision};
use troop::activation::InheritedSocket;
use troop::embed::{Adoption, RelayIo};
use troop::policy::Rebalanced;
use troop::supervise::RestartPolicy;
use troop::{Cluster, Event, Scheduling, WorkerHandle, WorkerId};
use watch::Watch;

/// The descriptors of a worker that is about to be started.
#[napi(object)]
#[derive(Debug)]
pub struct Ends {
    /// The worker's end of its channel. The engine keeps it; the process gets a copy.
    pub worker: i32,
    /// The end of Node's own channel, which the caller owns.
    pub program: i32,
}

/// An event of the engine.
#[napi(object)]
#[derive(Debug)]
pub struct Notice {
    /// `misbehaved`, `stalled`, `not-steered`, `listener-restored`, `listener-lost` or `error`.
    pub kind: String,
    /// A description of the event and its worker, for people.
    pub text: String,
}

/// A worker that a connection can be assigned to.
#[napi(object)]
#[derive(Debug)]
pub struct Candidate {
    /// Its number.
    pub id: u32,
    /// Whether it takes a connection at once.
    pub ready: bool,
    /// Its open connections, as far as known.
    pub open: u32,
    /// Connections handed over to it that it has not acknowledged.
    pub pending: u32,
    /// Its weight.
    pub weight: u32,
}

/// A connection whose worker the program chooses.
#[napi(object)]
#[derive(Debug)]
pub struct Question {
    /// The number to pass to [`Engine::answer`].
    pub ticket: i64,
    /// The listener's address or path.
    pub local_address: Option<String>,
    /// The listener's port.
    pub local_port: Option<i32>,
    /// The client's address.
    pub remote_address: Option<String>,
    /// The client's port.
    pub remote_port: Option<u16>,
    /// `IPv4` or `IPv6`.
    pub remote_family: Option<String>,
    /// The workers to choose from.
    pub candidates: Vec<Candidate>,
}

/// Counters of a worker.
#[napi(object)]
#[derive(Debug)]
pub struct Counters {
    /// Connections handed over to it.
    pub handed: i64,
    /// Connections that it acknowledged.
    pub taken: i64,
    /// Connections that it rejected.
    pub returned: i64,
    /// Connections that it has not acknowledged yet.
    pub in_flight: i64,
    /// Its open connections, as far as known.
    pub open: u32,
    /// Its small violations of the protocol.
    pub violations: u32,
}

/// The descriptors of a worker whose process does not run yet.
#[derive(Debug)]
struct Opened {
    /// The primary's end and the worker's end of the channel.
    channel: OwnedFd,
    worker: OwnedFd,
    /// The engine's end of the program's channel.
    relay: OwnedFd,
}

/// A primary on a thread of its own.
#[napi]
pub struct Engine {
    cluster: Cluster,
    opened: HashMap<u32, Opened>,
    offered: Arc<Offered>,
    orders: Arc<Orders>,
    questions: Arc<Mutex<Questions>>,
}

/// Called with the number of a worker whose member may [help](Member::help).
type Offered = ThreadsafeFunction<u32, (), u32, Status, false, true>;

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("cluster", &self.cluster)
            .field("opened", &self.opened)
            .finish_non_exhaustive()
    }
}

/// Makes an exception of an error of the engine's, with all its causes.
fn failed(e: troop::Error) -> Error {
    refused(e.chain())
}

fn no_channel(e: std::io::Error) -> Error {
    refused(format!("cannot make a channel for a worker: {e}"))
}

fn refused(why: String) -> Error {
    Error::new(Status::GenericFailure, why)
}

fn parse(scheduling: &str) -> Result<Scheduling> {
    scheduling
        .parse()
        .map_err(|e: troop::policy::BadScheduling| Error::new(Status::InvalidArg, e.to_string()))
}

impl Question {
    fn new(ticket: i64, question: &troop::policy::Question) -> Question {
        let peer = question.peer;
        Question {
            ticket,
            local_address: question.listener.address.clone(),
            local_port: question.listener.port.and_then(|port| i32::try_from(port).ok()),
            // As Node writes it.
            remote_address: peer.map(|peer| peer.ip().to_string()),
            remote_port: peer.map(|peer| peer.port()),
            remote_family: peer
                .map(|peer| if peer.is_ipv4() { "IPv4".into() } else { "IPv6".into() }),
            candidates: question
                .workers
                .iter()
                .map(|w| Candidate {
                    id: w.worker.0,
                    ready: w.ready,
                    open: w.open,
                    pending: w.pending,
                    weight: w.weight,
                })
                .collect(),
        }
    }
}

/// As many questions wait for an answer in the engine. Where there are more, the oldest has had its
/// turn.
const MAX_QUESTIONS: usize = 1024;

/// Requests for a worker that JavaScript has not answered.
#[derive(Debug, Default)]
struct Questions {
    last: i64,
    open: BTreeMap<i64, troop::policy::Question>,
}

impl Questions {
    /// Stores a request until it is answered; returns its form for JavaScript.
    fn keep(&mut self, question: troop::policy::Question) -> Question {
        if self.open.len() >= MAX_QUESTIONS {
            self.open.pop_first();
        }
        self.last += 1;
        let shown = Question::new(self.last, &question);
        self.open.insert(self.last, question);
        shown
    }
}

fn lock(questions: &Mutex<Questions>) -> MutexGuard<'_, Questions> {
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest integer of JavaScript.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn notice(event: &Event) -> Option<Notice> {
    let kind = match event {
        Event::Misbehaved { .. } => "misbehaved",
        Event::Stalled { .. } | Event::Resumed { .. } => "stalled",
        Event::NotSteered { .. } => "not-steered",
        Event::ListenerRestored { .. } => "listener-restored",
        Event::ListenerLost { .. } => "listener-lost",
        Event::Error { .. } => "error",
        _ => return None,
    };
    Some(Notice { kind: kind.into(), text: event.to_string() })
}

#[napi]
impl Engine {
    /// Starts the thread. `notify` is called with what happens there, `offered` with the numbers of
    /// workers whose members may [help](Member::help), `order` with what supervision wants of
    /// JavaScript and tells it; they do not keep the process alive. Instead of a scheduling, a
    /// function may be asked about each connection; its answer must come by [`Engine::answer`]
    /// within `answer_timeout` milliseconds.
    #[napi(constructor, catch_unwind)]
    pub fn new(
        scheduling: String,
        notify: Function<'_, Notice, ()>,
        offered: Function<'_, u32, ()>,
        order: Function<'_, Order, ()>,
        ask: Option<Function<'_, Question, ()>>,
        answer_timeout: Option<u32>,
    ) -> Result<Engine> {
        let questions = Arc::new(Mutex::new(Questions::default()));
        let scheduling = match ask {
            None => parse(&scheduling)?,
            Some(ask) => {
                let ask = ask.build_threadsafe_function().weak::<true>().build()?;
                let wait = Duration::from_millis(answer_timeout.unwrap_or(1000).into());
                let asked = questions.clone();
                Scheduling::callback(wait, move |question| {
                    let shown = lock(&asked).keep(question);
                    ask.call(shown, ThreadsafeFunctionCallMode::NonBlocking);
                })
            }
        };
        let notify = notify.build_threadsafe_function().weak::<true>().build()?;
        let offered = Arc::new(offered.build_threadsafe_function().weak::<true>().build()?);
        let orders: Arc<Orders> =
            Arc::new(order.build_threadsafe_function().weak::<true>().build()?);
        let given_up = orders.clone();
        let observer = move |event: &Event| {
            if let Some(order) = Order::of_event(event) {
                given_up.call(order, ThreadsafeFunctionCallMode::NonBlocking);
            }
            if let Some(notice) = notice(event) {
                notify.call(notice, ThreadsafeFunctionCallMode::NonBlocking);
            }
        };
        // Node lets a worker be busy for as long as it likes, and closes listeners that no worker
        // has any more.
        let builder = Cluster::builder()
            .scheduling(scheduling)
            .hang_timeout(None)
            .keep_listeners(false)
            .rebalance(Rebalanced::None);
        // What makes no sense as activation is none.
        let builder = builder.inherited(InheritedSocket::all().unwrap_or_default());
        let cluster = builder.start_in_thread(observer).map_err(failed)?;
        cluster.supervise_adopted(supervision::Asker(orders.clone())).map_err(failed)?;
        Ok(Engine { cluster, opened: HashMap::new(), offered, orders, questions })
    }

    /// Makes the channels of a worker that is about to be started. To be followed by
    /// [`Engine::adopt`] or [`Engine::abandon`].
    #[napi(catch_unwind)]
    pub fn open(&mut self, id: u32) -> Result<Ends> {
        let (channel, worker) = Adoption::channel().map_err(no_channel)?;
        let (relay, program) = Adoption::channel().map_err(no_channel)?;
        let ends = Ends { worker: worker.as_raw_fd(), program: program.into_raw_fd() };
        self.opened.insert(id, Opened { channel, worker, relay });
        Ok(ends)
    }

    /// The process runs; `start` is the number of the order, if it was ordered. With `deliver`,
    /// which is called with messages for the program, they are moved in this thread when that is
    /// possible.
    #[napi(catch_unwind)]
    pub fn adopt(
        &mut self,
        env: Env,
        id: u32,
        pid: u32,
        advanced: bool,
        deliver: Option<Function<'_, FnArgs<(ArrayBuffer<'static>,)>, ()>>,
        start: Option<u32>,
    ) -> Result<Member> {
        let Opened { channel, worker, relay } =
            self.opened.remove(&id).ok_or_else(|| refused(format!("no worker {id} was opened")))?;
        drop(worker);
        let adoption = Adoption::new(pid, channel).map_err(failed)?.relay(relay, advanced).id(id);
        let adoption = match start {
            Some(number) => adoption.start(number),
            None => adoption,
        };
        let handle = self.cluster.adopt_blocking(adoption).map_err(failed)?;
        let offered = self.offered.clone();
        let offer = move || {
            offered.call(id, ThreadsafeFunctionCallMode::NonBlocking);
        };
        // Without it everything works too, only not as fast.
        let accepted = if deliver.is_some() { handle.relay_io(offer).ok().flatten() } else { None };
        let (direct_io, channel) = accepted.unzip();
        let direct_io = DirectIo(Rc::new(RefCell::new(direct_io)));
        let mut watch = None;
        if let (Some(deliver), Some(channel)) = (deliver, channel) {
            let reader = direct_io.clone();
            let read =
                move |messages: &mut Vec<u8>| reader.with(|direct_io| direct_io.read(messages));
            watch = Watch::new(&env, channel, Box::new(read), deliver.create_ref()?).ok();
        }
        Ok(Member { handle, direct_io, watch })
    }

    /// Lets workers listen on this descriptor of the process, by number.
    #[napi(catch_unwind)]
    #[allow(unsafe_code)]
    pub fn offer(&self, fd: i32) -> Result<()> {
        if fd < 0 {
            return Err(refused(format!("{fd} is no descriptor")));
        }
        // SAFETY: it is not -1. JavaScript, which knows descriptors by their numbers, has opened
        // it and cannot close it during this call, as it waits for it; a number that is not open
        // fails at once. It is only copied.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.cluster.offer(InheritedSocket::of(fd).map_err(failed)?).map_err(failed)
    }

    /// Sets which workers that end are followed by others; `null` for none.
    #[napi(catch_unwind)]
    pub fn respawn(&self, respawn: Option<Respawn>) -> Result<()> {
        let scales_ends = respawn.as_ref().is_some_and(|respawn| respawn.restarts.is_none());
        self.cluster.restart_as(respawn.map(RestartPolicy::from), scales_ends).map_err(failed)
    }

    /// Replaces the workers. An order `reloaded` says how that ended.
    #[napi(catch_unwind)]
    pub fn reload(&self, options: ReloadOptions) -> Result<()> {
        let reload = options.reload()?;
        let (cluster, orders) = (self.cluster.clone(), self.orders.clone());
        let thread = std::thread::Builder::new().name("troop-reload".into());
        let started = thread.spawn(move || {
            let result = cluster.reload_with(reload).wait();
            orders.call(Order::reloaded(result), ThreadsafeFunctionCallMode::NonBlocking);
        });
        started.map(drop).map_err(|e| refused(format!("cannot start a thread for a reload: {e}")))
    }

    /// Whether a worker is still wanted that was ordered.
    #[napi(catch_unwind)]
    pub fn is_start_wanted(&self, number: u32) -> Result<bool> {
        self.cluster.is_start_wanted_blocking(number).map_err(failed)
    }

    /// A worker that was ordered could not be started.
    #[napi(catch_unwind)]
    pub fn start_failed(&self, number: u32, reason: String) -> Result<()> {
        self.cluster.start_failed(number, reason).map_err(failed)
    }

    /// What supervision is about; Node has seen the end of this worker.
    #[napi(catch_unwind)]
    pub fn supervision(&self, ended: Option<u32>) -> Result<Supervision> {
        let status = self.cluster.supervision_blocking(ended.map(WorkerId)).map_err(failed)?;
        Ok(Supervision {
            expects_workers: status.expects_workers,
            has_given_up: status.has_given_up,
        })
    }

    /// A worker has sent the message `'ready'`.
    #[napi(catch_unwind)]
    pub fn report_ready(&self, worker: u32) -> Result<()> {
        self.cluster.report_ready(WorkerId(worker)).map_err(failed)
    }

    /// The program ends a worker, so that none follows it.
    #[napi(catch_unwind)]
    pub fn release(&self, worker: u32) -> Result<()> {
        self.cluster.release(WorkerId(worker)).map_err(failed)
    }

    /// The program ends all workers.
    #[napi(catch_unwind)]
    pub fn release_all(&self) -> Result<()> {
        self.cluster.release_all().map_err(failed)
    }

    /// Assigns a connection to a worker; without one, to the next in turn.
    #[napi(catch_unwind)]
    pub fn answer(&self, ticket: i64, worker: Option<u32>) {
        let question = lock(&self.questions).open.remove(&ticket);
        if let (Some(question), Some(worker)) = (question, worker) {
            question.assign(WorkerId(worker));
        }
    }

    /// The process could not be started.
    #[napi(catch_unwind)]
    pub fn abandon(&mut self, id: u32) {
        self.opened.remove(&id);
    }
}

/// A worker of the engine.
#[napi]
#[derive(Debug)]
pub struct Member {
    handle: WorkerHandle,
    direct_io: DirectIo,
    watch: Option<Watch>,
}

/// A helper, until Node's channel is closed.
#[derive(Debug, Clone)]
struct DirectIo(Rc<RefCell<Option<RelayIo>>>);

impl DirectIo {
    fn with(&self, act: impl FnOnce(&RelayIo) -> bool) -> bool {
        self.0.borrow().as_ref().is_some_and(act)
    }
}

#[napi]
impl Member {
    /// Reads what the worker writes in this thread from now on, if that is wanted.
    #[napi(catch_unwind)]
    pub fn help(&self) {
        if let Some(watch) = &self.watch
            && self.direct_io.with(RelayIo::begin)
        {
            watch.start();
        }
    }

    /// A function `(message, behind)` that writes a message to the worker, if that can be done at
    /// once. Otherwise it returns false, and the message must be written to Node's channel; then
    /// `behind` must be true in the next call, which must not come before that is done. (A
    /// function, because what surrounds a method takes as long as the rest.)
    #[napi(catch_unwind)]
    pub fn text_writer<'env>(
        &self,
        env: &'env Env,
    ) -> Result<Function<'env, FnArgs<(String, bool)>, bool>> {
        let (direct_io, room) = (self.direct_io.clone(), RefCell::new(Vec::new()));
        env.create_function_from_closure("write", move |call| {
            let mut message = room.borrow_mut();
            text::read(&call.get(0)?, &mut message)?;
            let behind = call.get(1)?;
            Ok(direct_io.with(|direct_io| direct_io.write(&message, behind)))
        })
    }

    /// The same for a message in V8's format.
    #[napi(catch_unwind)]
    pub fn bytes_writer<'env>(
        &self,
        env: &'env Env,
    ) -> Result<Function<'env, FnArgs<(Buffer, bool)>, bool>> {
        let direct_io = self.direct_io.clone();
        env.create_function_from_closure("write", move |call| {
            let (message, behind): (&[u8], bool) = (call.get(0)?, call.get(1)?);
            Ok(direct_io.with(|direct_io| direct_io.write(message, behind)))
        })
    }

    /// Its slot, which it has from the worker that it follows or replaces.
    #[napi(catch_unwind)]
    pub fn slot(&self) -> u32 {
        self.handle.slot()
    }

    /// Whether it was told to leave, or leaves of its own accord.
    #[napi(catch_unwind)]
    pub fn was_told_to_leave(&self) -> bool {
        self.handle.exited_after_disconnect() == Some(true)
    }

    /// The process is about to exit.
    #[napi(catch_unwind)]
    pub fn hurry(&self) {
        self.direct_io.with(|direct_io| {
            direct_io.hurry();
            true
        });
    }

    /// Node's channel is closed.
    #[napi(catch_unwind)]
    pub fn close(&mut self) {
        self.watch = None;
        self.direct_io.0.take();
    }

    /// Returns its counters; after its end, those at its disconnect.
    #[napi(catch_unwind)]
    pub fn counters(&self) -> Counters {
        let stats = self.handle.stats_blocking();
        Counters {
            handed: signed(stats.handed),
            taken: signed(stats.taken),
            returned: signed(stats.returned),
            in_flight: i64::try_from(stats.in_flight).unwrap_or(i64::MAX),
            open: stats.open,
            violations: stats.violations,
        }
    }
}
