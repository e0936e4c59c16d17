//! The platform as a whole: in this process, and as the real programs.
//!
//! The programs are those beside the test binary; `cargo test --workspace` builds them.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod blind;
mod box_process;
mod cluster;
mod code;
mod containers;
mod domains;
mod examples;
mod guide;
mod identity;
mod links;
mod moves;
mod nested;
mod programs;
mod restarts;
mod sites;
mod states;
mod support;
mod world;
