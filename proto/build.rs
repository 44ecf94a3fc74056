//! Generates Rust from every file in `proto/`. protox compiles them, so no protoc is needed.

use std::{error::Error, fs, path::PathBuf};

const DIR: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={DIR}");
    let mut files: Vec<PathBuf> = fs::read_dir(DIR)?
        .map(|found| found.map(|file| file.path()))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "proto"))
        .collect();
    // The order of a directory differs between machines; the generated code should not.
    files.sort();
    let descriptors = protox::compile(&files, [DIR])?;
    // `bytes` fields share the receive buffer instead of being copied.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
