//! Sessions over pipes and fakes.

mod auth;
mod commands;
mod content;
mod limits;
