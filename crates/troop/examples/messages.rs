//! Messages, questions and open sockets between a primary and its worker:
//! `cargo run --example messages`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop::message::WorkerEvent;
use troop::{Cluster, Fork, Handle, Role, Worker};

#[derive(Debug, Serialize, Deserialize)]
enum ToWorker {
    Add(i64, i64),
    Greet,
}

fn main() -> troop::Result<()> {
    match troop::role()? {
        Role::Primary => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(primary())
        }
        Role::Worker(worker) => worker.block_on(answer),
    }
}

async fn primary() -> troop::Result<()> {
    let cluster = Cluster::builder().start()?;
    let worker = cluster.fork(Fork::new()).await?;
    let sum: i64 = worker.request(&ToWorker::Add(20, 22), Duration::from_secs(5)).await?;
    println!("20 + 22 = {sum}, says process {}", worker.pid());
    let (mut ours, theirs) = UnixStream::pair()?;
    worker.send_handle(&ToWorker::Greet, theirs).await?;
    let mut text = String::new();
    ours.read_to_string(&mut text)?;
    println!("on the socket that was passed: {text}");
    cluster.disconnect().await
}

async fn answer(worker: Worker) -> troop::Result<()> {
    while let Some(event) = worker.next_event().await {
        match event {
            WorkerEvent::Request(request) => match request.decode()? {
                ToWorker::Add(a, b) => request.reply(&(a + b))?,
                ToWorker::Greet => request.refuse("greetings come with a socket"),
            },
            WorkerEvent::Message(message) => {
                if let Some(Handle::UnixStream(mut socket)) = message.take_handle() {
                    write!(socket, "hello from process {}", std::process::id())?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}
