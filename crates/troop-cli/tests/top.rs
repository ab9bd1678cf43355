//! `troop top`, in a terminal and without one.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::Home;
use troop_testkit::wait_until;

const SERVER: &str =
    "require('http').createServer((q, s) => s.end('served')).listen(0, '127.0.0.1')";

/// A terminal of 100 columns with a program in it.
struct Screen {
    child: Child,
    keys: File,
    /// All that was written to it.
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn of(home: &Home, args: &[&str]) -> Screen {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let open =
            || -> OwnedFd { File::options().read(true).write(true).open(&path).unwrap().into() };
        let mut command = home.command(args);
        let (stdin, stdout) = (Stdio::from(open()), Stdio::from(open()));
        command.env("TERM", "xterm").stdin(stdin).stdout(stdout).stderr(Stdio::from(open()));
        let child = command.spawn().unwrap();
        drop(command);
        let keys = File::from(master);
        let (mut screen, seen) = (keys.try_clone().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
        let noted = seen.clone();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            // It fails when nobody has the terminal any more.
            while let Ok(len @ 1..) = screen.read(&mut part) {
                noted.lock().unwrap().extend_from_slice(&part[..len]);
            }
        });
        Screen { child, keys, seen }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end, before which the program has left the terminal as it had found it.
    fn ends_as_it_was(&mut self) {
        let mut status = None;
        wait_until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success());
        // It leaves the alternate screen, and shows the cursor.
        self.wait_for("\x1b[?1049l");
        self.wait_for("\x1b[?25h");
        let settings = rustix::termios::tcgetattr(&self.keys).unwrap();
        assert!(settings.local_modes.contains(rustix::termios::LocalModes::ICANON));
    }

    fn wait_for(&self, text: &str) {
        wait_until(text, || String::from_utf8_lossy(&self.seen.lock().unwrap()).contains(text));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_of_a_terminal_reach_apps_after_a_yes_and_the_terminal_is_left_as_it_was() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web", "-w", "1"]);
    let mut screen = Screen::of(&home, &["top", "-i", "100ms"]);
    screen.wait_for("web");
    screen.press("+");
    screen.wait_for("troop scale web +1?");
    screen.press("n+");
    screen.press("y");
    wait_until("the second worker", || home.show("web")["wanted"] == 2);
    // Its workers.
    screen.press("\r");
    screen.wait_for("IN FLIGHT");
    screen.press("q");
    screen.ends_as_it_was();
    let mut screen = Screen::of(&home, &["top", "-i", "100ms"]);
    screen.wait_for("web");
    let pid = rustix::process::Pid::from_child(&screen.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    screen.ends_as_it_was();
}

#[test]
fn one_page_is_printed_where_there_is_no_terminal() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web", "-w", "2"]);
    home.fine(&["start", "server.js", "-n", "other"]);
    home.fine(&["stop", "other"]);
    let page = home.fine(&["top", "--once", "-i", "100ms"]);
    let row = |name: &str| page.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let words = |name: &str| -> Vec<String> {
        row(name).split_whitespace().take(3).map(str::to_owned).collect()
    };
    assert_eq!(words("web"), ["web", "running", "2/2"], "{page}");
    assert_eq!(words("other"), ["other", "stopped", "0/1"], "{page}");
    let workers = home.fine(&["top", "web", "--once", "-i", "100ms"]);
    assert_eq!(workers.matches(" ready ").count(), 2, "{workers}");
    let (code, out, err) = home.troop(&["top"]);
    assert!(code == 2 && out.is_empty() && err.contains("--once"), "{code} {out}{err}");
    assert_eq!(home.troop(&["top", "nobody", "--once", "-i", "100ms"]).0, 3);
}
