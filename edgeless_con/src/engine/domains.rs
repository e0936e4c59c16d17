//! The orchestration domains: which are in reach, what they have, and which have lost everything.
//!
//! A domain is learnt from its announcements, or by following it where the configuration says so. A
//! new nonce is a new process, which runs nothing of ours. This module takes note and reports what
//! changed; what that means for workflows is the engine's concern. What a domain says of itself is
//! believed within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edgeless_api::Url;
use edgeless_api::domain::{DomainCapabilities, DomainRegistered, DomainRegistration, DomainState};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{DomainId, NodeId};
use edgeless_api::node::NodeInfo;
use edgeless_api::record;
use edgeless_api::workflow::MAX_NAME;
use edgeless_daemon::engine::Millis;

use super::Peer;
use super::keep::Origin;
use super::loss::{Addresses, Pulse};
use crate::placement::Miss;

/// The longest time that an announcement can hold.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// The most names of one kind that a domain is believed to have.
const MAX_NAMES: usize = 100_000;
/// The most nodes of a domain whose addresses are kept.
const MAX_NODES: usize = 20_000;
/// How often the nodes of a domain are asked for, even if it does not say that it has changed.
const LEARN: Duration = Duration::from_secs(60);
/// How often at most.
const LEARN_AGAIN: Duration = Duration::from_secs(1);
/// The time between two probes, within which `domain_grace` is kept to.
const PROBE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

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
    /// How many signs of life it has given to this process of the controller.
    signs: u64,
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
    /// When it went out of reach; `None` while it is in reach, and before it was.
    lost_at: Option<Millis>,
    /// Nothing of it was left.
    is_killed: bool,
    addresses: Addresses,
    /// Its nodes, as far as they were learnt.
    nodes: BTreeSet<NodeId>,
    /// When it had been lost that is being probed.
    probing: Option<Millis>,
    probe_at: Millis,
    /// Where its rows are followed.
    rows_at: Option<Url>,
}

impl Domain {
    fn new(url: Url, configured: bool) -> Self {
        Self {
            url,
            configured,
            in_reach: false,
            nonce: None,
            signs: 0,
            until: Millis(0),
            source: Source::Watch,
            resetting: false,
            native: None,
            capabilities: DomainCapabilities::default(),
            reason: None,
            lost_at: None,
            is_killed: false,
            addresses: Addresses::default(),
            nodes: BTreeSet::new(),
            probing: None,
            probe_at: Millis(0),
            rows_at: None,
        }
    }

    /// Takes note of a sign of life.
    fn alive(&mut self, id: &DomainId, until: Millis, nonce: u64, mut capabilities: DomainCapabilities) -> Seen {
        let dropped = bound(&mut capabilities);
        let fresh = self.nonce.replace(nonce) != Some(nonce);
        let was_in_reach = std::mem::replace(&mut self.in_reach, true);
        let changed = self.capabilities != capabilities;
        self.until = until;
        self.signs += 1;
        self.capabilities = capabilities;
        self.lost_at = None;
        self.is_killed = false;
        if fresh || changed {
            self.addresses.learn_at = self.addresses.learn_soon;
            if dropped > 0 {
                tracing::warn!(domain = %id, dropped, "the domain has names that are too long or too many: ignored");
            }
        }
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

/// Drops names that are longer than names may be, and those beyond a number. How many were dropped.
fn bound(capabilities: &mut DomainCapabilities) -> usize {
    let names = [
        &mut capabilities.labels,
        &mut capabilities.runtimes,
        &mut capabilities.resource_providers,
        &mut capabilities.resource_classes,
    ];
    let mut dropped = 0;
    for names in names {
        let before = names.len();
        names.retain(|name| name.len() <= 2 * MAX_NAME);
        while names.len() > MAX_NAMES {
            names.pop_last();
        }
        dropped += before - names.len();
    }
    dropped
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

    /// A domain is known from before this process started, and not in reach yet.
    pub(super) fn restore(&mut self, known: &record::Domain) {
        let domain = self.table.entry(known.id.clone()).or_insert_with(|| Domain::new(known.url.clone(), false));
        domain.nonce = Some(known.nonce);
        domain.native = Some(known.native);
        domain.lost_at = Some(Millis(0));
    }

    /// What workflows rely on of a domain.
    pub(super) fn origin(&self, id: &DomainId) -> Origin {
        let domain = self.table.get(id);
        Origin {
            nonce: domain.and_then(|domain| domain.nonce).unwrap_or_default(),
            native: self.speaks_ours(id),
            url: domain.map_or_else(|| Url::of(([0, 0, 0, 0], 0).into()), |domain| domain.url.clone()),
        }
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
        if url.port() == 0 {
            return Err(Error::rejected(format!("the orchestrator_url '{url}' of domain '{id}' has no port to dial")));
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
    pub(super) fn lost(&mut self, now: Millis, id: &DomainId, reason: Error) -> bool {
        let Some(domain) = self.table.get_mut(id) else { return false };
        if domain.in_reach && domain.source == Source::Watch {
            tracing::warn!(domain = %id, orchestrator = %domain.url, %reason, "domain lost");
            domain.in_reach = false;
            domain.lost_at = Some(now);
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
            domain.lost_at = Some(now);
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

    /// How many signs of life a domain has given.
    pub(super) fn signs(&self, id: &DomainId) -> u64 {
        self.table.get(id).map_or(0, |domain| domain.signs)
    }

    /// Whether a domain is known to speak our fields and services, be it in reach or not.
    pub(super) fn speaks_ours(&self, id: &DomainId) -> bool {
        self.table.get(id).is_some_and(|domain| domain.native == Some(true))
    }

    /// Whether a domain is known to speak only EDGELESS 1.2.
    pub(super) fn is_too_old(&self, id: &DomainId) -> bool {
        self.table.get(id).is_some_and(|domain| domain.native == Some(false))
    }

    /// The domains that went out of reach, and for how long they have been.
    pub(super) fn lost_since(&self, now: Millis) -> impl Iterator<Item = (DomainId, Duration)> {
        self.table.iter().filter_map(move |(id, domain)| Some((id.clone(), domain.lost_at?.until(now))))
    }

    /// Whether nothing of a lost domain was left.
    pub(super) fn is_killed(&self, id: &DomainId) -> bool {
        self.table.get(id).is_some_and(|domain| domain.is_killed)
    }

    /// The domains whose nodes are to be asked for.
    pub(super) fn learn(&mut self, now: Millis) -> Vec<Peer> {
        let is_due = |domain: &Domain| {
            let is_usable = domain.in_reach && !domain.resetting && domain.native != Some(false);
            is_usable && !domain.addresses.is_learning && now >= domain.addresses.learn_at
        };
        let due = self.table.iter_mut().filter(|(_, domain)| is_due(domain));
        due.map(|(id, domain)| {
            domain.addresses.is_learning = true;
            domain.addresses.learn_at = now + LEARN;
            domain.addresses.learn_soon = now + LEARN_AGAIN;
            Peer { domain: id.clone(), url: domain.url.clone() }
        })
        .collect()
    }

    /// A domain said which nodes it has.
    pub(super) fn learnt(&mut self, now: Millis, id: &DomainId, nodes: Result<Vec<NodeInfo>, Error>) {
        let Some(domain) = self.table.get_mut(id) else { return };
        domain.addresses.is_learning = false;
        match nodes {
            Ok(nodes) => {
                domain.native = Some(true);
                domain.nodes = nodes.iter().take(MAX_NODES).map(|node| node.node).collect();
                let urls = || nodes.iter().map(|node| node.agent_url.clone()).collect();
                domain.addresses.nodes = (nodes.len() <= MAX_NODES).then(urls);
            }
            Err(error) if error.code == Code::Unimplemented => domain.native = Some(false),
            Err(_) => domain.addresses.learn_at = now + LEARN_AGAIN,
        }
    }

    /// The domain of a node, as far as nodes were learnt.
    pub(super) fn domain_of(&self, node: NodeId) -> Option<&DomainId> {
        self.table.iter().find(|(_, domain)| domain.nodes.contains(&node)).map(|(id, _)| id)
    }

    /// What to probe of a lost domain, if that is due.
    pub(super) fn probe(&mut self, now: Millis, id: &DomainId) -> Option<Vec<Url>> {
        let domain = self.table.get_mut(id)?;
        if domain.probing.is_some() || now < domain.probe_at {
            return None;
        }
        let mut urls = domain.addresses.nodes.clone()?;
        // One that joined since they were learnt may be there.
        if urls.len() < domain.capabilities.num_nodes as usize {
            return None;
        }
        urls.push(domain.url.clone());
        domain.probing = domain.lost_at;
        Some(urls)
    }

    /// How much is left of a lost domain.
    pub(super) fn probed(&mut self, now: Millis, id: &DomainId, pulse: Pulse, grace: Duration) {
        let Some(domain) = self.table.get_mut(id) else { return };
        let [least, most] = PROBE;
        domain.probe_at = now + grace.clamp(least, most);
        let lost_at = domain.probing.take();
        // It may have been in reach meanwhile.
        if lost_at.is_none() || domain.lost_at != lost_at {
            return;
        }
        domain.is_killed = pulse.is_gone();
        if domain.is_killed {
            tracing::warn!(domain = %id, addresses = pulse.gone, "nothing of the domain is left: its components are placed elsewhere");
        }
    }

    /// Where to follow the rows of a domain, if that is not done yet.
    pub(super) fn follow(&mut self, id: &DomainId) -> Option<Peer> {
        let domain = self.table.get_mut(id).filter(|domain| domain.in_reach && domain.native == Some(true))?;
        if domain.rows_at.as_ref() == Some(&domain.url) {
            return None;
        }
        domain.rows_at = Some(domain.url.clone());
        Some(Peer { domain: id.clone(), url: domain.url.clone() })
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
