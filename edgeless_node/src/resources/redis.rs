//! `redis`: writes and reads the values of a Redis server.
//!
//! Every resource has a connection of its own. The server must be there when a resource is opened;
//! later it may go and come, and events fail for as long as it is away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::Error;
use edgeless_api::component::ResourceSpec;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ConnectionAddr, FromRedisValue, RedisError};

use super::{Class, Key, Surroundings, check_configuration, required};
use crate::instance::{Context, EventKind, Incoming, Instance, InstanceError, Payload, Provider};

/// The class.
pub(super) static CLASS: Class = Class {
    class_type: "redis",
    version: "1.2",
    description: "A cast sets the configured key to its payload. A call has the name of a key as its payload and is \
                  answered with the value of that key, or fails if there is none.",
    outputs: &[],
    configurations: &[
        Key {
            name: "url",
            default: None,
            description: "the server: redis://[[<user>]:<password>@]<host>[:<port>][/<database>]; required",
        },
        Key { name: "key", default: None, description: "the key that casts set; without it, casts fail" },
        Key {
            name: "add-workflow-id",
            default: None,
            description: "if present, whatever its value, the key begins with the id of the workflow and a colon",
        },
    ],
    settings: &[
        Key { name: "redis_provider", default: Some("redis-1"), description: "the name of the provider" },
        Key {
            name: "redis_timeout",
            default: Some("5s"),
            description: "how long the server may take to be connected to, and to answer",
        },
    ],
    // One at a time, so that the last value sent is the one that stays.
    max_in_flight: 1,
    provide: |surroundings| Box::pin(provide(surroundings)),
};

async fn provide(Surroundings { settings, limits, .. }: Surroundings) -> Result<Arc<dyn Provider>, Error> {
    tracing::info!("Creating resource '{}'", settings.text("redis_provider"));
    Ok(Arc::new(RedisProvider { timeout: settings.duration("redis_timeout")?, max_payload: limits.payload }))
}

struct RedisProvider {
    timeout: Duration,
    max_payload: usize,
}

#[async_trait]
impl Provider for RedisProvider {
    async fn open(&self, spec: &ResourceSpec, _context: Context) -> Result<Box<dyn Instance>, Error> {
        check_configuration(&CLASS, &spec.configuration)?;
        let client = client(required(&CLASS, &spec.configuration, "url")?)?;
        let prefix = match spec.configuration.contains_key("add-workflow-id") {
            true => format!("{}:", spec.workflow),
            false => String::new(),
        };
        let connection = self.connect(client).await?;
        Ok(Box::new(Redis {
            connection,
            key: spec.configuration.get("key").map(|key| prefix + key),
            timeout: self.timeout,
            max_payload: self.max_payload,
        }))
    }
}

impl RedisProvider {
    async fn connect(&self, client: Client) -> Result<ConnectionManager, Error> {
        let address = client.get_connection_info().addr().to_string();
        let cannot = |reason: &dyn std::fmt::Display| {
            Error::rejected(format!("the Redis server at {address} cannot be used: {reason}; start it or mend the url"))
        };
        // The manager connects again whenever a command finds the connection broken: events are what
        // retries, and each is told at once what became of it.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        match tokio::time::timeout(self.timeout, ConnectionManager::new_with_config(client, config)).await {
            Ok(connected) => connected.map_err(|error| cannot(&error)),
            Err(_) => Err(cannot(&"it does not answer")),
        }
    }
}

/// A client for a URL, of which no error shows more than it must: there may be a password in it.
fn client(url: &str) -> Result<Client, Error> {
    let refused = |reason: &dyn std::fmt::Display| {
        Error::rejected(format!("the configuration 'url' is no URL such as redis://127.0.0.1:6379: {reason}"))
    };
    let client = Client::open(url).map_err(|error| refused(&error))?;
    match client.get_connection_info().addr() {
        ConnectionAddr::Unix(_) => Err(refused(&"a workflow cannot use the sockets of the node's file system")),
        _ => Ok(client),
    }
}

struct Redis {
    connection: ConnectionManager,
    key: Option<String>,
    timeout: Duration,
    max_payload: usize,
}

#[async_trait]
impl Instance for Redis {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        let handled = match event.kind {
            EventKind::Cast => self.set(&event.payload).await.map(|()| None),
            EventKind::Call => self.get(&event.payload).await.map(Some),
        };
        handled.map_err(InstanceError::Failed)
    }
}

impl Redis {
    async fn set(&self, value: &[u8]) -> Result<(), String> {
        let key = self.key.as_ref().ok_or("no 'key' is configured for what is cast")?;
        self.query(Cmd::set(key, value)).await
    }

    async fn get(&self, key: &[u8]) -> Result<Payload, String> {
        let value: Option<Vec<u8>> = self.query(Cmd::get(key)).await?;
        let value =
            value.ok_or_else(|| format!("there is no key '{}'", String::from_utf8_lossy(key).escape_debug()))?;
        match value.len() > self.max_payload {
            true => Err("the value is larger than the payload of an event may be".into()),
            false => Ok(value.into()),
        }
    }

    async fn query<T: FromRedisValue>(&self, command: Cmd) -> Result<T, String> {
        let once = || async { command.query_async::<T>(&mut self.connection.clone()).await };
        let query = async {
            match once().await {
                // The server went and may be back. Both commands may run twice.
                Err(error) if error.is_connection_dropped() => once().await,
                result => result,
            }
        };
        match tokio::time::timeout(self.timeout, query).await {
            Ok(result) => result.map_err(|error: RedisError| error.to_string()),
            Err(_) => Err(format!("the Redis server did not answer in {:?}", self.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_refused_without_showing_its_password() {
        for url in
            ["", "localhost", "http://:secret@localhost", "redis://:secret@", "redis://:secret@h:x", "unix:///secret"]
        {
            let error = client(url).map(drop).unwrap_err().to_string();
            assert!(error.contains("'url'") && !error.contains("secret"), "{url}: {error}");
        }
        assert!(client("redis://user:secret@localhost/1").is_ok());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_without_its_password() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let provider = RedisProvider { timeout: Duration::from_secs(5), max_payload: 0 };
        let client = client(&format!("redis://:secret@{address}")).unwrap();
        let error = provider.connect(client).await.map(drop).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && !error.contains("secret"), "{error}");
    }
}
