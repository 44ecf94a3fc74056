//! dev: to be written.
