//! ppswd: every node is SMTP front end, policy, router and deliverer.
//!
//! * [`smtp`] takes mail; [`policy`] says whether; [`tables`] and [`route`] say where to; [`deliver`] brings it
//!   there; [`callout`] asks other hosts about addresses; [`message`] makes what we write ourselves (headers, bounces);
//!   [`maillog`] tells what happened, [`trace`] shows dialogue live; [`domains`] fetches and checks the aliases of managed
//!   domains.
//! * [`policy`], [`tables`] and [`route`] are pure logic over the [`dns::Dns`] trait: no sockets, no clock.

pub mod agent_check;
pub mod callout;
pub mod config;
pub mod deliver;
pub mod dev;
pub mod dns;
pub mod domains;
pub mod explain;
pub mod explode;
mod figures;
pub mod files;
pub mod http;
pub mod limits;
pub mod load;
pub mod maillog;
pub mod message;
pub mod net;
pub mod pages;
pub mod policy;
pub mod rate;
pub mod route;
pub mod run;
pub mod service;
pub mod smtp;
pub mod tables;
pub mod trace;
