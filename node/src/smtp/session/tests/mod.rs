//! Sessions over pipes and fakes.

mod auth;
mod certificate;
mod commands;
mod content;
mod limits;
mod synchronisation;
mod trace;
mod variables;
