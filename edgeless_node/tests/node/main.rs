//! Tests of a real node: started on free ports, commanded and sent events over the wire.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod backends;
mod books;
mod code;
mod container_faults;
mod container_limits;
mod containers;
mod control;
mod copies;
mod delivery;
mod docker;
mod durable;
mod fairness;
mod global_state;
mod guest_abi;
mod host;
mod identity;
mod images;
mod links;
mod moves;
mod promises;
mod resources;
mod revival;
mod samples;
mod services;
mod support;
mod wire;
