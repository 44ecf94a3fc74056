//! Compiles every `proto/*.proto` without a system `protoc`.

use std::{error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::<PathBuf>::new();
    for entry in std::fs::read_dir("proto")? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "proto") {
            files.push(path);
        }
    }
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    // Bodies are shared with the buffer that they were read into, not copied.
    let settings = tonic_prost_build::configure().bytes(".");
    // It holds a password: lib.rs has one that leaves it out.
    settings.skip_debug(["ppsw.control.v1.SetHttpsRequest"]).compile_fds(descriptors)?;
    Ok(())
}
