//! A program in a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use troop_testkit::wait_until;

use super::Home;

/// A terminal of 100 columns with a program in it.
pub struct Screen {
    pub child: Child,
    keys: File,
    /// All that was written to it.
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    pub fn of(home: &Home, args: &[&str]) -> Screen {
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

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end.
    pub fn ends(&mut self) {
        let mut status = None;
        wait_until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{}", self.seen());
    }

    /// Waits for the end, before which the program has left the terminal as it had found it.
    pub fn ends_as_it_was(&mut self) {
        self.ends();
        // It leaves the alternate screen, and shows the cursor.
        self.wait_for("\x1b[?1049l");
        self.wait_for("\x1b[?25h");
        let settings = rustix::termios::tcgetattr(&self.keys).unwrap();
        assert!(settings.local_modes.contains(rustix::termios::LocalModes::ICANON));
    }

    pub fn wait_for(&self, text: &str) {
        wait_until(text, || self.seen().contains(text));
    }

    /// All that was written to it.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
