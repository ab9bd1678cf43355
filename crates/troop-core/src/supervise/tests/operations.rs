//! Operations are answered when they are over, with what became of them.

use super::*;

fn recycle(worker: u32) -> Request {
    Request::Recycle { worker: WorkerId(worker), reason: "age".into(), claims: vec![] }
}

fn with_ready(workers: usize) -> Simulation {
    let mut w = Simulation::new(workers);
    (1..=u32::try_from(workers).unwrap()).for_each(|worker| w.up(worker));
    w
}

fn ended(worker: u32, code: i32) -> ReplaceFailure {
    ReplaceFailure::Ended {
        worker: WorkerId(worker),
        how: ExitHow::Code(code),
        was_ready: false,
        last_lines: None,
    }
}

#[test]
fn a_reload_is_answered_when_the_last_worker_is_replaced() {
    let mut w = with_ready(2);
    let reload = w.request(Request::Reload(vec![]));
    w.up(3);
    assert_eq!(w.answer(reload), None);
    w.up(4);
    let done = Reloaded { replaced: 2, ..Reloaded::default() };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Ok(done))));
    assert_eq!(w.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn a_reload_counts_the_workers_that_it_starts_in_empty_slots() {
    let mut w = with_ready(2);
    w.request(Request::Pause);
    (1..=2).for_each(|worker| w.exit(worker, 0));
    let reload = w.request(Request::Reload(vec![]));
    (3..=4).for_each(|worker| w.up(worker));
    let done = Reloaded { started: 2, ..Reloaded::default() };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Ok(done))));
}

#[test]
fn a_reload_waits_for_a_new_worker_also_where_the_old_one_has_ended_by_itself() {
    let mut w = with_ready(1);
    let reload = w.request(Request::Reload(vec![]));
    w.exit(1, 9);
    assert_eq!(w.answer(reload), None);
    w.exit(2, 1);
    let failed =
        ReloadFailed::Failed { reason: ended(2, 1), replaced: 0, then: Afterwards::Retries };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Err(failed))));
    let mut w = with_ready(1);
    let reload = w.request(Request::Reload(vec![]));
    w.exit(1, 9);
    w.up(2);
    let done = Reloaded { started: 1, ..Reloaded::default() };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Ok(done))));
}

#[test]
fn a_reload_that_fails_names_the_worker_that_ended_and_what_follows() {
    let mut w = with_ready(2);
    let reload = w.request(Request::Reload(vec![]));
    w.up(3);
    w.exit(4, 9);
    let failed =
        ReloadFailed::Failed { reason: ended(4, 9), replaced: 1, then: Afterwards::KeepsRunning };
    assert_eq!(
        failed.to_string(),
        "the new worker ended with exit code 9; 1 worker had been replaced, the others keep running"
    );
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Err(failed))));
}

#[test]
fn a_reload_whose_workers_are_never_ready_says_so() {
    let mut w = with_ready(1);
    let reload = w.request(Request::Reload(vec![]));
    w.pass(31 * SECOND);
    let reason =
        ReplaceFailure::NotReady { worker: Some(WorkerId(2)), within: 30 * SECOND, seen: None };
    let failed = ReloadFailed::Failed { reason, replaced: 0, then: Afterwards::KeepsRunning };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Err(failed))));
}

#[test]
fn a_reload_whose_workers_clients_do_not_reach_has_failed() {
    let mut w = with_ready(1);
    w.unreachable = vec!["/run/app.sock".into()];
    let reload = w.request(Request::Reload(vec![]));
    w.up(2);
    let reason = ReplaceFailure::Unreachable { addresses: vec!["/run/app.sock".into()] };
    let failed = ReloadFailed::Failed { reason, replaced: 1, then: Afterwards::Replaced };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Err(failed))));
    let told = w.progress.iter().filter(|progress| {
        matches!(progress, Progress::ReloadFinished | Progress::ReloadFailed { .. })
    });
    assert_eq!(told.count(), 1);
}

#[test]
fn a_second_reload_is_refused_and_the_first_goes_on() {
    let mut w = with_ready(1);
    let first = w.request(Request::Reload(vec![]));
    let second = w.request(Request::Reload(vec![]));
    assert_eq!(w.answer(second), Some(&Answer::Reload(Err(ReloadFailed::UnderWay))));
    assert_eq!(w.answer(first), None);
    w.up(2);
    assert!(matches!(w.answer(first), Some(Answer::Reload(Ok(_)))));
}

#[test]
fn a_stop_answers_a_reload_that_is_under_way_and_refuses_the_next() {
    let mut w = with_ready(1);
    let reload = w.request(Request::Reload(vec![]));
    w.supervisor.stop(w.now);
    w.carry_out();
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Err(ReloadFailed::Stopped))));
    let late = w.request(Request::Reload(vec![]));
    assert_eq!(w.answer(late), Some(&Answer::Reload(Err(ReloadFailed::Stopping))));
}

#[test]
fn recycling_is_answered_with_the_successor() {
    let mut w = with_ready(2);
    let one = w.request(recycle(2));
    assert_eq!(w.answer(one), None);
    let busy = w.request(recycle(1));
    assert_eq!(w.answer(busy), Some(&Answer::Recycle(Err(RecycleFailed::UnderWay))));
    w.up(3);
    assert_eq!(w.answer(one), Some(&Answer::Recycle(Ok(WorkerId(3)))));
    // It finishes, and is not in service any more.
    let again = w.request(recycle(2));
    assert_eq!(w.answer(again), Some(&Answer::Recycle(Err(RecycleFailed::NotInService))));
}

#[test]
fn recycling_that_does_not_come_to_pass_says_why() {
    let mut w = with_ready(1);
    let failed = w.request(recycle(1));
    w.exit(2, 3);
    assert_eq!(w.answer(failed), Some(&Answer::Recycle(Err(RecycleFailed::Failed(ended(2, 3))))));
    let overtaken = w.request(recycle(1));
    let reload = w.request(Request::Reload(vec![]));
    assert_eq!(w.answer(overtaken), Some(&Answer::Recycle(Err(RecycleFailed::Reloading))));
    w.up(4);
    assert!(matches!(w.answer(reload), Some(Answer::Reload(Ok(_)))));
    let died = w.request(recycle(4));
    w.exit(4, 1);
    assert_eq!(w.answer(died), Some(&Answer::Recycle(Err(RecycleFailed::Ended))));
    w.up(5);
    let paused = w.request(recycle(5));
    w.request(Request::Pause);
    assert_eq!(w.answer(paused), Some(&Answer::Recycle(Err(RecycleFailed::Paused))));
}

#[test]
fn it_is_ready_when_every_slot_has_a_ready_worker() {
    let mut w = Simulation::new(2);
    let ready = w.request(Request::Ready);
    w.up(1);
    assert_eq!(w.answer(ready), None);
    w.up(2);
    assert_eq!(w.answer(ready), Some(&Answer::Ready(Ok(2))));
    let again = w.request(Request::Ready);
    assert_eq!(w.answer(again), Some(&Answer::Ready(Ok(2))));
}

#[test]
fn a_program_that_does_not_listen_is_ready_in_time() {
    let mut w = Simulation::new(1);
    let ready = w.request(Request::Ready);
    w.supervisor.online(w.now, WorkerId(1), true);
    w.pass(2 * SECOND);
    assert_eq!(w.answer(ready), None);
    w.pass(2 * SECOND);
    assert_eq!(w.answer(ready), Some(&Answer::Ready(Ok(1))));
}

#[test]
fn whoever_waits_for_a_start_that_fails_hears_why_it_was_given_up() {
    let mut w = Simulation::with(changed(Config::new(1), |config| {
        config.replace.ready_when = ReadyWhen::Listening;
    }));
    let ready = w.request(Request::Ready);
    w.pass(200 * SECOND);
    let why = GiveUp::NotReady { been_ready: false, within: 120 * SECOND };
    let gave_up = NotReady::GaveUp { why, last_lines: None };
    assert_eq!(w.answer(ready), Some(&Answer::Ready(Err(gave_up))));
}

#[test]
fn whoever_has_ended_for_good_is_not_waited_for() {
    let mut w = Simulation::with(changed(Config::new(3), |config| {
        config.restart.restart = Restart::Never;
        config.replace.min_ready_time = Duration::ZERO;
    }));
    let ready = w.request(Request::Ready);
    w.exit(1, 0);
    w.exit(2, 5);
    assert_eq!(w.answer(ready), None);
    w.up(3);
    let (worker, how) = (WorkerId(2), ExitHow::Code(5));
    let ended = NotReady::Ended { worker, slot: 1, how, ready: 1, wanted: 3 };
    assert_eq!(w.answer(ready), Some(&Answer::Ready(Err(ended))));
}

#[test]
fn scaling_is_over_when_the_new_workers_are_ready_and_the_others_gone() {
    let mut w = with_ready(1);
    let more = w.request(Request::Scale(3));
    w.up(2);
    assert_eq!(w.answer(more), None);
    w.up(3);
    assert_eq!(w.answer(more), Some(&Answer::Scale(Ok(()))));
    let less = w.request(Request::Scale(1));
    w.exit(3, 0);
    assert_eq!(w.answer(less), None);
    w.exit(2, 0);
    assert_eq!(w.answer(less), Some(&Answer::Scale(Ok(()))));
    let none = w.request(Request::Scale(0));
    w.exit(1, 0);
    assert_eq!(w.answer(none), Some(&Answer::Scale(Ok(()))));
}

#[test]
fn another_number_of_workers_supersedes_the_one_before() {
    let mut w = with_ready(1);
    let three = w.request(Request::Scale(3));
    let same = w.request(Request::Scale(3));
    assert_eq!(w.answer(three), None);
    let two = w.request(Request::Scale(2));
    for superseded in [three, same] {
        let answer = Answer::Scale(Err(NotReady::Superseded));
        assert_eq!(w.answer(superseded), Some(&answer));
    }
    w.exit(3, 0);
    w.up(2);
    assert_eq!(w.answer(two), Some(&Answer::Scale(Ok(()))));
}

#[test]
fn a_pause_is_over_when_the_workers_are_gone() {
    let mut w = with_ready(2);
    let scale = w.request(Request::Scale(3));
    let pause = w.request(Request::Pause);
    assert_eq!(w.answer(scale), Some(&Answer::Scale(Err(NotReady::Paused))));
    w.exit(1, 0);
    w.exit(2, 0);
    assert_eq!(w.answer(pause), None);
    w.exit(3, 0);
    assert_eq!(w.answer(pause), Some(&Answer::Pause(Ok(()))));
    let ready = w.request(Request::Ready);
    assert_eq!(w.answer(ready), Some(&Answer::Ready(Err(NotReady::Paused))));
}

#[test]
fn a_ticket_that_nobody_holds_is_not_answered_and_the_operation_goes_on() {
    let mut w = with_ready(1);
    let (reload, ready) = (w.request(Request::Reload(vec![])), w.request(Request::Scale(2)));
    w.supervisor.forget_ticket(reload);
    w.supervisor.forget_ticket(ready);
    (2..=3).for_each(|worker| w.up(worker));
    assert_eq!(w.progress.last(), Some(&Progress::ReloadFinished));
    assert!(w.answers.is_empty(), "{:?}", w.answers);
}

#[test]
fn the_end_names_the_workers_that_had_to_be_killed() {
    let mut w = with_ready(2);
    w.supervisor.stop(w.now);
    w.carry_out();
    w.exit(1, 0);
    w.pass(31 * SECOND);
    w.exit(2, 0);
    let outcome = w.outcome.clone().unwrap();
    assert_eq!(outcome, Outcome::Stopped { killed: vec![WorkerId(2)] });
    assert!(!outcome.is_graceful());
}
