//! The orchestration domains: which are in reach, what they have, and which have lost everything.
//!
//! A domain is learnt from its announcements, or by following it where the configuration says so. A
//! new nonce is a new process, which runs nothing of ours. This module takes note and reports what
//! changed; what that means for workflows is the engine's concern.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edgeless_api::Url;
use edgeless_api::domain::{DomainCapabilities, DomainRegistered, DomainRegistration, DomainState};
use edgeless_api::error::Error;
use edgeless_api::id::DomainId;
use edgeless_api::workflow::MAX_NAME;
use edgeless_daemon::engine::Millis;

use super::Peer;
use crate::placement::Miss;

/// The longest time that an announcement can hold.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// A domain that can be given work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) peer: Peer,
    /// It speaks our fields and services, not only EDGELESS 1.2.
    pub(super) native: bool,
}

/// What a sign of life means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing new.
    Still,
    /// It can be given work again, and runs what it ran before.
    Back,
    /// It is a new process and runs nothing.
    Fresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Watch,
    Registration,
}

#[derive(Debug)]
struct Domain {
    url: Url,
    /// It is in the configuration: followed for ever, never forgotten.
    configured: bool,
    in_reach: bool,
    /// Of its process; `None` before it was first seen.
    nonce: Option<u64>,
    /// When its last sign of life expires.
    until: Millis,
    /// Whose sign of life that was.
    source: Source,
    /// It was told to stop everything that it runs, and may not have done so yet.
    resetting: bool,
    /// Unknown before it was asked for something of ours.
    native: Option<bool>,
    capabilities: DomainCapabilities,
    /// Why it is out of reach; `None` before it was first in reach or could not be reached.
    reason: Option<Error>,
}

impl Domain {
    fn new(url: Url, configured: bool) -> Self {
        Self {
            url,
            configured,
            in_reach: false,
            nonce: None,
            until: Millis(0),
            source: Source::Watch,
            resetting: false,
            native: None,
            capabilities: DomainCapabilities::default(),
            reason: None,
        }
    }

    /// Takes note of a sign of life.
    fn alive(&mut self, id: &DomainId, until: Millis, nonce: u64, capabilities: DomainCapabilities) -> Seen {
        let fresh = self.nonce.replace(nonce) != Some(nonce);
        let was_in_reach = std::mem::replace(&mut self.in_reach, true);
        let changed = self.capabilities != capabilities;
        self.until = until;
        self.capabilities = capabilities;
        if !was_in_reach || fresh || changed {
            self.log(id, if was_in_reach && !fresh { "domain changed" } else { "domain in reach" });
        }
        match (fresh, was_in_reach) {
            (true, _) => Seen::Fresh,
            (false, false) => Seen::Back,
            (false, true) => Seen::Still,
        }
    }

    fn log(&self, domain: &DomainId, what: &'static str) {
        let has = &self.capabilities;
        tracing::info!(%domain, orchestrator = %self.url, nodes = has.num_nodes, runtimes = ?has.runtimes, resource_classes = ?has.resource_classes, "{what}");
    }
}

/// All domains that are known.
#[derive(Debug)]
pub(super) struct Domains {
    table: BTreeMap<DomainId, Domain>,
    limit: usize,
}

impl Domains {
    /// At most `limit` domains, with those of the configuration among them.
    pub(super) fn new(configured: Vec<(DomainId, Url)>, limit: usize) -> Self {
        let table = configured.into_iter().map(|(id, url)| (id, Domain::new(url, true))).collect();
        Self { table, limit }
    }

    /// A domain that is followed said how it is.
    pub(super) fn watched(&mut self, now: Millis, state: DomainState) -> (DomainId, Seen) {
        let Some(domain) = self.table.get_mut(&state.domain) else { return (state.domain, Seen::Still) };
        let until = now + state.lifetime.min(MAX_LIFETIME);
        domain.source = Source::Watch;
        domain.native = Some(true);
        let seen = domain.alive(&state.domain, until, state.nonce, state.capabilities);
        // A process that nobody told to reset has nothing to forget.
        domain.resetting &= seen != Seen::Fresh;
        (state.domain, seen)
    }

    /// An orchestrator announced its domain.
    ///
    /// One that is not known, or is a new process, is told to reset. What it is given before it has
    /// done so would be lost, so that it counts only from its next announcement on.
    pub(super) fn registered(
        &mut self,
        now: Millis,
        registration: DomainRegistration,
    ) -> Result<(DomainRegistered, DomainId, Seen), Error> {
        let DomainRegistration { domain: id, orchestrator_url: url, capabilities, lifetime, nonce, .. } = registration;
        self.check_registration(&id, &url, lifetime, nonce)?;
        let domain = self.table.entry(id.clone()).or_insert_with(|| Domain::new(url.clone(), false));
        if !domain.configured {
            domain.url = url;
        }
        domain.source = Source::Registration;
        let seen = domain.alive(&id, now + lifetime.min(MAX_LIFETIME), nonce, capabilities);
        let was_resetting = std::mem::replace(&mut domain.resetting, seen == Seen::Fresh);
        let seen = if was_resetting && seen == Seen::Still { Seen::Back } else { seen };
        Ok((DomainRegistered { reset: domain.resetting }, id, seen))
    }

    fn check_registration(&self, id: &DomainId, url: &Url, lifetime: Duration, nonce: u64) -> Result<(), Error> {
        if id.0.len() > MAX_NAME {
            let length = id.0.len();
            return Err(Error::rejected(format!("the domain id is {length} bytes long: {MAX_NAME} is the limit")));
        }
        if lifetime.is_zero() {
            return Err(Error::rejected(format!(
                "the registration of domain '{id}' has expired on arrival: set the clocks of both machines"
            )));
        }
        match self.table.get(id) {
            None if self.table.len() >= self.limit => Err(Error::exhausted(format!(
                "there are {} domains already: raise 'max_domains' of the controller",
                self.table.len()
            ))),
            Some(other) if other.in_reach && other.nonce != Some(nonce) && other.url != *url => Err(Error::rejected(
                format!("the domain '{id}' is served by the orchestrator at {}: choose another domain_id", other.url),
            )),
            _ => Ok(()),
        }
    }

    /// A domain that is followed cannot be followed. True if it is out of reach by that.
    pub(super) fn lost(&mut self, id: &DomainId, reason: Error) -> bool {
        let Some(domain) = self.table.get_mut(id) else { return false };
        if domain.in_reach && domain.source == Source::Watch {
            tracing::warn!(domain = %id, orchestrator = %domain.url, %reason, "domain lost");
            domain.in_reach = false;
            domain.reason = Some(reason);
            return true;
        }
        if !domain.in_reach {
            if domain.reason.is_none() {
                tracing::warn!(domain = %id, %reason, "domain out of reach: trying until it answers");
            }
            domain.reason = Some(reason);
        }
        false
    }

    /// The domains whose last sign of life expires by now.
    pub(super) fn expire(&mut self, now: Millis) -> Vec<DomainId> {
        let mut expired = Vec::new();
        for (id, domain) in self.table.iter_mut().filter(|(_, domain)| domain.in_reach && domain.until <= now) {
            domain.in_reach = false;
            let reason = Error::timeout("it has been silent");
            tracing::warn!(domain = %id, orchestrator = %domain.url, %reason, "domain lost");
            domain.reason = Some(reason);
            expired.push(id.clone());
        }
        expired
    }

    /// Drops the domains that announced themselves, are gone, and are not in use.
    pub(super) fn forget(&mut self, in_use: impl FnOnce() -> BTreeSet<DomainId>) -> Vec<DomainId> {
        let is_gone = |domain: &Domain| !domain.in_reach && !domain.configured;
        if !self.table.values().any(is_gone) {
            return Vec::new();
        }
        let in_use = in_use();
        self.table.extract_if(.., |id, domain| is_gone(domain) && !in_use.contains(id)).map(|(id, _)| id).collect()
    }

    /// Takes note of whether a domain speaks our services, as an answer of it has shown.
    pub(super) fn is_native(&mut self, id: &DomainId, native: bool) {
        if let Some(domain) = self.table.get_mut(id) {
            domain.native = Some(native);
        }
    }

    /// A domain, if it can be given work.
    pub(super) fn reach(&self, id: &DomainId) -> Option<Reach> {
        let domain = self.table.get(id).filter(|domain| domain.in_reach && !domain.resetting)?;
        let peer = Peer { domain: id.clone(), url: domain.url.clone() };
        Some(Reach { peer, native: domain.native.unwrap_or(false) })
    }

    /// Why a domain cannot be given work.
    pub(super) fn why_out_of_reach(&self, id: &DomainId) -> String {
        match self.table.get(id) {
            Some(domain) if domain.in_reach => "has just announced itself and is not in use yet".into(),
            Some(Domain { url, reason: None, .. }) => format!("({url}) has not answered yet"),
            Some(Domain { reason: Some(reason), .. }) => format!("is out of reach: {reason}"),
            None => "is not known".into(),
        }
    }

    /// The same for whoever looks for a domain: a refusal ends with what to do, all else may pass.
    pub(super) fn miss(&self, id: &DomainId) -> Miss {
        let reason = self.why_out_of_reach(id);
        let lost = self.table.get(id).filter(|domain| !domain.in_reach).and_then(|domain| domain.reason.as_ref());
        match lost {
            Some(error) if error.code.is_refusal() => Miss::NotReady(reason),
            _ => Miss::OutOfReach(reason),
        }
    }

    /// All domains, with what those have that can be given work.
    pub(super) fn all(&self) -> impl Iterator<Item = (&DomainId, Option<&DomainCapabilities>)> {
        self.table.iter().map(|(id, domain)| {
            let is_usable = domain.in_reach && !domain.resetting;
            (id, is_usable.then_some(&domain.capabilities))
        })
    }
}
