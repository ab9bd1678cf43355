//! Workers that somebody else has started.

use std::io;
use std::os::fd::OwnedFd;

use troop_core::WorkerId;
use troop_sys::{fdpass, process};

use crate::error::{Error, Result};

/// A process that somebody else has started, to be taken on as a worker: see
/// [`Cluster::adopt`](crate::Cluster::adopt).
///
/// The process is not the cluster's child: its end is seen through a pidfd (`pidfd_open(2)`), and
/// it is left to its parent to reap it.
#[derive(Debug)]
#[must_use]
pub struct Adoption {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
    pub(crate) relay: Option<OwnedFd>,
    pub(crate) advanced: bool,
    pub(crate) id: Option<WorkerId>,
    pub(crate) weight: Option<u32>,
    pub(crate) start: Option<u32>,
}

/// A worker that supervision wants the program to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Start {
    /// The number of this request, for [`Adoption::start`].
    pub number: u32,
    /// The slot of the worker: that of the one that it replaces.
    pub slot: u32,
    /// The worker that it follows, where that has ended.
    pub follows: Option<WorkerId>,
}

/// What the supervision of workers that the program starts is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SupervisionStatus {
    /// Workers are still to come: the end of one is to be followed, or others are being replaced.
    pub expects_workers: bool,
    /// No more workers are started, because none was ever ready. The program may start some.
    pub has_given_up: bool,
}

/// A program that starts workers when supervision wants them: see
/// [`Cluster::supervise_adopted`](crate::Cluster::supervise_adopted). Called in the cluster's
/// thread, so that it must neither block nor wait for the cluster.
pub trait Starter: Send {
    /// A worker is wanted. The program has 10 s to [adopt](crate::Cluster::adopt) it.
    fn start(&mut self, start: Start);

    /// A worker has been told to leave, because another one has taken its place, or because it was
    /// to take another's and did not.
    fn draining(&mut self, worker: WorkerId);
}

impl Adoption {
    /// Describes the process `pid`, which has the other end of `channel` as its `NODE_CHANNEL_FD`.
    /// [`Adoption::channel`] makes both ends.
    ///
    /// # Errors
    /// If there is no such process (any more), or there are no descriptors left.
    pub fn new(pid: u32, channel: OwnedFd) -> Result<Adoption> {
        let pidfd =
            process::pidfd(pid).map_err(Error::io("watch a process that is to be a worker"))?;
        Ok(Adoption {
            pid,
            pidfd,
            channel,
            relay: None,
            advanced: false,
            id: None,
            weight: None,
            start: None,
        })
    }

    /// Makes a channel: the primary's end and the worker's. Both are closed on exec.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
        fdpass::channel()
    }

    /// Passes the messages of the worker's program, with their sockets, through to this socket
    /// instead of making events of them, and what is written there through to the worker, in Node's
    /// own framing: the other end of the socket is for a Node primary's channel. `online`,
    /// `listening` and `exitedAfterDisconnect` are passed on too; what is said about listeners and
    /// connections is not. Who writes Node's `disconnect` there asks for what
    /// [`WorkerHandle::disconnect`](crate::WorkerHandle::disconnect) does; who closes it closes the
    /// worker's channel.
    ///
    /// With `advanced`, both speak Node's `serialization: 'advanced'`, which only relayed workers
    /// can.
    pub fn relay(mut self, socket: OwnedFd, advanced: bool) -> Adoption {
        self.relay = Some(socket);
        self.advanced = advanced;
        self
    }

    /// Sets the number that the worker has as its `NODE_UNIQUE_ID`. It must be greater than all
    /// numbers that were used before.
    pub fn id(mut self, id: u32) -> Adoption {
        self.id = Some(WorkerId(id));
        self
    }

    /// Answers a [request of supervision](Starter::start), by its [number](Start::number). The
    /// adoption fails if that worker is not wanted any more.
    pub fn start(mut self, number: u32) -> Adoption {
        self.start = Some(number);
        self
    }

    /// Sets the worker's weight; see [`Fork::weight`](crate::Fork::weight).
    pub fn weight(mut self, weight: u32) -> Adoption {
        self.weight = Some(weight);
        self
    }
}
