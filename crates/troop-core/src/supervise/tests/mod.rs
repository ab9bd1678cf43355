//! A supervisor in a world that does what it orders.

mod activated;
mod assumed;
mod claims;
mod embedded;
mod ends;
mod leaving;
mod listening;
mod operations;
mod own;
mod replacing;

use std::time::Duration;

use super::*;

/// A configuration that differs from another one.
fn changed(mut config: Config, change: impl FnOnce(&mut Config)) -> Config {
    change(&mut config);
    config
}

struct Simulation {
    supervisor: Supervisor,
    now: Time,
    next_worker: u32,
    forks: usize,
    progress: Vec<Progress>,
    asked: Vec<Order>,
    last_ticket: u64,
    answers: Vec<(Ticket, Answer)>,
    /// What clients do not reach when a reload is over.
    unreachable: Vec<String>,
    outcome: Option<Outcome>,
    held: std::collections::BTreeSet<WorkerId>,
    /// Which slot got a worker when.
    forked: Vec<(usize, Time)>,
    /// Workers that are ready and not told to leave.
    serving: std::collections::BTreeSet<WorkerId>,
}

impl Simulation {
    /// Without settling, which has tests of its own.
    fn new(workers: usize) -> Simulation {
        Simulation::with(changed(Config::new(workers), |config| {
            config.replace.min_ready_time = Duration::ZERO;
        }))
    }

    fn with(config: Config) -> Simulation {
        Simulation::around(Supervisor::new(config))
    }

    fn around(mut supervisor: Supervisor) -> Simulation {
        supervisor.start(Time(0));
        let mut simulation = Simulation {
            supervisor,
            now: Time(0),
            next_worker: 0,
            forks: 0,
            progress: vec![],
            asked: vec![],
            last_ticket: 0,
            answers: vec![],
            unreachable: vec![],
            outcome: None,
            held: Default::default(),
            forked: vec![],
            serving: Default::default(),
        };
        simulation.carry_out();
        simulation
    }

    fn carry_out(&mut self) {
        while let Some(order) = self.supervisor.next_order() {
            match order {
                Order::Fork(slot) => {
                    self.next_worker += 1;
                    self.forks += 1;
                    self.forked.push((slot.0, self.now));
                    self.supervisor.forked(self.now, slot, WorkerId(self.next_worker));
                }
                Order::Report(progress) => {
                    if matches!(progress, Progress::GivingUp(_)) {
                        let serving: Vec<_> = self.serving.difference(&self.held).collect();
                        assert!(serving.is_empty(), "{progress:?} while {serving:?} serve");
                    }
                    self.progress.push(progress);
                }
                Order::Hold(worker) => assert!(self.held.insert(worker)),
                Order::Admit(worker) => assert!(self.held.remove(&worker)),
                Order::CheckListeners => {
                    self.supervisor.listeners_checked(self.unreachable.clone());
                }
                Order::Answer(ticket, answer) => {
                    let is_new = self.answers.iter().all(|(other, _)| *other != ticket);
                    assert!(is_new, "{ticket:?} is answered twice");
                    if matches!(answer, Answer::Ready(Ok(_))) {
                        assert!(self.supervisor.is_complete(self.now), "not all are ready");
                    }
                    self.answers.push((ticket, answer));
                }
                Order::Finish(outcome) => self.outcome = Some(outcome),
                other => {
                    if let Order::Disconnect(worker)
                    | Order::Terminate(worker)
                    | Order::Kill(worker) = &other
                    {
                        self.serving.remove(worker);
                    }
                    self.asked.push(other);
                }
            }
        }
    }

    fn up(&mut self, worker: u32) {
        self.supervisor.online(self.now, WorkerId(worker), true);
        self.supervisor.listening(self.now, WorkerId(worker));
        let is_told_to_leave = self.supervisor.leaves_by(WorkerId(worker)).is_some();
        if !is_told_to_leave
            && self.supervisor.standing(self.now, WorkerId(worker)).is_some_and(|(ready, _)| ready)
        {
            self.serving.insert(WorkerId(worker));
        }
        self.carry_out();
    }

    fn request(&mut self, request: Request) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.supervisor.request(self.now, ticket, request);
        self.carry_out();
        ticket
    }

    fn answer(&self, ticket: Ticket) -> Option<&Answer> {
        self.answers.iter().find(|(answered, _)| *answered == ticket).map(|(_, answer)| answer)
    }

    /// The one that a slot has now.
    fn of(&self, slot: usize) -> u32 {
        self.supervisor.slots[slot].current.map_or(0, |member| member.worker.0)
    }

    fn disconnect(&mut self, worker: u32) {
        self.serving.remove(&WorkerId(worker));
        self.supervisor.disconnected(self.now, WorkerId(worker));
    }

    fn exit(&mut self, worker: u32, code: i32) {
        self.disconnect(worker);
        self.supervisor.exited(self.now, WorkerId(worker), ExitHow::Code(code));
        self.carry_out();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0;
        while let Some(due) = self.supervisor.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            turns += 1;
            assert!(turns < 10_000, "the deadline {due:?} does not go away: {:?}", self.supervisor);
            self.supervisor.tick(self.now);
            self.carry_out();
        }
        self.now = end;
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_worker_that_had_come_up_is_replaced_at_once() {
    let mut w = Simulation::new(2);
    w.up(1);
    w.up(2);
    w.pass(10 * SECOND);
    w.exit(1, 1);
    w.pass(Duration::ZERO);
    assert_eq!(w.forks, 3);
}

#[test]
fn quick_deaths_are_spaced_and_end_in_giving_up() {
    let mut w = Simulation::new(1);
    let mut worker = 1;
    while w.outcome.is_none() {
        w.exit(worker, 7);
        let due = w.supervisor.next_deadline().map_or(Duration::ZERO, |due| due.since(w.now));
        w.pass(due);
        worker = w.next_worker;
    }
    let last = Cause::Ended(WorkerId(8), ExitHow::Code(7));
    assert!(
        matches!(&w.outcome, Some(Outcome::GaveUp(GiveUp::NeverReady { cause, .. })) if *cause == last),
        "{:?}",
        w.outcome
    );
    let delays: Vec<_> = w
        .progress
        .iter()
        .filter_map(
            |p| if let Progress::Restarting { delay, .. } = p { Some(*delay) } else { None },
        )
        .collect();
    assert_eq!(delays.len(), 7);
    for (i, delay) in delays.iter().enumerate() {
        let most = Duration::from_millis(100 << i).min(5 * SECOND);
        assert!(*delay >= most.mul_f64(0.75) && *delay <= most, "{i}: {delay:?}");
    }
}

#[test]
fn stopping_waits_for_the_grace_and_can_be_hurried() {
    let mut w = Simulation::new(2);
    w.up(1);
    w.up(2);
    w.supervisor.stop(w.now);
    w.carry_out();
    w.exit(1, 0);
    w.pass(27 * SECOND);
    assert_eq!(w.asked, [Order::Disconnect(WorkerId(1)), Order::Disconnect(WorkerId(2))]);
    w.supervisor.stop(w.now);
    w.pass(2 * SECOND);
    assert_eq!(w.asked[2..], [Order::Terminate(WorkerId(2))]);
    w.supervisor.stop_now(w.now);
    w.carry_out();
    assert_eq!(w.asked.last(), Some(&Order::Kill(WorkerId(2))));
    w.exit(2, 0);
    assert_eq!(w.outcome, Some(Outcome::Stopped { killed: vec![WorkerId(2)] }));
    let mut w = Simulation::new(1);
    w.up(1);
    w.supervisor.stop(w.now);
    w.pass(30 * SECOND);
    assert_eq!(w.asked.last(), Some(&Order::Kill(WorkerId(1))));
}

#[test]
fn with_a_drain_delay_workers_serve_and_are_replaced_until_it_is_over() {
    let config = changed(Config::new(2), |config| config.drain_delay = 10 * SECOND);
    let mut w = Simulation::with(config);
    w.up(1);
    w.up(2);
    w.supervisor.stop(w.now);
    w.carry_out();
    assert_eq!(w.progress.last(), Some(&Progress::StopDelayed { delay: 10 * SECOND }));
    assert_eq!(w.supervisor.state(), SupervisorState::Stopping);
    assert!(w.supervisor.is_stopping() && w.asked.is_empty());
    // Another request changes nothing, and nothing else begins.
    w.supervisor.stop(w.now);
    w.supervisor.reload(w.now);
    w.supervisor.pause(w.now);
    w.supervisor.scale(w.now, 5);
    assert!(!w.supervisor.recycle(w.now, WorkerId(1), "age".into()));
    w.carry_out();
    assert_eq!((w.forks, w.supervisor.wanted()), (2, 2));
    w.exit(1, 1);
    w.pass(SECOND);
    assert_eq!(w.forks, 3);
    w.up(3);
    w.pass(9 * SECOND);
    assert_eq!(w.asked, [Order::Disconnect(WorkerId(3)), Order::Disconnect(WorkerId(2))]);
    w.exit(2, 0);
    w.exit(3, 0);
    assert_eq!(w.outcome, Some(Outcome::Stopped { killed: vec![] }));
    // It can be cut short.
    let config = changed(Config::new(1), |config| config.drain_delay = 10 * SECOND);
    let mut w = Simulation::with(config);
    w.up(1);
    w.supervisor.stop(w.now);
    w.supervisor.stop_now(w.now);
    w.carry_out();
    assert_eq!(w.asked, [Order::Disconnect(WorkerId(1)), Order::Kill(WorkerId(1))]);
}

#[test]
fn a_program_that_does_not_exist_is_not_tried_again() {
    let config = Config::new(3);
    let why = GiveUp::NeverReady {
        ends: 1,
        within: config.restart.window,
        cause: Cause::NotStarted("no such file".into()),
    };
    let mut supervisor = Supervisor::new(config);
    supervisor.start(Time(0));
    supervisor.fork_failed(Time(0), Slot(0), "no such file".into(), true);
    let orders: Vec<_> = std::iter::from_fn(|| supervisor.next_order()).collect();
    assert_eq!(orders.last(), Some(&Order::Finish(Outcome::GaveUp(why))));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever happens in whatever order: never more workers than there may be, no deadline
        /// that stays, and every stop finishes.
        #[test]
        fn any_sequence_ends_well(
            limits in (0usize..3, 0usize..3, any::<bool>(), 0u64..3000, any::<bool>()),
            steps in proptest::collection::vec((0u8..16, 0u32..8, 0u64..4000), 0..80),
        ) {
            let (max_surge, max_unavailable, ends_when_failed, min_ready_time, must_listen) = limits;
            let min_ready_time = Duration::from_millis(min_ready_time);
            let readiness = if must_listen { ReadyWhen::Listening } else { ReadyWhen::Auto };
            let window = 10 * SECOND;
            let mut w = Simulation::with(changed(Config::new(3), |config| { config.replace.max_surge = max_surge; config.replace.max_unavailable = max_unavailable; config.restart.when_failed = if ends_when_failed { WhenFailed::End } else { WhenFailed::Stay }; config.replace.min_ready_time = min_ready_time; config.replace.ready_when = readiness; config.restart.window = window; }));
            let mut tickets = vec![];
            for (what, which, wait) in steps {
                let recent = w.next_worker.saturating_sub(which).max(1);
                match what {
                    0 => w.exit(recent, 1),
                    1 | 2 => w.up(recent),
                    3 => w.supervisor.reload(w.now),
                    4 => w.disconnect(recent),
                    5 => drop(w.supervisor.recycle(w.now, WorkerId(recent), "age".into())),
                    6 => w.supervisor.roll_back(w.now),
                    7 if wait > 3500 => w.supervisor.pause(w.now),
                    8 if wait > 3000 => w.supervisor.scale(w.now, 1 + which as usize % 4),
                    10 => tickets.push(w.request(Request::Reload(vec![]))),
                    11 => tickets.push(w.request(Request::Recycle { worker: WorkerId(recent), reason: "age".into(), claims: vec![] })),
                    12 => tickets.push(w.request(Request::Ready)),
                    13 => tickets.push(w.request(Request::Scale(1 + which as usize % 4))),
                    14 if wait > 3500 => tickets.push(w.request(Request::Pause)),
                    _ => {}
                }
                w.carry_out();
                w.pass(Duration::from_millis(wait));
                let slots = &w.supervisor.slots;
                let alive = slots.iter().flat_map(|p| p.current.iter().chain(&p.successor)).count();
                prop_assert!(alive <= slots.len() + max_surge.max(1), "{alive} members for {} slots", slots.len());
                // The worker of a slot gets connections; a successor does not yet.
                for state in slots {
                    prop_assert!(state.current.is_none_or(|member| !w.held.contains(&member.worker)));
                    prop_assert!(state.successor.is_none_or(|member| w.held.contains(&member.worker)));
                }
                // No worker stays unready for ever.
                let sup = &w.supervisor;
                let is_left = |slot: usize, member: &SlotWorker| {
                    !sup.round.as_ref().is_some_and(|round| round.is_at(slot))
                        && !sup.leaving.iter().any(|leaving| leaving.worker == member.worker)
                };
                let late = slots.iter().enumerate().filter_map(|(slot, state)| Some((slot, state.current?)));
                let late = late.filter(|(slot, member)| member.ready_at(false, &sup.config).is_none() && is_left(*slot, member));
                for (slot, member) in late.filter(|_| sup.phase == RunState::Running && sup.health.been_ready) {
                    prop_assert!(w.now < member.due, "slot {slot}: worker {} is not ready and goes on", member.worker);
                }
                // Nothing is forgotten: what is empty is about to be filled, or is not to be.
                let is_running = w.supervisor.phase == RunState::Running;
                for (slot, state) in slots.iter().enumerate().filter(|(_, state)| is_running && state.current.is_none()) {
                    let is_awaited = w.supervisor.round.as_ref().is_some_and(|round| round.is_at(slot) || round.revives(slot));
                    prop_assert!(state.retry_at.is_some() || state.done.is_some() || is_awaited, "slot {slot} is forgotten");
                }
            }
            // Left alone, every slot has a worker soon.
            w.pass(7 * SECOND);
            let sup = &w.supervisor;
            for (slot, state) in sup.slots.iter().enumerate().filter(|_| sup.phase == RunState::Running) {
                let is_awaited = sup.round.as_ref().is_some_and(|round| round.is_at(slot) || round.revives(slot));
                prop_assert!(state.current.is_some() || state.done.is_some() || is_awaited, "slot {slot} is empty");
            }
            w.supervisor.stop(w.now);
            w.carry_out();
            for worker in 1..=w.next_worker {
                w.exit(worker, 0);
            }
            prop_assert!(w.outcome.is_some());
            // Every operation has been answered.
            for ticket in tickets {
                prop_assert!(w.answers.iter().any(|(answered, _)| *answered == ticket), "{ticket:?} is not answered");
            }
        }
    }
}

#[test]
fn workers_come_and_go_when_it_is_scaled() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.supervisor.scale(simulation.now, 4);
    simulation.carry_out();
    assert_eq!((simulation.forks, simulation.supervisor.wanted()), (4, 4));
    (3..=4).for_each(|worker| simulation.up(worker));
    simulation.supervisor.scale(simulation.now, 1);
    simulation.carry_out();
    assert_eq!(simulation.asked, [2, 3, 4].map(|worker| Order::Disconnect(WorkerId(worker))));
    (2..=4).for_each(|worker| simulation.exit(worker, 0));
    // Only the slot that should have a worker is refilled.
    assert_eq!(simulation.forks, 4);
    simulation.exit(1, 0);
    simulation.pass(Duration::from_secs(1));
    assert_eq!((simulation.forks, simulation.supervisor.unexpected_ends()), (5, 1));
}

#[test]
fn a_worker_that_is_not_needed_any_more_is_not_started_or_let_go() {
    let mut simulation = Simulation::new(1);
    simulation.up(1);
    for workers in [2, 1, 2, 1] {
        simulation.supervisor.scale(simulation.now, workers);
    }
    simulation.carry_out();
    assert_eq!((simulation.forks, &simulation.asked[..]), (1, &[][..]));
    // Workers that were started all the same, or could not be, belong to no slot.
    simulation.supervisor.forked(simulation.now, Slot(1), WorkerId(7));
    simulation.supervisor.forked(simulation.now, Slot(0), WorkerId(8));
    simulation.supervisor.fork_failed(simulation.now, Slot(1), "no".into(), true);
    simulation.carry_out();
    assert_eq!(simulation.asked, [Order::Terminate(WorkerId(7)), Order::Terminate(WorkerId(8))]);
    assert_eq!(simulation.outcome, None);
}

#[test]
fn that_no_more_can_be_started_ends_nobody_who_serves() {
    let mut simulation = Simulation::new(1);
    simulation.up(1);
    simulation.supervisor.scale(simulation.now, 40);
    let slots: Vec<_> = std::iter::from_fn(|| simulation.supervisor.next_order()).collect();
    for order in slots {
        if let Order::Fork(slot) = order {
            simulation.supervisor.fork_failed(
                simulation.now,
                slot,
                "too many processes".into(),
                slot.0 % 2 == 0,
            );
        }
    }
    simulation.carry_out();
    assert!(simulation.asked.is_empty() && simulation.outcome.is_none());
    // They are tried again, and then they are there.
    simulation.pass(Duration::from_secs(10));
    assert_eq!(simulation.forks, 40);
    let (last, before) = simulation.progress.split_last().unwrap();
    assert!(before.iter().all(|progress| matches!(
        progress,
        Progress::Restarting { .. } | Progress::Degraded { .. }
    )));
    assert_eq!(*last, Progress::Recovered { workers: 40 });
}

#[test]
fn a_pause_ends_the_workers_and_a_reload_the_pause() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.supervisor.pause(simulation.now);
    simulation.carry_out();
    assert_eq!(
        (simulation.asked.len(), simulation.supervisor.state()),
        (2, SupervisorState::Paused)
    );
    (1..=2).for_each(|worker| simulation.exit(worker, 0));
    simulation.pass(100 * SECOND);
    assert_eq!((simulation.forks, &simulation.outcome), (2, &None));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    (3..=4).for_each(|worker| simulation.up(worker));
    assert_eq!(
        (simulation.forks, simulation.progress.last()),
        (4, Some(&Progress::ReloadFinished))
    );
}

#[test]
fn some_ends_are_final() {
    let mut simulation = Simulation::with(changed(Config::new(3), |config| {
        config.restart.restart = Restart::OnFailure;
        config.restart.final_codes = vec![78];
    }));
    (1..=3).for_each(|worker| simulation.up(worker));
    simulation.exit(1, 0);
    simulation.exit(2, 78);
    simulation.pass(10 * SECOND);
    assert_eq!((simulation.forks, &simulation.outcome), (3, &None));
    simulation.exit(3, 1);
    simulation.pass(10 * SECOND);
    assert_eq!(simulation.forks, 4);
    simulation.exit(4, 0);
    assert_eq!(simulation.outcome, Some(Outcome::Stopped { killed: vec![] }));
    let mut simulation = Simulation::with(changed(Config::new(1), |config| {
        config.restart.restart = Restart::Never;
    }));
    simulation.exit(1, 3);
    assert_eq!(
        simulation.outcome,
        Some(Outcome::GaveUp(GiveUp::AllEnded { worker: WorkerId(1), how: ExitHow::Code(3) }))
    );
}

#[test]
fn many_who_leave_at_once_have_their_grace() {
    let mut simulation = Simulation::new(100);
    (1..=100).for_each(|worker| simulation.up(worker));
    simulation.supervisor.scale(simulation.now, 1);
    simulation.carry_out();
    assert!(
        simulation.asked.iter().all(|order| matches!(order, Order::Disconnect(_))),
        "{:?}",
        simulation.asked
    );
}

#[test]
fn a_budget_does_not_grow_with_every_up_and_down() {
    let mut simulation = Simulation::new(1);
    for _ in 0..20 {
        simulation.supervisor.scale(simulation.now, 2);
        simulation.supervisor.scale(simulation.now, 1);
    }
    assert_eq!(simulation.supervisor.config.restart.max_ends, 8);
}
