//! Messages, questions and sockets between a primary and its Rust workers.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod sockets;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::{Value, json};
use sockets::{read_all, tcp_pair};
use troop::event::ExitHow;
use troop::{Error, Event, Handle, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop};

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

async fn echo() -> (Troop, WorkerHandle) {
    let troop = Troop::with(fixture(["echo"]));
    let worker = troop.fork().await;
    (troop, worker)
}

// ---- values ----

#[tokio::test]
async fn any_value_arrives_as_it_was_sent() {
    let (mut troop, worker) = echo().await;
    let long = "ü\u{2028}\n\0\"\\".repeat(100_000);
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let values = [
        json!(null),
        json!(true),
        json!(42),
        json!(-1.5),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("text\nwith\r\nlines \u{2028} and \0 and \u{10ffff}"),
        json!([]),
        json!({}),
        json!({"cmd": "NODE_"}),
        json!({"cmd": "MINE", "act": "online"}),
        json!({"nested": {"cmd": "NODE_CLUSTER", "act": "disconnect"}}),
        json!({"troop": "something"}),
        json!({"troop": "request"}),
        json!({"__proto__": {"a": 1}}),
        json!([1, "two", {"three": [3.0]}]),
        json!(long),
        deep,
    ];
    for value in values {
        worker.send(&value).await.unwrap();
        let answer = troop.message(&worker).await;
        assert!(answer["echo"] == value, "{} came back as {}", short(&value), short(&answer));
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

#[tokio::test]
async fn any_type_that_serde_knows_can_be_sent() {
    type Anything = (
        Result<u8, String>,
        Option<char>,
        Duration,
        std::net::SocketAddr,
        BTreeMap<u64, Vec<f64>>,
        [(); 2],
    );
    let anything: Anything = (
        Err("no".into()),
        Some('ß'),
        Duration::from_nanos(1_500_000_001),
        ([127, 0, 0, 1], 80).into(),
        BTreeMap::from([(1, vec![0.1, -2.5e300]), (u64::MAX, vec![])]),
        [(), ()],
    );
    let (mut troop, worker) = echo().await;
    worker.send(&anything).await.unwrap();
    let id = worker.id();
    let back = troop.until("the echo", |e| match e {
        Event::Message { worker: w, message: m, .. } if w.id() == id => {
            Some(m.decode::<BTreeMap<String, Anything>>().unwrap())
        }
        _ => None,
    });
    assert_eq!(back.await["echo"], anything);
}

#[tokio::test]
async fn json_that_has_line_breaks_of_its_own_is_one_message() {
    let (mut troop, worker) = echo().await;
    let raw = serde_json::value::RawValue::from_string(
        "{\n  \"pretty\": [\n    1,\r\n    2\n  ]\n}".into(),
    )
    .unwrap();
    worker.send(&raw).await.unwrap();
    worker.send(&"next").await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"echo": {"pretty": [1, 2]}}));
    assert_eq!(troop.message(&worker).await, json!({"echo": "next"}));
    let answer: Value = worker.request(&raw, TEST_TIMEOUT).await.unwrap();
    assert_eq!(answer, json!({"you asked": {"pretty": [1, 2]}}));
}

#[tokio::test]
async fn a_megabyte_of_line_breaks_is_one_message() {
    let (mut troop, worker) = echo().await;
    let count = (1 << 20) / 4;
    let pretty = format!("[\n0{}]", ",\n\n1".repeat(count));
    assert!(pretty.len() >= 1 << 20);
    let raw = serde_json::value::RawValue::from_string(pretty).unwrap();
    let is_whole = |values: &Value| {
        let values = values.as_array().unwrap();
        values.len() == count + 1 && values[0] == 0 && values[1..].iter().all(|v| *v == 1)
    };
    worker.send(&raw).await.unwrap();
    assert!(is_whole(&troop.message(&worker).await["echo"]));
    let answer: Value = worker.request(&raw, TEST_TIMEOUT).await.unwrap();
    assert!(is_whole(&answer["you asked"]));
    let (client, server) = tcp_pair();
    worker.send_handle("tcp", server).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"used": "tcp"}));
    assert_eq!(read_all(client), "tcp from the worker");
}

#[tokio::test]
async fn a_value_that_is_not_json_is_rejected_and_nothing_is_sent() {
    let (mut troop, worker) = echo().await;
    let bad = BTreeMap::from([((1, 2), "a key that is no text")]);
    assert!(matches!(worker.send(&bad).await, Err(Error::Json(_))));
    assert!(matches!(worker.try_send(&bad), Err(Error::Json(_))));
    assert!(matches!(worker.request::<_, Value>(&bad, TEST_TIMEOUT).await, Err(Error::Json(_))));
    worker.send(&1).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"echo": 1}));
}

#[tokio::test]
async fn messages_arrive_in_order() {
    let (mut troop, worker) = echo().await;
    for n in 0..2000 {
        worker.send(&n).await.unwrap();
    }
    for n in 0..2000 {
        assert_eq!(troop.message(&worker).await, json!({"echo": n}));
    }
}

#[tokio::test]
async fn messages_sent_before_the_worker_runs_wait_for_it() {
    let troop = Troop::with(fixture(["echo"]));
    let worker = troop.fork().await;
    worker.try_send(&"early").unwrap();
    let mut troop = troop;
    assert_eq!(troop.message(&worker).await, json!({"echo": "early"}));
}

#[tokio::test]
async fn a_broadcast_reaches_every_worker() {
    let mut troop = Troop::with(fixture(["echo"]));
    let workers = [troop.fork().await, troop.fork().await, troop.fork().await];
    let outcome = troop.cluster.broadcast(&"all");
    assert_eq!((outcome.sent, outcome.failed.len()), (3, 0));
    for worker in &workers {
        assert_eq!(troop.message(worker).await, json!({"echo": "all"}));
    }
    workers[1].kill(9).await.unwrap();
    troop.exit(&workers[1]).await;
    assert_eq!(troop.cluster.broadcast(&"the rest").sent, 2);
}

// ---- questions ----

#[tokio::test]
async fn a_question_is_answered() {
    let (_troop, worker) = echo().await;
    let answer: Value = worker.request(&json!({"n": 1}), TEST_TIMEOUT).await.unwrap();
    assert_eq!(answer, json!({"you asked": {"n": 1}}));
}

#[tokio::test]
async fn many_questions_at_once_get_their_own_answers() {
    let (_troop, worker) = echo().await;
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let worker = worker.clone();
            tokio::spawn(
                async move { (n, worker.request::<_, Value>(&n, TEST_TIMEOUT).await.unwrap()) },
            )
        })
        .collect();
    for task in tasks {
        let (n, answer) = task.await.unwrap();
        assert_eq!(answer, json!({"you asked": n}));
    }
}

#[tokio::test]
async fn a_refusal_has_its_reason() {
    let (_troop, worker) = echo().await;
    let answer = worker.request::<_, Value>("refuse", TEST_TIMEOUT).await;
    assert!(matches!(&answer, Err(Error::Refused(reason)) if reason == "I will not"), "{answer:?}");
}

#[tokio::test]
async fn a_request_without_a_reply_times_out() {
    let (_troop, worker) = echo().await;
    let limit = Duration::from_millis(300);
    let answer = worker.request::<_, Value>("silence", limit).await;
    assert!(matches!(answer, Err(Error::TimedOut(t)) if t == limit), "{answer:?}");
    // A late answer to it would not be taken for another question's.
    assert_eq!(
        worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap(),
        json!({"you asked": 1})
    );
}

#[tokio::test]
async fn a_request_to_a_worker_that_dies_fails_at_once() {
    let (mut troop, worker) = echo().await;
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    let asker = worker.clone();
    let asking =
        tokio::spawn(async move { asker.request::<_, Value>("silence", TEST_TIMEOUT).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    worker.kill(9).await.unwrap();
    assert!(matches!(asking.await.unwrap(), Err(Error::Closed)));
    troop.exit(&worker).await;
    assert!(matches!(worker.request::<_, Value>(&1, TEST_TIMEOUT).await, Err(Error::Closed)));
}

#[tokio::test]
async fn an_answer_of_another_shape_is_an_error_of_its_own() {
    let (_troop, worker) = echo().await;
    assert!(matches!(worker.request::<_, Vec<u8>>(&1, TEST_TIMEOUT).await, Err(Error::Json(_))));
}

async fn question_of(troop: &mut Troop, worker: &WorkerHandle) -> troop::Request {
    worker.send(&"ask").await.unwrap();
    let id = worker.id();
    troop
        .until("the question", |e| {
            if let Event::Request { worker: w, request: r, .. } = e {
                (w.id() == id).then(|| r.clone())
            } else {
                None
            }
        })
        .await
}

#[tokio::test]
async fn a_worker_may_ask_too() {
    let (mut troop, worker) = echo().await;
    let request = question_of(&mut troop, &worker).await;
    assert_eq!(request.decode::<String>().unwrap(), "what now?");
    request.reply(&json!({"do": "nothing"})).unwrap();
    // Only the first answer counts.
    request.reply(&"too late").unwrap();
    assert_eq!(troop.message(&worker).await, json!({"answer": {"do": "nothing"}}));
    let request = question_of(&mut troop, &worker).await;
    request.refuse("not now");
    let answer = troop.message(&worker).await;
    assert!(answer["answer"].as_str().unwrap().contains("not now"), "{answer}");
}

#[tokio::test]
async fn a_request_that_no_subscriber_reads_is_rejected() {
    let mut troop = Troop::with(fixture(["echo"]));
    let worker = troop.fork().await;
    worker.send(&"ask").await.unwrap();
    // Reads and drops everything, as a program does that does not know of questions.
    let mut answer = None;
    while answer.is_none() {
        let event = tokio::time::timeout(TEST_TIMEOUT, troop.events.recv())
            .await
            .expect("an answer")
            .unwrap();
        if let Event::Message { message, .. } = event {
            answer = Some(message.decode::<Value>().unwrap());
        }
    }
    assert!(answer.unwrap()["answer"].as_str().unwrap().contains("nobody answered"));
}

// ---- back-pressure ----

#[tokio::test]
async fn a_full_queue_signals_backpressure_and_accepts_again_when_there_is_room() {
    let (mut troop, worker) = echo().await;
    let process = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let text = "x".repeat(10_000);
    let mut sent = 0;
    while worker.try_send(&text).is_ok() {
        sent += 1;
        tokio::task::yield_now().await;
        assert!(sent < 10_000, "there is a bound");
    }
    assert!(matches!(worker.try_send(&text), Err(Error::Full)));
    assert!(worker.queued() >= 1 << 20);
    // Two that wait for room, and one that gives up.
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (worker, text) = (worker.clone(), text.clone());
            tokio::spawn(async move { worker.send(&text).await })
        })
        .collect();
    assert!(
        tokio::time::timeout(Duration::from_millis(100), worker.send(&"dropped")).await.is_err()
    );
    assert!(waiting.iter().all(|w| !w.is_finished()));
    assert!(matches!(
        worker.request::<_, Value>(&1, Duration::from_millis(100)).await,
        Err(Error::TimedOut(_))
    ));
    rustix::process::kill_process(process, rustix::process::Signal::CONT).unwrap();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    for _ in 0..sent + 2 {
        assert_eq!(troop.message(&worker).await["echo"], text.as_str());
    }
    worker.send(&"the end").await.unwrap();
    assert_eq!(
        troop.message(&worker).await["echo"],
        "the end",
        "the one that was dropped was never sent"
    );
}

#[tokio::test]
async fn a_subscriber_that_keeps_up_misses_no_event() {
    let mut troop = Troop::with(fixture(["echo"]));
    let worker = troop.fork().await;
    worker.send(&json!({"flood": 20_000})).await.unwrap();
    let mut next = 0;
    while next < 20_000 {
        match tokio::time::timeout(TEST_TIMEOUT, troop.events.recv()).await.unwrap().unwrap() {
            Event::Message { message: m, .. } => {
                assert_eq!(m.decode::<u64>().unwrap(), next);
                next += 1;
            }
            Event::Lagged { missed: n, .. } => panic!(
                "{n} messages were dropped before message {next}, under the eyes of their reader"
            ),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_slow_subscriber_gets_the_number_of_events_that_it_lagged() {
    // More than any bound that this queue may have.
    const SENT: u64 = 300_000;
    let mut troop = Troop::with(fixture(["echo"]));
    let worker = troop.fork().await;
    let mut slow = troop.cluster.events();
    worker.send(&json!({"flood": SENT})).await.unwrap();
    // A question is answered after all of them have been sent.
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    worker.kill(9).await.unwrap();
    troop.exit(&worker).await;
    let (mut missed, mut seen, mut last) = (0, 0, 0);
    while let Some(event) = slow.try_recv() {
        match event {
            Event::Lagged { missed: n, .. } => missed += n,
            Event::Message { message: m, .. } => {
                last = m.decode::<u64>().unwrap();
                seen += 1;
            }
            _ => {}
        }
    }
    assert_eq!(last, SENT - 1, "the newest are kept");
    assert!(missed > 0, "all {seen} were kept");
    // The other events are counted too.
    assert!((SENT..SENT + 10).contains(&(seen + missed)), "{seen} seen, {missed} missed");
}

#[tokio::test]
async fn undelivered_sends_to_a_dead_worker_are_reported() {
    let (mut troop, worker) = echo().await;
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    let process = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let text = "x".repeat(10_000);
    while worker.try_send(&text).is_ok() {
        tokio::task::yield_now().await;
    }
    worker.kill(9).await.unwrap();
    let id = worker.id();
    let lost = troop
        .until("the report", |e| match e {
            Event::Error { worker: Some(w), error: e, .. } if w.id() == id => Some(e.clone()),
            _ => None,
        })
        .await;
    assert!(matches!(*lost, Error::Undelivered(bytes) if bytes >= 1 << 20), "{lost}");
    assert_eq!(worker.queued(), 0, "nothing waits for a worker that is gone");
}

#[tokio::test]
async fn a_worker_that_dies_with_nothing_queued_loses_nothing() {
    let (mut troop, worker) = echo().await;
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    worker.kill(9).await.unwrap();
    let id = worker.id();
    let lost = troop.until("its end", |e| match e {
        Event::Error { worker: Some(w), error: e, .. } if w.id() == id => Some(Some(e.to_string())),
        Event::Exit { worker: w, .. } if w.id() == id => Some(None),
        _ => None,
    });
    assert_eq!(lost.await, None);
}

#[tokio::test]
async fn the_last_messages_of_a_program_that_ends_arrive() {
    let mut troop = Troop::with(fixture(["last words", "5000"]));
    let worker = troop.fork().await;
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(0));
    for n in 0..5000 {
        assert_eq!(troop.message(&worker).await, n);
    }
}

#[tokio::test]
async fn messages_come_before_the_end_of_their_worker() {
    let mut troop = Troop::with(fixture(["last words", "3"]));
    let worker = troop.fork().await;
    let mut order = Vec::new();
    while order.len() < 5 {
        match tokio::time::timeout(TEST_TIMEOUT, troop.events.recv()).await.unwrap().unwrap() {
            Event::Message { .. } => order.push("message"),
            Event::Disconnect { .. } => order.push("disconnect"),
            Event::Exit { .. } => order.push("exit"),
            _ => {}
        }
    }
    assert_eq!(order, ["message", "message", "message", "disconnect", "exit"]);
    assert!(worker.is_dead());
}
