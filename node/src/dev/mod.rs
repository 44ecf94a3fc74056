//! `ppswd dev`: a cluster on loopback addresses.

pub mod configuration;
