//! Clock and disk: the only module that asks the machine for time or touches its files.

mod clock;
mod disk;
#[cfg(any(test, feature = "simulation"))]
pub mod sim;

pub use clock::{Clock, SystemClock, UnixMs};
pub use disk::{Disk, DiskFile, SystemDisk, is_full};
