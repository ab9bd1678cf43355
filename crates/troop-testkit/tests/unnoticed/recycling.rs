//! Workers that are recycled by themselves, for their age or memory.

use std::ops::RangeToInclusive;
use std::time::Duration;

use tokio::net::TcpStream;
use troop::Event;
use troop::supervise::{Progress, RecyclePolicy};
use troop_testkit::http;

use super::cells::{Cell, Kind, Scene};
use super::{HTTP, RUST};

async fn replaced(scene: &mut Scene, times: usize) {
    for _ in 0..times {
        let replaced = |event: &Event| {
            matches!(event, Event::Supervision(Progress::Replaced { .. })).then_some(())
        };
        scene.troop.until("a replaced worker", replaced).await;
    }
    scene.crowd.all_served().await;
}

async fn of_age(kind: &Kind) {
    let policy = RecyclePolicy::default().age(Some(Duration::from_secs(1)));
    let mut scene = Scene::new(kind, "round-robin", |builder| builder.recycle(policy)).await;
    replaced(&mut scene, 2 * kind.workers).await;
    scene.expect(Cell::Moves, "recycled for age");
    scene.crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_that_old_workers_are_replaced() {
    of_age(&RUST).await;
    of_age(&HTTP).await;
}

/// A connection to a worker with one of these numbers, and what that answers.
async fn connected_to_one_of(
    scene: &Scene,
    numbers: RangeToInclusive<usize>,
) -> (TcpStream, String) {
    loop {
        let mut stream = http::open(scene.port).await;
        let who = http::ask(&mut stream, "/").await.unwrap();
        let number = who.split(' ').next().unwrap().parse().unwrap();
        if numbers.contains(&number) {
            return (stream, who);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_do_not_notice_that_a_big_worker_is_replaced() {
    // A worker that has just started has half of it.
    let policy = RecyclePolicy::default().memory(Some(120 << 20));
    let mut scene = Scene::new(&HTTP, "round-robin", |builder| builder.recycle(policy)).await;
    for _ in 0..2 {
        // A successor that is as big as its predecessor waits for its replacement.
        let (mut stream, grown) = connected_to_one_of(&scene, ..=HTTP.workers).await;
        assert_eq!(http::ask(&mut stream, "/grow").await.unwrap(), grown);
        replaced(&mut scene, 1).await;
        // That connection has moved as well.
        assert_ne!(http::ask(&mut stream, "/").await.expect("it is still open"), grown);
    }
    scene.expect(Cell::Moves, "recycled for memory");
    scene.crowd.stop().await;
}
