//! What a function may ask of the node that hosts it.
//!
//! The functions here only make bytes of their arguments; the asking itself is done by `node`, the
//! imports of the module, or natively by [`testing`](crate::testing), which remembers instead, unless the
//! process is that of a container. None
//! of them can fail in a way that the function should handle: an event that cannot be delivered is
//! counted and logged by the node, and a call says so with [`CallRet::Err`].

#[cfg(target_arch = "wasm32")]
mod node;
#[cfg(all(feature = "container", not(target_arch = "wasm32")))]
use crate::container::node;
#[cfg(not(any(feature = "container", target_arch = "wasm32")))]
use crate::testing::node;

use std::time::Duration;

use crate::{CallRet, EventId, InstanceId};

/// Sends an event to wherever the workflow leads `output`, and does not wait.
///
/// The output `self` needs no mapping: it is this function. An output that leads nowhere drops the event.
pub fn cast(output: &str, payload: impl AsRef<[u8]>) {
    node::cast(output, payload.as_ref());
}

/// Sends an event to wherever the workflow leads `output`, and waits for the answer.
///
/// It is an error when the other side fails, is gone, or does not answer in time. An output that the
/// workflow does not map is a trap: the function is started again. No other event is handled meanwhile, so a function must not
/// call itself.
pub fn call(output: &str, payload: impl AsRef<[u8]>) -> CallRet {
    node::call(output, payload.as_ref())
}

/// Sends an event to wherever the workflow leads `output`, once `delay` has passed (to the millisecond).
///
/// With the output `self` it is a timer. What is pending when the function stops or traps is cancelled.
pub fn delayed_cast(delay: Duration, output: &str, payload: impl AsRef<[u8]>) {
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    node::delayed_cast(delay_ms, output, payload.as_ref());
}

/// Sends an event to an instance, such as the source of an earlier event, and does not wait.
pub fn cast_raw(target: InstanceId, payload: impl AsRef<[u8]>) {
    node::cast_raw(target, payload.as_ref());
}

/// Sends an event to an instance, and waits for the answer as [`call`] does.
pub fn call_raw(target: InstanceId, payload: impl AsRef<[u8]>) -> CallRet {
    node::call_raw(target, payload.as_ref())
}

/// Saves `state`, all of it, for the next start of this function.
///
/// It replaces what was saved before. A 1.x node takes UTF-8 text only.
pub fn sync(state: impl AsRef<[u8]>) {
    node::sync(state.as_ref());
}

/// The id of this very instance.
pub fn slf() -> InstanceId {
    node::slf()
}

/// What a repeat of the event in hand is known by: for a function that must do something outside the platform only once.
///
/// Only events that are delivered at least once have one; in a container it is never known. Nodes of EDGELESS 1.x do not
/// run modules that ask for it.
pub fn event_id() -> Option<EventId> {
    node::event_id()
}

/// Logs a line.
pub(crate) fn log(level: log::Level, target: &str, text: &str) {
    node::log(level, target, text);
}
