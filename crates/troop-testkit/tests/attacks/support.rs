//! What the attacks share: the program `troop`, a throw-away user, and whether this machine allows
//! the attack.
#![allow(dead_code, unreachable_pub, reason = "each attack uses a part of it")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A user and group that exist nowhere else, so that no other process has their rights.
pub const STRANGER: u32 = 64_017;

/// Whether this process is root, as attacks on a root primary need. Says which test it skips
/// otherwise.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} needs root");
    }
    root
}

/// The program `troop`, built beside the fixture.
pub fn troop_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_troop-fixture")).with_file_name("troop");
    assert!(
        program.exists(),
        "{} is missing: build the whole workspace (cargo build --workspace)",
        program.display()
    );
    program
}

/// `troop` with these arguments, with its control sockets and logs below `home`.
pub fn troop(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(troop_program());
    command.args(args).current_dir(home).stdin(Stdio::null());
    command.env("TROOP_RUNTIME_DIR", home.join("run")).env("TROOP_LOG_DIR", home.join("logs"));
    command
}

/// How a worker ends a socket that others have, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// `shutdown(2)`.
    Once,
    /// The second time for all connections that are accepted from then on.
    Twice,
    /// It is a client of something else.
    Elsewhere,
    /// Twice, and it listens again, which looks as before.
    Unseen,
}

impl Harm {
    pub const ALL: [Harm; 4] = [Harm::Once, Harm::Twice, Harm::Elsewhere, Harm::Unseen];

    pub fn be_done_to(self, socket: &OwnedFd) {
        let shut_down = || rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        // It says that it does not listen, and has its effect all the same.
        let shut_again = || assert_eq!(shut_down(), Err(rustix::io::Errno::NOTCONN));
        shut_down().unwrap();
        match self {
            Harm::Once => {}
            Harm::Twice => shut_again(),
            Harm::Unseen => {
                shut_again();
                rustix::net::listen(socket, 511).unwrap();
            }
            Harm::Elsewhere => {
                let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let result = rustix::net::connect(socket, &other.local_addr().unwrap());
                assert!(
                    matches!(result, Ok(()) | Err(rustix::io::Errno::INPROGRESS)),
                    "{result:?}"
                );
                // The connection lasts as long as this process.
                Box::leak(Box::new(other));
            }
        }
    }
}

/// Copies of the listening sockets of a process, with which a test does what the process itself
/// could do.
pub fn listeners_of(pid: u32) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    let Ok(pidfd) = troop_sys::process::pidfd(pid) else { return found };
    // It may be about to end.
    let Ok(all) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return found };
    for fd in all {
        let Ok(fd) = fd else { continue };
        let number: i32 = fd.file_name().to_str().unwrap().parse().unwrap();
        #[expect(
            unsafe_code,
            reason = "copies a descriptor of another process, as a debugger does"
        )]
        // SAFETY: a system call that makes a new descriptor, or fails.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
        if copy < 0 {
            continue;
        }
        #[expect(unsafe_code, reason = "it was made just now")]
        // SAFETY: no other code uses this number.
        let copy = unsafe { OwnedFd::from_raw_fd(i32::try_from(copy).unwrap()) };
        if rustix::net::sockopt::socket_acceptconn(&copy).unwrap_or(false) {
            found.push(copy);
        }
    }
    found
}

/// Sets an option of a socket.
pub fn set_option(socket: &OwnedFd, level: i32, option: i32, value: &[u8]) {
    let size = libc::socklen_t::try_from(value.len()).unwrap();
    #[expect(unsafe_code, reason = "the options are those that nobody sets")]
    // SAFETY: the kernel reads that many bytes, which outlive the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
