//! When workers with activated sockets are ready.

use super::*;

#[test]
fn a_worker_with_activated_sockets_is_ready_when_it_waits_for_connections_or_has_long_run() {
    let config = changed(Config::new(1), |config| {
        config.is_activated = true;
        config.replace.min_ready_time = Duration::ZERO;
    });
    let mut w = Simulation::with(config);
    w.supervisor.online(w.now, WorkerId(1), false);
    w.pass(9 * SECOND);
    assert!(!w.supervisor.is_complete(w.now));
    w.pass(SECOND);
    assert!(w.supervisor.is_complete(w.now));
    // Its successor is seen to wait.
    w.supervisor.reload(w.now);
    w.carry_out();
    w.supervisor.online(w.now, WorkerId(2), false);
    w.supervisor.listening(w.now, WorkerId(2));
    w.carry_out();
    assert_eq!(w.asked, [Order::Disconnect(WorkerId(1))]);
    w.exit(1, 0);
    // So the next one must be, too.
    w.supervisor.reload(w.now);
    w.carry_out();
    w.supervisor.online(w.now, WorkerId(3), false);
    w.pass(30 * SECOND);
    assert!(matches!(w.progress.last(), Some(Progress::ReloadFailed { .. })), "{:?}", w.progress);
    assert_eq!(w.asked.last(), Some(&Order::Disconnect(WorkerId(3))));
}
