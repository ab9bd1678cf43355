//! The check itself. It allocates nothing after [`Memory::new`], because it runs in a process that
//! was forked by one with several threads, whose allocator may be locked there for ever.

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, OFlags, RawDir};
use rustix::io::Errno;

use super::Waits;
use crate::proc_file::{Path, number, words};

/// Maximum number of sockets that are looked for.
pub const MAX_SOCKETS: usize = 64;
/// Maximum number of processes that are inspected: the worker and those that it has started.
const MAX_PROCESSES: usize = 64;
/// Maximum number of descriptors, and of threads, that are inspected in each.
const MAX_ENTRIES: usize = 4096;
/// Maximum time of a check: a hostile worker can make its descriptors many and long.
const MAX_TIME: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 * 1024;

/// Returns whether a process, or one that it has started, waits for connections on one of the
/// sockets with these inodes. Reads a few files for each descriptor and thread, for 100 ms at most,
/// unless the kernel takes longer for one of them; see [`Checker`](super::Checker).
///
/// # Errors
/// If `/proc` does not show the descriptors or system calls of the process, which may have ended;
/// `TimedOut` if there are too many.
pub fn waits(pid: u32, sockets: &[u64]) -> io::Result<Waits> {
    waits_with(&mut Memory::new(), pid, sockets).map_err(|failure| match failure {
        Failure::TimedOut => io::ErrorKind::TimedOut.into(),
        Failure::Hidden => io::ErrorKind::PermissionDenied.into(),
    })
}

pub(super) enum Failure {
    TimedOut,
    Hidden,
}

/// The memory of checks.
pub(super) struct Memory {
    processes: Vec<u32>,
    lists: Lists,
    chunk: Vec<u8>,
}

struct Lists {
    directory: Vec<MaybeUninit<u8>>,
    /// Descriptors that are sockets to look for.
    own: Vec<u32>,
    /// Descriptors that are epoll instances.
    polls: Vec<u32>,
    entries: Vec<u32>,
}

impl Memory {
    pub(super) fn new() -> Memory {
        Memory {
            processes: Vec::with_capacity(MAX_PROCESSES),
            lists: Lists {
                directory: vec![MaybeUninit::uninit(); 16 * 1024],
                own: Vec::with_capacity(MAX_ENTRIES),
                polls: Vec::with_capacity(MAX_ENTRIES),
                entries: Vec::with_capacity(MAX_ENTRIES),
            },
            chunk: vec![0; CHUNK],
        }
    }
}

/// Adds a number if there is room. Returns whether there was.
fn push(list: &mut Vec<u32>, number: u32) -> bool {
    let has_room = list.len() < list.capacity();
    if has_room {
        list.push(number);
    }
    has_room
}

pub(super) fn waits_with(memory: &mut Memory, pid: u32, sockets: &[u64]) -> Result<Waits, Failure> {
    let check = Check { sockets, until: Instant::now() + MAX_TIME };
    let Memory { processes, lists, chunk } = memory;
    let own = check.process(lists, chunk, pid)?.unwrap_or(Waits::Without);
    let mut of_children = None;
    // Whether all processes are known, and were seen.
    let mut is_complete = true;
    processes.clear();
    push(processes, pid);
    let mut next = 0;
    while let Some(parent) = processes.get(next).copied() {
        next += 1;
        let first = processes.len();
        check.children(lists, chunk, processes, parent)?;
        for child in &processes[first..] {
            if own == Waits::Yes || of_children == Some(Waits::Yes) {
                return Ok(Waits::Yes);
            }
            of_children = of_children.max(match check.process(lists, chunk, *child) {
                Err(Failure::TimedOut) => return Err(Failure::TimedOut),
                // One that has ended meanwhile does not wait.
                Err(Failure::Hidden) => {
                    is_complete = false;
                    None
                }
                Ok(found) => found,
            });
        }
    }
    is_complete &= processes.len() < processes.capacity();
    Ok(match of_children {
        // A process whose children have the sockets waits for the children.
        Some(found) if own == Waits::Perhaps => found,
        None if own == Waits::Without && !is_complete => Waits::No,
        found => own.max(found.unwrap_or(Waits::Without)),
    })
}

/// One check, which ends in time.
struct Check<'a> {
    sockets: &'a [u64],
    until: Instant,
}

impl Check<'_> {
    fn is_in_time(&self) -> Result<(), Failure> {
        if Instant::now() < self.until { Ok(()) } else { Err(Failure::TimedOut) }
    }

    /// Lists the names in a directory that are numbers.
    fn entries(
        &self,
        directory: &mut [MaybeUninit<u8>],
        out: &mut Vec<u32>,
        path: &Path,
    ) -> Result<(), Failure> {
        self.is_in_time()?;
        out.clear();
        let file = path.open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(|_| Failure::Hidden)?;
        let mut names = RawDir::new(file, directory);
        while let Some(entry) = names.next() {
            let Ok(entry) = entry else { break };
            if number(entry.file_name().to_bytes()).is_some_and(|number| !push(out, number)) {
                break;
            }
        }
        Ok(())
    }

    /// Adds the processes that one has started to the list.
    fn children(
        &self,
        lists: &mut Lists,
        chunk: &mut [u8],
        processes: &mut Vec<u32>,
        pid: u32,
    ) -> Result<(), Failure> {
        let Lists { directory, entries, .. } = lists;
        let tasks = self.entries(directory, entries, &Path::new(format_args!("/proc/{pid}/task")));
        if let Err(Failure::TimedOut) = tasks {
            return Err(Failure::TimedOut);
        }
        for task in &*entries {
            self.is_in_time()?;
            let path = Path::new(format_args!("/proc/{pid}/task/{task}/children"));
            for child in words(path.read(chunk).unwrap_or_default()).filter_map(number) {
                if !push(processes, child) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether one process waits for connections; `None` if it has none of the sockets.
    fn process(
        &self,
        lists: &mut Lists,
        chunk: &mut [u8],
        pid: u32,
    ) -> Result<Option<Waits>, Failure> {
        let Lists { directory, own, polls, entries } = lists;
        own.clear();
        polls.clear();
        self.entries(directory, entries, &Path::new(format_args!("/proc/{pid}/fd")))?;
        for fd in &*entries {
            self.is_in_time()?;
            let path = Path::new(format_args!("/proc/{pid}/fd/{fd}"));
            let mut target = [0; 64];
            let Ok(length) = rustix::fs::readlinkat_raw(CWD, path.as_c_str(), &mut target[..])
            else {
                continue;
            };
            let target = &target[..length];
            let inode = target.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
            if inode.and_then(number).is_some_and(|inode| self.sockets.contains(&inode)) {
                push(own, *fd);
            } else if target == b"anon_inode:[eventpoll]" {
                push(polls, *fd);
            }
        }
        if own.is_empty() {
            let is_complete = entries.len() < entries.capacity();
            return Ok((!is_complete).then_some(Waits::No));
        }
        let mut found = Waits::No;
        let (mut shown, mut watching) = (0, None);
        self.entries(directory, entries, &Path::new(format_args!("/proc/{pid}/task")))?;
        for task in &*entries {
            self.is_in_time()?;
            let path = Path::new(format_args!("/proc/{pid}/task/{task}/syscall"));
            let Ok(call) = path.read(chunk) else { continue };
            shown += 1;
            found = found.max(match waits_in(call, own) {
                // Only the epoll instances for which a thread waits are inspected.
                InCall::Epoll(fd) if polls.contains(&fd) => {
                    let is_watching = match watching {
                        Some((known, is_watching)) if known == fd => is_watching,
                        _ => self.watches(chunk, pid, fd, own)?,
                    };
                    watching = Some((fd, is_watching));
                    if is_watching { Waits::Yes } else { Waits::No }
                }
                InCall::Epoll(_) | InCall::Other => Waits::No,
                InCall::Poll => Waits::Perhaps,
                InCall::Accept => Waits::Yes,
            });
            if found == Waits::Yes {
                break;
            }
        }
        if shown == 0 {
            return Err(Failure::Hidden);
        }
        Ok(Some(found))
    }

    /// Whether an epoll instance watches one of the sockets that the process has.
    fn watches(
        &self,
        chunk: &mut [u8],
        pid: u32,
        epoll: u32,
        own: &[u32],
    ) -> Result<bool, Failure> {
        for fd in own {
            self.is_in_time()?;
            match is_watched(pid, epoll, *fd) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                // A filter of a container, or an old kernel, forbids to ask. The list of all that
                // is watched may be long.
                Err(_) => return self.lists_socket(chunk, pid, epoll),
            }
        }
        Ok(false)
    }

    /// Whether the list of what an epoll instance watches has one of the sockets: lines such as
    /// `tfd: 7 events: 19 data: 7 pos:0 ino:2a2f sdev:8`.
    fn lists_socket(&self, chunk: &mut [u8], pid: u32, epoll: u32) -> Result<bool, Failure> {
        let path = Path::new(format_args!("/proc/{pid}/fdinfo/{epoll}"));
        let Ok(file) = path.open(OFlags::RDONLY) else { return Ok(false) };
        let mut kept = 0;
        loop {
            self.is_in_time()?;
            let length = rustix::io::read(&file, &mut chunk[kept..]).unwrap_or(0);
            let filled = kept + length;
            let end = match (length, chunk[..filled].iter().rposition(|byte| *byte == b'\n')) {
                (0, _) => filled,
                (_, Some(end)) => end,
                // No line of the kernel's is so long.
                (_, None) => return Ok(false),
            };
            if self.names_socket(&chunk[..end]) {
                return Ok(true);
            }
            if length == 0 {
                return Ok(false);
            }
            chunk.copy_within(end..filled, 0);
            kept = filled - end;
        }
    }

    fn names_socket(&self, fdinfo: &[u8]) -> bool {
        let lines = fdinfo.split(|byte| *byte == b'\n');
        lines.filter(|line| line.starts_with(b"tfd:")).any(|line| {
            let inode = words(line).find_map(|field| field.strip_prefix(b"ino:"));
            let inode = inode.and_then(|inode| std::str::from_utf8(inode).ok());
            inode
                .and_then(|inode| u64::from_str_radix(inode, 16).ok())
                .is_some_and(|inode| self.sockets.contains(&inode))
        })
    }
}

/// Whether an epoll instance of a process watches one of its descriptors, by `kcmp(2)`.
fn is_watched(pid: u32, epoll: u32, fd: u32) -> Result<bool, Errno> {
    /// `KCMP_EPOLL_TFD` of `linux/kcmp.h`.
    const EPOLL_TFD: libc::c_int = 7;
    // `struct kcmp_epoll_slot`: the instance, the descriptor that was added, and which of several.
    let slot: [u32; 3] = [epoll, fd, 0];
    // SAFETY: the kernel reads the slot, which is as `kcmp(2)` describes it, and changes nothing.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, EPOLL_TFD, fd, slot.as_ptr()) };
    match result {
        0 => Ok(true),
        -1 => match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(errno @ (Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP)) => {
                Err(errno)
            }
            _ => Ok(false),
        },
        _ => Ok(false),
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
fn waits_in(call: &[u8], own: &[u32]) -> InCall {
    let mut fields = words(call);
    let Some(called) = fields.next().and_then(number::<libc::c_long>) else {
        return InCall::Other;
    };
    let first = fields.next().and_then(|argument| argument.strip_prefix(b"0x"));
    let first = first.and_then(|argument| std::str::from_utf8(argument).ok());
    let first = first.and_then(|argument| u32::from_str_radix(argument, 16).ok());
    #[cfg(target_arch = "x86_64")]
    let (older_polls, older_epoll) = ([libc::SYS_poll, libc::SYS_select], [libc::SYS_epoll_wait]);
    #[cfg(not(target_arch = "x86_64"))]
    let (older_polls, older_epoll): ([libc::c_long; 0], [libc::c_long; 0]) = ([], []);
    match (called, first) {
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
        (called, Some(fd)) if older_epoll.contains(&called) => InCall::Epoll(fd),
        (libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_io_uring_enter, _) => InCall::Poll,
        (called, _) if older_polls.contains(&called) => InCall::Poll,
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

    /// Only a process without the socket can never accept on it.
    #[test]
    fn programs_that_have_closed_the_socket_are_seen_and_so_are_those_that_only_do_not_wait() {
        for (text, expected) in [
            ("s.detach(); os.closerange(3, 256)", Waits::Without),
            ("", Waits::No),
            ("if os.fork() != 0: s.detach(); os.closerange(3, 256)", Waits::No),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let sockets = [inode(&listener).unwrap()];
            let text = format!(
                "import os, socket, sys, time\ns = socket.socket(fileno=3)\n{text}\nprint(1, flush=True)\nsys.stdin.read()"
            );
            let mut child = program(&listener, &text);
            let mut done = [0; 2];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut done).unwrap();
            assert_eq!(waits(child.id(), &sockets).unwrap(), expected, "{text}");
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_process_that_waits_for_its_children_serves_when_they_do() {
        let text = "import os, select, time\nif os.fork() == 0: os.closerange(0, 3); time.sleep(2); os._exit(0)\nselect.select([0], [], [], 60)";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        let mut parent = program(&listener, text);
        let is_waiting = || {
            let check = Check { sockets: &sockets, until: Instant::now() + MAX_TIME };
            let Memory { processes, lists, chunk } = &mut Memory::new();
            let own = check.process(lists, chunk, parent.id());
            let _ = check.children(lists, chunk, processes, parent.id());
            matches!(own, Ok(Some(Waits::Perhaps))) && processes.len() == 1
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
        assert_eq!(waits(child.id(), &[inode(&other).unwrap()]).unwrap(), Waits::Without);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(waits(child.id(), &sockets).is_err());
    }
}
