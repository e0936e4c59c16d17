//! The limit of events: unary gRPC calls to the same image, in a container without a node.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use edgeless_api::client::{Connection, Guest, Options};
use edgeless_api::guest::Boot;
use edgeless_api::{InstanceId, Url};
use tokio::task::JoinSet;

use super::docker::{self, Container};
use super::probe::Trips;
use super::program::RELAY_PORT;
use crate::ring::TOKEN;
use crate::stats::warm_up;

/// How long it may take until the container serves.
const PATIENCE: Duration = Duration::from_secs(20);

/// A container with `functions/relay` that is booted by hand.
pub(super) struct Bare {
    guest: Guest,
    _container: Container,
}

impl Bare {
    pub(super) async fn start(image: &str) -> Result<Self> {
        let container = Container::run(image)?;
        let address = SocketAddr::new(docker::address(&container.id)?, RELAY_PORT);
        let guest = Guest::new(Connection::lazy(&Url::of(address), Options::default())?);
        // It has nothing to say to its node: calls are answered by themselves.
        let boot = Boot { host: "http://127.0.0.1:1".to_string(), id: InstanceId::NONE, token: String::new() };
        let until = Instant::now() + PATIENCE;
        while let Err(error) = guest.boot(boot.clone()).await {
            if Instant::now() > until {
                return Err(error).context("the container without a node does not serve");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        guest.init(String::new(), Bytes::new()).await?;
        Ok(Self { guest, _container: container })
    }

    /// Calls it, so many at a time.
    pub(super) async fn trips(&self, in_flight: usize, window: Duration) -> Result<Trips> {
        let warm = Instant::now() + warm_up(window);
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            let guest = self.guest.clone();
            callers.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let began = Instant::now();
                    if began >= warm + window {
                        return anyhow::Ok(times);
                    }
                    guest.call(InstanceId::NONE, Bytes::from_static(TOKEN.as_bytes())).await?;
                    if began >= warm {
                        times.push(began.elapsed());
                    }
                }
            });
        }
        let mut times = Vec::new();
        while let Some(caller) = callers.join_next().await {
            times.extend(caller??);
        }
        Ok(Trips { per_second: times.len() as f64 / window.as_secs_f64(), times, lost: 0 })
    }
}
