//! How any daemon of the platform lives.
//!
//! A daemon is a value: it is started from a configuration, says its addresses, and is stopped.
//! - [`config`]: the strict configuration file and its template.
//! - [`run`]: what every `main` does with a daemon.
//! - [`tasks`]: named tasks, one cancellation, one deadline for the end.
//! - [`engine`]: the loop that feeds a pure engine and runs its effects.
//! - [`binaries`]: the code that it keeps; [`supply`]: how code gets to the next daemon, once.
//! - [`store`]: records that outlive the process.
//! - [`status`]: the port of `/healthz`, `/readyz` and `/metrics`.
//! - [`telemetry`]: how it logs.
//! - [`turns`]: one after the other, where several ask about the same thing.

pub mod binaries;
pub mod config;
pub mod engine;
pub mod run;
pub mod status;
pub mod store;
pub mod supply;
pub mod tasks;
pub mod telemetry;
pub mod turns;

use edgeless_api::Url;
use edgeless_api::error::Error;
use tokio::net::TcpListener;

pub use run::{Daemon, Handle};
pub use tasks::{Stopped, Tasks};

/// Listens on an address, and tells the real one: the configuration may say port 0.
///
/// # Errors
/// The host is not an address of this machine or the port is taken.
pub async fn listen(url: &Url) -> Result<(TcpListener, Url), Error> {
    let addr = url.bind_addr()?;
    let cannot = |error: std::io::Error| {
        Error::unavailable(format!("cannot listen on {url}: {error}; stop what uses it or configure another port"))
    };
    let listener = TcpListener::bind(addr).await.map_err(cannot)?;
    let real = listener.local_addr().map_err(cannot)?;
    Ok((listener, Url::of(real)))
}
