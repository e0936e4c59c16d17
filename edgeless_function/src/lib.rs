//! The SDK for EDGELESS functions in Rust.
//!
//! A function is a struct with four handlers, compiled to a WebAssembly module, or with the feature
//! `container` to an executable for a container. It receives events
//! (*casts*, which expect no answer, and *calls*, which do) and emits events on named *outputs*; the
//! workflow says where each output leads.
//!
//! ```text
//!              handle_init, handle_cast, handle_call, handle_stop
//!   the node  --------------------------------------------------->  the function
//!             <---------------------------------------------------
//!              cast, call, delayed_cast, sync, slf, event_id, log
//! ```
//!
//! - [`Function`] is the struct form, [`Edgefunction`] the form with four static handlers. [`export!`]
//!   makes the module's exports from either.
//! - [`cast`], [`call`], [`delayed_cast`], [`cast_raw`], [`call_raw`], [`sync`], [`slf`] and [`event_id`] are what a
//!   function may ask of its node. There is nothing else: no clock, no files, no sockets.
//! - [`log`]'s macros log through the node, and so does the message of a panic.
//! - [`Random`] makes up data: the same for the same seed.
//! - [`http`] has the requests and responses that the HTTP resources exchange with functions.
#![cfg_attr(
    not(target_arch = "wasm32"),
    doc = "- [`testing`] stands in for the node when a function is compiled natively, so that `cargo test` can try it."
)]
//!
//! # Example
//!
//! ```
//! use edgeless_function::*;
//!
//! struct Shout;
//!
//! impl Function for Shout {
//!     fn handle_init(_payload: Message, _state: Option<Message>) -> Self {
//!         Shout
//!     }
//!
//!     fn handle_cast(&mut self, source: InstanceId, message: Message) {
//!         log::info!("{source} said {message}");
//!         cast("output", message.to_string().to_uppercase());
//!     }
//! }
//!
//! export!(Shout);
//! ```
//!
//! A function runs one handler at a time, from start to end. A panic in a handler is a trap: the node
//! logs its message, and may start the function afresh with the state it last saved with [`sync`].

pub mod http;

#[cfg(all(feature = "container", not(target_arch = "wasm32")))]
#[doc(hidden)]
pub mod container;
mod export;
mod function;
mod host;
mod instance_id;
mod logger;
mod memory;
mod message;
mod params;
mod random;
#[doc(hidden)]
pub mod rt;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use crate::function::{CallRet, Edgefunction, Function};
pub use crate::host::{call, call_raw, cast, cast_raw, delayed_cast, event_id, slf, sync};
pub use crate::instance_id::{EventId, InstanceId, ParseUuidError, Uuid};
pub use crate::logger::init_logger;
pub use crate::message::{Message, ParseError};
pub use crate::params::Params;
pub use crate::random::Random;
/// The `log` crate, so that `log::info!` and its siblings need no dependency of their own.
pub use log;

/// The code of the README, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
