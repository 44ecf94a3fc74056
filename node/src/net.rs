//! Sockets: the only module of this crate that opens one.
