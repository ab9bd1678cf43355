//! Events that are not published yet, and their subscribers.

use std::sync::Arc;

use crate::event::{Bus, Event};
use crate::trace;

/// Events published before the other tasks of a runtime have their turn, so that readers keep up.
const EVENT_BURST: usize = 64;

/// Events of the cluster, in their order.
pub(super) struct Events {
    bus: Arc<Bus>,
    /// What has happened since events were last published.
    pending: Vec<Event>,
    /// Events that were published before an observer has seen them, if there is one.
    unobserved: Option<Vec<Event>>,
}

impl Events {
    pub(super) fn new(bus: Arc<Bus>) -> Events {
        Events { bus, pending: Vec::new(), unobserved: None }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.pending.push(event);
    }

    pub(super) fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        self.pending.extend(events);
    }

    /// Moves the first `count` events here. All of them are moved without a copy.
    pub(super) fn take_from(&mut self, events: &mut Vec<Event>, count: usize) {
        if self.pending.is_empty() && count == events.len() {
            std::mem::swap(&mut self.pending, events);
        } else {
            self.pending.extend(events.drain(..count.min(events.len())));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether there are so many that others should have their turn.
    pub(super) fn are_many(&self) -> bool {
        self.pending.len() > EVENT_BURST
    }

    /// From now on somebody observes all of them.
    pub(super) fn keep_for_observer(&mut self) {
        self.unobserved = Some(Vec::new());
    }

    /// Shows the observer what it has not seen.
    pub(super) fn show(&mut self, observe: &mut impl FnMut(&Event)) {
        let earlier = self.unobserved.as_mut().map(std::mem::take).unwrap_or_default();
        earlier.iter().chain(&self.pending).for_each(observe);
    }

    /// Publishes those that the observer has seen.
    pub(super) fn publish(&mut self) {
        self.pending.iter().for_each(trace::event);
        if self.bus.has_readers() {
            self.bus.publish(&mut self.pending)
        } else {
            self.pending.clear()
        }
    }

    /// The same in the middle of a turn, because an answer follows that the events come before.
    pub(super) fn publish_early(&mut self) {
        if let Some(unobserved) = &mut self.unobserved {
            unobserved.extend(self.pending.iter().cloned());
        }
        self.publish();
    }

    /// Nothing more happens.
    pub(super) fn close(&self) {
        self.bus.close();
    }
}
