//! The program as its users run it, at a small size: what it says, not how fast anything is.
//!
//! The other programs are those beside the test binary; `cargo test --workspace` builds them.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod commands;
mod controller;
mod ending;
mod load;
mod program;
mod support;
