//! Who did what.

use serde_json::Value;
use troop_testkit::wait_until;

use crate::support::Home;
use crate::{SERVER, Server};

#[test]
fn a_verb_is_a_line_of_the_log_with_who_asked_for_it() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    let user = rustix::process::geteuid().as_raw();
    home.fine(&["scale", "web", "2"]);
    home.fine(&["show", "web"]);
    let mut sending = home.command(&["signal", "web", "WINCH"]).spawn().unwrap();
    let pid = sending.id();
    assert!(sending.wait().unwrap().success());
    let lines = || -> Vec<String> {
        let log = home.log("web.log");
        log.lines().filter(|line| line.contains("asked for:")).map(str::to_owned).collect()
    };
    wait_until("both lines", || lines().len() == 2);
    let (scaled, signalled) = (&lines()[0], &lines()[1]);
    assert!(scaled.ends_with(&format!("(troop) of user {user} asked for: scale to 2")), "{scaled}");
    let expected =
        format!("process {pid} (troop) of user {user} asked for: signal SIGWINCH to all workers");
    assert!(signalled.ends_with(&expected), "{signalled}");
}

#[test]
fn a_verb_over_http_is_an_event_of_its_app_with_the_address_of_the_client() {
    let server = Server::start(&["--verbs", "scale"]);
    let mut events = server.home.command(&["events", "web", "--json"]);
    let mut events = events.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let out = std::io::BufReader::new(events.stdout.take().unwrap());
    let (sender, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::io::BufRead as _;
        let lines = out.lines().map_while(Result::ok);
        let parsed = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let _ = parsed.filter(|event| event["event"] == "asked").try_for_each(|e| sender.send(e));
    });
    // Until the events are followed.
    let mut size = 2;
    let mut asked = None;
    wait_until("the event", || {
        size = 5 - size;
        let body = format!("{{\"workers\": {size}}}");
        assert_eq!(server.with_token("POST", "/apps/web/scale", &body).0, 200);
        asked = seen.try_recv().ok();
        asked.is_some()
    });
    events.kill().unwrap();
    events.wait().unwrap();
    let asked = asked.unwrap();
    assert_eq!((&asked["verb"], &asked["program"]), (&"scale".into(), &"troop".into()), "{asked}");
    let text = asked["text"].as_str().unwrap();
    assert!(
        text.contains(", for the HTTP client 127.0.0.1:") && text.contains("scale to"),
        "{text}"
    );
    // Which another process writes.
    wait_until("the line in the log", || {
        let log = server.home.log("admin.log");
        log.contains("the HTTP client 127.0.0.1:") && log.contains("asked for `troop scale web")
    });
}
