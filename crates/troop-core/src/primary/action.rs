//! What the primary wants done.

use serde::{Deserialize, Serialize};

use super::BindSpec;
#[cfg(doc)]
use super::Primary;
use crate::event::Notice;
use crate::id::{ConnId, ListenerId, WorkerId};
use crate::steer::Instruction;

/// Something the shell has to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Action {
    /// Hand a connection over. The shell keeps its copy until [`Action::Release`].
    Deliver {
        /// To whom.
        worker: WorkerId,
        /// Where it came from.
        listener: ListenerId,
        /// The connection.
        conn: ConnId,
        /// Its number on this worker's channel.
        seq: u64,
        /// Whether the worker takes several connections per message.
        batched: bool,
    },
    /// Close the primary's copy of a connection.
    Release {
        /// Which connection.
        conn: ConnId,
        /// A worker has it.
        taken: bool,
    },
    /// Write a line to a worker.
    Send {
        /// To whom.
        worker: WorkerId,
        /// The line.
        line: Vec<u8>,
    },
    /// Write a line to a worker together with a copy of a listener's socket.
    SendListener {
        /// To whom.
        worker: WorkerId,
        /// Which listener.
        listener: ListenerId,
        /// The place whose socket it is; 0 if the listener has only one.
        shard: u16,
        /// The line.
        line: Vec<u8>,
    },
    /// Write a line to a worker together with a socket that leads nowhere.
    Probe {
        /// To whom.
        worker: WorkerId,
        /// The line.
        line: Vec<u8>,
    },
    /// Accept on a socket from now on, or no longer.
    Watch {
        /// Which listener.
        listener: ListenerId,
        /// The place whose socket it is; 0 if the listener has only one.
        shard: u16,
        /// Whether to accept.
        on: bool,
    },
    /// Accept up to so many connections that wait in a socket of a group, once.
    Take {
        /// Which listener.
        listener: ListenerId,
        /// The place whose socket it is.
        shard: u16,
        /// How many.
        count: u32,
    },
    /// Add a socket to a listener's group, then call [`Primary::opened`].
    Open {
        /// Which listener.
        listener: ListenerId,
    },
    /// Give a listener's group this program.
    Steer {
        /// Which listener.
        listener: ListenerId,
        /// See [`crate::steer::program`].
        program: Vec<Instruction>,
    },
    /// See what waits in the sockets of a group, and call [`Primary::sampled`].
    Sample {
        /// Which listener.
        listener: ListenerId,
    },
    /// See how many descriptors a worker has open, and call [`Primary::counted`] if that can be
    /// known.
    Count {
        /// Which worker.
        worker: WorkerId,
    },
    /// Open a listener, then call [`Primary::bound`].
    Bind {
        /// Its name from now on.
        listener: ListenerId,
        /// Who has asked for it.
        worker: WorkerId,
        /// What to bind.
        spec: BindSpec,
    },
    /// See that the path of a Unix listener leads to its socket, and bind a new one there if not.
    Reach {
        /// Which listener.
        listener: ListenerId,
        /// Who has asked for it now.
        worker: WorkerId,
    },
    /// Close a listener.
    Unbind {
        /// Which.
        listener: ListenerId,
    },
    /// End a worker's process: at once by `SIGKILL`, or, if it is hung, after it had a chance to
    /// say where.
    Kill {
        /// Which worker.
        worker: WorkerId,
        /// It does not do what it should, rather than what it should not.
        hung: bool,
    },
    /// Tell the sender of a user handle whether the worker has it.
    HandleSettled {
        /// Which worker.
        worker: WorkerId,
        /// The ticket from [`Primary::user_handle_sent`].
        ticket: u64,
        /// False if the worker could not receive it.
        delivered: bool,
    },
    /// Report a fact.
    Notify(Notice),
}
