//! What a node writes down, so that it goes on where it was when its process has ended.
//!
//! A record that cannot be read is an error, and never half a value.

use std::time::SystemTime;

/// What is known of a state that a function saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedState {
    /// The epoch of the instance that saved it.
    pub epoch: u64,
    /// How often it was saved.
    pub syncs: u64,
    /// When it was saved last.
    pub at: SystemTime,
}
