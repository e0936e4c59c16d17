//! The states that are kept outside the nodes, in Redis: each in a hash of its own.
//!
//! ```text
//!  edgeless:state:<state id>  =  epoch, state, syncs, at (milliseconds since 1970)
//! ```
//! A state belongs to the newest instance of its component. Redis itself compares epochs, in the same step in which it
//! reads or writes, so that it does not matter which nodes know of each other. One connection for all, which is made
//! when it is needed, and again whenever it was lost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edgeless_api::{Error, StateId};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, FromRedisValue};

/// How long the server may take for one thing.
const DEADLINE: Duration = Duration::from_secs(5);

/// Whether the first of two numbers is the newer: they may be longer than Lua counts.
const NEWER: &str = "local function newer(a, b) return #a > #b or (#a == #b and a > b) end
local known = redis.call('HGET', KEYS[1], 'epoch') or '0'
local own = ARGV[1]
";

/// Gives a state to an instance, and tells what was saved. Without an epoch of its own it has the newest.
const CLAIM: &str = "if own == '' then own = known end
if newer(known, own) then return {known} end
redis.call('HSET', KEYS[1], 'epoch', own)
redis.call('PERSIST', KEYS[1])
return {own, redis.call('HGET', KEYS[1], 'syncs') or '0', redis.call('HGET', KEYS[1], 'state')}";

/// Saves a state.
const SAVE: &str = "if newer(known, own) then return known end
redis.call('HSET', KEYS[1], 'epoch', own, 'syncs', ARGV[2], 'at', ARGV[3], 'state', ARGV[4])
return own";

/// Has a state removed after a while.
const REMOVE: &str = "if not newer(known, own) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return own";

/// How long a state stays after its instance was stopped: that may be one that had been given up, whose successor is
/// about to start and will take it over.
const REMAINS: Duration = Duration::from_secs(600);

/// What a state is called.
fn key(id: StateId) -> String {
    format!("edgeless:state:{id}")
}

/// The server that has the states. Clones share the connection.
#[derive(Clone)]
pub struct Shared {
    connection: ConnectionManager,
    address: String,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What was found when a state was given to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The epoch of the instance.
    pub epoch: u64,
    /// How often the state was saved.
    pub syncs: u64,
    /// What was saved last.
    pub state: Option<Bytes>,
}

/// A client for the `state_url` of a configuration. No error shows it: there may be a password in it.
///
/// # Errors
/// It is none that can be used.
pub fn client(url: &str) -> Result<Client, String> {
    const FORM: &str = "write redis://[[<user>]:<password>@]<host>[:<port>][/<database>]";
    if !url.starts_with("redis://") {
        return Err(format!("it is no URL of a Redis server: {FORM}"));
    }
    Client::open(url).map_err(|error| format!("{error}: {FORM}"))
}

impl Shared {
    /// The server at a URL; nobody asks yet whether it is there.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(url: &str) -> Result<Self, Error> {
        let refused = |reason: &dyn std::fmt::Display| Error::rejected(format!("general.state_url: {reason}"));
        let client = client(url).map_err(|error| refused(&error))?;
        let address = client.get_connection_info().addr().to_string();
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(Some(DEADLINE));
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(|error| refused(&error))?;
        Ok(Self { connection, address })
    }

    /// Gives a state to the instance of this epoch: older ones save it no more. `None`: whoever starts it counts none.
    ///
    /// # Errors
    /// It belongs to a newer instance; the server does not answer.
    pub async fn claim(&self, id: StateId, epoch: Option<u64>) -> Result<Claimed, Error> {
        let own = epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        let script = [NEWER, CLAIM].concat();
        let fill = |command: &mut Cmd| {
            command.arg(&script).arg(1).arg(key(id)).arg(&own);
        };
        let found: Vec<Option<Vec<u8>>> = self.query(fill).await?;
        let number = |nth: usize| -> Result<u64, Error> {
            let text = found.get(nth).and_then(Option::as_deref).and_then(|text| std::str::from_utf8(text).ok());
            text.and_then(|text| text.parse().ok()).ok_or_else(|| self.strange(id))
        };
        let newest = number(0)?;
        if let Some(epoch) = epoch.filter(|epoch| *epoch < newest) {
            return Err(older(epoch, newest));
        }
        let state = found.get(2).cloned().flatten().map(Bytes::from);
        Ok(Claimed { epoch: newest, syncs: number(1)?, state })
    }

    /// Saves a state for the instance of this epoch, for the `syncs`th time. When it returns the server has it.
    ///
    /// # Errors
    /// It belongs to a newer instance; the server does not answer.
    pub async fn save(&self, id: StateId, epoch: u64, syncs: u64, state: &[u8]) -> Result<(), Error> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().to_string();
        let script = [NEWER, SAVE].concat();
        let fill = |command: &mut Cmd| {
            command.arg(&script).arg(1).arg(key(id)).arg(epoch.to_string()).arg(syncs.to_string()).arg(&at).arg(state);
        };
        let newest: String = self.query(fill).await?;
        match newest.parse::<u64>() {
            Ok(newest) if newest == epoch => Ok(()),
            Ok(newest) => Err(older(epoch, newest)),
            Err(_) => Err(self.strange(id)),
        }
    }

    /// Has a state removed after a while, if no instance newer than this epoch has it or takes it over until then.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn remove(&self, id: StateId, epoch: u64) -> Result<(), Error> {
        let script = [NEWER, REMOVE].concat();
        let fill = |command: &mut Cmd| {
            command.arg(&script).arg(1).arg(key(id)).arg(epoch.to_string()).arg(REMAINS.as_secs());
        };
        self.query::<String>(fill).await.map(drop)
    }

    fn strange(&self, id: StateId) -> Error {
        Error::rejected(format!(
            "the Redis server at {} has something else than a state under {}: remove that key",
            self.address,
            key(id)
        ))
    }

    /// Runs a script, once more if the connection was lost: each has the same effect twice as once.
    async fn query<T: FromRedisValue>(&self, fill: impl Fn(&mut Cmd)) -> Result<T, Error> {
        let once = || async {
            let mut command = redis::cmd("EVAL");
            fill(&mut command);
            command.query_async::<T>(&mut self.connection.clone()).await
        };
        let query = async {
            match once().await {
                Err(error) if error.is_connection_dropped() => once().await,
                result => result,
            }
        };
        let reason = match tokio::time::timeout(DEADLINE, query).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it did not answer within {DEADLINE:?}"),
        };
        Err(Error::unavailable(format!("the Redis server at {} cannot be used: {reason}", self.address)))
    }
}

fn older(epoch: u64, newest: u64) -> Error {
    Error::rejected(format!("its component was placed again meanwhile: epoch {epoch} is older than {newest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_refused_without_showing_its_password() {
        for url in ["", "http://:secret@localhost", "redis://:secret@", "redis://:secret@h:x", "unix:///secret"] {
            let error = client(url).map(drop).unwrap_err();
            assert!(error.contains("write redis://") && !error.contains("secret"), "{url}: {error}");
        }
        assert!(client("redis://user:secret@localhost/1").is_ok());
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_named_without_its_password() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let shared = Shared::new(&format!("redis://:secret@{address}")).unwrap();
        let error = shared.save(StateId::random(), 1, 1, b"x").await.unwrap_err();
        assert_eq!(error.code, edgeless_api::Code::Unavailable);
        assert!(error.message.contains(&address.to_string()) && !error.message.contains("secret"), "{error}");
        assert!(!format!("{shared:?}").contains("secret"));
    }
}
