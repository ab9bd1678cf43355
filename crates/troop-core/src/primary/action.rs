//! The actions of the primary.

use serde::{Deserialize, Serialize};

use super::worker::HandleWait;
use super::{BindSpec, Primary};
use crate::event::Notice;
use crate::id::{ConnId, ListenerId, WorkerId};
use crate::steer::Instruction;

/// An action that the shell must carry out.
#[derive(Debug, Serialize, Deserialize)]
pub enum Action {
    /// Hand a connection over. The shell keeps its copy until [`Action::Release`].
    Deliver {
        /// The worker.
        worker: WorkerId,
        /// Its listener.
        listener: ListenerId,
        /// The connection.
        conn: ConnId,
        /// Its sequence number on this worker's channel.
        seq: u64,
        /// Whether the worker takes several connections per message.
        batched: bool,
    },
    /// Close the primary's copy of a connection.
    Release {
        /// Which connection.
        conn: ConnId,
        /// Whether a worker has taken it.
        taken: bool,
    },
    /// Write a line to a worker.
    Send {
        /// The worker.
        worker: WorkerId,
        /// The line.
        line: Vec<u8>,
    },
    /// Write a line to a worker together with a copy of a listener's socket.
    SendListener {
        /// The worker.
        worker: WorkerId,
        /// The listener.
        listener: ListenerId,
        /// The shard whose socket it is; 0 if the listener has one socket.
        shard: u16,
        /// The sequence number of the worker's request.
        ack: u64,
        /// The line.
        line: Vec<u8>,
    },
    /// Write a line to a worker together with a socket without a peer (a probe).
    Probe {
        /// The worker.
        worker: WorkerId,
        /// The line.
        line: Vec<u8>,
    },
    /// Start or stop accepting on a socket.
    Watch {
        /// The listener.
        listener: ListenerId,
        /// The shard whose socket it is; 0 if the listener has one socket.
        shard: u16,
        /// Whether to accept.
        on: bool,
    },
    /// Accept up to this many connections from the queue of a shard, once.
    Take {
        /// The listener.
        listener: ListenerId,
        /// The shard.
        shard: u16,
        /// The number of connections.
        count: u32,
    },
    /// Add a shard to a listener's group, then call [`Primary::opened`]. As [`Action::Sample`], it
    /// follows all other actions.
    Open {
        /// The listener.
        listener: ListenerId,
    },
    /// Install a program for a listener's group.
    Steer {
        /// The listener.
        listener: ListenerId,
        /// The program, of [`crate::steer::program`].
        program: Vec<Instruction>,
    },
    /// Read the queue lengths of a listener's shards, then call [`Primary::sampled`]. It follows all
    /// other actions but [`Action::Open`]: reading may renumber shards ([`Primary::renumbered`]), and
    /// queued actions would name them by their old numbers.
    Sample {
        /// The listener.
        listener: ListenerId,
    },
    /// Count the open descriptors of a worker, then call [`Primary::counted`] if the number is
    /// known.
    Count {
        /// The worker.
        worker: WorkerId,
    },
    /// Open a listener, then call [`Primary::bound`].
    Bind {
        /// Its id.
        listener: ListenerId,
        /// The worker that asked for it.
        worker: WorkerId,
        /// What to bind.
        spec: BindSpec,
    },
    /// Check that the path of a Unix listener leads to its socket, and bind a new socket there if
    /// not.
    Reach {
        /// The listener.
        listener: ListenerId,
        /// The worker that asks for it now.
        worker: WorkerId,
    },
    /// Close a listener.
    Unbind {
        /// The listener.
        listener: ListenerId,
    },
    /// End a worker's process by `SIGKILL`; if it is hung, after it had a chance to write a report.
    Kill {
        /// The worker.
        worker: WorkerId,
        /// Whether the reason is that it hangs, rather than a violation.
        hung: bool,
    },
    /// Send a draining worker no stop signal: it sends that to itself.
    Raises {
        /// The worker.
        worker: WorkerId,
    },
    /// Tell the sender of a user handle whether the worker has received it.
    HandleSettled {
        /// The worker.
        worker: WorkerId,
        /// The ticket of [`Primary::user_handle_sent`].
        ticket: u64,
        /// False if the worker could not receive it.
        delivered: bool,
    },
    /// Publish a notice.
    Notify(Notice),
    /// Report the oldest messages of workers' programs that the shell has queued
    /// ([`Primary::message_queued`]).
    Messages {
        /// The number of messages.
        count: usize,
    },
}

impl Action {
    /// Whether it changes nothing but what is known of connections, or nothing at all. A state that is
    /// written down for another shell, in case this one is killed, is not written anew for it.
    #[inline]
    #[must_use]
    pub fn is_of_connections(&self) -> bool {
        matches!(
            self,
            Action::Deliver { .. }
                | Action::Release { .. }
                | Action::Send { .. }
                | Action::Probe { .. }
                | Action::Watch { .. }
                | Action::Take { .. }
                | Action::Sample { .. }
                | Action::Count { .. }
                | Action::HandleSettled { .. }
                | Action::Messages { .. }
        )
    }
}

impl Primary {
    /// Queues the report of a message of a worker's program ([`Action::Messages`]), so that it follows
    /// the notices of everything before it.
    pub fn message_queued(&mut self) {
        match self.actions.back_mut() {
            Some(Action::Messages { count }) => *count += 1,
            _ => self.actions.push_back(Action::Messages { count: 1 }),
        }
    }

    /// Returns whether an action is still valid: since it was queued, its worker may have left or
    /// rejected a connection.
    ///
    /// A worker acknowledges handles in the order in which they are written. The shell writes handles
    /// of the program without an action, so that order differs from the order of the decisions. Each
    /// handle therefore moves to the end of the awaited acknowledgements when it is about to be
    /// written.
    #[inline]
    pub(super) fn is_current(&mut self, action: &Action) -> bool {
        let (worker, wait) = match action {
            Action::Deliver { worker, seq, batched, .. } => {
                let Some(state) = self.workers.get_mut(worker) else { return false };
                if state.cut_off {
                    // Since it was chosen. It would only keep the connection until its end.
                    self.withdraw(self.last_time, *worker, *seq);
                    return false;
                }
                if !batched {
                    state.wait_last(HandleWait::Conn { seq: *seq });
                }
                // Mostly the newest one.
                return state.in_flight.iter().rev().any(|conn| conn.seq == *seq);
            }
            Action::SendListener { worker, listener, ack, .. } => {
                (worker, HandleWait::Listener { ack: *ack, listener: *listener })
            }
            Action::Probe { worker, .. } => (worker, HandleWait::Probe),
            _ => return true,
        };
        self.workers.get_mut(worker).is_some_and(|state| state.wait_last(wait))
    }

    pub(super) fn next_seq(&mut self) -> u64 {
        let seq = self.seq;
        self.seq += 1;
        seq
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        self.actions.push_back(Action::Notify(notice));
    }

    pub(super) fn send(&mut self, worker: WorkerId, write: impl FnOnce(&mut Vec<u8>)) {
        let mut line = Vec::with_capacity(192);
        write(&mut line);
        self.actions.push_back(Action::Send { worker, line });
    }
}
