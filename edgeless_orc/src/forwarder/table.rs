//! Who is known on the other side of the border by which alias.
//!
//! ```text
//!  inside                    alias                    outside
//!  own component       <-    by the component    <-   events of others to it
//!  own instances       ->    by the component    ->   foreign component
//!  callers, senders    <->   one by instance     <->  callers, senders
//! ```
//! Plain data: no clock, no network. Everything that others can make grow is bounded; what was not used
//! for the longest time is forgotten first. The aliases of components follow from their ids, so that they
//! outlive being forgotten; those of instances are random, so that nobody can guess whom to write to.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use edgeless_api::component::Row;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::url::Url;
use uuid::Uuid;

/// Nodes of others whose addresses are kept that their events told.
const NODES: usize = 4096;

/// What an alias stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A component of the domain.
    Own(ComponentId),
    /// A component elsewhere, whose row is kept.
    Foreign(ComponentId),
    /// One instance, here or elsewhere: who sent an event that went through.
    Source(InstanceId),
}

/// A call on its way, from its event to its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The alias that the caller called, and from which it expects the reply.
    pub(crate) called: Uuid,
    /// The instance that was chosen to answer.
    pub(crate) callee: InstanceId,
    /// It is on a node of the domain.
    is_own: bool,
    /// Nobody waits for it any longer than this.
    until: Instant,
}

/// What is forgotten first: what was not used for the longest time.
#[derive(Debug, Default)]
struct Idle(BTreeSet<(Instant, Uuid)>);

#[derive(Debug)]
struct Entry {
    meaning: Meaning,
    used: Instant,
    /// It stays until it is removed.
    is_kept: bool,
    turn: usize,
}

/// The aliases of one forwarder.
#[derive(Debug)]
pub(crate) struct Table {
    me: NodeId,
    limit: usize,
    entries: HashMap<Uuid, Entry>,
    sources: HashMap<InstanceId, Uuid>,
    /// Where the foreign components run.
    rows: HashMap<ComponentId, Row>,
    idle_sources: Idle,
    idle_components: Idle,
    calls: HashMap<(Uuid, u64), Call>,
    deadlines: BTreeSet<(Instant, Uuid, u64)>,
    /// Where nodes of others take events, as their orchestrator says.
    told: HashMap<NodeId, Url>,
    /// The same as they say themselves.
    heard: HashMap<NodeId, Url>,
}

impl Table {
    /// A table of the forwarder that is the node `me`, for so many instances, components and calls each.
    pub(crate) fn new(me: NodeId, limit: usize) -> Self {
        Self {
            me,
            limit,
            entries: HashMap::new(),
            sources: HashMap::new(),
            rows: HashMap::new(),
            idle_sources: Idle::default(),
            idle_components: Idle::default(),
            calls: HashMap::new(),
            deadlines: BTreeSet::new(),
            told: HashMap::new(),
            heard: HashMap::new(),
        }
    }

    /// The forwarder.
    pub(crate) fn me(&self) -> NodeId {
        self.me
    }

    /// The alias of a component of the domain.
    pub(crate) fn own(&mut self, now: Instant, component: ComponentId) -> Uuid {
        let alias = self.derived(b"own", component);
        self.enter(now, alias, Meaning::Own(component), false);
        alias
    }

    /// The alias of a component elsewhere that runs where `row` says. A row older than the one known changes
    /// nothing.
    pub(crate) fn foreign(&mut self, now: Instant, row: Row) -> Uuid {
        let component = row.component;
        self.set_row(row);
        let alias = self.derived(b"foreign", component);
        self.enter(now, alias, Meaning::Foreign(component), false);
        alias
    }

    fn derived(&self, kind: &[u8], component: ComponentId) -> Uuid {
        Uuid::new_v5(&self.me.0, &[kind, component.0.as_bytes()].concat())
    }

    /// A new alias of a component of the domain, which stays until it is removed.
    pub(crate) fn start(&mut self, now: Instant, component: ComponentId) -> Uuid {
        let alias = Uuid::new_v4();
        self.enter(now, alias, Meaning::Own(component), true);
        alias
    }

    /// Gives a component of the domain an alias that it had before.
    pub(crate) fn restart(&mut self, now: Instant, alias: Uuid, component: ComponentId) {
        self.remove(alias);
        self.enter(now, alias, Meaning::Own(component), true);
    }

    /// An alias leads to a component elsewhere from now on, until it has not been used for long.
    pub(crate) fn lead_away(&mut self, now: Instant, alias: Uuid, component: ComponentId) {
        self.remove(alias);
        self.rows.entry(component).or_insert_with(|| Row::new(component, 0, vec![]));
        self.enter(now, alias, Meaning::Foreign(component), false);
    }

    /// Forgets an alias.
    pub(crate) fn remove(&mut self, alias: Uuid) {
        if let Some(entry) = self.entries.remove(&alias) {
            self.idle(entry.meaning).0.remove(&(entry.used, alias));
            if let Meaning::Source(source) = entry.meaning {
                self.sources.remove(&source);
            }
        }
    }

    /// Forgets all aliases, rows and calls: the domain starts afresh. Addresses stay.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            told: std::mem::take(&mut self.told),
            heard: std::mem::take(&mut self.heard),
            ..Self::new(self.me, self.limit)
        };
    }

    /// The alias of whoever sends an event through.
    pub(crate) fn source(&mut self, now: Instant, source: InstanceId) -> Uuid {
        let alias = self.sources.get(&source).copied().unwrap_or_else(Uuid::new_v4);
        self.sources.insert(source, alias);
        self.enter(now, alias, Meaning::Source(source), false);
        alias
    }

    /// What an alias stands for.
    pub(crate) fn meaning(&mut self, now: Instant, alias: Uuid) -> Option<Meaning> {
        let entry = self.entries.get(&alias)?;
        let (meaning, is_kept) = (entry.meaning, entry.is_kept);
        self.enter(now, alias, meaning, is_kept);
        Some(meaning)
    }

    /// Counts the events that several instances share.
    pub(crate) fn turn(&mut self, alias: Uuid) -> usize {
        let Some(entry) = self.entries.get_mut(&alias) else { return 0 };
        entry.turn = entry.turn.wrapping_add(1);
        entry.turn
    }

    fn idle(&mut self, meaning: Meaning) -> &mut Idle {
        match meaning {
            Meaning::Source(_) => &mut self.idle_sources,
            Meaning::Own(_) | Meaning::Foreign(_) => &mut self.idle_components,
        }
    }

    /// Takes note of an alias or that it is used.
    fn enter(&mut self, now: Instant, alias: Uuid, meaning: Meaning, is_kept: bool) {
        let before = self.entries.get(&alias).map(|entry| (entry.used, entry.turn));
        let turn = before.map_or(0, |(_, turn)| turn);
        self.entries.insert(alias, Entry { meaning, used: now, is_kept, turn });
        if is_kept {
            return;
        }
        let limit = self.limit;
        let idle = self.idle(meaning);
        if let Some((used, _)) = before {
            idle.0.remove(&(used, alias));
        }
        idle.0.insert((now, alias));
        let oldest = if idle.0.len() > limit { idle.0.first().copied() } else { None };
        if let Some((_, oldest)) = oldest {
            let forgotten = self.entries.get(&oldest).map(|entry| entry.meaning);
            self.remove(oldest);
            if let Some(Meaning::Foreign(component)) = forgotten {
                self.rows.remove(&component);
            }
        }
    }

    /// Learns where a component elsewhere runs. A row older than the one known changes nothing.
    pub(crate) fn set_row(&mut self, row: Row) {
        let is_news = self.rows.get(&row.component).is_none_or(|known| row.epoch >= known.epoch);
        if is_news {
            self.rows.insert(row.component, row);
        }
    }

    /// The newer one of a row and the one that is known.
    pub(crate) fn newest(&self, row: Row) -> Row {
        self.rows.get(&row.component).filter(|known| known.epoch > row.epoch).cloned().unwrap_or(row)
    }

    /// Whether events to a component elsewhere go through here.
    pub(crate) fn knows(&self, component: ComponentId) -> bool {
        self.rows.contains_key(&component)
    }

    /// Where a component elsewhere runs.
    pub(crate) fn row(&self, component: ComponentId) -> Option<&Row> {
        self.rows.get(&component)
    }

    /// Takes note of a call, so that its reply finds back, until nobody waits for it any more. Of too many, the
    /// one that has the least time left is forgotten.
    pub(crate) fn expect(
        &mut self,
        (caller, stream): (Uuid, u64),
        called: Uuid,
        callee: InstanceId,
        is_own: bool,
        until: Instant,
    ) {
        self.take_call(caller, stream);
        self.calls.insert((caller, stream), Call { called, callee, is_own, until });
        self.deadlines.insert((until, caller, stream));
        if self.calls.len() > self.limit
            && let Some((_, caller, stream)) = self.deadlines.first().copied()
        {
            self.take_call(caller, stream);
        }
    }

    /// A call on its way.
    pub(crate) fn call(&self, caller: Uuid, stream: u64) -> Option<Call> {
        self.calls.get(&(caller, stream)).copied()
    }

    /// A call that has its reply.
    pub(crate) fn take_call(&mut self, caller: Uuid, stream: u64) -> Option<Call> {
        let call = self.calls.remove(&(caller, stream))?;
        self.deadlines.remove(&(call.until, caller, stream));
        Some(call)
    }

    /// Forgets calls for which nobody waits any more.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((until, caller, stream)) = self.deadlines.first().copied()
            && until <= now
        {
            self.take_call(caller, stream);
        }
    }

    /// The nodes of the domain that have calls in hand.
    pub(crate) fn callees(&self) -> BTreeSet<NodeId> {
        self.calls.values().filter(|call| call.is_own).map(|call| call.callee.node).collect()
    }

    /// Takes the calls that a node has in hand, each with its caller's alias and its stream.
    pub(crate) fn take_calls_of(&mut self, node: NodeId) -> Vec<(Uuid, u64, Call)> {
        let of_node = self.calls.iter().filter(|(_, call)| call.callee.node == node);
        let found: Vec<_> = of_node.map(|((caller, stream), call)| (*caller, *stream, *call)).collect();
        for (caller, stream, _) in &found {
            self.take_call(*caller, *stream);
        }
        found
    }

    /// Where a node of others takes events. What an orchestrator said counts more than what the node said.
    pub(crate) fn address(&self, node: NodeId) -> Option<&Url> {
        self.told.get(&node).or_else(|| self.heard.get(&node))
    }

    /// An orchestrator says where a node takes events; `None`: nowhere.
    pub(crate) fn tell_address(&mut self, node: NodeId, url: Option<Url>) {
        match url {
            Some(url) if self.told.len() < NODES || self.told.contains_key(&node) => {
                self.told.insert(node, url);
            }
            Some(_) => {}
            None => {
                self.told.remove(&node);
                self.heard.remove(&node);
            }
        }
    }

    /// Forgets what orchestrators said of nodes.
    pub(crate) fn clear_addresses(&mut self) {
        self.told.clear();
    }

    /// The node of the sender of an event says where it takes events.
    pub(crate) fn hear_address(&mut self, node: NodeId, url: Url) {
        if self.heard.len() < NODES || self.heard.contains_key(&node) {
            self.heard.insert(node, url);
        } else if let Some(any) = self.heard.keys().next().copied() {
            self.heard.remove(&any);
            self.heard.insert(node, url);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(n: u128) -> ComponentId {
        ComponentId(Uuid::from_u128(n))
    }

    fn instance(n: u128) -> InstanceId {
        InstanceId { node: NodeId(Uuid::from_u128(7)), function: Uuid::from_u128(n) }
    }

    fn table(limit: usize) -> (Table, Instant) {
        (Table::new(NodeId(Uuid::from_u128(1)), limit), Instant::now())
    }

    fn row(n: u128, epoch: u64) -> Row {
        Row::new(id(n), epoch, vec![instance(u128::from(epoch))])
    }

    #[test]
    fn aliases_are_found_both_ways() {
        let (mut table, now) = table(10);
        let own = table.own(now, id(1));
        let foreign = table.foreign(now, row(1, 1));
        let source = table.source(now, instance(1));
        let start = table.start(now, id(1));
        let all = BTreeSet::from([own, foreign, source, start]);
        assert_eq!(all.len(), 4, "the same ids on both sides are not confused");
        for (alias, meaning) in [
            (own, Meaning::Own(id(1))),
            (foreign, Meaning::Foreign(id(1))),
            (source, Meaning::Source(instance(1))),
            (start, Meaning::Own(id(1))),
        ] {
            assert_eq!(table.meaning(now, alias), Some(meaning));
        }
        let again = (table.own(now, id(1)), table.foreign(now, row(1, 1)), table.source(now, instance(1)));
        assert_eq!(again, (own, foreign, source));
        assert_ne!(table.start(now, id(1)), start, "each start has its own");
        assert_eq!(table.meaning(now, Uuid::nil()), None);
    }

    /// The alias of a component is in the rows of others: it must mean the same after it was forgotten.
    #[test]
    fn the_alias_of_a_component_does_not_change() {
        let (mut table, now) = table(10);
        let own = table.own(now, id(1));
        table.clear();
        assert_eq!(table.meaning(now, own), None);
        assert_eq!(table.own(now, id(1)), own);
        assert_ne!(Table::new(NodeId(Uuid::from_u128(2)), 1).own(now, id(1)), own);
    }

    #[test]
    fn the_source_that_was_idle_longest_is_forgotten_first() {
        let (mut table, now) = table(2);
        let later = |seconds| now + Duration::from_secs(seconds);
        let one = table.source(later(0), instance(1));
        let two = table.source(later(1), instance(2));
        let own = table.own(later(0), id(1));
        table.meaning(later(2), one);
        let three = table.source(later(3), instance(3));
        assert_eq!(table.meaning(later(4), two), None, "nobody used it since");
        assert!(table.meaning(later(4), one).is_some() && table.meaning(later(4), three).is_some());
        assert!(table.meaning(later(4), own).is_some(), "components are counted apart");
        assert_ne!(table.source(later(5), instance(2)), two, "a forgotten one is a new one");
        assert_eq!((table.sources.len(), table.idle_sources.0.len()), (2, 2));
    }

    #[test]
    fn what_was_started_stays_until_it_is_removed() {
        let (mut table, now) = table(1);
        let starts: Vec<_> = (1..=3).map(|n| table.start(now, id(n))).collect();
        assert!(starts.iter().all(|alias| table.meaning(now, *alias).is_some()));
        table.remove(starts[0]);
        assert_eq!(table.meaning(now, starts[0]), None);
        table.lead_away(now, starts[1], id(9));
        assert_eq!(table.meaning(now, starts[1]), Some(Meaning::Foreign(id(9))));
    }

    #[test]
    fn an_older_row_changes_nothing() {
        let (mut table, now) = table(10);
        table.foreign(now, row(1, 2));
        table.foreign(now, row(1, 1));
        assert_eq!(table.row(id(1)), Some(&row(1, 2)));
        table.set_row(row(1, 3));
        assert_eq!(table.row(id(1)).map(|row| row.epoch), Some(3));
        assert!(table.knows(id(1)) && !table.knows(id(2)));
        assert_eq!((table.newest(row(1, 2)), table.newest(row(1, 4))), (row(1, 3), row(1, 4)));
    }

    #[test]
    fn calls_are_kept_until_their_reply_or_their_deadline() {
        let (mut table, now) = table(2);
        let (caller, called) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let later = |seconds| now + Duration::from_secs(seconds);
        table.expect((caller, 1), called, instance(1), true, later(1));
        table.expect((caller, 2), called, instance(1), true, later(3));
        table.expect((caller, 2), called, instance(2), true, later(3));
        assert_eq!(table.call(caller, 2).map(|call| call.callee), Some(instance(2)));
        table.expect((caller, 3), called, instance(1), false, later(2));
        assert_eq!(table.call(caller, 1), None, "of too many the first that ends");
        table.expire(later(2));
        assert_eq!((table.call(caller, 3), table.deadlines.len()), (None, 1));
        assert_eq!(table.callees().len(), 1);
        assert_eq!(table.take_calls_of(instance(2).node).len(), 1);
        assert!(table.calls.is_empty() && table.deadlines.is_empty());
    }

    #[test]
    fn an_orchestrator_knows_better_where_a_node_is_than_the_node() {
        let (mut table, _) = table(1);
        let (node, url) = (NodeId(Uuid::from_u128(5)), |port: u16| Url::of(([127, 0, 0, 1], port).into()));
        table.hear_address(node, url(1));
        assert_eq!(table.address(node), Some(&url(1)));
        table.tell_address(node, Some(url(2)));
        table.hear_address(node, url(3));
        assert_eq!(table.address(node), Some(&url(2)));
        table.clear_addresses();
        assert_eq!(table.address(node), Some(&url(3)));
        table.tell_address(node, None);
        assert_eq!(table.address(node), None);
        for n in 0..2 * NODES as u128 {
            table.hear_address(NodeId(Uuid::from_u128(n)), url(1));
        }
        assert_eq!(table.heard.len(), NODES);
    }
}
