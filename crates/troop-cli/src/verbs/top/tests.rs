use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::model::{Effect, Model};
use super::page;
use crate::apps::App;

fn app(name: &str, phase: &str, cpu_ms: u64, taken: u64) -> App {
    let worker = |id: u64, slot: u64| {
        json!({
            "id": id, "pid": 4000 + id, "slot": slot, "state": "listening", "age_ms": 61_000,
            "leaving_ms": null, "ready": phase == "running" || slot == 0, "generation": 1, "weight": 100,
            "stats": {
                "handed": taken, "taken": taken / 2, "returned": 0, "violations": 0,
                "in_flight": 1, "open": 7, "load": 0, "moved": 0
            },
            "usage": { "cpu_ms": cpu_ms / 4, "rss": 50_000_000 },
        })
    };
    let app = json!({
        "name": name, "program": "server.js", "version": "0.1.0",
        "total": { "cpu_ms": cpu_ms, "rss": 120_000_000 },
        "pid": 4000, "engine": 4001, "uptime_ms": 3_700_000, "phase": phase, "wanted": 2,
        "workers": [worker(1, 0), worker(2, 1)], "vacant": [], "restarts": 3,
        "last_end": "worker 9: exit code 1",
        "totals": {
            "handed": taken, "taken": taken, "returned": 0, "moved": 0,
            "handover": { "counts": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "sum_ms": 0 }
        },
        "usage": null,
        "listeners": [{
            "address": "127.0.0.1:8000", "scheduling": "auto", "workers": 2, "waiting": 4
        }],
        "lost": [],
    });
    App::Running(Box::new(serde_json::from_value(app).unwrap()))
}

/// Three apps, as they are after some seconds: one is well, one is not, and one does not answer.
fn model() -> Model {
    let mut model = Model::new(None);
    let start = Instant::now();
    for second in 0..6 {
        let apps = [
            app("api", "degraded", 100 * second, 0),
            App::Silent("jobs".into()),
            app("web", "running", 500 * second, 40 * second * second),
        ];
        model.note(start + Duration::from_secs(second), 0, &apps);
    }
    model
}

fn press(model: &mut Model, keys: &[KeyCode]) -> Option<Effect> {
    keys.iter().map(|key| model.key(KeyEvent::new(*key, KeyModifiers::NONE))).last().flatten()
}

fn lines(model: &Model, size: (u16, u16)) -> Vec<String> {
    page(model, size, "12:00:00").unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn apps_fit_a_usual_terminal() {
    assert_eq!(
        lines(&model(), (80, 24)),
        [
            "troop top: 3 apps, 4 workers  CPU 60.0%  memory 229M  by name  12:00:00",
            "NAME             STATE         WORKERS   CPU%  MEMORY  CONN/S RESTARTS   OPEN",
            "api              degraded          1/2   10.0    114M     0.0        3     14",
            "jobs             not answering",
            "web              running           2/2   50.0    114M   360.0        3     14",
            "127.0.0.1:8000: auto, 4 waiting",
            "it is degraded, 1 of 2 workers ready; the last unexpected end: worker 9: exit co",
        ]
    );
}

#[test]
fn a_wide_terminal_has_all_columns_and_a_narrow_one_those_that_say_whether_apps_are_well() {
    let wide = lines(&model(), (140, 40));
    assert!(wide[1].ends_with("OPEN WAITING   UPTIME CONNECTIONS PER SECOND"), "{wide:#?}");
    assert!(wide[4].ends_with("14       4    1h 1m ▁▃▅▇█"), "{wide:#?}");
    let narrow = lines(&model(), (40, 10));
    assert_eq!(narrow[1], "NAME             STATE         WORKERS");
    assert_eq!(narrow[2], "api              degraded          1/2");
    // There is no size for which there is nothing to see, or which is an error.
    for size in [(1, 1), (5, 2), (17, 3)] {
        page(&model(), size, "12:00:00").unwrap();
    }
}

#[test]
fn an_app_is_opened_and_closed_and_stays_selected() {
    let mut model = model();
    press(&mut model, &[KeyCode::End, KeyCode::Enter]);
    let opened = lines(&model, (80, 24));
    assert!(
        opened[0].starts_with("troop top: web  CPU 50.0%  memory 114M  by name"),
        "{opened:#?}"
    );
    assert_eq!(
        opened[1..3],
        [
            "SLOT WORKER      PID STATE        CPU%  MEMORY  CONN/S   OPEN IN FLIGHT      AGE",
            "   0      1     4001 ready        12.5   47.7M   180.0      7         1    1m 1s",
        ]
    );
    press(&mut model, &[KeyCode::Esc]);
    assert_eq!(model.selected(), Some(2));
    // Whatever comes and goes.
    model.note(Instant::now() + Duration::from_secs(10), 0, &[app("web", "running", 1, 1)]);
    assert_eq!(model.selected(), Some(0));
}

#[test]
fn rows_are_sorted_and_filtered() {
    let mut model = model();
    let names = |model: &Model| -> Vec<String> {
        model.rows().iter().map(|row| row.name.clone()).collect()
    };
    press(&mut model, &[KeyCode::Char('s')]);
    assert_eq!(names(&model), ["web", "api", "jobs"]);
    press(&mut model, &[KeyCode::Char('/'), KeyCode::Char('j'), KeyCode::Char('q')]);
    assert!(names(&model).is_empty(), "letters go to the filter");
    press(&mut model, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!(names(&model), ["jobs"]);
    press(&mut model, &[KeyCode::Esc]);
    assert_eq!(names(&model).len(), 3);
}

#[test]
fn verbs_are_carried_out_only_after_a_yes() {
    let typed = |keys: &[KeyCode]| match press(&mut model(), keys) {
        Some(Effect::Verb(words)) => words.join(" "),
        other => format!("{other:?}"),
    };
    let (yes, no, open) = (KeyCode::Char('y'), KeyCode::Char('n'), KeyCode::Enter);
    let char = KeyCode::Char;
    assert_eq!(typed(&[char('r'), yes]), "reload api");
    assert_eq!(typed(&[char('r'), no]), "None");
    assert_eq!(typed(&[char('r'), open]), "None");
    assert_eq!(typed(&[char('r')]), "None");
    assert_eq!(typed(&[KeyCode::End, char('+'), yes]), "scale web +1");
    assert_eq!(typed(&[char('-'), yes]), "scale api -1");
    assert_eq!(typed(&[char('x'), yes]), "stop api");
    assert_eq!(typed(&[char('R'), yes]), "restart api");
    assert_eq!(typed(&[KeyCode::End, open, KeyCode::Down, char('r'), yes]), "reload web:2");
    assert_eq!(typed(&[KeyCode::End, open, KeyCode::Down, char('x'), yes]), "stop web");
    assert_eq!(typed(&[yes]), "None");
    let mut asking = model();
    press(&mut asking, &[char('x')]);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(asking.key(control_c), Some(Effect::Quit), "it always ends");
}
