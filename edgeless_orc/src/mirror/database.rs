//! One connection to one Redis server, made anew with growing pauses whenever it breaks.
//!
//! An outage is told once in the log, and so is its end. No message shows the URL, which may have a
//! password in it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError};
use tokio::time::Instant;

use super::metrics::Metrics;

/// How long the server may take to be connected to, and for each answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// The commands that are sent at once.
pub(super) const BATCH: usize = 500;
/// The first pause after a failure; it doubles with each.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// Why a database cannot be used at present.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The server cannot be reached, or does not do what it is told.
    #[error("{0}")]
    Server(#[from] RedisError),
    /// It is another domain's.
    #[error(
        "it holds the mirror of another domain, '{0}': give each domain a database of its own, or delete the key \
         domain_info:domain_id if that domain is gone"
    )]
    Foreign(String),
}

impl Trouble {
    /// Whether it is about one command, and the connection is as good as before.
    pub(super) fn is_answer(error: &RedisError) -> bool {
        let kind = error.kind();
        matches!(kind, ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType)
    }
}

/// A database, and how it is with the connection to it.
pub(super) struct Database {
    /// The section of the configuration that names it.
    name: &'static str,
    client: Client,
    connection: Option<MultiplexedConnection>,
    /// How many connections there have been.
    pub(super) epoch: u64,
    back_off: Duration,
    not_before: Instant,
    /// `None`: it was not tried yet.
    is_fine: Option<bool>,
    metrics: Metrics,
}

impl Database {
    pub(super) fn new(name: &'static str, client: Client, metrics: Metrics) -> Self {
        metrics.set_connected(name, false);
        Self {
            name,
            client,
            connection: None,
            epoch: 0,
            back_off: FIRST_BACK_OFF,
            not_before: Instant::now(),
            is_fine: None,
            metrics,
        }
    }

    /// Connects, unless it is connected. `false`: after the last failure there is still a pause.
    pub(super) async fn connect(&mut self) -> Result<bool, Trouble> {
        if self.connection.is_some() {
            return Ok(true);
        }
        if Instant::now() < self.not_before {
            return Ok(false);
        }
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
        self.connection = Some(self.client.get_multiplexed_async_connection_with_config(&config).await?);
        self.epoch += 1;
        Ok(true)
    }

    /// Sends a command.
    pub(super) async fn command<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        command.query_async(connection).await
    }

    /// Sends several commands at once.
    pub(super) async fn commands<T: FromRedisValue>(&mut self, commands: &Pipeline) -> Result<T, RedisError> {
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        commands.query_async(connection).await
    }

    /// Takes note that everything was done.
    pub(super) fn worked(&mut self) {
        self.back_off = FIRST_BACK_OFF;
        if self.is_fine.replace(true) != Some(true) {
            self.metrics.set_connected(self.name, true);
            tracing::info!("the database of [{}] at {} is in use", self.name, self.address());
        }
    }

    /// Takes note of a failure: the connection is given up, and the next one made after a pause.
    pub(super) fn failed(&mut self, trouble: &Trouble) {
        self.connection = None;
        self.not_before = Instant::now() + self.back_off.mul_f64(rand::random_range(0.7..1.3));
        self.back_off = (self.back_off * 2).min(LONGEST_BACK_OFF);
        self.metrics.count_failure(self.name);
        if self.is_fine.replace(false) != Some(false) {
            self.metrics.set_connected(self.name, false);
            tracing::warn!(
                "the database of [{}] at {} cannot be used, trying again until it can: {trouble}",
                self.name,
                self.address()
            );
        }
    }

    fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}

fn not_connected() -> RedisError {
    RedisError::from((ErrorKind::Io, "not connected"))
}
