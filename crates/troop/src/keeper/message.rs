//! What the keeper and the engine tell each other: a kind, a number, a key, and the rest as bytes.

use troop_sys::process::Exit;

/// The longest message, in bytes.
pub(super) const MAX: usize = 8 * 1024;
/// Bytes before the rest.
const HEAD: usize = 16;

/// What a message is about. Numbers are never given a new meaning: a keeper may be older than its
/// engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    // ---- from the engine ----
    /// It catches signals from now on.
    CatchesSignals = 1,
    /// It has dealt with the end of the child with this number, which may be reaped.
    Reap = 2,
    /// A notification for the service manager.
    Notify = 3,
    /// Hold this descriptor under this key, in place of one that is held there.
    Hold = 4,
    /// Close the descriptor that is held under this key. Answered by [`Kind::Dropped`].
    Drop = 5,
    /// Send the descriptor that is held under this key.
    Fetch = 6,
    /// Start an engine, from this path, that goes on with the state that is held.
    Upgrade = 7,
    /// The engine to come: it could go on. Answered by [`Kind::Commit`].
    CouldGoOn = 8,
    /// The engine to come cannot go on, for this reason.
    Refuses = 9,
    /// The former engine has written down its last state, and does nothing until [`Kind::Over`] or
    /// [`Kind::Failed`].
    HasLeft = 10,
    /// The engine does not leave, for this reason.
    Stays = 11,
    /// Close all descriptors of the state that are held.
    DropAll = 12,
    /// It has obeyed the signal with this number.
    HasObeyed = 13,
    /// It ends because it lacks something that may be available later: memory, processes, descriptors.
    IsWanting = 14,
    /// Close all descriptors of the state that this engine has not fetched: they are in none.
    DropUnfetched = 15,
    /// Execute this program in the keeper's place.
    Renew = 16,
    /// The program that was [asked](Kind::CanYouKeep): it could be the keeper. The key is what only who has
    /// understood the state knows, the rest its version.
    CouldKeep = 17,

    // ---- from the keeper ----
    /// A child with this number has ended; the key tells how.
    Ended = 101,
    /// Nothing is held under this key any more.
    Dropped = 102,
    /// The descriptor under this key comes with this, if there is one.
    Held = 103,
    /// The engine to come could go on: leave.
    Leave = 104,
    /// This engine is over: the other one goes on.
    Over = 105,
    /// There will be no other engine, for this reason.
    Failed = 106,
    /// This engine goes on from now on. The rest is what it is to tell of those before it.
    Commit = 107,
    /// This process is only asked whether its program could go on as the keeper, with the state in the
    /// file that comes with this. Answered by [`Kind::CouldKeep`] or [`Kind::Refuses`].
    CanYouKeep = 108,
    /// The version of the keeper.
    KeeperIs = 109,
    /// The keeper has executed another program in its own place; the rest is the version of the former one.
    KeeperRenewed = 110,
    /// The keeper stays what it is, for this reason.
    KeeperStays = 111,
    /// Engines have ended with this state before they were ready: go on with as little of it as possible.
    Rebuild = 112,
}

impl Kind {
    fn of(number: u32) -> Option<Kind> {
        const ALL: [Kind; 29] = [
            Kind::CatchesSignals,
            Kind::Reap,
            Kind::Notify,
            Kind::Hold,
            Kind::Drop,
            Kind::Fetch,
            Kind::Upgrade,
            Kind::CouldGoOn,
            Kind::Refuses,
            Kind::HasLeft,
            Kind::Stays,
            Kind::DropAll,
            Kind::HasObeyed,
            Kind::IsWanting,
            Kind::DropUnfetched,
            Kind::Renew,
            Kind::CouldKeep,
            Kind::Ended,
            Kind::Dropped,
            Kind::Held,
            Kind::Leave,
            Kind::Over,
            Kind::Failed,
            Kind::Commit,
            Kind::CanYouKeep,
            Kind::KeeperIs,
            Kind::KeeperRenewed,
            Kind::KeeperStays,
            Kind::Rebuild,
        ];
        ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) number: u32,
    pub(crate) key: u64,
    pub(crate) rest: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: Kind) -> Message {
        Message { kind, number: 0, key: 0, rest: Vec::new() }
    }

    pub(crate) fn about(kind: Kind, number: u32) -> Message {
        Message { number, ..Message::new(kind) }
    }

    pub(crate) fn of_key(kind: Kind, key: u64) -> Message {
        Message { key, ..Message::new(kind) }
    }

    /// Bytes beyond the longest message are left out.
    pub(crate) fn saying(kind: Kind, rest: &[u8]) -> Message {
        Message { rest: rest[..rest.len().min(MAX - HEAD)].to_vec(), ..Message::new(kind) }
    }

    pub(crate) fn ended(pid: u32, exit: Exit) -> Message {
        let (how, code) = match exit {
            Exit::Code(code) => (1, code),
            Exit::Signal(signal) => (2, signal),
            Exit::Unknown => (0, 0),
        };
        let key = how << 32 | u64::from(code.cast_unsigned());
        Message { number: pid, key, ..Message::new(Kind::Ended) }
    }

    /// How a process has ended.
    pub(crate) fn exit(&self) -> Exit {
        let code = ((self.key & 0xffff_ffff) as u32).cast_signed();
        match self.key >> 32 {
            1 => Exit::Code(code),
            2 => Exit::Signal(code),
            _ => Exit::Unknown,
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.rest).into_owned()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.rest.len());
        bytes.extend_from_slice(&(self.kind as u32).to_ne_bytes());
        bytes.extend_from_slice(&self.number.to_ne_bytes());
        bytes.extend_from_slice(&self.key.to_ne_bytes());
        bytes.extend_from_slice(&self.rest);
        bytes
    }

    /// `None` for what another version may say.
    pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
        let (kind, bytes) = bytes.split_first_chunk()?;
        let (number, bytes) = bytes.split_first_chunk()?;
        let (key, rest) = bytes.split_first_chunk()?;
        Some(Message {
            kind: Kind::of(u32::from_ne_bytes(*kind))?,
            number: u32::from_ne_bytes(*number),
            key: u64::from_ne_bytes(*key),
            rest: rest.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        for exit in [Exit::Code(0), Exit::Code(-1), Exit::Code(255), Exit::Signal(9), Exit::Unknown]
        {
            let sent = Message::ended(4711, exit);
            let arrived = Message::decode(&sent.encode()).unwrap();
            assert_eq!((&arrived, arrived.exit()), (&sent, exit));
        }
        let sent = Message::saying(Kind::Notify, &[b'x'; 2 * MAX]);
        assert_eq!(sent.encode().len(), MAX);
        assert_eq!(Message::decode(&sent.encode()), Some(sent));
        for unknown in [&b""[..], b"short", &[0; 16], &[255; 40]] {
            assert_eq!(Message::decode(unknown), None);
        }
    }
}
