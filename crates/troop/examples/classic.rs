//! The twin of the example in Node's documentation of `cluster`, call by call: the primary forks a
//! worker per CPU and says when one dies, the workers share port 8000. Nothing is restarted; see
//! `hello.rs` for that.
//!
//! `cargo run --release --example classic`, then `curl http://127.0.0.1:8000/`, then kill a worker.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use troop::{Cluster, Event, Fork, Role};

fn main() -> troop::Result<()> {
    match troop::role()? {
        Role::Primary => {
            println!("primary {} is running", std::process::id());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(primary())
        }
        Role::Worker(worker) => {
            println!("worker {} started", std::process::id());
            worker.block_on(serve)
        }
    }
}

async fn primary() -> troop::Result<()> {
    let cluster = Cluster::builder().start()?;
    let mut events = cluster.events();
    for _ in 0..troop::available_workers() {
        cluster.fork(Fork::new()).await?;
    }
    while let Some(event) = events.recv().await {
        if let Event::Exit { worker, .. } = event {
            println!("worker {} died", worker.pid());
            if cluster.workers().is_empty() {
                break;
            }
        }
    }
    Ok(())
}

async fn serve(worker: troop::Worker) -> troop::Result<()> {
    // Workers can share any TCP connection; here it is an HTTP server as small as they come.
    let listener = worker.listen(8000).await?;
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 && request.len() < 16_384 => {
                        request.extend_from_slice(&buffer[..n])
                    }
                    _ => return,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nhello world\n").await;
        });
    }
    Ok(())
}
