//! The mirror of a domain in a database, and the intents that come the other way.
//!
//! After a connection was made, nothing is known of what the database holds, and all is written; from
//! then on what changed.

use std::time::SystemTime;

use edgeless_api::error::Error;
use edgeless_api::id::DomainId;
use edgeless_daemon::engine::Inbox;
use redis::{RedisResult, Value, cmd, pipe};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::database::{BATCH, Database, Trouble};
use super::document::{self, Change, Documents};
use super::intent::{self, Found};
use super::metrics::Metrics;
use crate::engine::{Cursor, Engine, Page};

/// The nodes and components that are looked at at once.
const PAGE: usize = 500;
/// A look at the domain is followed by so many times the time that it took, without another.
const REST: u32 = 4;

/// The mirror of a domain, and the intents that come the other way.
pub(super) struct Mirror {
    domain: DomainId,
    inbox: Inbox<Engine>,
    intents: mpsc::Sender<Found>,
    /// An intent that was taken from the list and is still to be read.
    taken: Option<String>,
    /// The log says that the list of intents cannot be read.
    is_list_said: bool,
    /// What the database holds, in which connection, and the generation that it is from.
    known: Option<(u64, u64, Documents)>,
    /// When the domain may be looked at again.
    not_before: Instant,
}

impl Mirror {
    pub(super) fn new(domain: DomainId, inbox: Inbox<Engine>, intents: mpsc::Sender<Found>) -> Self {
        Self { domain, inbox, intents, taken: None, is_list_said: false, known: None, not_before: Instant::now() }
    }
}

impl Mirror {
    /// Brings the database up to date, and takes the intents that are there.
    pub(super) async fn round(&mut self, database: &mut Database, metrics: &Metrics) -> Result<(), Trouble> {
        self.claim(database).await?;
        self.update(database, metrics).await?;
        self.take_intents(database).await
    }

    /// Makes sure that the database is that of this domain.
    async fn claim(&mut self, database: &mut Database) -> Result<(), Trouble> {
        let mut claim = pipe();
        claim.cmd("SET").arg(document::OWNER).arg(&self.domain.0).arg("NX");
        claim.cmd("GET").arg(document::OWNER);
        let (is_new, owner): (Option<String>, String) = database.commands(&claim).await?;
        if is_new.is_some() {
            // It is empty, or somebody emptied it.
            self.known = None;
        }
        if owner == self.domain.0 { Ok(()) } else { Err(Trouble::Foreign(owner.chars().take(256).collect())) }
    }

    /// Writes what changed.
    async fn update(&mut self, database: &mut Database, metrics: &Metrics) -> Result<(), Trouble> {
        if self.known.as_ref().is_some_and(|(epoch, ..)| *epoch != database.epoch) {
            self.known = None;
        }
        let began = Instant::now();
        if began < self.not_before && self.known.is_some() {
            return Ok(());
        }
        let generation = self.known.as_ref().map(|(_, generation, _)| *generation);
        let mut documents = Documents::default();
        let looked = look(&self.inbox, generation, |page| {
            page.nodes.iter().for_each(|node| documents.add_node(node));
            page.components.iter().for_each(|component| documents.add_component(component));
        });
        // An orchestrator that is too busy to be looked at is looked at later.
        let Ok(Some(generation)) = looked.await else { return Ok(()) };
        let change = match &self.known {
            Some((_, _, known)) => documents.since(known),
            None => documents.instead_of(stale(database, &documents).await?),
        };
        self.known = None;
        write(database, &change).await?;
        metrics.written.inc_by(u64::try_from(change.set.len() + change.delete.len()).unwrap_or(u64::MAX));
        self.known = Some((database.epoch, generation, documents));
        self.not_before = Instant::now() + began.elapsed().saturating_mul(REST);
        Ok(())
    }

    /// Takes intents for as long as there are some, and room for them.
    async fn take_intents(&mut self, database: &mut Database) -> Result<(), Trouble> {
        while self.intents.capacity() > 0 {
            if self.taken.is_none() {
                let mut pop = cmd("LPOP");
                match database.command::<Option<Vec<u8>>>(pop.arg(document::INTENTS)).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(key)) => self.taken = Some(String::from_utf8_lossy(&key).into_owned()),
                    Err(error) if Trouble::is_answer(&error) => {
                        if !std::mem::replace(&mut self.is_list_said, true) {
                            tracing::warn!(%error, "no intents can be read from the key '{}'", document::INTENTS);
                        }
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(key) = self.taken.clone() else { return Ok(()) };
            let value = if intent::is_intent(&key) { read_once(database, &key).await? } else { Ok(String::new()) };
            self.taken = None;
            if self.intents.try_send(Found { key, value }).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Looks at the whole domain, page by page, and tells from which generation on; `None`: nothing has
/// changed since this one.
pub(super) async fn look(
    inbox: &Inbox<Engine>,
    since: Option<u64>,
    mut see: impl FnMut(&Page) + Send,
) -> Result<Option<u64>, Error> {
    let generation = inbox.read(|engine, _| engine.generation()).await?;
    if since == Some(generation) {
        return Ok(None);
    }
    let mut cursor = Some(Cursor::Start);
    while let Some(from) = cursor {
        let page = inbox.read(move |engine, _| engine.page(from, PAGE)).await?;
        see(&page);
        cursor = page.next;
    }
    Ok(Some(generation))
}

/// Reads the value of an intent and removes it.
async fn read_once(database: &mut Database, key: &str) -> Result<Result<String, String>, Trouble> {
    let mut read = pipe();
    read.ignore_errors();
    read.cmd("GETRANGE").arg(key).arg(0).arg(intent::LONGEST);
    read.cmd("DEL").arg(key);
    let results: Vec<RedisResult<Value>> = database.commands(&read).await?;
    let mut results = results.into_iter();
    let value = match results.next().map(|value| value.and_then(|value| Ok(redis::from_redis_value::<Vec<u8>>(value)?)))
    {
        Some(Ok(value)) => value,
        Some(Err(error)) if Trouble::is_answer(&error) => return Ok(Err(format!("its value cannot be read: {error}"))),
        Some(Err(error)) => return Err(error.into()),
        None => return Ok(Err("its value cannot be read".into())),
    };
    Ok(match (results.next(), String::from_utf8(value)) {
        (Some(Ok(Value::Int(0))), _) => Err("it has no value: set its key before its name is pushed".into()),
        (_, Ok(value)) if value.len() <= intent::LONGEST => Ok(value),
        (_, Ok(_)) => Err(format!("its value is longer than {} bytes", intent::LONGEST)),
        (_, Err(_)) => Err("its value is no text".into()),
    })
}

/// The keys in a database that a mirror wrote and that are no longer true.
async fn stale(database: &mut Database, documents: &Documents) -> Result<Vec<String>, Trouble> {
    let mut stale = Vec::new();
    for pattern in document::PATTERNS {
        let mut cursor = 0_u64;
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<Vec<u8>>) = database.command(&scan).await?;
            // What is no text was not written by a mirror.
            let keys = keys.into_iter().filter_map(|key| String::from_utf8(key).ok());
            for key in keys.filter(|key| documents.is_stale(key)) {
                if !document::is_for_sure(&key) {
                    let value: RedisResult<Option<Vec<u8>>> = database.command(cmd("GET").arg(&key)).await;
                    match value {
                        Ok(Some(value)) if document::is_provider(&value) => {}
                        Ok(_) => continue,
                        Err(error) if Trouble::is_answer(&error) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                stale.push(key);
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(stale)
}

async fn write(database: &mut Database, change: &Change) -> Result<(), Trouble> {
    if change.is_empty() {
        return Ok(());
    }
    let mut commands: Vec<redis::Cmd> = Vec::new();
    for (key, value) in &change.set {
        let mut set = cmd("SET");
        set.arg(key).arg(value);
        commands.push(set);
    }
    for key in &change.delete {
        let mut delete = cmd("DEL");
        delete.arg(key);
        commands.push(delete);
    }
    // Last: whoever sees them change shall find the rest as it is now.
    let now = document::time(SystemTime::now());
    for key in &change.touch {
        let mut set = cmd("SET");
        set.arg(key).arg(&now);
        commands.push(set);
    }
    for batch in commands.chunks(BATCH) {
        let mut pipeline = pipe();
        for command in batch {
            pipeline.add_command(command.clone()).ignore();
        }
        database.commands::<()>(&pipeline).await?;
    }
    Ok(())
}
