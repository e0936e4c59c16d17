//! The whole platform in one process: for a laptop, a small machine, and tests.
//!
//! - [`layout`]: which addresses the daemons get, and their configuration files.
//! - [`platform`]: the daemons together, as one value.
//! - [`cluster`]: a platform on free ports that tests take apart and put together again.

pub mod cluster;
pub mod layout;
pub mod platform;

pub use cluster::{Cluster, Domain};
pub use platform::{Configs, Platform};
