use std::time::Duration;

use super::*;

fn parse(text: &str) -> Result<Apps, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("troop.toml");
    std::fs::write(&file, text).unwrap();
    read(&file)
}

#[test]
fn all_options_are_read_and_written() {
    let text = r#"
        [app.web]
        program = "server.js"
        args = ["--port", "8000"]
        node_args = ["--report-on-signal"]
        workers = 4
        policy = "steered"
        listeners = { "8000" = "sticky:cookie=sid", "udp:53" = "p2c" }
        weights = [5, 100]
        env = { NODE_ENV = "production" }
        env_file = [".env"]
        cwd = "app"
        silent = true
        grace = 2.5
        log = "json"
        user = "www-data"
        group = "33"
        umask = "027"
        nice = 5
        cpus = ["0-1", "2,3"]
        limits = { files = [1024, "64K"], core = 0, memory = "2G", stack = "unlimited" }
        slot_variable = "INSTANCE"
        increment_variable = "PORT"
        pid_file = "/run/web.pid"
        worker_pid_file = "run/web.pid"
        env_remove = ["AWS_*", "!AWS_REGION"]
        autostart = false
        cron = "*/5 * * * *"
        overlap = "replace"
        run_at_start = true
        namespace = "shop"
        assume_ready = "3s"
        sandbox = { read = ["/usr", "."], write = [], deny_system_calls = ["all"], best_effort = true }
        ready = "message"
        ready_timeout = "1m"
        min_ready_time = "500ms"
        max_surge = 2
        max_unavailable = 1
        hang_timeout = 0
        report_signal = "USR2"
        restart = { when = "on-failure", final_codes = [78], min_uptime = 2, delay = "50ms", max_delay = 1, max = 10, window = 60, when_failed = "end", keep_listeners = false }
        recycle = { memory = "300M", age = "1d", connections = 10000, jitter = 0.2 }
        health = { http = "/health", every = 5, timeout = 1, failures = 2, listener = "8000" }
        output = { to = "files", format = "json", file = "web.log", error_file = "err.log", all_file = "all.log", events_apart = true, per_worker = true, rotate_size = "1M", rotate_age = "1d", keep = 3, total = "5M" }
        watch = { paths = ["src"], ignore = ["*.tmp"], delay = "1s" }

        [app.jobs]
        program = "./jobs"
        workers = "auto"
    "#;
    let apps = parse(text).unwrap();
    let web = &apps["web"];
    assert_eq!(
        (web.workers, web.grace),
        (Some(Workers::Number(4)), Some(Time(Duration::from_millis(2500))))
    );
    assert_eq!(web.listeners["8000"].to_string(), "sticky:cookie=sid");
    assert!(web.program(Path::new("x/troop.toml")).ends_with("x/app/server.js"));
    assert_eq!(web.cpu_sets(), Ok(vec![vec![0, 1], vec![2, 3]]));
    assert_eq!(web.limits[&Limited::Files].values(), Ok((Some(1024), Some(65_536))));
    assert_eq!(web.limits[&Limited::Stack].values(), Ok((None, None)));
    assert_eq!(apps["jobs"].workers, Some(Workers::Auto));
    assert!(apps["jobs"].program(Path::new("/etc/troop.toml")).ends_with("/etc/jobs"));
    // And written in the same form.
    let again = parse(&toml::to_string(&File { app: apps.clone() }).unwrap()).unwrap();
    assert_eq!(again, apps);
}

#[test]
fn errors_name_the_line_and_the_option() {
    for (text, parts) in [
        ("[app.web]\nprogram = \"x\"\npolcy = \"p2c\"", &["line 3", "polcy", "policy"][..]),
        (
            "[app.web]\nprogram = \"x\"\npolicy = \"sideways\"",
            &["line 3", "sideways", "round-robin"],
        ),
        ("[app.web]\nprogram = \"x\"\nworkers = 5000", &["line 3", "0 to 4096"]),
        ("[app.web]\nprogram = \"x\"\ngrace = \"long\"", &["line 3", "number of seconds"]),
        ("[app.web]\nprogram = \"x\"\nrecycle = { memory = \"big\" }", &["line 3", "300M"]),
        ("[app.web]\nprogram = \"x\"\nrestart = { when = \"maybe\" }", &["line 3", "on-failure"]),
        ("[app.web]\nprogram = \"x\"\nhealth = { every = 5 }", &["app.web.health", "one of http"]),
        (
            "[app.web]\nprogram = \"x\"\nhealth = { http = \"health\" }",
            &["app.web.health", "/health"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nbind = [\"80\"]\nhealth = { tcp = true }",
            &["app.web.health", "command"],
        ),
        ("[app.web]\nprogram = \"x\"\nmax_surge = 0", &["app.web", "max_unavailable"]),
        ("[app.web]\nprogram = \"x\"\numask = \"9\"", &["app.web.umask", "octal"]),
        ("[app.web]\nprogram = \"x\"\ncpus = [\"x\"]", &["app.web.cpus", "0-3"]),
        ("[app.web]\nprogram = \"x\"\nnice = 30", &["app.web.nice", "-20 to 19"]),
        ("[app.web]\nprogram = \"x\"\ncgroup = { cpu = 0 }", &["app.web.cgroup.cpu", "0.01"]),
        ("[app.web]\nprogram = \"x\"\ncgroup = { memory = 0 }", &["app.web.cgroup", "more than 0"]),
        (
            "[app.web]\nprogram = \"x\"\ncgroup = { other = { \"../x\" = \"1\" } }",
            &["app.web.cgroup.other", "../x"],
        ),
        ("[app.web]\nprogram = \"x\"\nlimits = { files = \"many\" }", &["app.web.limits", "files"]),
        (
            "[app.web]\nprogram = \"x\"\nreport_signal = \"SIGNOT\"",
            &["app.web.report_signal", "SIGNOT", "such as SIGTERM"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nstop_signal = \"SIGKILL\"",
            &["app.web.stop_signal", "no program can handle", "such as SIGTERM", "grace"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nstop_signal = \"19\"",
            &["app.web.stop_signal", "no program can handle"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nkill_signal = \"KILL\"",
            &["app.web.kill_signal", "leave it out"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nreport_signal = \"STOP\"",
            &["app.web.report_signal", "SIGUSR2"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nrebalance = \"yes\"",
            &["line 3", "true, false, or addresses such as"],
        ),
        ("[app.web]\nprogram = \"x\"\nlimits = { files = true }", &["line 3", "a number, \"2G\""]),
        (
            "[app.web]\nprogram = \"x\"\nhealth = \"/x\"",
            &["line 3", "expected a table such as { http = \"/health\" }"],
        ),
        (
            "[app.web]\nprogram = \"x\"\nwatch = true",
            &["line 3", "expected a table such as { paths = [\"src\"] }"],
        ),
        ("[app.web]\nworkers = 1", &["missing field `program`"]),
        (
            "[app.web]\nprogram = \"x\"\nlisteners = { \"1.2.3.4.5:x\" = \"p2c\" }",
            &["app.web.listeners"],
        ),
        ("[app.\"a b\"]\nprogram = \"x\"", &["\"a b\"", "letters"]),
        ("[app.web]\nprogram = \"x\"\nenv = { \"A=B\" = \"c\" }", &["app.web.env", "A=B"]),
        ("[app.web\nprogram = \"x\"", &["line 1"]),
        ("", &["no app"]),
        ("[apps.web]\nprogram = \"x\"", &["apps", "app"]),
    ] {
        let error = parse(text).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}

#[test]
fn signals_may_be_written_in_small_letters() {
    for name in ["SIGUSR2", "USR2", "sigusr2", "usr2", "Sigusr2", "12"] {
        assert_eq!(crate::names::signal(name), Ok(12), "{name}");
        parse(&format!("[app.web]\nprogram = \"x\"\nstop_signal = \"{name}\"")).unwrap();
    }
}

#[test]
fn variables_may_be_numbers_and_booleans() {
    let table = "{ PORT = 38071, DEBUG = true, RATIO = 0.5, VERSION = \"1.10\" }";
    let apps = parse(&format!("[app.web]\nprogram = \"x\"\nenv = {table}")).unwrap();
    let env: Vec<_> = apps["web"].env.iter().map(|(name, text)| format!("{name}={text}")).collect();
    assert_eq!(env, ["DEBUG=true", "PORT=38071", "RATIO=0.5", "VERSION=1.10"]);
    let other = "cgroup = { other = { \"io.weight\" = 50 } }";
    let apps = parse(&format!("[app.web]\nprogram = \"x\"\n{other}")).unwrap();
    assert_eq!(apps["web"].cgroup.other["io.weight"], "50");
    for bad in ["{ A = [1] }", "{ A = { B = 1 } }", "{ A = 2026-01-01 }", "5"] {
        let error = parse(&format!("[app.web]\nprogram = \"x\"\nenv = {bad}")).unwrap_err();
        assert!(error.contains("line 3"), "{error}");
    }
}

#[test]
fn the_schema_that_is_published_is_the_one_that_is_read() {
    let published = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/troop.schema.json"
    ))
    .unwrap_or_default();
    assert!(
        published.trim() == schema(),
        "write it anew: `troop check --schema > docs/troop.schema.json`"
    );
}

#[test]
fn files_are_told_apart_by_their_names() {
    let of = |name: &str| format_of(Path::new(name));
    assert_eq!(
        (of("a/troop.toml"), of("ecosystem.config.js"), of("pm2.yml")),
        (Some(Format::Toml), Some(Format::Pm2), Some(Format::Pm2))
    );
    assert_eq!(
        (of("Procfile"), of("Procfile.dev"), of("server.js"), of("./run")),
        (Some(Format::Procfile), Some(Format::Procfile), None, None)
    );
}

#[test]
fn times_of_pm2_have_the_same_limit_as_ours() {
    let file = |millis: &str| {
        format!("apps:\n  - name: web\n    script: ./server.js\n    kill_timeout: {millis}\n")
    };
    let read = |millis| super::parse(&file(millis), Path::new("ecosystem.config.yml"));
    assert_eq!(read("1600").unwrap()["web"].grace, Some(Time(Duration::from_millis(1600))));
    for millis in ["4099276460824344804", "00000000004099276460824344804", "31622400001"] {
        assert!(read(millis).unwrap_err().contains("a year at most"), "{millis}");
    }
}
