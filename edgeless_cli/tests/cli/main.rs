//! Drives the real program against a fake controller and a fake node over the real wire, and
//! compares stdout, stderr and exit code whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod build;
mod events;
mod fixture;
mod operations;
mod reading;
mod schemas;
mod starting;
mod usage;
