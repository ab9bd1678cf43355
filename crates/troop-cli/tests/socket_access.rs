//! Whom the files of sockets belong to that troop binds for an app.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use support::Home;
use troop_testkit::wait_until;

/// The owner, the group and the mode of the socket of an app with these options.
fn access(options: &[&str]) -> (u32, u32, u32) {
    let home = Home::with(&[]);
    let path = home.path().join("web.sock");
    let at = path.display().to_string();
    // It need not accept.
    let start = ["start", "--no-wait", "--name", "web", "-b", &at];
    home.fine(&[&start, options, &["sleep", "1000"]].concat());
    wait_until("a worker", || !home.show("web")["workers"].as_array().unwrap().is_empty());
    let found = path.symlink_metadata().unwrap();
    assert!(found.file_type().is_socket());
    (found.uid(), found.gid(), found.mode() & 0o777)
}

#[test]
fn a_socket_has_the_mode_that_is_wanted_or_what_the_umask_of_its_app_leaves() {
    let mode = |options: &[&str]| access(options).2;
    assert_eq!(mode(&["--set", "socket_mode=\"0660\""]), 0o660);
    assert_eq!(mode(&["--set", "umask=\"007\""]), 0o770);
    assert_eq!(mode(&["--set", "umask=\"077\"", "--set", "socket_mode=\"0666\""]), 0o666);
}

#[test]
fn a_socket_belongs_to_the_user_and_the_group_of_its_app() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let usual = access(&["--user", "nobody"]);
    assert_eq!(usual.0, 65534);
    let given = access(&["--user", "nobody", "--group", "1234", "--set", "socket_mode=\"0660\""]);
    assert_eq!(given, (65534, 1234, 0o660));
}

#[test]
fn a_mode_that_is_none_and_one_for_no_socket_are_told() {
    let home = Home::with(&[]);
    for (setting, text) in
        [("socket_mode=\"9\"", "octal"), ("socket_mode=\"0660\"", "without a path in bind")]
    {
        let (code, _, err) = home.troop(&["start", "--set", setting, "sleep", "1000"]);
        assert!(code == 2 && err.contains(text), "{err}");
    }
}
