//! `/metrics`: what is counted, and that others can read it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use troop_testkit::wait_until;

use crate::page::{self, Samples};
use crate::support::Home;
use crate::{Server, address, ask};

/// What asks for OpenMetrics.
const OPEN: &str = "\r\nAccept: application/openmetrics-text; version=1.0.0";

impl Server {
    fn samples(&self) -> Samples {
        let (status, page) = self.get("/metrics");
        assert_eq!(status, 200, "{page}");
        page::parse(&page)
    }

    fn open_metrics(&self) -> String {
        self.ask(&format!("GET /metrics HTTP/1.1\r\nHost: {}{OPEN}", self.address)).1
    }
}

#[test]
fn metrics_count_what_happens_also_to_former_workers() {
    let server = Server::start(&[]);
    let of_web = address(&server.home, "web");
    for _ in 0..10 {
        assert_eq!(ask(&of_web, "GET / HTTP/1.1\r\nHost: web", "").0, 200);
    }
    server.home.fine(&["reload", "web"]);
    let ends = r#"troop_worker_ends_total{app="web",how="asked"}"#;
    wait_until("the former workers to be counted", || server.samples().get(ends) == Some(&2.0));
    let samples = server.samples();
    let value = |series: &str| -> f64 {
        *samples.get(series).unwrap_or_else(|| panic!("no {series} in {samples:#?}"))
    };
    for (series, expected) in [
        (r#"troop_app_up{app="web"}"#, 1.0),
        (r#"troop_app_phase{app="web",phase="running"}"#, 1.0),
        (r#"troop_app_phase{app="web",phase="degraded"}"#, 0.0),
        (r#"troop_workers_ready{app="web"}"#, 2.0),
        (r#"troop_workers_wanted{app="web"}"#, 2.0),
        (r#"troop_restarts_total{app="web"}"#, 0.0),
        (r#"troop_events_total{app="web",event="reload-finished"}"#, 1.0),
        (r#"troop_worker_generation{app="web",slot="1"}"#, 2.0),
        // Of workers that have gone.
        (r#"troop_connections_taken_total{app="web"}"#, 10.0),
        (r#"troop_handover_seconds_count{app="web"}"#, 10.0),
        (r#"troop_handover_seconds_bucket{app="web",le="+Inf"}"#, 10.0),
        (&format!(r#"troop_listener_workers{{app="web",listener="{of_web}"}}"#), 2.0),
    ] {
        assert_eq!(value(series), expected, "{series}");
    }
    assert!(value(r#"troop_primary_resident_memory_bytes{app="web"}"#) > 1e5);
    assert!(value(r#"troop_worker_cpu_seconds_total{app="web",slot="0"}"#) >= 0.0);
    server.home.fine(&["stop", "web"]);
    wait_until("the end to be known", || {
        server.samples().get(r#"troop_app_up{app="web"}"#) == Some(&0.0)
    });
}

#[test]
fn counts_go_on_when_another_engine_goes_on_with_the_app() {
    let server = Server::start(&[]);
    let of_web = address(&server.home, "web");
    for _ in 0..3 {
        assert_eq!(ask(&of_web, "GET / HTTP/1.1\r\nHost: web", "").0, 200);
    }
    server.home.fine(&["reload", "web"]);
    server.home.fine(&["upgrade", "web"]);
    let shown = server.home.show("web");
    assert_eq!(shown["counts"]["events"]["reload-finished"], 1, "{shown}");
    assert_eq!(shown["totals"]["taken"], 3, "{shown}");
}

#[test]
fn a_page_has_the_same_samples_in_both_formats() {
    let server = Server::start(&[]);
    // What can never change.
    let kept = |page: &str| -> Vec<String> {
        let is_kept =
            |line: &&str| line.starts_with("troop_workers_wanted") || line.contains("generation");
        page.lines().filter(is_kept).map(str::to_owned).collect()
    };
    let (plain, open) = (server.get("/metrics").1, server.open_metrics());
    assert!(!kept(&plain).is_empty());
    assert_eq!(kept(&plain), kept(&open));
    assert!(open.ends_with("# EOF\n") && !plain.contains("# EOF"), "{open}");
}

/// Parses a page, as the specification of OpenMetrics has it.
const PARSER: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    for s in family.samples:
        print(s.name, ','.join(f'{k}={v}' for k, v in sorted(s.labels.items())), float(s.value))
";

/// Runs a program with a text as its input. Returns whether it succeeded, and all that it has printed.
fn given(command: &mut Command, text: &str) -> (bool, String) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writing = std::thread::spawn(move || drop(input.write_all(text.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}

/// Something that `test.sh` installs.
fn installed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(path)
}

#[test]
fn the_strict_parser_of_open_metrics_takes_the_page() {
    let packages = installed("python");
    if !packages.join("prometheus_client").is_dir() {
        eprintln!("skipped: Python's prometheus_client is not installed; test.sh does it");
        return;
    }
    let server = Server::start(&[]);
    let page = server.open_metrics();
    let mut python = Command::new("python3");
    let (is_fine, printed) = given(python.args(["-c", PARSER]).env("PYTHONPATH", packages), &page);
    assert!(is_fine, "{printed}\n{page}");
    assert!(printed.contains("troop_workers_wanted app=web 2.0"), "{printed}");
}

#[test]
fn metrics_that_workers_keep_with_prom_client_are_on_the_page_as_one_sum() {
    let home = Home::with(&[("plain.js", crate::SERVER)]);
    let program = crate::support::example("metrics.js");
    let port = ["--set", "env.PORT=0"];
    home.fine(&[&["start", program.to_str().unwrap(), "-n", "web", "-i", "2"], &port[..]].concat());
    home.fine(&["start", "plain.js", "-n", "plain", "-w", "1"]);
    let web = address(&home, "web").replace('*', "127.0.0.1");
    for _ in 0..6 {
        assert_eq!(ask(&web, &format!("GET /here HTTP/1.1\r\nHost: {web}"), "").0, 200);
    }
    let server = Server::beside(home, &["--worker-metrics", "web,plain"]);
    let page = server.samples();
    let value = |series: &str| page.get(series).copied();
    assert_eq!(value(r#"http_requests_total{app="web",path="/here"}"#), Some(6.0), "{page:?}");
    assert_eq!(value(r#"http_request_seconds_count{app="web"}"#), Some(6.0));
    assert_eq!(value(r#"http_request_seconds_bucket{app="web",le="+Inf"}"#), Some(6.0));
    assert_eq!(value(r#"troop_worker_metrics_missing{app="web"}"#), Some(0.0));
    assert_eq!(
        value(r#"troop_worker_metrics_missing{app="plain"}"#),
        Some(1.0),
        "it never answers"
    );
    assert_eq!(value(r#"troop_workers_ready{app="web"}"#), Some(2.0));
    // A worker that ends takes what it has counted with it, and the others are summed all the same.
    server.home.fine(&["scale", "web", "1"]);
    wait_until("the sum of one", || {
        let series = r#"http_request_seconds_count{app="web"}"#;
        server.samples().get(series).is_some_and(|count| *count < 6.0)
    });
    let packages = installed("python");
    if packages.join("prometheus_client").is_dir() {
        let page = server.open_metrics();
        let mut python = Command::new("python3");
        let python = python.args(["-c", PARSER]).env("PYTHONPATH", packages);
        let (is_fine, printed) = given(python, &page);
        assert!(is_fine, "{printed}\n{page}");
        assert!(printed.contains("http_requests_total app=web"), "{printed}");
    }
}

/// Starts two workers of Rust that count their connections; returns their address.
fn counted(home: &Home, options: &[&str]) -> String {
    let troop = Path::new(env!("CARGO_BIN_EXE_troop"));
    let program = troop.parent().unwrap().join("examples/counted");
    home.fine(&[&["start", program.to_str().unwrap(), "-n", "web", "-w", "2"], options].concat());
    address(home, "web")
}

#[test]
fn metrics_that_rust_workers_keep_are_on_the_page_as_one_sum() {
    let home = Home::with(&[]);
    let web = counted(&home, &[]);
    for _ in 0..6 {
        assert_eq!(ask(&web, "GET / HTTP/1.1\r\nHost: web", "").0, 200);
    }
    let server = Server::beside(home, &["--worker-metrics", "web"]);
    let page = server.samples();
    assert_eq!(page.get(r#"served_total{app="web"}"#), Some(&6.0), "{page:?}");
    assert_eq!(page.get(r#"troop_worker_metrics_missing{app="web"}"#), Some(&0.0));
}

#[test]
fn a_rust_worker_whose_metrics_take_too_long_is_left_out_and_counted() {
    let home = Home::with(&[]);
    let web = counted(&home, &["--", "slow"]);
    for _ in 0..6 {
        assert_eq!(ask(&web, "GET / HTTP/1.1\r\nHost: web", "").0, 200);
    }
    let server = Server::beside(home, &["--worker-metrics", "web"]);
    for _ in 0..2 {
        let page = server.samples();
        let missing = page.get(r#"troop_worker_metrics_missing{app="web"}"#);
        assert_eq!(missing, Some(&1.0), "{page:?}");
        let served = page.get(r#"served_total{app="web"}"#);
        assert!(served.is_some_and(|served| *served < 6.0), "{page:?}");
        // It serves all the same.
        assert_eq!(ask(&web, "GET / HTTP/1.1\r\nHost: web", "").0, 200);
    }
}

/// A program of Prometheus'.
fn of_prometheus(name: &str) -> Option<Command> {
    let unpacked = installed("prometheus/usr/bin").join(name);
    if !unpacked.is_file() {
        eprintln!("skipped: {name} is not installed; test.sh does it");
        return None;
    }
    Some(Command::new(unpacked))
}

/// A process that ends with this.
struct Ending(std::process::Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_prometheus_that_scrapes_the_page_knows_the_apps() {
    let Some(mut prometheus) = of_prometheus("prometheus") else { return };
    let server = Server::start(&[]);
    let directory = server.home.path();
    let config = format!(
        "scrape_configs:\n  - job_name: troop\n    scrape_interval: 1s\n    static_configs:\n      - targets: [\"{}\"]\n",
        server.address
    );
    std::fs::write(directory.join("prometheus.yml"), config).unwrap();
    let prometheus = prometheus
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
        .arg("--web.listen-address=127.0.0.1:0")
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("prometheus.log")).unwrap());
    let _running = Ending(prometheus.spawn().unwrap());
    let mut address = None;
    wait_until("its address", || {
        let log = std::fs::read_to_string(directory.join("prometheus.log")).unwrap();
        let line = log.lines().find(|line| line.contains("Listening on"));
        address = line.and_then(|line| Some(line.split("address=").nth(1)?.trim().to_owned()));
        address.is_some()
    });
    let address = address.unwrap();
    let value = |query: &str| -> Option<String> {
        let head = format!("GET /api/v1/query?query={query} HTTP/1.1\r\nHost: {address}");
        let (_, body) = ask(&address, &head, "");
        let answer: serde_json::Value =
            serde_json::from_str(body.get(body.find('{')?..=body.rfind('}')?)?).ok()?;
        Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
    };
    wait_until("a scrape", || value("up").as_deref() == Some("1"));
    for (query, expected) in [
        ("troop_app_up%7Bapp=%22web%22%7D", "1"),
        ("troop_workers_ready%7Bapp=%22web%22%7D", "2"),
        ("count(troop_handover_seconds_bucket%7Bapp=%22web%22%7D)", "12"),
        ("sum(troop_restarts_total)", "0"),
    ] {
        assert_eq!(value(query).as_deref(), Some(expected), "{query}");
    }
}

#[test]
fn promtool_finds_nothing_to_improve_in_the_page() {
    let Some(mut promtool) = of_prometheus("promtool") else { return };
    let server = Server::start(&[]);
    let page = server.get("/metrics").1;
    let (is_fine, printed) = given(promtool.args(["check", "metrics"]), &page);
    assert!(is_fine && printed.is_empty(), "{printed}\n{page}");
}

/// Whether all series that a text names are on the page.
fn names_series_that_exist(text: &str) {
    let server = Server::start(&[]);
    let page = server.get("/metrics").1;
    let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names: Vec<_> = names.filter(|word| word.starts_with("troop_")).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let family = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(page.contains(&format!("# TYPE {family} ")), "{name} is not in {page}");
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/monitoring").join(name)
}

#[test]
fn promtool_takes_the_rules_of_the_examples_which_name_series_that_exist() {
    let rules = example("alerts.yml");
    names_series_that_exist(&std::fs::read_to_string(&rules).unwrap());
    let Some(mut promtool) = of_prometheus("promtool") else { return };
    let (is_fine, printed) = given(promtool.args(["check", "rules"]).arg(rules), "");
    assert!(is_fine, "{printed}");
}

#[test]
fn promtool_takes_the_queries_of_the_dashboard_which_name_series_that_exist() {
    let text = std::fs::read_to_string(example("grafana.json")).unwrap();
    names_series_that_exist(&text);
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<_> = queries.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() >= panels.len() && panels.len() > 10);
    // What Grafana puts in.
    let rules: Vec<_> = queries
        .iter()
        .map(|query| query.replace("$__rate_interval", "1m").replace("$app", ".*"))
        .enumerate()
        .map(|(at, expr)| serde_json::json!({ "record": format!("query:{at}"), "expr": expr }))
        .collect();
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let Some(mut promtool) = of_prometheus("promtool") else { return };
    let file = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
    std::fs::write(&file, rules.to_string()).unwrap();
    let (is_fine, printed) = given(promtool.args(["check", "rules"]).arg(file.path()), "");
    assert!(is_fine, "{printed}");
}
