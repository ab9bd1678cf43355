//! A worker that listens is asked for a sign of life when it has been silent, and ended when it gives none.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod world;

use std::time::Duration;

use troop_core::WorkerId;
use troop_core::primary::Config;
use world::{Input, World};

const ACK: &str = r#"{"cmd":"NODE_HANDLE_ACK"}"#;
const NACK: &str = r#"{"cmd":"NODE_HANDLE_NACK"}"#;

fn listening(config: Config) -> (World, WorkerId) {
    let mut world = World::new(config);
    world.happen(Input::Fork { troop: false }).unwrap();
    world.happen(Input::Query { worker: 0, port: 1, fails: false }).unwrap();
    let worker = world.worker(0).unwrap();
    (world, worker)
}

fn listens(world: &mut World) {
    world.happen(Input::Listening { worker: 0, port: 1 }).unwrap();
    world.sent.clear();
}

fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms / 100 {
        world.happen(Input::Pass { ms: 100 }).unwrap();
    }
}

/// The numbers of the connections to nothing that it was handed.
fn asked(world: &World) -> Vec<u64> {
    let lines = world.sent.iter().map(|(_, line)| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["msg"]["key"] == "troop:probe").map(|line| line["msg"]["seq"].as_u64().unwrap()).collect()
}

fn refusal(seq: u64) -> String {
    format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":false,"seq":5}}"#)
}

#[test]
fn one_that_gives_no_sign_of_life_is_ended_when_its_time_is_over() {
    let (mut world, worker) = listening(Config::default());
    listens(&mut world);
    world.primary.heard(world.now, worker);
    pass(&mut world, 9_900);
    assert!(asked(&world).is_empty());
    pass(&mut world, 200);
    assert_eq!(asked(&world).len(), 1);
    pass(&mut world, 29_700);
    assert!(!world.primary.is_cut_off(worker));
    assert_eq!(asked(&world).len(), 1, "once is enough");
    pass(&mut world, 400);
    assert!(world.primary.is_cut_off(worker));
}

#[test]
fn every_answer_and_every_other_word_is_a_sign_of_life() {
    for answers in
        [vec!["ack", "refusal"], vec!["refusal"], vec!["refusal", "late ack"], vec!["nack"], vec!["heard"], vec!["unasked"]]
    {
        let (mut world, worker) = listening(Config::default());
        listens(&mut world);
        for round in 0..10 {
            world.sent.clear();
            pass(&mut world, 25_000);
            let [.., seq] = asked(&world)[..] else { panic!("{answers:?}, round {round}: it was not asked") };
            for answer in &answers {
                match *answer {
                    "ack" => world.says(worker, ACK),
                    "nack" => world.says(worker, NACK),
                    "refusal" => world.says(worker, &refusal(seq)),
                    "heard" => world.primary.heard(world.now, worker),
                    "unasked" => world.primary.probe_unsent(world.now, worker),
                    _ => {}
                }
                world.act().unwrap();
            }
            if answers == ["heard"] {
                break;
            }
        }
        pass(&mut world, 29_000);
        assert!(!world.primary.is_cut_off(worker), "{answers:?}");
        assert_eq!(world.violations(worker), 0, "{answers:?}");
    }
}

#[test]
fn a_refusal_counts_once() {
    let (mut world, worker) = listening(Config::default());
    listens(&mut world);
    pass(&mut world, 11_000);
    let seq = asked(&world)[0];
    world.says(worker, &refusal(seq));
    assert_eq!(world.violations(worker), 0);
    world.says(worker, &refusal(seq));
    assert_eq!(world.violations(worker), 1);
}

#[test]
fn who_starts_up_or_leaves_or_may_take_its_time_is_not_asked() {
    let (mut world, worker) = listening(Config::default());
    pass(&mut world, 60_000);
    assert!(asked(&world).is_empty(), "it does not listen yet");
    listens(&mut world);
    world.primary.disconnect(worker, true, None);
    world.act().unwrap();
    pass(&mut world, 60_000);
    assert!(asked(&world).is_empty(), "it leaves");

    let (mut world, worker) = listening(Config { hang_timeout: None, ..Config::default() });
    listens(&mut world);
    pass(&mut world, 60_000);
    assert!(asked(&world).is_empty());
    assert!(!world.primary.is_cut_off(worker));
}

#[test]
fn nobody_is_blamed_for_the_time_in_which_the_primary_stood_still() {
    let (mut world, worker) = listening(Config { hang_timeout: Some(Duration::from_secs(3)), ..Config::default() });
    listens(&mut world);
    pass(&mut world, 2_000);
    assert_eq!(asked(&world).len(), 1);
    world.now = world.now + Duration::from_secs(50);
    world.primary.tick(world.now);
    world.act().unwrap();
    assert!(!world.primary.is_cut_off(worker), "nobody could read its answer");
    pass(&mut world, 3_200);
    assert!(world.primary.is_cut_off(worker));
}
