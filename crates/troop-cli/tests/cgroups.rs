//! Control groups of workers, on machines where one can be had for the test (root, and a tree of version 2).

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::Home;
use troop_testkit::wait_until;

const SERVER: &str = "
require('child_process').spawn('setsid', ['sleep', '4711'], { detached: true, stdio: 'ignore' }).unref();
require('http').createServer((q, s) => s.end()).listen(0, '127.0.0.1');
";

/// A group that is this test's own.
struct Own(PathBuf);

impl Own {
    fn make() -> Option<Own> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let own = Path::new(&mount).join(format!("troop-test-{}", std::process::id()));
        fs::create_dir(&own).ok()?;
        Some(Own(own))
    }

    /// Something that can be limited here: a file and its value.
    fn limit(&self) -> Option<(&'static str, &'static str)> {
        let controllers = fs::read_to_string(self.0.join("cgroup.controllers")).ok()?;
        let known = [("pids", "pids.max", "100"), ("memory", "memory.max", "1073741824"), ("hugetlb", "hugetlb.2MB.max", "0")];
        let found = known.iter().find(|(controller, ..)| controllers.split_whitespace().any(|had| had == *controller));
        found.map(|(_, file, value)| (*file, *value))
    }

    fn groups(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().into_string().unwrap()).collect();
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
    let script = format!("echo $$ > {}/cgroup.procs && exec {} {args}", own.display(), env!("CARGO_BIN_EXE_troop"));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(home.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("TROOP_RUNTIME_DIR", home.path().join("run")).env("TROOP_LOG_DIR", home.path().join("logs"));
    command.spawn().unwrap()
}

#[test]
fn each_worker_has_a_group_with_its_limits_and_nothing_is_left_in_it() {
    let Some(own) = Own::make() else { return };
    let Some((file, value)) = own.limit() else { return };
    let config = format!("[app.web]\nprogram = \"server.js\"\nworkers = 2\n[app.web.cgroup.other]\n\"{file}\" = \"{value}\"\n");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &config)]);
    let mut running = troop(&home, &own.0, "run web");
    let ready = || {
        let (code, out, _) = home.troop(&["show", "web", "--json"]);
        code == 0 && out.matches("\"state\":\"listening\"").count() == 2
    };
    wait_until("two workers", ready);
    let primary = format!("troop.{}", running.id());
    assert_eq!(own.groups(), ["primary", "worker-1", "worker-2"].map(|name| format!("{primary}.{name}")));
    let group = own.0.join(format!("{primary}.worker-1"));
    assert_eq!(fs::read_to_string(group.join(file)).unwrap().trim(), value);
    // The worker, and what it has started and let go.
    wait_until("both", || fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count() == 2);
    let stray = || fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    home.fine(&["reload", "web"]);
    wait_until("the end of the old group", || stray().is_empty() && !group.exists());
    assert_eq!(own.groups().len(), 3);
    home.fine(&["stop", "web"]);
    assert!(running.wait().unwrap().success());
    assert_eq!(own.groups(), [format!("{primary}.primary")], "which nobody is in any more");
}

#[test]
fn where_there_are_others_or_no_such_limit_that_is_said() {
    let Some(own) = Own::make() else { return };
    let Some((file, value)) = own.limit() else { return };
    let config = |file: &str, value: &str| {
        format!("[app.web]\nprogram = \"server.js\"\nworkers = 1\n[app.web.cgroup.other]\n\"{file}\" = \"{value}\"\n")
    };
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &config(file, value))]);
    let other = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(own.0.join("cgroup.procs"), other.id().to_string()).unwrap();
    let output = troop(&home, &own.0, "run web").wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains(&format!("sleep {}", other.id())) && said.contains("Delegate=yes"),
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
