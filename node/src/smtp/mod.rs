//! The SMTP front end.

mod address;
mod command;
mod data;
mod line;
pub mod reply;
