//! The signals that workers get before they are killed.

use super::*;

#[test]
fn a_worker_gets_a_signal_that_its_program_can_handle_before_it_is_killed_however_short_the_grace()
{
    for (grace, last) in [(400, 200), (2000, 1000), (4000, 3000), (8000, 6000), (30_000, 28_000)] {
        let (grace, last) = (Duration::from_millis(grace), Duration::from_millis(last));
        let with = |change: fn(&mut Simulation)| {
            let mut w = Simulation::with(changed(Config::new(1), |config| config.grace = grace));
            w.up(1);
            w.supervisor.stop(w.now);
            w.carry_out();
            change(&mut w);
            w.pass(last - Duration::from_millis(1));
            let early = w.asked.len();
            w.pass(Duration::from_millis(1));
            let late = w.asked[early..].to_vec();
            w.pass(grace - last);
            assert_eq!(w.asked[early + late.len()..], [Order::Kill(WorkerId(1))]);
            late
        };
        assert_eq!(with(|_| {}), [Order::Terminate(WorkerId(1))]);
        // One that had the stop signal gets the kill signal.
        let signalled = with(|w| w.supervisor.signalled(WorkerId(1)));
        assert_eq!(signalled, [Order::Insist(WorkerId(1))]);
        // One whose channel is closed had the stop signal before that.
        let gone = with(|w| w.supervisor.disconnected(w.now, WorkerId(1)));
        assert_eq!(gone, [Order::Insist(WorkerId(1))]);
    }
}

#[test]
fn a_worker_that_sends_itself_the_stop_signal_gets_it_once() {
    let with = |is_reported: bool| {
        let mut w = Simulation::new(1);
        let ends_by = EndSignals { stop: 2, kill: None };
        w.supervisor.ends_by(WorkerId(1), ends_by);
        w.up(1);
        // Before it is to finish, there is none, and a report has no effect.
        assert_eq!(w.supervisor.stop_signal(w.now, WorkerId(1)), None);
        w.supervisor.signalled(WorkerId(1));
        w.supervisor.stop(w.now);
        w.carry_out();
        assert_eq!(w.supervisor.stop_signal(w.now, WorkerId(1)), Some((2, 2 * SECOND)));
        (0..2).filter(|_| is_reported).for_each(|_| w.supervisor.signalled(WorkerId(1)));
        w.disconnect(1);
        w.pass(27 * SECOND);
        w.asked
    };
    let both = [Order::Disconnect(WorkerId(1)), Order::Terminate(WorkerId(1))];
    assert_eq!(with(false), both);
    assert_eq!(with(true), both[..1]);
}

#[test]
fn a_worker_that_a_late_signal_ends_has_not_finished_in_time() {
    let with = |ends_by: EndSignals, is_signalled: bool, time: Duration, how: ExitHow| {
        let mut w = Simulation::new(1);
        w.supervisor.ends_by(WorkerId(1), ends_by);
        w.up(1);
        w.supervisor.stop(w.now);
        w.carry_out();
        if is_signalled {
            w.supervisor.signalled(WorkerId(1));
        }
        w.pass(time);
        w.supervisor.exited(w.now, WorkerId(1), how);
        w.carry_out();
        let is_late = w.progress.contains(&Progress::GraceOver(WorkerId(1)));
        assert_eq!(w.outcome.unwrap().is_graceful(), !is_late);
        is_late
    };
    let (term, int) = (ExitHow::Signal(15), ExitHow::Signal(2));
    let both = EndSignals { stop: 2, kill: Some(15) };
    let late = 29 * SECOND;
    assert!(with(EndSignals::default(), false, late, term));
    assert!(with(both, true, late, term), "by the kill signal");
    for (ends_by, is_signalled, time, how) in [
        (EndSignals::default(), false, late, ExitHow::Code(0)),
        // It had the whole grace period to handle the signal, and raised it again at its end.
        (EndSignals::default(), true, late, term),
        (both, true, late, int),
        (EndSignals::default(), true, SECOND, term),
    ] {
        assert!(!with(ends_by, is_signalled, time, how), "{ends_by:?} {how:?}");
    }
}
