//! The event loop: waits, takes in what happened, lets the core decide, writes, and publishes events;
//! in a plain thread or as a task of a runtime.

use super::*;
use crate::trace;

impl Driver {
    /// Turns until supervision, or the cluster, is over. Every event is shown to `observe`.
    pub(crate) fn run_in_thread(self, mut observe: impl FnMut(&Event)) -> Result<Outcome> {
        let waiting = Error::io("wait for the workers");
        let mut poller = match self.poller.try_clone() {
            Ok(poller) => poller,
            Err(e) => return Err(waiting(e)),
        };
        let mut ready = Vec::new();
        let wake = self.driver_handle.wake.clone();
        let shared = Arc::new(Mutex::new(self));
        wake.allow_direct_io(&shared);
        let mut driver = direct_io::lock(&shared);
        driver.unobserved = Some(Vec::new());
        driver.settle();
        loop {
            let earlier = driver.unobserved.as_mut().map(std::mem::take).unwrap_or_default();
            earlier.iter().chain(&driver.events).for_each(&mut observe);
            driver.publish();
            if driver.orphans.is_empty()
                && driver.operations.is_settled()
                && driver.forks.are_over(driver.now)
                && let Some(outcome) = driver.outcome.take()
            {
                driver.finish();
                driver.answer_ends(&outcome);
                return Ok(outcome);
            }
            if driver.is_over() {
                driver.finish();
                return Ok(Outcome::Stopped { killed: Vec::new() });
            }
            let timeout = driver.time_left();
            driver.looks_at = timeout.map(|timeout| driver.now + timeout);
            let now = driver.origin.elapsed();
            let gathers = !driver.relays.is_empty() && driver.pace.gathers(now);
            drop(driver);
            if gathers {
                std::thread::sleep(pace::GATHER_TIME);
            }
            ready.clear();
            if let Err(e) = poller.wait(timeout, &mut ready) {
                return Err(waiting(e));
            }
            driver = direct_io::lock(&shared);
            driver.take_in(&ready);
        }
    }

    /// Turns as a task of a tokio runtime, until the cluster is over.
    pub(crate) async fn run_in_runtime(mut self) {
        let wake = self.driver_handle.wake.clone();
        self.settle();
        loop {
            let many = self.events.len() > EVENT_BURST;
            self.publish();
            if self.is_over() {
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
        self.bus.close();
        if let Some(outcome) = self.outcome.take() {
            self.answer_ends(&outcome);
        }
    }

    /// Nothing more happens. The process may end right after this, so the last words of workers
    /// are passed on first.
    fn finish(&mut self) {
        self.bus.close();
        self.spawner.finish_output(OUTPUT_FLUSH_TIMEOUT);
    }

    pub(super) fn clock(&self) -> Time {
        Time(1 + u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn is_over(&self) -> bool {
        self.orphans.is_empty()
            && self.operations.is_settled()
            && self.forks.are_over(self.now)
            && (self.outcome.is_some() || (self.over_at.is_some() && self.processes.is_empty()))
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
                Token::Signal(number) => self.signalled(number),
                Token::Socket(number) => self.is_ready(number),
                Token::Inspected(conn) => self.inspect_again(conn),
                Token::Channel(id) => {
                    if ready.writable {
                        self.collect(id);
                    }
                    if ready.readable {
                        // What has ended is read to the end.
                        self.read(
                            id,
                            if ready.ended { channels::LAST_READS } else { channels::READ_BURST },
                            usize::MAX,
                        );
                    }
                }
                Token::Process(id) => self.reap(id),
                Token::Notify => self.read_notifications(),
                Token::Relay(id) => {
                    if ready.writable {
                        self.unflushed_relays.push(id);
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
        self.handle_commands();
        self.tick();
        self.act();
        self.accept();
        self.write();
    }

    /// Writes everything that there is room for.
    pub(super) fn write(&mut self) {
        loop {
            self.flush_batches();
            self.flush();
            self.flush_relays();
            // A channel that has room again may have brought its worker new connections.
            self.act();
            if self.unflushed.is_empty()
                && self.batched.is_empty()
                && self.unflushed_relays.is_empty()
            {
                break;
            }
        }
    }

    fn tick(&mut self) {
        self.cluster.tick(self.now);
        if self.retry_at.is_some_and(|due| due <= self.now) {
            self.retry_at = None;
            self.unflushed.append(&mut self.retry);
            self.unflushed_relays.append(&mut self.retry_relays);
        }
        self.look_for_clients();
        self.tick_orphans();
        self.inspect_late();
        self.answer_late();
        self.offer_channels();
        self.look_at_descriptors();
        self.watch_again();
        self.tick_listener_checks();
        self.look_at_closing();
        self.complete_answers();
        self.notify_shutdown_waiters();
        if self.over_at.is_some_and(|due| due <= self.now) {
            for process in self.processes.values() {
                let _ = process::signal(process.pidfd.as_fd(), 9);
            }
            self.over_at = Some(self.now + DROPPED_EXIT_TIMEOUT);
        }
    }

    /// How long to wait at most.
    pub(super) fn time_left(&self) -> Option<Duration> {
        if self.can_accept() || !self.unflushed.is_empty() || !self.unflushed_relays.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.cluster.next_deadline(),
            self.retry_at,
            self.demand_deadline(),
            self.reclaimed_channels.next_deadline(),
            self.accept_again,
            self.scarcity.next_deadline(),
            self.over_at,
            self.inspected.next_deadline(),
            self.questions.next_deadline(),
            self.orphans.next_deadline(),
            self.upkeep_at,
            self.closing_at,
            self.operations.next_deadline(),
            self.forks.next_deadline(self.now),
        ];
        let due = deadlines.into_iter().flatten().min()?;
        // Rounded up, so that the deadline has come when the wait is over.
        Some(Duration::from_millis(due.0.saturating_sub(self.now.0).max(1)))
    }

    /// The same in the middle of a turn, because an answer follows that the events come before.
    pub(super) fn publish_early(&mut self) {
        if let Some(unobserved) = &mut self.unobserved {
            unobserved.extend(self.events.iter().cloned());
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.events.iter().for_each(trace::event);
        if self.bus.has_readers() {
            self.bus.publish(&mut self.events)
        } else {
            self.events.clear()
        }
    }
}
