//! The shell of a primary is killed at any moment, and another one goes on with what was written down.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use std::cell::Cell;

use proptest::prelude::*;
use simulation::{Input, Simulation, config, input};
use troop_core::primary::Config;

thread_local! {
    static SEEN: Cell<(u32, u32, u32)> = const { Cell::new((0, 0, 0)) };
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(1500)
    })]

    /// Between two inputs, or when all actions of one are carried out and its changes not written down.
    #[test]
    fn another_shell_goes_on_whenever_one_is_killed_and_loses_only_what_it_had_just_accepted(
        inputs in prop::collection::vec((input(), 0..12u32), 0..150),
    ) {
        let mut simulation = Simulation::new(Config { hang_timeout: None, ..config() });
        simulation.keep();
        for (input, fate) in inputs {
            match fate {
                0 => {
                    simulation.happen_late(input)?;
                    simulation.carry_out_all()?;
                    simulation.crash(|conn| conn.0 % 3 > 0)?;
                }
                1 => {
                    simulation.happen(input)?;
                    simulation.crash(|conn| conn.0 % 3 > 0)?;
                }
                _ => simulation.happen(input)?,
            }
        }
        let crashes = &simulation.crashes;
        let (count, lost, held) = SEEN.get();
        SEEN.set((count + crashes.count, lost + crashes.lost, held + crashes.held));
        simulation.happen(Input::Pass { ms: 40_000 })?;
        simulation.end()?;
    }
}

#[test]
fn the_simulation_crashes_and_holds_connections() {
    another_shell_goes_on_whenever_one_is_killed_and_loses_only_what_it_had_just_accepted();
    let (count, lost, held) = SEEN.get();
    assert!(count > 1000 && lost > 100 && held > 100, "{count} crashes, {lost} lost, {held} held");
}
