//! Whether a process waits for connections on sockets that it was given, as far as `/proc` shows it
//! (`proc_pid_fd(5)`, `proc_pid_fdinfo(5)`, `proc_pid_syscall(5)`).

use std::fs::File;
use std::io::{self, Read as _};
use std::time::{Duration, Instant};

/// Maximum number of processes that are inspected: the worker and those that it has started.
const MAX_PROCESSES: usize = 64;
/// Maximum number of descriptors, and of threads, that are inspected in each.
const MAX_ENTRIES: usize = 4096;
/// Maximum time of a check: a hostile worker can make its descriptors many and long.
const MAX_TIME: Duration = Duration::from_millis(100);

/// Whether a process waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waits {
    /// It does not.
    No,
    /// It has one of the sockets and waits for something, perhaps for connections: in `select(2)`,
    /// `poll(2)` or `io_uring_enter(2)`, whose descriptors `/proc` does not show.
    Perhaps,
    /// It does: in `accept(2)`, or in `epoll_wait(2)` for one of the sockets.
    Yes,
}

/// Returns whether a process, or one that it has started, waits for connections on one of the
/// sockets with these inodes. Reads a few files for each descriptor and thread, for 100 ms at most.
///
/// # Errors
/// If `/proc` does not show the descriptors or system calls of the process, which may have ended;
/// `TimedOut` if there are too many.
pub fn waits(pid: u32, sockets: &[u64]) -> io::Result<Waits> {
    let check = Check { sockets, until: Instant::now() + MAX_TIME };
    let own = check.process(pid)?.unwrap_or(Waits::No);
    let mut of_children = None;
    let mut processes = vec![pid];
    let mut next = 0;
    while let Some(parent) = processes.get(next).copied() {
        next += 1;
        for child in check.children(parent)? {
            if own == Waits::Yes || of_children == Some(Waits::Yes) {
                return Ok(Waits::Yes);
            }
            if processes.len() < MAX_PROCESSES {
                processes.push(child);
                of_children = of_children.max(match check.process(child) {
                    Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(e),
                    // One that has ended meanwhile does not wait.
                    found => found.unwrap_or_default(),
                });
            }
        }
    }
    Ok(match of_children {
        // A process whose children have the sockets waits for the children.
        Some(found) if own == Waits::Perhaps => found,
        found => own.max(found.unwrap_or(Waits::No)),
    })
}

/// One check, which ends in time.
struct Check<'a> {
    sockets: &'a [u64],
    until: Instant,
}

impl Check<'_> {
    fn is_in_time(&self) -> io::Result<()> {
        if Instant::now() < self.until { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// The names in a directory that are numbers.
    fn entries(&self, path: &str) -> io::Result<Vec<u32>> {
        self.is_in_time()?;
        let names = std::fs::read_dir(path)?.take(MAX_ENTRIES).flatten();
        Ok(names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    fn children(&self, pid: u32) -> io::Result<Vec<u32>> {
        let mut children = Vec::new();
        for task in self.entries(&format!("/proc/{pid}/task")).unwrap_or_default() {
            self.is_in_time()?;
            let list = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/children"));
            let list = list.unwrap_or_default();
            children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        Ok(children)
    }

    /// Whether one process waits for connections; `None` if it has none of the sockets.
    fn process(&self, pid: u32) -> io::Result<Option<Waits>> {
        let (mut own, mut polls) = (Vec::new(), Vec::new());
        for fd in self.entries(&format!("/proc/{pid}/fd"))? {
            self.is_in_time()?;
            let Ok(target) = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")) else { continue };
            let target = target.as_os_str().to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let inode = inode.and_then(|inode| inode.parse().ok());
            if inode.is_some_and(|inode| self.sockets.contains(&inode)) {
                own.push(fd);
            } else if target == "anon_inode:[eventpoll]" {
                polls.push(fd);
            }
        }
        if own.is_empty() && polls.is_empty() {
            return Ok(None);
        }
        let mut found = Waits::No;
        let (mut shown, mut watching) = (0, None);
        for task in self.entries(&format!("/proc/{pid}/task"))? {
            self.is_in_time()?;
            let call = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/syscall"));
            let Ok(call) = call else { continue };
            shown += 1;
            found = found.max(match waits_in(&call, &own) {
                // Only the descriptors for which a thread waits are read, which may be long.
                InCall::Epoll(fd) if polls.contains(&fd) => {
                    let is_watching = match watching {
                        Some((known, is_watching)) if known == fd => is_watching,
                        _ => self.watches(pid, fd)?,
                    };
                    watching = Some((fd, is_watching));
                    if is_watching { Waits::Yes } else { Waits::No }
                }
                InCall::Epoll(_) | InCall::Other => Waits::No,
                InCall::Poll if own.is_empty() => Waits::No,
                InCall::Poll => Waits::Perhaps,
                InCall::Accept => Waits::Yes,
            });
            if found == Waits::Yes {
                break;
            }
        }
        if shown == 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let is_holder = !own.is_empty() || found == Waits::Yes;
        Ok(is_holder.then_some(found))
    }

    /// Whether an epoll instance watches one of these sockets: lines such as
    /// `tfd: 7 events: 19 data: 7 pos:0 ino:2a2f sdev:8`.
    fn watches(&self, pid: u32, fd: u32) -> io::Result<bool> {
        let Ok(mut file) = File::open(format!("/proc/{pid}/fdinfo/{fd}")) else { return Ok(false) };
        let (mut chunk, mut rest) = (vec![0; 64 * 1024], Vec::new());
        loop {
            self.is_in_time()?;
            let length = file.read(&mut chunk)?;
            rest.extend_from_slice(&chunk[..length]);
            let end = match (length, rest.iter().rposition(|byte| *byte == b'\n')) {
                (0, _) => rest.len(),
                (_, Some(end)) => end,
                // No line of the kernel's is so long.
                (_, None) => return Ok(false),
            };
            if self.names_socket(&String::from_utf8_lossy(&rest[..end])) {
                return Ok(true);
            }
            if length == 0 {
                return Ok(false);
            }
            rest.drain(..end);
        }
    }

    fn names_socket(&self, fdinfo: &str) -> bool {
        fdinfo.lines().filter(|line| line.starts_with("tfd:")).any(|line| {
            let inode = line.split_whitespace().find_map(|field| field.strip_prefix("ino:"));
            inode
                .and_then(|inode| u64::from_str_radix(inode, 16).ok())
                .is_some_and(|inode| self.sockets.contains(&inode))
        })
    }
}

/// What a thread does in the kernel.
enum InCall {
    /// It waits for a connection or datagram on one of the sockets.
    Accept,
    /// It waits for events of this epoll instance.
    Epoll(u32),
    /// It waits for descriptors that `/proc` does not show.
    Poll,
    Other,
}

/// What a thread does in this system call: its number, and its arguments in hexadecimal.
fn waits_in(call: &str, own: &[u32]) -> InCall {
    let mut fields = call.split_whitespace();
    let Some(number) = fields.next().and_then(|number| number.parse::<libc::c_long>().ok()) else {
        return InCall::Other;
    };
    let first = fields.next().and_then(|argument| argument.strip_prefix("0x"));
    let first = first.and_then(|argument| u32::from_str_radix(argument, 16).ok());
    #[cfg(target_arch = "x86_64")]
    let (older_polls, older_epoll) = ([libc::SYS_poll, libc::SYS_select], [libc::SYS_epoll_wait]);
    #[cfg(not(target_arch = "x86_64"))]
    let (older_polls, older_epoll): ([libc::c_long; 0], [libc::c_long; 0]) = ([], []);
    match (number, first) {
        (
            libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_read
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg,
            Some(fd),
        ) if own.contains(&fd) => InCall::Accept,
        (libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2, Some(fd)) => InCall::Epoll(fd),
        (number, Some(fd)) if older_epoll.contains(&number) => InCall::Epoll(fd),
        (libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_io_uring_enter, _) => InCall::Poll,
        (number, _) if older_polls.contains(&number) => InCall::Poll,
        _ => InCall::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;
    use std::process::{Child, Command};

    use super::*;
    use crate::diag::inode;

    /// A Python program that has a socket as descriptor 3.
    fn program(listener: &TcpListener, text: &str) -> Child {
        let script = format!("exec 3<&{}; exec python3 -c \"$0\"", listener.as_raw_fd());
        rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).unwrap();
        Command::new("sh")
            .args(["-c", &script, text])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn becomes(text: &str, expected: Waits) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        let mut child = program(
            &listener,
            &format!("import socket, select, time, os\ns = socket.socket(fileno=3)\n{text}"),
        );
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let seen = loop {
            let seen = waits(child.id(), &sockets).unwrap();
            if seen >= expected || std::time::Instant::now() > deadline {
                break seen;
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        // What it has started ends with its first connection.
        drop(std::net::TcpStream::connect(listener.local_addr().unwrap()));
        assert_eq!(seen, expected, "{text}");
    }

    #[test]
    fn programs_that_wait_for_connections_are_seen_however_they_do() {
        becomes("s.accept()", Waits::Yes);
        becomes("e = select.epoll()\ne.register(3, select.EPOLLIN)\ne.poll()", Waits::Yes);
        becomes("select.select([3], [], [])", Waits::Perhaps);
        becomes("p = select.poll()\np.register(3)\np.poll(60000)", Waits::Perhaps);
        becomes("if os.fork() == 0: s.accept()\nos.wait()", Waits::Yes);
    }

    #[test]
    fn a_process_that_waits_for_its_children_serves_when_they_do() {
        let text = "import os, select, time\nif os.fork() == 0: time.sleep(2); os._exit(0)\nselect.select([0], [], [], 60)";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        let mut parent = program(&listener, text);
        let is_waiting = || {
            let check = Check { sockets: &sockets, until: Instant::now() + MAX_TIME };
            check.process(parent.id()).unwrap() == Some(Waits::Perhaps)
                && check.children(parent.id()).unwrap().len() == 1
        };
        while !is_waiting() {
            std::thread::yield_now();
        }
        let seen = waits(parent.id(), &sockets).unwrap();
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert_eq!(seen, Waits::No);
    }

    /// A hostile one: the kernel takes long to list what its threads wait for.
    #[test]
    fn a_check_that_would_take_long_is_given_up() {
        let text = "import os, resource, select, threading
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
threading.stack_size(65536)
epoll = select.epoll()
copies = [os.dup(epoll.fileno()) for _ in range(400)]
for _ in range(min(hard, 20000) - 1000): epoll.register(os.dup(0), select.EPOLLERR)
for copy in copies: threading.Thread(target=select.epoll.fromfd(copy).poll).start()
print('ready', flush=True)";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut child = program(&listener, text);
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let seen = waits(child.id(), &[inode(&listener).unwrap()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(line, "ready\n", "{seen:?}");
        assert_eq!(seen.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn one_that_does_something_else_is_not_taken_for_one_that_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        // It has told the kernel what it will wait for, and does something else before.
        let text = "import time, select; e = select.epoll(); e.register(3); time.sleep(60)";
        let mut child = program(&listener, text);
        let shows_python = || {
            std::fs::read_to_string(format!("/proc/{}/comm", child.id()))
                .is_ok_and(|name| name.starts_with("python"))
        };
        while !shows_python() {
            std::thread::yield_now();
        }
        assert_eq!(waits(child.id(), &sockets).unwrap(), Waits::No);
        // Nor one that waits for connections on another socket.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(waits(child.id(), &[inode(&other).unwrap()]).unwrap(), Waits::No);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(waits(child.id(), &sockets).is_err());
    }
}
