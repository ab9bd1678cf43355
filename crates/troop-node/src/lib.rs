//! The engine of the npm package `@troop/cluster`: the crate `troop` behind Node-API, and nothing else. What a program sees of it is
//! JavaScript, in `npm/`.
//!
//! Node starts the processes and has a channel of its own to each, whose other end is here; here is also the channel to the worker. Messages
//! of programs are passed through; listeners and connections are dealt with on a thread of the engine's, without JavaScript.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};

use napi::bindgen_prelude::Function;
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi::{Error, Result, Status};
use napi_derive::napi;
use troop::{Adoption, Cluster, Event, Scheduling};

/// The descriptors of a worker that is to be started.
#[napi(object)]
#[derive(Debug)]
pub struct Ends {
    /// The worker's end of its channel. It stays the engine's; the process gets a copy.
    pub worker: i32,
    /// The end of Node's own channel. It is the caller's from now on.
    pub program: i32,
}

/// What the engine has noticed.
#[napi(object)]
#[derive(Debug)]
pub struct Notice {
    /// `misbehaved`, `stalled`, `not-steered` or `error`.
    pub kind: String,
    /// What happened and to which worker, for people.
    pub text: String,
}

/// What is held for a worker until its process runs.
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
#[derive(Debug)]
pub struct Engine {
    cluster: Cluster,
    opened: HashMap<u32, Opened>,
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::new(Status::GenericFailure, e.to_string())
}

fn parse(scheduling: &str) -> Result<Scheduling> {
    scheduling.parse().map_err(|e: troop::BadScheduling| Error::new(Status::InvalidArg, e.to_string()))
}

fn notice(event: &Event) -> Option<Notice> {
    let kind = match event {
        Event::Misbehaved(..) => "misbehaved",
        Event::Stalled(..) => "stalled",
        Event::NotSteered(..) => "not-steered",
        Event::Error(..) => "error",
        _ => return None,
    };
    Some(Notice { kind: kind.into(), text: event.to_string() })
}

#[napi]
impl Engine {
    /// Starts the thread. `notify` is called with what happens there; it does not keep the process alive.
    #[napi(constructor, catch_unwind)]
    pub fn new(scheduling: String, notify: Function<'_, Notice, ()>) -> Result<Engine> {
        let notify = notify.build_threadsafe_function().weak::<true>().build()?;
        let observer = move |event: &Event| {
            if let Some(notice) = notice(event) {
                notify.call(notice, ThreadsafeFunctionCallMode::NonBlocking);
            }
        };
        // Node lets a worker be busy for as long as it likes, and closes what nobody listens on any more.
        let builder = Cluster::builder().scheduling(parse(&scheduling)?).hung_after(None).keep_listeners(false);
        let cluster = builder.start_in_thread(observer).map_err(failed)?;
        Ok(Engine { cluster, opened: HashMap::new() })
    }

    /// Makes the channels of a worker that is about to be started. To be followed by [`Engine::adopt`] or [`Engine::abandon`].
    #[napi(catch_unwind)]
    pub fn open(&mut self, id: u32) -> Result<Ends> {
        let (channel, worker) = Adoption::channel().map_err(failed)?;
        let (relay, program) = Adoption::channel().map_err(failed)?;
        let ends = Ends { worker: worker.as_raw_fd(), program: program.into_raw_fd() };
        self.opened.insert(id, Opened { channel, worker, relay });
        Ok(ends)
    }

    /// The process runs.
    #[napi(catch_unwind)]
    pub fn adopt(&mut self, id: u32, pid: u32, advanced: bool) -> Result<()> {
        let Opened { channel, worker, relay } =
            self.opened.remove(&id).ok_or_else(|| failed(format!("no worker {id} was opened")))?;
        drop(worker);
        let adoption = Adoption::new(pid, channel).map_err(failed)?;
        self.cluster.adopt(adoption.relay(relay, advanced).id(id)).map_err(failed)
    }

    /// The process could not be started.
    #[napi(catch_unwind)]
    pub fn abandon(&mut self, id: u32) {
        self.opened.remove(&id);
    }
}
