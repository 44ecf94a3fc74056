//! Delivery: takes due messages from the partitions that this node leads, routes and transmits them, and records
//! what happened.
