//! One port, many processes, any language.

#[cfg(not(target_os = "linux"))]
compile_error!("troop runs on Linux");

pub mod blocking;
mod channel;
mod error;
mod events;
mod message;
mod net;
mod primary;
mod queue;
mod role;
mod settings;
mod worker;

pub use error::{Error, Result};
pub use events::{Event, Events};
pub use message::{Handle, Message, Request};
pub use net::{TcpListener, UnixListener};
pub use primary::{Broadcast, Builder, Cluster, Fork, WorkerHandle};
pub use role::{Role, role, worker};
pub use settings::{InspectPort, Settings, Setup, Stdio};

pub use worker::{Draining, Listen, Worker, WorkerEvent, WorkerRole};

pub use primary::{RestartPolicy, available_workers};
pub use troop_core::event::{Address, AddressType, ExitHow, Listening, Violation, signal_name};
pub use troop_core::policy::Policy;
pub use troop_core::primary::{WorkerState, WorkerStats};
pub use troop_core::supervise::{Cause, Progress};
pub use troop_core::{Time, WorkerId};
