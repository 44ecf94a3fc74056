//! Man pages and completions, made from the command line of a program itself.

use std::{
    io::{self, Write},
    path::Path,
};

use clap::Command;
use clap_complete::Shell;

use crate::files;

/// Writes `DIR/NAME.1`, and `NAME-VERB.1` for each verb, and gives their names.
///
/// # Errors
/// What the operating system said of a file.
pub fn man(mut command: Command, name: &'static str, dir: &Path) -> io::Result<Vec<String>> {
    command = command.name(name);
    command.build();
    let mut written = Vec::new();
    page(&command, name, dir, &mut written)?;
    Ok(written)
}

/// Prints what a shell reads.
pub fn completions(mut command: Command, name: &str, shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    // Fails if nobody reads it to its end.
    let _ = io::stdout().lock().write_all(&script);
}

fn page(command: &Command, name: &str, dir: &Path, written: &mut Vec<String>) -> io::Result<()> {
    let shown = |verb: &&Command| verb.get_name() != "help" && !verb.is_hide_set();
    for verb in command.get_subcommands().filter(shown) {
        page(verb, &format!("{name}-{}", verb.get_name()), dir, written)?;
    }
    // The name of a page holds the whole path to its verb.
    let titled = command.clone().name(name.to_owned());
    let mut page = Vec::new();
    clap_mangen::Man::new(titled).section("1").render(&mut page)?;
    let file = format!("{name}.1");
    files::write(&dir.join(&file), &page)?;
    written.push(file);
    Ok(())
}
