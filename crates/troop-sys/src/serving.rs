//! Whether a process waits for connections on sockets that it was given, as far as `/proc` shows it
//! (`proc_pid_fd(5)`, `proc_pid_fdinfo(5)`, `proc_pid_syscall(5)`).

use std::io;

/// Maximum number of processes that are inspected: the worker and those that it has started.
const MAX_PROCESSES: usize = 64;
/// Maximum number of descriptors, and of threads, that are inspected in each.
const MAX_ENTRIES: usize = 1024;

/// Whether a process waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waits {
    /// It does not.
    No,
    /// It has one of the sockets and waits for something, perhaps for connections: in `select(2)`,
    /// `poll(2)` or `io_uring_enter(2)`, whose descriptors `/proc` does not show.
    Perhaps,
    /// It does: in `accept(2)`, or by `epoll(7)`.
    Yes,
}

/// Returns whether a process, or one that it has started, waits for connections on one of the
/// sockets with these inodes. Reads a few files for each descriptor and thread.
///
/// # Errors
/// If `/proc` does not show the descriptors of the process, which may have ended.
pub fn waits(pid: u32, sockets: &[u64]) -> io::Result<Waits> {
    let own = of_process(pid, sockets)?.unwrap_or(Waits::No);
    let mut of_children = None;
    let mut processes = vec![pid];
    let mut next = 0;
    while let Some(parent) = processes.get(next).copied() {
        next += 1;
        for child in children(parent) {
            if processes.len() < MAX_PROCESSES {
                processes.push(child);
                // One that has ended meanwhile does not wait.
                of_children = of_children.max(of_process(child, sockets).unwrap_or_default());
            }
        }
    }
    Ok(match of_children {
        // A process whose children have the sockets waits for the children.
        Some(found) if own == Waits::Perhaps => found,
        found => own.max(found.unwrap_or(Waits::No)),
    })
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = entries(&format!("/proc/{pid}/task")).unwrap_or_default().into_iter();
    let lists = tasks.filter_map(|task| {
        std::fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).ok()
    });
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// The names in a directory that are numbers.
fn entries(path: &str) -> io::Result<Vec<u32>> {
    let names = std::fs::read_dir(path)?.take(MAX_ENTRIES).flatten();
    Ok(names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Whether one process waits for connections; `None` if it has none of the sockets.
fn of_process(pid: u32, sockets: &[u64]) -> io::Result<Option<Waits>> {
    let mut own = Vec::new();
    for fd in entries(&format!("/proc/{pid}/fd"))? {
        let Ok(target) = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")) else { continue };
        let target = target.as_os_str().to_string_lossy();
        if target == "anon_inode:[eventpoll]" {
            let watched = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"));
            if watched.is_ok_and(|text| watches(&text, sockets)) {
                return Ok(Some(Waits::Yes));
            }
        }
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        if inode.and_then(|inode| inode.parse().ok()).is_some_and(|inode| sockets.contains(&inode))
        {
            own.push(fd);
        }
    }
    if own.is_empty() {
        return Ok(None);
    }
    let calls = entries(&format!("/proc/{pid}/task"))?.into_iter().filter_map(|task| {
        let call = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/syscall")).ok()?;
        Some(waits_in(&call, &own))
    });
    Ok(Some(calls.max().unwrap_or(Waits::No)))
}

/// Whether an epoll instance watches one of these sockets: lines such as
/// `tfd: 7 events: 19 data: 7 pos:0 ino:2a2f sdev:8`.
fn watches(fdinfo: &str, sockets: &[u64]) -> bool {
    fdinfo.lines().filter(|line| line.starts_with("tfd:")).any(|line| {
        let inode = line.split_whitespace().find_map(|field| field.strip_prefix("ino:"));
        inode
            .and_then(|inode| u64::from_str_radix(inode, 16).ok())
            .is_some_and(|inode| sockets.contains(&inode))
    })
}

/// Whether a thread in this system call waits: its number, and its arguments in hexadecimal.
fn waits_in(call: &str, own: &[u32]) -> Waits {
    let mut fields = call.split_whitespace();
    let Some(number) = fields.next().and_then(|number| number.parse::<libc::c_long>().ok()) else {
        return Waits::No;
    };
    let first = fields.next().and_then(|argument| argument.strip_prefix("0x"));
    let first = first.and_then(|argument| u32::from_str_radix(argument, 16).ok());
    let on_own = [libc::SYS_accept, libc::SYS_accept4, libc::SYS_recvfrom, libc::SYS_recvmsg];
    let perhaps = [libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_io_uring_enter];
    #[cfg(target_arch = "x86_64")]
    let older = [libc::SYS_poll, libc::SYS_select];
    #[cfg(not(target_arch = "x86_64"))]
    let older: [libc::c_long; 0] = [];
    if on_own.contains(&number) && first.is_some_and(|fd| own.contains(&fd)) {
        Waits::Yes
    } else if perhaps.contains(&number) || older.contains(&number) {
        Waits::Perhaps
    } else {
        Waits::No
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
        becomes("e = select.epoll()\ne.register(3, select.EPOLLIN)\ntime.sleep(60)", Waits::Yes);
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
            of_process(parent.id(), &sockets).unwrap() == Some(Waits::Perhaps)
                && children(parent.id()).len() == 1
        };
        while !is_waiting() {
            std::thread::yield_now();
        }
        let seen = waits(parent.id(), &sockets).unwrap();
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert_eq!(seen, Waits::No);
    }

    #[test]
    fn one_that_does_something_else_is_not_taken_for_one_that_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        let mut child = program(&listener, "import time; time.sleep(60)");
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
