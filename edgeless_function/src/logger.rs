//! Logging through the node: the `log` macros, and the message of a panic.
//!
//! The node keeps what functions log and shows it by instance, with its own clock; so a line here is only
//! level, target and text. WebAssembly has no stderr: without the panic hook the message of a panic
//! would be lost, and its author would see a bare trap.

use log::{LevelFilter, Log, Metadata, Record};

use crate::host;

/// Sends what the `log` macros log to the node, from level debug upwards.
///
/// Functions of the [`Function`](crate::Function) form need not call it: it is done before their
/// `handle_init`. Calling it again changes nothing.
pub fn init_logger() {
    // An error means that there is a logger already, ours from an earlier call or the author's own choice.
    if log::set_logger(&NodeLogger).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Logs the message of a panic before the trap that ends the handler.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "natively a panic has a stderr"))]
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        let text = match info.location() {
            Some(place) => format!("{message}, at {place}"),
            None => message.to_owned(),
        };
        host::log(log::Level::Error, "panic", &text);
    }));
}

struct NodeLogger;

impl Log for NodeLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match record.args().as_str() {
            Some(text) => host::log(record.level(), record.target(), text),
            None => host::log(record.level(), record.target(), &record.args().to_string()),
        }
    }

    fn flush(&self) {}
}
