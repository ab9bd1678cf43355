//! Workers that the embedding program has started.

use std::io;
use std::os::fd::OwnedFd;

use troop_core::WorkerId;
use troop_sys::{fdpass, process};

use crate::error::{Error, Result};

/// A process that another part of the program has started, to be adopted as a worker: see
/// [`Cluster::adopt`](crate::Cluster::adopt).
///
/// The process is not the cluster's child: the cluster sees its end by a pidfd (`pidfd_open(2)`),
/// and its parent reaps it.
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

/// A request of the supervisor to start a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Start {
    /// The number of this request, for [`Adoption::start`].
    pub number: u32,
    /// The slot of the worker: that of the one that it replaces.
    pub slot: u32,
    /// The ended worker that it replaces, if any.
    pub follows: Option<WorkerId>,
}

/// The state of the supervision of workers that the program starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SupervisionStatus {
    /// Whether more workers will be requested: an ended one will have a successor, or others are
    /// being replaced.
    pub expects_workers: bool,
    /// Whether the supervisor has given up, because no worker was ever ready. The program may still
    /// start some.
    pub has_given_up: bool,
}

/// Starts workers at the request of the supervisor: see
/// [`Cluster::supervise_adopted`](crate::Cluster::supervise_adopted). Its methods are called in the
/// cluster's thread, and must neither block nor wait for the cluster.
pub trait Starter: Send {
    /// Requests the start of a worker. The program has 10 s to [adopt](crate::Cluster::adopt) it.
    fn start(&mut self, start: Start);

    /// Reports that a worker has been asked to drain, because its successor has taken over, or
    /// because it failed to take over itself.
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

    /// Relays the messages of the worker's program, with their sockets, to this socket instead of
    /// making events of them, and messages written there to the worker, in Node's framing: the
    /// other end of the socket is the channel of a Node primary. `online`, `listening` and
    /// `exitedAfterDisconnect` are relayed too; messages about listeners and connections are not.
    /// Writing Node's `disconnect` to the socket has the effect of
    /// [`WorkerHandle::disconnect`](crate::WorkerHandle::disconnect); closing the socket closes the
    /// worker's channel.
    ///
    /// With `advanced`, worker and program use Node's `serialization: 'advanced'`, which only
    /// relayed workers can.
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

    /// Sets the worker's weight; see [`Fork::weight`](crate::Fork::weight). The adoption fails where
    /// no listener's scheduling goes by weights, and with
    /// [`Builder::activation`](crate::Builder::activation).
    pub fn weight(mut self, weight: u32) -> Adoption {
        self.weight = Some(weight);
        self
    }
}
