//! Who the nodes are that the domain has seen: those that are there, and a bounded number of those that were.
//!
//! An id belongs to the key with which it first came, also while its node is gone. An id that came without a key,
//! as that of an EDGELESS 1.x node, belongs to nobody once its node is gone.

use std::collections::{BTreeMap, BTreeSet};

use edgeless_api::id::NodeId;
use edgeless_api::node::NodeKey;
use edgeless_api::url::Url;

/// Of the nodes that are there and those that were, so many are remembered for each that may be there.
const REMEMBERED: usize = 4;

#[derive(Clone, Debug, Default)]
struct Identity {
    key: Option<NodeKey>,
    /// Where it took events last.
    invocation_url: Option<Url>,
    /// Which loss it was; `None`: the node is there.
    lost: Option<u64>,
}

/// The nodes that the domain has seen.
#[derive(Clone, Debug)]
pub(crate) struct Identities {
    known: BTreeMap<NodeId, Identity>,
    /// Those that are gone, in the order in which they went.
    lost: BTreeSet<(u64, NodeId)>,
    losses: u64,
    limit: usize,
}

impl Identities {
    /// Of a domain that takes so many nodes.
    pub(crate) fn of_domain(nodes: usize) -> Self {
        let limit = nodes.saturating_mul(REMEMBERED);
        Self { known: BTreeMap::new(), lost: BTreeSet::new(), losses: 0, limit }
    }

    /// A node is there, and has shown this key. Returns whether that is news, and the one that is forgotten for it.
    pub(crate) fn admit(&mut self, id: NodeId, key: Option<NodeKey>, url: &Url) -> (bool, Option<NodeId>) {
        let mut is_news = !self.known.contains_key(&id);
        let identity = self.known.entry(id).or_default();
        is_news |= identity.key.is_none() && key.is_some() || identity.invocation_url.as_ref() != Some(url);
        identity.key = identity.key.or(key);
        identity.invocation_url = Some(url.clone());
        if let Some(loss) = identity.lost.take() {
            self.lost.remove(&(loss, id));
        }
        (is_news, self.make_room())
    }

    fn make_room(&mut self) -> Option<NodeId> {
        if self.known.len() <= self.limit {
            return None;
        }
        let (_, oldest) = self.lost.pop_first()?;
        self.known.remove(&oldest);
        Some(oldest)
    }

    /// A node was there before the orchestrator was started again.
    pub(crate) fn restore(&mut self, id: NodeId, key: Option<NodeKey>, invocation_url: Option<Url>) {
        self.known.insert(id, Identity { key, invocation_url, lost: None });
        self.lose(id);
    }

    /// A node is gone.
    pub(crate) fn lose(&mut self, id: NodeId) {
        if let Some(identity) = self.known.get_mut(&id)
            && identity.lost.is_none()
        {
            self.losses += 1;
            identity.lost = Some(self.losses);
            self.lost.insert((self.losses, id));
        }
    }

    /// Removes what is known of a node that is gone; tells whether there was anything.
    pub(crate) fn forget(&mut self, id: NodeId) -> bool {
        let Some(loss) = self.known.get(&id).and_then(|identity| identity.lost) else { return false };
        self.lost.remove(&(loss, id));
        self.known.remove(&id).is_some()
    }

    /// Whether a node is there, or was.
    pub(crate) fn knows(&self, id: NodeId) -> bool {
        self.known.contains_key(&id)
    }

    /// Where a node takes events, or took them last.
    pub(crate) fn invocation_url(&self, id: NodeId) -> Option<&Url> {
        self.known.get(&id)?.invocation_url.as_ref()
    }

    /// The key to which an id is bound.
    pub(crate) fn key(&self, id: NodeId) -> Option<NodeKey> {
        self.known.get(&id)?.key
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    /// Whoever could make the domain forget a node by sending others could take its id over: those that are
    /// there stay whatever happens, and of the others the oldest go.
    #[test]
    fn of_those_that_are_gone_the_oldest_are_forgotten() {
        let mut known = Identities::of_domain(1);
        let key = |n| Some(NodeKey([n; 32]));
        let url = Url::of(([127, 0, 0, 1], 7002).into());
        assert_eq!(known.admit(id(0), key(0), &url), (true, None));
        for n in 1..=3 {
            assert_eq!(known.admit(id(u128::from(n)), key(n), &url), (true, None));
        }
        for n in [2, 1, 3] {
            known.lose(id(n));
        }
        assert_eq!(known.admit(id(2), None, &url), (false, None), "it is back");
        assert_eq!(known.key(id(2)), key(2), "and keeps its key");
        known.lose(id(2));
        for (newcomer, forgotten) in [(4, 1), (5, 3), (6, 2)] {
            assert_eq!(known.admit(id(newcomer), None, &url), (true, Some(id(forgotten))));
            assert!(!known.knows(id(forgotten)) && known.key(id(forgotten)).is_none());
        }
        let other = Url::of(([127, 0, 0, 1], 7003).into());
        assert_eq!(known.admit(id(0), None, &other), (true, None), "it has moved");
        assert_eq!((known.invocation_url(id(0)), known.key(id(0))), (Some(&other), key(0)));
        assert!(!known.forget(id(0)), "it is there");
        known.lose(id(0));
        assert!(known.forget(id(0)) && !known.forget(id(0)));
    }
}
