//! Takes on workers that somebody else has started.

use std::time::Duration;

use troop_core::primary::DEFAULT_WEIGHT;
use troop_sys::identity::Identity;
use troop_sys::poll::Interest;
use troop_sys::sandbox::Sandbox;
use troop_sys::socket;

use super::{Process, end_signals};
use crate::error::{Error, Result};
use crate::primary::Adoption;
use crate::primary::channel::Channel;
use crate::primary::driver::{Driver, Token};
use crate::primary::handle::WorkerHandle;
use crate::primary::relay::Relay;

impl Driver {
    pub(in crate::primary::driver) fn adopt(&mut self, adoption: Adoption) -> Result<WorkerHandle> {
        let Adoption { pid, pidfd, channel, relay, advanced, id, weight, start } = adoption;
        if weight.is_some() {
            self.may_fork_with_weight("Adoption::weight")?;
        }
        let slot = self.slot_of_adopted(start)?;
        let id = match id {
            Some(id) if self.cluster.primary.name(id) => id,
            Some(id) => {
                return Err(Error::Settings(format!(
                    "worker {id} cannot be adopted: there has been one with this number"
                )));
            }
            None => self.cluster.primary.fork(),
        };
        self.divide_descriptors();
        let most_handles = self.cluster.primary.budget().handle_share();
        socket::set_nonblocking(&channel, true)
            .map_err(Error::io("use the channel of an adopted worker"))?;
        // What fails from here on closes all of them, and so takes them out of the poller.
        let watched = self.poller.add(&channel, Token::Channel(id), Interest::Read);
        watched
            .and_then(|()| self.poller.add(&pidfd, Token::Process(id), Interest::Read))
            .map_err(Error::io("watch an adopted worker"))?;
        if let Some(relay) = relay {
            socket::set_nonblocking(&relay, true)
                .map_err(Error::io("use the relay of an adopted worker"))?;
            self.channels.add_relay(id, Relay::new(relay, advanced, most_handles), &self.poller)?;
        }
        let own = rustix::process::geteuid().as_raw();
        // One that has ended already needs no rights to anything.
        let nobody = || Identity { uid: 65_534, gid: 65_534, groups: Vec::new() };
        let user = Some(Identity::of_process(pid).unwrap_or_else(|_| nobody()))
            .filter(|user| user.uid != own);
        let closer = self.closing.closer_for(user.is_some());
        let number = slot.map(|slot| u32::try_from(slot.0).unwrap_or(u32::MAX));
        self.cluster.primary.spawned(id, pid, number, weight.unwrap_or(DEFAULT_WEIGHT));
        let handle = self.handle(id, pid, [None, None, None], None)?;
        let channel = Channel::new(handle.clone(), channel, advanced, most_handles, closer);
        self.channels.add(id, channel);
        self.workers.processes.insert(
            id,
            Process {
                handle: handle.clone(),
                pidfd,
                leads_group: false,
                kept_end: None,
                notifications: None,
                adopted: true,
                announced: self.workers.setup().get_shutdown_message(),
                ends_by: end_signals(self.workers.setup()),
                stop_group: None,
                is_group_asked: false,
                cgroup: None,
                tree: None,
                sandbox: Sandbox::default(),
                names_dead_paths: false,
                path_time: Duration::ZERO,
                user,
                refused: 0,
                since: self.now,
            },
        );
        if let Some(slot) = slot {
            self.was_adopted(id, slot, start);
        }
        Ok(handle)
    }
}
