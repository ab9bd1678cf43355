//! `troop man`: writes manual pages.

use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::write::replace;
use crate::args::Troop;
use crate::error::CliError;

/// Writes a page for the program and one for each verb.
pub(crate) fn man(directory: &Path) -> Result<(), CliError> {
    let mut command = Troop::command().disable_help_subcommand(true);
    command.build();
    write(&command, directory)
        .map_err(|e| CliError::Io(format!("write manual pages into {}", directory.display()), e))
}

fn write(command: &Command, directory: &Path) -> std::io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(verb, directory)?;
    }
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page)?;
    replace(&directory.join(man.get_filename()), &page, 0o644)
}
