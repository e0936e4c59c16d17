//! The orchestrator: places the components of its domain on nodes.
//!
//! ```text
//!  controller -> service -+-> Inbox -> engine (pure) -> effects -> shell -> nodes
//!  nodes ------> service -+                ^                        |
//!                                          +------- results --------+
//! ```
//! - [`config`]: the configuration file.
//! - [`placement`]: component -> node, pure; a strategy is a file there and a line in one list.
//! - [`engine`]: desired against actual, pure.
//! - `registry`: the nodes and their deadlines, `identities`: who they are; plain data of the engine.
//! - `shell`: does what the engine decides; `service`: turns requests into events; `logs`: what
//!   components log, wherever they run; `limits`: what they may use; `operations`:
//!   what operators do; `doorman`: looks at nodes before they are let in; `announce`: tells a controller of the domain; `owner`: which
//!   controller that is; `mirror`: the export to Redis;
//!   `metrics`: what monitoring sees; `store`: the file that keeps the domain over a restart.
//! - `border`: what the domain is to others; `forwarder`: takes events for the nodes of a domain that
//!   others cannot reach; `nested`: the domain as one node of another.

mod announce;
mod border;
pub mod config;
mod dead;
mod doorman;
pub mod engine;
mod forwarder;
mod identities;
mod limits;
mod logs;
mod metrics;
mod mirror;
mod nested;
mod operations;
mod orchestrator;
mod owner;
pub mod placement;
mod prober;
mod registry;
mod service;
mod shell;
mod store;

pub use config::Config;
pub use orchestrator::Orchestrator;
