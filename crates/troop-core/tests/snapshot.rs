//! A primary that is written at any step, read and continued behaves as if nothing had happened.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use proptest::prelude::*;
use simulation::{Input, Simulation, config, input};
use troop_core::primary::Config;

/// What a primary does about these inputs.
fn actions(
    config: Config,
    inputs: &[Input],
    reread_every: Option<u32>,
) -> Result<Vec<String>, TestCaseError> {
    // Workers that are to have successors, where listeners do not wait for those.
    let is_supervised = !config.keep_listeners;
    let mut simulation = Simulation::new(config);
    simulation.primary.set_supervised(is_supervised);
    simulation.log = Some(Vec::new());
    simulation.reread_every = reread_every;
    for input in inputs {
        simulation.happen(input.clone())?;
        if let Some(log) = &mut simulation.log {
            log.push(format!("{:?}", simulation.primary.next_deadline()));
        }
    }
    simulation.end()?;
    Ok(simulation.log.unwrap_or_default())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(48)
    })]

    #[test]
    fn a_primary_restored_from_a_snapshot_at_any_step_behaves_like_the_original(
        inputs in prop::collection::vec(input(), 0..100),
        every in prop_oneof![Just(1u32), 2..20u32],
    ) {
        for keep_listeners in [true, false] {
            let config = || Config { keep_listeners, ..config() };
            prop_assert_eq!(actions(config(), &inputs, None)?, actions(config(), &inputs, Some(every))?);
        }
    }
}
