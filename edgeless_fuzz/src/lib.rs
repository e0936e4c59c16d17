//! Whatever outsiders may send to the daemons and the command line, as functions that a fuzzer drives.
//!
//! ```text
//!  make(random) -> bytes -> run(bytes) -> panics if anything but a value or a refusal with a reason comes of it
//! ```
//! A target is one file here and one entry in [`TARGETS`]. `cargo test -p edgeless_fuzz` gives each of them the inputs
//! that once broke it (`corpus/`) and a few seconds of new ones; `fuzz/` drives the same functions for hours.

#![allow(clippy::panic, clippy::expect_used, reason = "a target says what is wrong by a panic")]

mod config;
mod guest;
mod mutation;
mod record;
mod store;
mod wire;
mod workflow;

pub use mutation::Random;

/// Something that takes what outsiders send.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its folder in `corpus/`.
    pub name: &'static str,
    /// Makes an input that is nearly right: one that is wrong from the first byte on is refused there.
    pub make: fn(&mut Random) -> Vec<u8>,
    /// Takes an input. A panic is a finding.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 6] =
    [config::TARGET, guest::TARGET, record::TARGET, store::TARGET, wire::TARGET, workflow::TARGET];

/// Gives an input to a target.
///
/// # Panics
/// There is no such target, or the input breaks it.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(input);
}
