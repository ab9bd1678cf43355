//! Hears workers that say that they are ready: by `READY=1`, as to systemd, or by a message.
//!
//! Each worker has a socket of its own for notifications, which is read once its process is known: so
//! no notification comes too early, whoever sends it for the worker, and no other worker's is in its
//! way. The socket is a file with a random name in a directory that nobody else can list, because an
//! abstract address would be open to every user of the system; where there can be no such directory,
//! the address is abstract, and only the worker and its process group are heard.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use troop_core::WorkerId;
use troop_sys::notify::{self, NotifySocket};
use troop_sys::poll::Interest;
use troop_sys::process;
use troop_sys::safe_path::{Directory, Safety};

use super::Workers;
use crate::error::Error;
use crate::event::Event;
use crate::primary::driver::{Driver, Token};
use crate::primary::policies::ReadyWhen;
use crate::primary::wake::Command;

/// Notifications of a worker that are read before others have their turn.
const BURST: usize = 16;
/// The longest part of a notification that is read.
const MAX_NOTIFICATION: usize = 4096;

/// How workers say that they are ready.
pub(super) struct Readiness {
    when: ReadyWhen,
    /// Where their sockets for notifications are.
    directory: Option<Arc<Directory>>,
}

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness { when: ReadyWhen::Auto, directory: None }
    }
}

/// Where a worker sends notifications.
pub(super) struct Notifications {
    pub(super) socket: NotifySocket,
    /// Whether a thread consumes a notification with descriptors, so that nobody else may read.
    pub(super) is_consumed_aside: bool,
}

impl Notifications {
    /// Returns the value of `NOTIFY_SOCKET`.
    pub(super) fn address(&self) -> &std::ffi::OsStr {
        self.socket.address()
    }
}

impl Readiness {
    /// Returns the directory of the sockets, if it is the one at this path.
    pub(super) fn directory_at(&self, path: Option<&Path>) -> Option<&Arc<Directory>> {
        self.directory.as_ref().filter(|directory| Some(directory.path()) == path)
    }

    /// Returns a socket for the notifications of a worker that is about to be started, if it is
    /// ready when it says so.
    pub(super) fn open(&mut self) -> io::Result<Option<Notifications>> {
        if self.when != ReadyWhen::Notified {
            return Ok(None);
        }
        let mut bound = self.directory.as_ref().map(NotifySocket::bind_in);
        if bound.as_ref().is_some_and(Result::is_err) {
            // It may have been removed.
            self.directory = find_directory().map(Arc::new);
            bound = self.directory.as_ref().map(NotifySocket::bind_in);
        }
        let socket = match bound {
            Some(Ok(socket)) => socket,
            _ => NotifySocket::bind_abstract()?,
        };
        Ok(Some(Notifications { socket, is_consumed_aside: false }))
    }
}

/// Returns the directory for the sockets of all of this user's clusters. Others may enter it, and not
/// list or change it.
fn find_directory() -> Option<Directory> {
    let own = rustix::process::geteuid();
    let run = own.is_root().then(|| PathBuf::from("/run"));
    let places = run.into_iter().chain([std::env::temp_dir(), "/dev/shm".into()]);
    let name = format!("troop-notify-{}", own.as_raw());
    places.filter(|place| place.is_dir()).find_map(|place| open_directory(&place.join(&name)).ok())
}

fn open_directory(path: &Path) -> io::Result<Directory> {
    let directory = Directory::create(path, Safety::Ancestors, 0o711)?;
    let found = directory.metadata();
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if found.mode() & 0o777 != 0o711 {
        let at = directory.reach(".".as_ref());
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o711))?;
    }
    Ok(directory)
}

impl Workers {
    /// The worker that a process is, or whose group it is in.
    fn worker_of(&self, pid: u32) -> Option<WorkerId> {
        let of = |pid| self.handles().find(|worker| worker.pid() == pid).map(|worker| worker.id());
        of(pid).or_else(|| process::group_of(pid).and_then(of))
    }

    fn notifications_mut(&mut self, worker: WorkerId) -> Option<&mut Notifications> {
        self.processes.get_mut(&worker)?.notifications.as_mut()
    }
}

impl Driver {
    /// From now on workers are ready when they say so, or listen.
    pub(crate) fn ready_when(&mut self, when: ReadyWhen) {
        self.workers.readiness.when = when;
        if when == ReadyWhen::Notified {
            let directory = find_directory();
            directory.iter().for_each(notify::remove_left_behind);
            self.workers.readiness.directory = directory.map(Arc::new);
        }
    }

    /// Reads a worker's notifications from now on.
    pub(super) fn hear(&mut self, worker: WorkerId, notifications: Notifications) {
        let Some(process) = self.workers.processes.get_mut(&worker) else { return };
        let socket = notifications.socket.socket();
        if let Err(source) = self.poller.add(socket, Token::Notify(worker), Interest::Read) {
            let error = Error::Io { doing: "watch for notifications", source };
            let worker = Some(process.handle.clone());
            self.events.push(Event::Error { worker, error: Arc::new(error) });
        }
        process.notifications = Some(notifications);
    }

    /// Closes a socket that notifications were sent to, and removes its file.
    pub(super) fn close_notifications(&mut self, notifications: Option<Notifications>) {
        let Some(Notifications { socket, .. }) = notifications else { return };
        let (fd, is_clear) = (socket.socket().clone(), socket.refuses_descriptors());
        drop(socket);
        // If one is being consumed, the thread that does it closes it.
        if !is_clear && let Some(fd) = Arc::into_inner(fd) {
            self.closing.closer();
            self.closing.close(self.now, fd);
        }
    }

    /// A worker has ended.
    pub(super) fn end_notifications(&mut self, worker: WorkerId) {
        let notifications = self.workers.processes.get_mut(&worker);
        let notifications = notifications.and_then(|process| process.notifications.take());
        if let Some(notifications) = &notifications {
            // A thread may have a copy, and a process that is being started.
            self.poller.remove(notifications.socket.socket());
        }
        self.close_notifications(notifications);
    }

    pub(in crate::primary::driver) fn read_notifications(&mut self, worker: WorkerId) {
        // A runtime reports it only once.
        self.unfinished |= (0..BURST).all(|_| self.read_notification(worker));
    }

    /// Reads one notification. Returns whether there may be more.
    fn read_notification(&mut self, worker: WorkerId) -> bool {
        let Some(Notifications { socket, is_consumed_aside }) =
            self.workers.notifications_mut(worker)
        else {
            return false;
        };
        if *is_consumed_aside {
            return false;
        }
        let mut bytes = [0; MAX_NOTIFICATION];
        let seen = match socket.peek(&mut bytes) {
            Ok(seen) => seen,
            Err(e) => return e.kind() == io::ErrorKind::Interrupted,
        };
        let is_public = socket.is_public();
        if seen.has_descriptors {
            *is_consumed_aside = true;
            let socket = socket.socket().clone();
            self.poller.remove(&socket);
            let driver_handle = self.inbox.handle().clone();
            self.closing.closer().consume(socket, seen.len, move || {
                let _ = driver_handle.send(Command::NotificationConsumed(worker));
            });
        } else if socket.consume().is_err() {
            return false;
        }
        // Other news are of no use here.
        let says_ready =
            bytes[..seen.len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
        let is_heard =
            !is_public || seen.pid.is_some_and(|pid| self.workers.worker_of(pid) == Some(worker));
        if says_ready && is_heard {
            self.says_ready(worker);
        }
        !seen.has_descriptors
    }

    /// A notification with descriptors has been consumed: the socket is read again.
    pub(in crate::primary::driver) fn notification_consumed(&mut self, worker: WorkerId) {
        let Some(notifications) = self.workers.notifications_mut(worker) else { return };
        notifications.is_consumed_aside = false;
        let socket = notifications.socket.socket().clone();
        // Without memory for it, the worker is not heard any more.
        let _ = self.poller.add(&socket, Token::Notify(worker), Interest::Read);
    }

    pub(in crate::primary::driver) fn says_ready(&mut self, worker: WorkerId) {
        if let Some(supervisor) = self.cluster.supervisor_mut() {
            supervisor.reported_ready(self.now, worker);
        }
    }

    /// Publishes the oldest messages of workers' programs, among which may be reports that workers
    /// are ready.
    pub(in crate::primary::driver) fn report_messages(&mut self, count: usize) {
        let messages = self.channels.messages_mut();
        let is_ready = |event: &Event| match event {
            Event::Message { worker, message } if message.as_json() == "\"ready\"" => {
                Some(worker.id())
            }
            _ => None,
        };
        let mut ready = Vec::new();
        if self.workers.readiness.when == ReadyWhen::Message {
            ready.extend(messages.iter().take(count).filter_map(is_ready));
        }
        self.events.take_from(messages, count);
        ready.into_iter().for_each(|worker| self.says_ready(worker));
    }
}
