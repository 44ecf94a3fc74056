//! Delivery: takes due messages from the partitions that this node leads, routes and transmits them, and records
//! what happened.

pub mod connect;
mod dot;
mod hosts;
mod lanes;
mod pool;
mod reply;
pub mod retry;
pub mod seams;
mod session;
mod transaction;
mod transmit;
