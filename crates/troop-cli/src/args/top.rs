//! Arguments of `troop top`.

use clap::Args;

use crate::config::{self, Time};
use crate::names;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop top                            all apps
  troop top web                        the workers of an app
  troop top --once                     print one page and end")]
pub(crate) struct Top {
    /// Show the workers of this app
    #[arg(value_name = "APP", value_parser = names::app)]
    pub(crate) app: Option<String>,

    /// Interval at which apps are asked
    #[arg(short = 'i', long, value_name = "TIME", value_parser = config::time, default_value = "1s")]
    pub(crate) interval: Time,

    /// Print one page and end
    #[arg(long)]
    pub(crate) once: bool,
}
