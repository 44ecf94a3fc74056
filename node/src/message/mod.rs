//! What we write into messages ourselves.

mod addresses;
pub mod bounce;
pub mod date;
mod fixups;
mod received;

pub use addresses::{AddressField, Replacement, replace_addresses};
pub use fixups::{HeaderEnd, HeaderFacts, HeaderScan, Submitter, fix_up, scan_header};
pub use received::{Trace, rfc5322_date};
