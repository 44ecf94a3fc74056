//! `completions` and `man`.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use ppsw_node::pages;
use serde_json::json;

use crate::{Failure, args::Args};

const NAME: &str = "ppswctl";

pub(crate) fn completions(shell: Shell) {
    pages::completions(Args::command(), NAME, shell);
}

/// `DIR/ppswctl.1`, `ppswctl-queue.1`, `ppswctl-queue-hold.1`, ...
pub(crate) fn man(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let written = pages::man(Args::command(), NAME, dir)
        .map_err(|error| Failure::Usage(format!("{}: {error}", dir.display())))?;
    if as_json {
        say!("{}", json!({ "pages": written }));
    } else {
        say!("{} pages written", written.len());
    }
    Ok(())
}
