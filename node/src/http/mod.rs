//! http: to be written.
