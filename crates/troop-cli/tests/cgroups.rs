//! Control groups of workers, on machines where one can be had for the test (root, and a tree of
//! version 2).

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use support::Home;
use troop_testkit::wait_until;

const SERVER: &str = "
require('child_process').spawn('setsid', ['sleep', '4711'], { detached: true, stdio: 'ignore' }).unref();
require('http').createServer((q, s) => s.end()).listen(0, '127.0.0.1');
";

/// What can be limited, in which file, and to what: something that no worker here comes near to.
const LIMITS: [(&str, &str, &str); 3] = [
    ("pids", "pids.max", "100"),
    ("memory", "memory.max", "1073741824"),
    ("hugetlb", "hugetlb.2MB.max", "0"),
];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A group that is this test's own.
struct Own(PathBuf);

impl Own {
    fn make() -> Option<Own> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount =
            mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let mount = Path::new(&mount);
        // One that is there is not always passed on.
        let had = fs::read_to_string(mount.join("cgroup.controllers")).ok()?;
        if let Some((controller, ..)) = LIMITS
            .iter()
            .find(|(controller, ..)| had.split_whitespace().any(|had| had == *controller))
        {
            let _ = OpenOptions::new()
                .write(true)
                .open(mount.join("cgroup.subtree_control"))
                .and_then(|mut file| write!(file, "+{controller}"));
        }
        let own = mount.join(format!(
            "troop-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&own).ok()?;
        Some(Own(own))
    }

    /// Something that can be limited here: a file and its value.
    fn limit(&self) -> Option<(&'static str, &'static str)> {
        let controllers = fs::read_to_string(self.0.join("cgroup.controllers")).ok()?;
        let found = LIMITS
            .iter()
            .find(|(controller, ..)| controllers.split_whitespace().any(|had| had == *controller));
        found.map(|(_, file, value)| (*file, *value))
    }

    fn groups(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter(|e| e.path().is_dir())
            .map(|e| e.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let gone = || {
            self.groups().iter().for_each(|name| drop(fs::remove_dir(self.0.join(name))));
            fs::remove_dir(&self.0).is_ok()
        };
        wait_until("the end of the groups", gone);
    }
}

/// `troop` in this group, alone.
fn troop(home: &Home, own: &Path, args: &str) -> std::process::Child {
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec {} {args}",
        own.display(),
        env!("CARGO_BIN_EXE_troop")
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
        .env("TROOP_RUNTIME_DIR", home.path().join("run"))
        .env("TROOP_LOG_DIR", home.path().join("logs"));
    command.spawn().unwrap()
}

#[test]
fn each_worker_has_a_group_with_its_limits_and_nothing_is_left_in_it() {
    let Some(own) = Own::make() else { return };
    let Some((file, value)) = own.limit() else { return };
    let config = format!(
        "[app.web]\nprogram = \"server.js\"\nworkers = 2\n[app.web.cgroup.other]\n\"{file}\" = \"{value}\"\n"
    );
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &config)]);
    let mut running = troop(&home, &own.0, "run web");
    let ready = || {
        let (code, out, _) = home.troop(&["show", "web", "--json"]);
        code == 0 && out.matches("listening").count() >= 2
    };
    wait_until("two workers", ready);
    let primary = format!("troop.{}", running.id());
    assert_eq!(
        own.groups(),
        ["primary", "worker-1", "worker-2"].map(|name| format!("{primary}.{name}"))
    );
    let group = own.0.join(format!("{primary}.worker-1"));
    assert_eq!(fs::read_to_string(group.join(file)).unwrap().trim(), value);
    // The worker, and what it has started and let go.
    wait_until("both", || {
        fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count() == 2
    });
    let stray = || fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    home.fine(&["reload", "web"]);
    wait_until("the end of the old group", || stray().is_empty() && !group.exists());
    assert_eq!(own.groups().len(), 3);
    home.fine(&["stop", "web"]);
    assert!(running.wait().unwrap().success());
    assert_eq!(own.groups(), [format!("{primary}.primary")], "which nobody is in any more");
}

#[test]
fn limits_can_come_with_a_reload_and_with_a_start_in_the_background() {
    let Some(own) = Own::make() else { return };
    let Some((file, value)) = own.limit() else { return };
    let plain = "[app.web]\nprogram = \"server.js\"\nworkers = 2\n";
    let limited = format!("{plain}[app.web.cgroup.other]\n\"{file}\" = \"{value}\"\n");
    let server = "require('http').createServer((q, s) => s.end()).listen(0, '127.0.0.1')";
    let home = Home::with(&[("server.js", server), ("troop.toml", plain)]);
    let reporter = troop(&home, &own.0, "start web").wait_with_output().unwrap();
    assert!(reporter.status.success(), "{}", String::from_utf8_lossy(&reporter.stderr));
    assert_eq!(own.groups(), [""; 0]);
    fs::write(home.path().join("troop.toml"), &limited).unwrap();
    home.fine(&["reload", "web"]);
    let workers = || own.groups().iter().filter(|name| name.contains("worker")).count();
    assert_eq!(workers(), 2, "{:?}", own.groups());
    home.fine(&["stop", "web"]);
    // Now it has them from the start, while the one that waits for it is there too.
    let Some(own) = Own::make() else { return };
    let reporter = troop(&home, &own.0, "start web").wait_with_output().unwrap();
    assert!(reporter.status.success(), "{}", String::from_utf8_lossy(&reporter.stderr));
    assert_eq!(
        own.groups().iter().filter(|name| name.contains("worker")).count(),
        2,
        "{:?}",
        own.groups()
    );
    home.fine(&["stop", "web"]);
}

#[test]
fn processes_in_nested_groups_of_a_worker_end_too() {
    let Some(own) = Own::make() else { return };
    let Some((file, value)) = own.limit() else { return };
    let config = format!(
        "[app.web]\nprogram = \"server.js\"\nworkers = 1\n[app.web.cgroup.other]\n\"{file}\" = \"{value}\"\n"
    );
    let nests = format!(
        "{SERVER}
        const fs = require('fs');
        const inner = process.env.OWN + '/' + fs.readFileSync('/proc/self/cgroup', 'utf8').split('0::')[1].trim().split('/').pop() + '/inner';
        fs.mkdirSync(inner);
        const child = require('child_process').spawn('sh', ['-c', 'trap \"\" TERM; while :; do sleep 1; done'], {{ detached: true, stdio: 'ignore' }});
        fs.writeFileSync(inner + '/cgroup.procs', String(child.pid));"
    );
    let home = Home::with(&[
        ("server.js", &nests),
        ("troop.toml", &format!("{config}[app.web.env]\nOWN = \"{}\"\n", own.0.display())),
    ]);
    let mut running = troop(&home, &own.0, "run web");
    let inner = || own.0.join(format!("troop.{}.worker-1/inner/cgroup.procs", running.id()));
    wait_until("the inner group", || {
        fs::read_to_string(inner()).is_ok_and(|pids| !pids.is_empty())
    });
    home.fine(&["reload", "web"]);
    // It does not end when it is asked to.
    wait_until("its end", || !own.groups().iter().any(|name| name.ends_with("worker-1")));
    home.fine(&["stop", "web"]);
    assert!(running.wait().unwrap().success());
}

#[test]
fn a_conflicting_or_unsupported_limit_is_reported() {
    let Some(own) = Own::make() else { return };
    let Some((file, value)) = own.limit() else { return };
    let config = |file: &str, value: &str| {
        format!(
            "[app.web]\nprogram = \"server.js\"\nworkers = 1\n[app.web.cgroup.other]\n\"{file}\" = \"{value}\"\n"
        )
    };
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &config(file, value))]);
    let other = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(own.0.join("cgroup.procs"), other.id().to_string()).unwrap();
    let output = troop(&home, &own.0, "run web").wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success()
            && said.contains(&format!("sleep {}", other.id()))
            && said.contains("Delegate=yes"),
        "{said}"
    );
    fs::write(own.0.join("cgroup.kill"), "1").unwrap();
    other.wait_with_output().unwrap();

    fs::write(home.path().join("troop.toml"), config("colours.max", "3")).unwrap();
    let output = troop(&home, &own.0, "run web").wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("no controller \"colours\""), "{said}");

    fs::write(home.path().join("troop.toml"), config(file, "lots")).unwrap();
    let output = troop(&home, &own.0, "run web").wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("\"lots\""), "{said}");
}
