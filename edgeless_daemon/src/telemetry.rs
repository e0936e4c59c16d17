//! Logging: to stderr, filtered by `RUST_LOG`, in colour on a terminal only.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. A second call changes nothing.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .finish();
    // Fails if a subscriber is set already, as in a process that runs several daemons.
    tracing::subscriber::set_global_default(subscriber).ok();
}
