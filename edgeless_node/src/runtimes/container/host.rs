//! What guests ask of their node: the service, and who is who.
//!
//! One server serves all that come over the network: they are told apart by the token that they were given
//! at Boot or, if they know none, by the address of their container. A guest at a socket of its own needs
//! neither.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use edgeless_api::event::Reply;
use edgeless_api::guest::{Ask, Caller, FromGuest, Tell, ToGuest};
use edgeless_api::server::{GuestHost, Values};
use edgeless_api::{Error, InstanceId};
use uuid::Uuid;

use super::guest::Guest;
use super::options::Subnet;

/// How a guest shows who it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mark {
    /// By the token that it was given.
    Token(String),
    /// By the address that it calls from.
    Address(IpAddr),
    /// By its word alone: servers that the operator trusts.
    Word(Uuid),
}

/// The guests that come over the network.
pub(super) struct Guests {
    known: Mutex<HashMap<Mark, Arc<Guest>>>,
    /// Where containers call from: none of those may speak by its word alone.
    containers: Subnet,
}

/// Guests are known as long as this lives.
pub(super) struct Known {
    guests: Arc<Guests>,
    marks: Vec<Mark>,
    guest: Arc<Guest>,
}

impl Guests {
    pub(super) fn new(containers: Subnet) -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), containers })
    }

    fn known<R>(&self, act: impl FnOnce(&mut HashMap<Mark, Arc<Guest>>) -> R) -> R {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on the guest is known by these marks.
    pub(super) fn add(self: &Arc<Self>, guest: Arc<Guest>, marks: Vec<Mark>) -> Known {
        self.known(|known| known.extend(marks.iter().map(|mark| (mark.clone(), guest.clone()))));
        Known { guests: self.clone(), marks, guest }
    }

    fn find(&self, caller: Caller, originator: Option<InstanceId>) -> Result<Arc<Guest>, Error> {
        let Caller { address, token } = caller;
        let is_shown = token.is_some();
        let found = self.known(|known| {
            let by = |mark: Mark| known.get(&mark).cloned();
            match token {
                Some(token) => by(Mark::Token(token)),
                None => address.and_then(|address| by(Mark::Address(address))).or_else(|| {
                    let is_container = address.is_some_and(|address| self.containers.contains(address));
                    originator.filter(|_| !is_container).and_then(|id| by(Mark::Word(id.function)))
                }),
            }
        });
        let found = found.ok_or_else(|| match is_shown {
            true => Error::rejected("this token belongs to no guest of this node: it was stopped meanwhile"),
            false => Error::rejected(
                "no guest of this node calls from here, and no token is shown: show that of the Boot as edgeless-token",
            ),
        })?;
        speaks_for_itself(&found, originator)?;
        Ok(found)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.guests.known(|known| {
            for mark in &self.marks {
                // A container's address may have gone to its successor already.
                if known.get(mark).is_some_and(|guest| Arc::ptr_eq(guest, &self.guest)) {
                    known.remove(mark);
                }
            }
        });
    }
}

fn speaks_for_itself(guest: &Guest, originator: Option<InstanceId>) -> Result<(), Error> {
    match originator {
        Some(other) if other != guest.context.id => {
            super::guest::warn(&guest.context, &format!("it tried to speak as {other:?}"));
            Err(Error::rejected(format!("the caller is {:?} and may not speak as {other:?}", guest.context.id)))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl GuestHost for Guests {
    async fn tell(&self, caller: Caller, originator: InstanceId, tell: Tell) -> Result<(), Error> {
        let guest = self.find(caller, Some(originator))?;
        guest.tell(tell, guest.last_cause()).await;
        Ok(())
    }

    async fn ask(&self, caller: Caller, originator: InstanceId, ask: Ask) -> Result<Reply, Error> {
        let guest = self.find(caller, Some(originator))?;
        guest.ask(ask, guest.last_cause()).await
    }

    async fn slf(&self, caller: Caller) -> Result<InstanceId, Error> {
        Ok(self.find(caller, None)?.context.id)
    }

    async fn attach(&self, caller: Caller, messages: Values<FromGuest>) -> Result<Values<ToGuest>, Error> {
        self.find(caller, None)?.attach(messages)
    }
}

/// The guest at one socket: nobody else can come that way.
pub(super) struct AtSocket(pub(super) Arc<Guest>);

#[async_trait]
impl GuestHost for AtSocket {
    async fn tell(&self, _: Caller, originator: InstanceId, tell: Tell) -> Result<(), Error> {
        speaks_for_itself(&self.0, Some(originator))?;
        self.0.tell(tell, self.0.last_cause()).await;
        Ok(())
    }

    async fn ask(&self, _: Caller, originator: InstanceId, ask: Ask) -> Result<Reply, Error> {
        speaks_for_itself(&self.0, Some(originator))?;
        self.0.ask(ask, self.0.last_cause()).await
    }

    async fn slf(&self, _: Caller) -> Result<InstanceId, Error> {
        Ok(self.0.context.id)
    }

    async fn attach(&self, _: Caller, messages: Values<FromGuest>) -> Result<Values<ToGuest>, Error> {
        self.0.attach(messages)
    }
}
