//! The systemd units of `troop startup`: what they allow, and that `troop unstartup` removes them.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use support::Home;

const PLAIN: &str = "[app.web]\nprogram = \"server.js\"\n\n[app.api]\nprogram = \"server.js\"\nuser = \"www-data\"\n";

#[test]
fn the_exposure_of_a_hardened_unit_is_3_0_at_most() {
    let home = Home::with(&[("troop.toml", PLAIN), ("server.js", "")]);
    let units = home.path().join("units");
    let directory = units.to_str().unwrap();
    home.fine(&["startup", "--hardened", "--directory", directory]);
    let unit = |name: &str| std::fs::read_to_string(units.join(name)).unwrap();
    for name in ["troop-web.service", "troop-api.service"] {
        let unit = unit(name);
        for part in ["NoNewPrivileges=yes\n", "RestrictNamespaces=yes\n", "SystemCallFilter=@sys"] {
            assert!(unit.contains(part), "{part}: {unit}");
        }
    }
    assert!(!home.fine(&["startup", "web", "--print"]).contains("SystemCallFilter"));
    if !rustix::process::geteuid().is_root() {
        // Units for a user's service manager, which can do less.
        return;
    }
    assert!(unit("troop-web.service").contains("CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n"));
    assert!(unit("troop-api.service").contains(" CAP_SETUID CAP_SETGID "));
    for name in ["troop-web.service", "troop-api.service"] {
        let rated = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=30", "--no-pager"])
            .arg(units.join(name))
            .output();
        // Where it is installed, in a version that rates files.
        let Ok(rated) = rated else { return };
        let told = String::from_utf8_lossy(&rated.stdout) + String::from_utf8_lossy(&rated.stderr);
        if told.contains("Overall exposure level") {
            assert!(rated.status.success(), "{name}: {told}");
        }
    }
}

#[test]
fn a_hardened_unit_leaves_an_app_what_its_file_says_it_uses() {
    let home = Home::with(&[("server.js", "")]);
    let text = "[app.web]\nprogram = \"server.js\"\ncwd = \"data\"\nno_new_privileges = false\nnice = -5\n\
        may_listen = [\"/run/web/web.sock\", \"/srv/shared/web.sock\"]\n\
        output = { to = \"files\", file = \"/srv/logs/web.log\" }\npid_file = \"/srv/pids/web.pid\"\ncgroup = { memory = \"1G\" }\n";
    std::fs::write(home.path().join("troop.toml"), text).unwrap();
    let unit = home.fine(&["startup", "--hardened", "--print"]);
    assert!(!unit.contains("NoNewPrivileges"), "{unit}");
    if rustix::process::geteuid().is_root() {
        let own = home.path().canonicalize().unwrap().join("data");
        for part in [
            &format!("-{}", own.display()),
            " -/run/web",
            " -/srv/shared",
            " -/srv/logs",
            " -/srv/pids",
            "CAP_SYS_NICE",
        ] {
            assert!(unit.contains(part), "{part}: {unit}");
        }
        assert!(!unit.contains("ProtectControlGroups"), "{unit}");
    }
    // It is not known what saved apps need.
    let other = Home::with(&[]);
    let (code, _, err) = other.troop(&["startup", "--hardened", "--print"]);
    assert!(code == 2 && err.contains("is for the apps of a file"), "{err}");
}

#[test]
fn units_are_ordered_as_apps_start_and_do_not_run_twice_what_runs_once() {
    let text = "[app.web]\nprogram = \"server.js\"\nafter = [\"migrate\"]\n\n\
        [app.migrate]\nprogram = \"server.js\"\nrestart = { when = \"never\" }\n\n\
        [app.by-hand]\nprogram = \"server.js\"\nautostart = false\n";
    let home = Home::with(&[("troop.toml", text), ("server.js", "")]);
    let units = home.path().join("units");
    let out = home.fine(&["startup", "--directory", units.to_str().unwrap()]);
    let unit = |name: &str| std::fs::read_to_string(units.join(name)).unwrap();
    let web = unit("troop-web.service");
    for part in ["After=network-online.target troop-migrate.service\n", "Restart=on-failure\n"] {
        assert!(web.contains(part), "{part}: {web}");
    }
    assert!(web.contains("Wants=network-online.target troop-migrate.service\n"), "{web}");
    let once = unit("troop-migrate.service");
    assert!(once.contains("Restart=no\n") && once.contains("TimeoutStartSec=1200\n"), "{once}");
    let enabled = out.lines().find(|line| line.contains("enable --now")).unwrap();
    assert!(enabled.ends_with("enable --now troop-migrate troop-web"), "{out}");
    assert!(out.contains("autostart is false: systemctl") && out.contains("start troop-by-hand"));
}

#[test]
fn units_have_only_directories_of_the_path_that_the_app_needs() {
    let home = Home::with(&[("server.js", "")]);
    for (directory, program) in [("a/bin", "tool"), ("b/bin", "other")] {
        let directory = home.path().join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(program), "#!/bin/sh\n").unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.join(program), mode).unwrap();
    }
    let apps = "[app.tool]\nprogram = \"tool\"\n[app.own]\nprogram = \"./server\"\n";
    std::fs::write(home.path().join("troop.toml"), apps).unwrap();
    let (a, b) = (home.path().join("a/bin"), home.path().join("b/bin"));
    let path = format!("{}:{}:relative:/usr/bin:/bin", b.display(), a.display());
    let unit = |app: &str| {
        let mut command = home.command(&["startup", app, "--print"]);
        let output = command.env("PATH", &path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = format!("Environment=PATH={}:/usr/bin:/bin\n", a.display());
    assert!(unit("tool").contains(&expected), "{}", unit("tool"));
    assert!(!unit("own").contains("PATH"), "{}", unit("own"));
}

#[test]
fn unstartup_removes_what_startup_has_written_and_nothing_else() {
    let home = Home::with(&[("troop.toml", PLAIN), ("server.js", "")]);
    let units = home.path().join("units");
    let directory = units.to_str().unwrap();
    let there = || {
        let mut names: Vec<_> = std::fs::read_dir(&units)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".service"))
            .collect();
        names.sort();
        names
    };
    home.fine(&["startup", "--directory", directory]);
    // As `systemctl enable` does.
    let wants = units.join("multi-user.target.wants");
    std::fs::create_dir(&wants).unwrap();
    for name in ["troop-web.service", "troop-api.service"] {
        symlink(units.join(name), wants.join(name)).unwrap();
    }
    // Of another file, and of somebody else.
    let other = Home::with(&[("troop.toml", "[app.jobs]\nprogram = \"./jobs\"\n"), ("jobs", "")]);
    other.fine(&["startup", "--directory", directory]);
    std::fs::write(units.join("troop-own.service"), "[Unit]\nDescription=mine\n").unwrap();
    let out = home.fine(&["unstartup", "web", "--directory", directory]);
    assert!(out.contains("troop-web.service") && out.contains("daemon-reload"), "{out}");
    assert!(!wants.join("troop-web.service").is_symlink());
    assert!(wants.join("troop-api.service").is_symlink());
    let (code, _, err) = home.troop(&["unstartup", "own", "--directory", directory]);
    assert!(code == 2 && err.contains("was not written by `troop startup`"), "{err}");
    home.fine(&["unstartup", "--directory", directory]);
    assert_eq!(there(), ["troop-jobs.service", "troop-own.service"]);
    let (code, _, err) = home.troop(&["unstartup", "--directory", directory]);
    assert!(code == 2 && err.contains("has no unit of troop's"), "{err}");
    // The one for saved apps.
    let saved = Home::with(&[]);
    saved.fine(&["startup", "--directory", directory]);
    saved.fine(&["unstartup", "systemd", "--directory", directory]);
    assert_eq!(there(), ["troop-jobs.service", "troop-own.service"]);
}
