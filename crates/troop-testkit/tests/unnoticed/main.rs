//! The proof that clients which keep their connections open notice nothing of what happens to the
//! workers: kinds of servers, by schedulings, by operations. What is expected of each is a table.
//!
//! `TROOP_ROUNDS=100` checks all of it for longer, and with `TROOP_SCHEDULINGS="auto shared"` only
//! some schedulings; otherwise the slower servers are checked under some schedulings only.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail as tests do")]

mod behind_nginx;
mod cells;
mod recycling;

use Cell::{Closes, Moves};
use cells::{Cell, Kind, check};

/// What clients see of an operation, by the scheduling of the listener. Of a killed worker those
/// clients are counted whose connections other workers have.
#[rustfmt::skip]
const TABLE: [(&str, [Cell; 4]); 10] = [
    // scheduling                 reload  recycle kill    scale
    ("round-robin",              [Moves,  Moves,  Moves,  Moves]),
    ("auto",                     [Moves,  Moves,  Moves,  Moves]),
    ("weighted",                 [Moves,  Moves,  Moves,  Moves]),
    ("least-connections",        [Moves,  Moves,  Moves,  Moves]),
    ("p2c",                      [Moves,  Moves,  Moves,  Moves]),
    ("sticky",                   [Moves,  Moves,  Moves,  Moves]),
    ("steered",                  [Moves,  Moves,  Moves,  Moves]),
    ("steered:sticky",           [Moves,  Moves,  Moves,  Moves]),
    // The primary hands nothing over, or needs first bytes to choose a worker.
    ("shared",                   [Closes, Closes, Moves,  Closes]),
    ("sticky:cookie=id,wait=50", [Closes, Closes, Moves,  Closes]),
];

const RUST: Kind =
    Kind { name: "troop::serve", program: &["router"], prefix: "", workers: 3, short: &[] };
const HYPER: Kind =
    Kind { name: "hyper", program: &["hyper"], short: &["round-robin", "shared"], ..RUST };
const HTTP: Kind = Kind {
    name: "http",
    program: &["kept.js", "http"],
    short: &["round-robin", "sticky", "steered", "shared"],
    ..RUST
};
const EXPRESS: Kind =
    Kind { name: "Express", program: &["kept.js", "express"], short: &["round-robin"], ..RUST };
const FASTIFY: Kind = Kind { name: "Fastify", program: &["kept.js", "fastify"], ..EXPRESS };
const KOA: Kind = Kind { name: "Koa", program: &["kept.js", "koa"], ..EXPRESS };
/// Next's own server, with an app that `npm run build` has built.
const NEXT: Kind = Kind {
    name: "Next",
    program: &[
        "web/node_modules/next/dist/bin/next",
        "start",
        "web",
        "-p",
        "0",
        "-H",
        "127.0.0.1",
        "--keepAliveTimeout",
        "60000",
    ],
    prefix: "/api",
    workers: 2,
    ..EXPRESS
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_troop_serve_notice_nothing() {
    check(&RUST, &TABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_hyper_notice_nothing() {
    check(&HYPER, &TABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_an_http_server_notice_nothing() {
    check(&HTTP, &TABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_express_notice_nothing() {
    check(&EXPRESS, &TABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_fastify_notice_nothing() {
    check(&FASTIFY, &TABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_koa_notice_nothing() {
    check(&KOA, &TABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_next_notice_nothing() {
    check(&NEXT, &TABLE).await;
}
