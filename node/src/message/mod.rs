//! What we write into messages ourselves.

pub mod bounce;
pub mod date;
