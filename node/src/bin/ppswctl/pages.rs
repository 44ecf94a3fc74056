//! Completions and man pages, made from the command line itself.

use std::{io, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use ppsw_node::files;

use crate::{Failure, args::Args};

const NAME: &str = "ppswctl";

pub(crate) fn completions(shell: Shell) {
    let mut command = Args::command();
    clap_complete::generate(shell, &mut command, NAME, &mut io::stdout());
}

/// `DIR/ppswctl.1`, `ppswctl-queue.1`, `ppswctl-queue-hold.1`, ...
pub(crate) fn man(dir: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("{}: {error}", dir.display()));
    let mut command = Args::command().name(NAME);
    command.build();
    page(&command, NAME, dir).map_err(failed)
}

fn page(command: &Command, name: &str, dir: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        page(verb, &format!("{name}-{}", verb.get_name()), dir)?;
    }
    // The name of a page holds the whole path to its verb.
    let titled = command.clone().name(name.to_owned());
    let mut page = Vec::new();
    clap_mangen::Man::new(titled).section("1").render(&mut page)?;
    files::write(&dir.join(format!("{name}.1")), &page)
}
