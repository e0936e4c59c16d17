//! Runtimes: what runs functions. A runtime is one file here, and one entry where the node makes
//! the list of those that its configuration enables.

pub mod container;
pub mod wasm;
