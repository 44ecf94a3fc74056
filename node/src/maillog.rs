//! The record of what happened to mail: `mainlog` in Exim's line format and the same events as JSON lines.
