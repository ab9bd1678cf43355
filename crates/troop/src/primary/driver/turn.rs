//! The event loop: waits, takes in what happened, lets the core decide, writes, and publishes events;
//! in a plain thread or as a task of a runtime.

use std::io;
use std::time::Duration;

use troop_core::Time;
use troop_core::supervise::Outcome;
use troop_sys::fault;
use troop_sys::poll::Ready;

use super::channels::{LAST_READS, READ_BURST, pace};
use super::poller::EventPoller;
use super::{Driver, Token};
use crate::embed::direct_io::SharedDriver;
use crate::error::{Error, Result};
use crate::event::Event;
#[cfg(doc)]
use crate::primary::wake::Command;

/// The input that comes next.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Commands of the program.
    Commands,
    /// Ends of processes that were found in this turn.
    Ends,
    /// Deadlines.
    Time,
    /// New connections.
    Accept,
    /// Room in the channels.
    Write,
}

impl Driver {
    /// Turns until supervision, or the cluster, is over. Every event is shown to `observe`.
    pub(crate) fn run_in_thread(self, mut observe: impl FnMut(&Event)) -> Result<Outcome> {
        let waiting = Error::io("wait for the workers");
        let mut poller = match self.poller.try_clone() {
            Ok(poller) => poller,
            Err(e) => return Err(waiting(e)),
        };
        let mut ready = Vec::new();
        let wake = self.inbox.handle().wake.clone();
        let shared = SharedDriver::new(self);
        wake.direct_io.allow(&shared);
        let mut driver = shared.lock();
        driver.events.keep_for_observer();
        driver.reap_earlier();
        driver.settle();
        loop {
            driver.events.show(&mut observe);
            driver.events.publish();
            if driver.prepare_replacement() {
                driver.events.show(&mut observe);
                driver.events.publish();
                driver.leave();
            }
            if driver.keep_state() {
                driver.hear_keeper();
                driver.take_in(&[]);
                continue;
            }
            if driver.is_over() {
                // Nobody is to go on.
                driver.close_copies();
                driver.finish();
                let outcome = driver.ending.take_outcome();
                return Ok(outcome.unwrap_or(Outcome::Stopped { killed: Vec::new() }));
            }
            let timeout = driver.time_left();
            driver.wakes_at = timeout.map(|timeout| driver.now + timeout);
            let now = driver.origin.elapsed();
            let gathers = driver.channels.gathers(now);
            drop(driver);
            if gathers {
                std::thread::sleep(pace::GATHER_TIME);
            }
            ready.clear();
            if let Err(e) = poller.wait(timeout, &mut ready) {
                return Err(waiting(e));
            }
            driver = shared.lock();
            driver.take_in(&ready);
        }
    }

    /// Turns as a task of a tokio runtime, until the cluster is over.
    pub(crate) async fn run_in_runtime(mut self) {
        let wake = self.inbox.handle().wake.clone();
        self.settle();
        loop {
            let many = self.events.are_many();
            self.events.publish();
            if self.is_over() {
                self.shut_listeners();
                break;
            }
            let timeout = self.time_left();
            let mut look = true;
            if self.unfinished || many || timeout == Some(Duration::ZERO) {
                tokio::task::yield_now().await;
            } else {
                let EventPoller::InRuntime(poller) = &mut self.poller else { break };
                let deadline = async {
                    match timeout {
                        Some(timeout) => tokio::time::sleep(timeout).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    ready = poller.ready() => if ready.is_err() { break },
                    () = wake.notify.notified() => look = false,
                    () = deadline => look = false,
                }
            }
            if look {
                if self.turn().is_err() {
                    break;
                }
            } else {
                self.now = self.clock();
                self.settle();
            }
        }
        self.events.close();
        self.ending.take_outcome();
    }

    pub(super) fn clock(&self) -> Time {
        Time(1 + u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Looks once and does what there is to do. Inside a runtime, whose epoll set reports this one
    /// once for each thing that happens, `unfinished` says that there is more to do without
    /// anything new happening.
    fn turn(&mut self) -> io::Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let looked = self.poller.poll(&mut ready);
        self.unfinished = ready.len() >= self.poller.capacity();
        self.take_in(&ready);
        self.ready = ready;
        looked
    }

    /// Does what there is to do, about this and otherwise.
    fn take_in(&mut self, ready: &[Ready]) {
        self.now = self.clock();
        for ready in ready {
            match Token::unpack(ready.token) {
                Token::EventFd => {}
                Token::Signal => self.signalled(),
                Token::Socket(number) => self.listeners.is_ready(number),
                Token::Inspected(conn) => self.inspect_again(conn),
                Token::Channel(id) => {
                    if ready.writable {
                        self.collect(id);
                    }
                    if ready.readable {
                        // What has ended is read to the end.
                        self.read(
                            id,
                            if ready.ended { LAST_READS } else { READ_BURST },
                            usize::MAX,
                        );
                    }
                }
                Token::Process(id) => self.workers.may_have_ended(id),
                Token::Notify(id) => self.read_notifications(id),
                Token::Keeper => self.hear_keeper(),
                Token::Relay(id) => {
                    if ready.writable {
                        self.channels.flush_relay_soon(id);
                    }
                    if ready.readable {
                        self.read_relay(id, ready.ended);
                    }
                }
            }
        }
        self.settle();
    }

    /// Does everything that does not need waiting for.
    fn settle(&mut self) {
        let first = if self.inbox.open() { Stage::Commands } else { Stage::Ends };
        self.carry_out(first);
    }

    /// Writes everything that there is room for.
    pub(super) fn write(&mut self) {
        self.carry_out(Stage::Write);
    }

    /// Carries out the core's actions, and takes further inputs from this stage on. Nothing else takes
    /// actions out of the core's queue: inputs only report to the core, and what follows is carried
    /// out here.
    ///
    /// The poller's reports of a turn precede all actions; the core drops actions that are out of
    /// date by then. The queue is empty before each of the other inputs, which build on the outcome
    /// of earlier ones: the program has seen the answer to one command when it gives the next (and
    /// [`Command::ForksToCome`] does not survive an exit that is reported later), accepting needs the
    /// descriptors of connections that are to be closed, and writing makes room for more.
    ///
    /// Ends of processes come after the commands: a program that ends a worker says so before it
    /// sends the signal ([`Command::Release`]), and what it has ended has no successor.
    fn carry_out(&mut self, mut stage: Stage) {
        self.channels.note_acting();
        fault::point("acting");
        loop {
            while let Some(action) = self.cluster.next_action(self.now) {
                self.apply(action);
            }
            self.workers.remove_ended();
            if self.send_answers() || self.notify_shutdown_waiters() {
                continue;
            }
            match stage {
                Stage::Commands if self.handle_next_command() => {}
                Stage::Commands => stage = Stage::Ends,
                Stage::Ends => {
                    self.reap_ended();
                    stage = Stage::Time;
                }
                Stage::Time => {
                    self.tick();
                    stage = Stage::Accept;
                }
                Stage::Accept => {
                    self.accept();
                    stage = Stage::Write;
                }
                Stage::Write if self.has_urgent_change() => self.keep_urgent_change(),
                Stage::Write if self.send_kept_answers() => {}
                Stage::Write if self.channels.has_unflushed() || self.channels.has_batches() => {
                    self.flush_batches();
                    self.flush();
                    fault::point("written");
                    self.channels.flush_relays(self.now, &mut self.poller);
                }
                Stage::Write => break,
            }
        }
    }

    fn tick(&mut self) {
        self.cluster.tick(self.now);
        self.channels.retry(self.now);
        self.look_for_clients();
        self.workers.tick(self.now);
        self.tick_strays();
        self.tick_starts();
        if self.workers.is_starting() {
            self.start_next();
        }
        self.inspect_late();
        self.answer_late();
        self.channels.offer_reclaimed(self.now, &self.cluster.primary);
        self.check_descriptors();
        self.watch_again();
        self.tick_listener_checks();
        self.tick_abandoned();
        self.tick_refusing();
        self.closing.tick(self.now);
        self.complete_answers();
        self.kill_late();
        self.replace_doubted();
    }

    /// How long to wait at most.
    pub(super) fn time_left(&self) -> Option<Duration> {
        if self.can_accept() || self.channels.has_unflushed() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.cluster.next_deadline(),
            self.channels.next_deadline(),
            self.listeners.next_deadline(),
            self.scarcity.next_deadline(),
            self.ending.next_deadline(),
            self.inspected.next_deadline(),
            self.questions.next_deadline(),
            self.closing.next_deadline(),
            self.operations.next_deadline(),
            self.workers.next_deadline(self.now),
            self.replacement_deadline(),
            self.keep_deadline(),
            self.doubted_deadline(),
            self.hold_deadline(),
        ];
        let due = deadlines.into_iter().flatten().min()?;
        // Rounded up, so that the deadline has come when the wait is over.
        Some(Duration::from_millis(due.0.saturating_sub(self.now.0).max(1)))
    }
}
