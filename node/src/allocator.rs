//! How glibc's allocator is set up for a process that moves megabytes through buffers of 256 KiB and more.
//!
//! By default glibc raises the size from which it asks the kernel for a mapping of its own each time one is freed, up to
//! 32 MiB. Then bodies in transit lie in the arenas of many threads, which keep them: each 95 MB message in transit cost
//! 10-13 MiB more of resident memory. With a fixed threshold it is 3 MiB on the receiving node and less than one on the
//! others. The setting is read before `main` and has no safe interface after that, so the program starts itself again,
//! under the same process id.

use std::{env, os::unix::process::CommandExt as _, process::Command};

/// The variables of glibc, and their values in bytes: its own defaults, but fixed.
const SETTINGS: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "131072")];

/// Starts the program again with these settings, unless they, or others, are set already. Returns if that is so, or if
/// it cannot be done: then the process needs more memory, and nothing else changes.
pub fn settle() {
    if SETTINGS.iter().any(|(name, _)| env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    command.envs(SETTINGS);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Only an error returns.
    let _ = command.args(arguments).exec();
}
