//! The same through nginx, which keeps connections to the workers open, sends no request twice, and
//! logs each one that fails.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use troop_testkit::kept::Crowd;
use troop_testkit::{TEST_TIMEOUT, free_port};

use super::cells::{Cell, Kind, Scene, rounds};
use super::{HTTP, RUST};

const RELOADS: u32 = 20;

/// nginx in front of one port; it ends with this.
struct Nginx {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where nginx is installed, or where `test.sh` unpacks it.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nginx/usr/sbin");
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), unpacked]);
    directories.map(|directory| directory.join("nginx")).find(|program| program.exists())
}

impl Nginx {
    async fn start(program: &Path, backend: u16) -> Nginx {
        let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
        let path = directory.path().display();
        let configuration = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/errors warn;
             events {{ worker_connections 1024; }}
             http {{
               access_log off; client_body_temp_path {path}/a; proxy_temp_path {path}/b;
               fastcgi_temp_path {path}/c; uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;
               upstream app {{
                 server 127.0.0.1:{backend}; keepalive 32; keepalive_requests 1000000;
                 keepalive_timeout 3s;
               }}
               server {{
                 listen 127.0.0.1:{port}; keepalive_requests 1000000;
                 location / {{
                   proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection '';
                   proxy_next_upstream off;
                 }}
               }}
             }}"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).arg("-p").arg(directory.path());
        // Before it knows where its log is.
        let process = command.stderr(Stdio::null()).spawn().unwrap();
        let mut nginx = Nginx { process, port, directory };
        let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let ended = nginx.process.try_wait().unwrap();
            assert!(ended.is_none(), "nginx ended: {ended:?}: {}", nginx.errors());
            assert!(tokio::time::Instant::now() < deadline, "nginx listens");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        nginx
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("errors")).unwrap_or_default()
    }
}

async fn logs_no_error(kind: &Kind, scheduling: &str) {
    let Some(program) = program() else {
        eprintln!("skipped: {} behind nginx needs nginx", kind.name);
        return;
    };
    let mut scene = Scene::new(kind, scheduling, |builder| builder).await;
    let nginx = Nginx::start(&program, scene.port).await;
    let direct = std::mem::replace(&mut scene.crowd, Crowd::start(nginx.port, kind.prefix));
    direct.stop().await;
    scene.crowd.all_served().await;
    let mut moved = 0;
    for _ in 0..rounds().unwrap_or(RELOADS) {
        let old = scene.troop.cluster.workers();
        scene.troop.cluster.reload().await.unwrap();
        for worker in old {
            moved += worker.stats().await.moved;
        }
    }
    scene.settled().await;
    assert_eq!(nginx.errors(), "", "{}, {scheduling}", kind.name);
    scene.expect(Cell::Moves, "behind nginx");
    assert_eq!(moved > 0, scheduling == "round-robin", "{}, {scheduling}: {moved}", kind.name);
    scene.crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_in_front_of_troop_serve_notices_nothing() {
    logs_no_error(&RUST, "round-robin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_in_front_of_an_http_server_notices_nothing() {
    logs_no_error(&HTTP, "round-robin").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_sees_only_announced_ends_where_nothing_moves() {
    logs_no_error(&RUST, "shared").await;
    logs_no_error(&HTTP, "shared").await;
}
