//! The ways to other nodes.
//!
//! ```text
//!            +-> link: one stream, both ways --------> a node of ours
//!  peers ----+     session: sending + receiving
//!            +-> unary: a call per event, in lanes --> an EDGELESS 1.x node
//! ```
//! - [`peers`]: which nodes are known, and the way to each.
//! - [`link`]: dials, accepts, reads and writes; [`session`]: what the two sides know of each other,
//!   without tasks or time, made of `sending` and `receiving`; [`settler`]: the way back for fates.
//! - [`unary`]: the way to nodes that know no links.

pub mod link;
pub mod peers;
mod receiving;
mod sending;
pub mod session;
pub mod settler;
#[cfg(test)]
mod simulation;
pub mod unary;

pub use link::{Deliver, Link, Options};
pub use peers::Peers;
pub use settler::Settler;

/// Tables that outsiders have keys for: quick, and seeded, so that nobody can choose keys that meet.
type Map<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
