//! The policy of one listener.

use serde::{Deserialize, Serialize};

use super::{
    ByClient, CallbackPolicy, Connection, LeastConnections, Policy, PowerOfTwo, RoundRobin,
    Weighted, WorkerView,
};
use crate::id::WorkerId;

/// The policy of one listener: plain data, except for policies of the embedding program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ListenerPolicy {
    RoundRobin(RoundRobin),
    Weighted(Weighted),
    LeastConnections(LeastConnections),
    PowerOfTwo(PowerOfTwo),
    ByClient(ByClient),
    Callback(CallbackPolicy),
    #[serde(skip)]
    Custom(Box<dyn Policy>),
}

macro_rules! each {
    ($self:expr, $policy:ident => $call:expr) => {
        match $self {
            ListenerPolicy::RoundRobin($policy) => $call,
            ListenerPolicy::Weighted($policy) => $call,
            ListenerPolicy::LeastConnections($policy) => $call,
            ListenerPolicy::PowerOfTwo($policy) => $call,
            ListenerPolicy::ByClient($policy) => $call,
            ListenerPolicy::Callback($policy) => $call,
            ListenerPolicy::Custom($policy) => $call,
        }
    };
}

impl Policy for ListenerPolicy {
    fn update(&mut self, worker: WorkerView) {
        each!(self, policy => policy.update(worker));
    }

    fn remove(&mut self, worker: WorkerId) {
        each!(self, policy => policy.remove(worker));
    }

    fn pick(&mut self, connection: &Connection) -> Option<WorkerId> {
        each!(self, policy => policy.pick(connection))
    }

    fn needs_peer(&self) -> bool {
        each!(self, policy => policy.needs_peer())
    }

    fn needs_counts(&self) -> bool {
        each!(self, policy => policy.needs_counts())
    }
}
