//! Takes events for the nodes of the domain that cannot be reached from outside, and those of its nodes for
//! whoever is outside.
//!
//! ```text
//!  events -> forwarder: aliases <-> ids (table) -> which instance (pick, rows) -> lanes -> nodes
//! ```
//! A forwarder has a node id of its own. Whoever is on the one side sees those on the other as instances of
//! this node, so that replies and raw casts find their way back. It speaks what EDGELESS 1.x nodes speak.
//! - `table`: who is known by which alias; `readdress`: what rows and patches say on the other side; `pick`:
//!   which of several instances. All three are pure.
//! - `rows`: where the domain's own components run; `lanes`: the ways to the nodes.

#[allow(clippy::module_inception, reason = "the forwarder itself")]
mod forwarder;
mod lanes;
mod pick;
pub(crate) mod readdress;
mod rows;
pub(crate) mod table;
#[cfg(test)]
mod tests;

pub(crate) use forwarder::{Forwarder, Locate};
pub(crate) use lanes::Identity;
pub(crate) use rows::EngineRows;
