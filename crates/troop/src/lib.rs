//! One port, many processes, any language.

#[cfg(not(target_os = "linux"))]
compile_error!("troop runs on Linux");

mod channel;
mod error;
mod events;
mod message;
mod primary;
mod settings;

pub use error::{Error, Result};
pub use events::{Event, Events};
pub use message::{Handle, Message, Request};
pub use primary::{Broadcast, Builder, Cluster, Fork, WorkerHandle};
pub use settings::{InspectPort, Settings, Setup, Stdio};

pub use primary::{RestartPolicy, available_workers};
pub use troop_core::event::{Address, AddressType, ExitHow, Listening, Violation, signal_name};
pub use troop_core::policy::Policy;
pub use troop_core::primary::{WorkerState, WorkerStats};
pub use troop_core::supervise::{Cause, Progress};
pub use troop_core::{Time, WorkerId};
