//! What we write into messages ourselves.

pub mod bounce;
pub mod date;
mod fixups;
mod received;

pub use fixups::{HeaderEnd, HeaderFacts, HeaderScan, Submitter, fix_up, scan_header};
pub use received::{Trace, rfc5322_date};
