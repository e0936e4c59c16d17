//! Rows: where components run, and who is told.
//!
//! A row is derived from the replicas of its component. One without instances says whether the component is on
//! its way to another node: its events then wait for it longer than for what has no place. When it changes, each node of ours that runs
//! one of its senders is told once, together with all other rows that changed for that node; so is a
//! node that it moved away from, which forwards what still comes there. A node that speaks only
//! EDGELESS 1.2 is told of instances, when its senders are wired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edgeless_api::component::{Patch, Row, Target};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::scale::PartitionBy;
use edgeless_api::url::Url;
use edgeless_daemon::engine::Millis;

use super::component::Component;
use super::lane::Gate;
use super::slot::{Place, Wiring};
use super::{Call, Effect, Engine, Job, Note, Op, Thing};
use crate::registry::{Home, Stage};

/// The most rows in one call.
const ROWS: usize = 1000;
/// How long a replica that goes waits for every sender to be told so. What comes later is forwarded.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a node forwards what still comes for an instance that has left it.
pub(super) const FORWARDS: Duration = Duration::from_secs(10);
/// How long it is told of the row before that, if it is not known earlier where the component runs next: longer
/// than anybody waits for what moves.
pub(super) const UNDER_WAY: Duration = Duration::from_secs(600);

impl Engine {
    /// The instances that events to a component go to.
    pub(super) fn listed(&self, id: ComponentId) -> &[InstanceId] {
        match (self.components.get(&id), self.foreign.get(&id)) {
            (Some(component), _) => &component.listed,
            (None, Some(row)) => &row.instances,
            (None, None) => &[],
        }
    }

    /// Where a component runs now, as far as its senders are concerned.
    pub(super) fn row(&self, id: ComponentId) -> Row {
        match (self.components.get(&id), self.foreign.get(&id)) {
            (Some(component), _) => Row {
                addresses: self.addresses(&component.listed),
                partition_by: component.scale.partition_by.as_ref().map(PartitionBy::to_string).unwrap_or_default(),
                moving: component.is_moving,
                ..Row::new(id, component.row_epoch, component.listed.clone())
            },
            (None, Some(row)) => row.clone(),
            (None, None) => Row { moving: self.left.contains(id), ..Row::new(id, self.row_epoch(id), Vec::new()) },
        }
    }

    /// That of its row.
    pub(super) fn row_epoch(&self, id: ComponentId) -> u64 {
        match (self.components.get(&id), self.foreign.get(&id)) {
            (Some(component), _) => component.row_epoch,
            (None, Some(row)) => row.epoch,
            (None, None) => self.links.get(&id).map(|link| link.last_row).unwrap_or_default(),
        }
    }

    fn addresses(&self, instances: &[InstanceId]) -> BTreeMap<NodeId, Url> {
        // Also of a node that has not come yet since a restart.
        let address =
            |instance: &InstanceId| Some((instance.node, self.registry.invocation_url(instance.node)?.clone()));
        instances.iter().filter_map(address).collect()
    }

    /// The rows of the components to which other domains have outputs.
    pub fn exported_rows(&self) -> Vec<Row> {
        self.exported.iter().map(|id| self.row(*id)).collect()
    }

    /// Derives the row of a component anew, and tells whoever needs to know if it has changed.
    pub(super) fn refresh_row(&mut self, id: ComponentId) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let listed: Vec<InstanceId> = component
            .slots
            .values()
            .filter(|slot| component.is_listed(slot))
            .filter_map(|slot| Some(slot.instance()?.id))
            .collect();
        let is_moving = listed.is_empty() && component.is_on_its_way();
        if listed != component.listed || is_moving != component.is_moving {
            component.listed = listed;
            let has_arrived = std::mem::replace(&mut component.is_moving, is_moving) && !is_moving;
            if has_arrived && let Some(link) = self.links.get_mut(&id) {
                let until = self.now + FORWARDS;
                link.former.values_mut().for_each(|kept| *kept = until);
            }
            self.renew_row(id);
        }
    }

    /// The row of a component is another one from now on.
    pub(super) fn renew_row(&mut self, id: ComponentId) {
        if let Some(component) = self.components.get_mut(&id) {
            component.row_epoch += 1;
            component.row_since = self.now;
        }
        self.touch(Thing::Component(id));
        self.spread_row(id);
    }

    /// Has everybody told where a component runs now who needs to know.
    pub(super) fn spread_row(&mut self, id: ComponentId) {
        if self.exported.contains(&id) {
            self.unpublished.insert(id);
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        let now = self.now;
        link.former.retain(|_, until| *until > now);
        let mut nodes: BTreeSet<NodeId> = link.former.keys().copied().collect();
        let mut plain = Vec::new();
        for sender in &link.senders {
            let Some(component) = self.components.get(sender) else { continue };
            for (replica, slot) in component.running() {
                let Some(node) = slot.home().and_then(|home| self.registry.at(home)) else { continue };
                if node.about.native {
                    nodes.insert(node.about.node);
                } else {
                    plain.push(Thing::Slot(*sender, replica));
                }
            }
        }
        self.marked.extend(plain);
        for node in nodes {
            self.owe(node, id);
        }
    }

    /// A node shall be told where a component runs now.
    fn owe(&mut self, node: NodeId, id: ComponentId) {
        let Some(known) = self.registry.nodes.get_mut(&node).filter(|known| known.about.native) else { return };
        known.owed.insert(id);
        self.links.entry(id).or_default().untold.insert(node);
        self.marked.insert(Thing::Node(node));
    }

    /// Until when a replica of a component that goes waits for its senders to be told; `None`: they are.
    pub(super) fn told_at(&self, id: ComponentId, component: &Component) -> Option<Millis> {
        let is_told = self.links.get(&id).is_none_or(|link| link.untold.is_empty());
        (!is_told).then(|| component.row_since + PATIENCE)
    }

    /// A node was told the latest row of a component, or need not be told.
    pub(super) fn told(&mut self, node: NodeId, id: ComponentId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if !link.untold.remove(&node) || !link.untold.is_empty() {
            return;
        }
        // A replica that goes may have waited for it.
        if let Some(component) = self.components.get(&id) {
            self.marked.extend(component.slots.keys().map(|replica| Thing::Slot(id, *replica)));
        }
        self.tidy(id);
    }

    /// A node need not be told anything any more.
    pub(super) fn forgive(&mut self, node: NodeId, owed: impl IntoIterator<Item = ComponentId>) {
        for id in owed {
            self.told(node, id);
        }
    }

    /// Tells a node the rows that it is owed, all at once.
    pub(super) fn route(&mut self, id: NodeId) {
        let now = self.now;
        let Some(node) = self.registry.nodes.get_mut(&id) else { return };
        if node.owed.is_empty() || matches!(node.stage, Stage::Resetting | Stage::Reporting) {
            return;
        }
        match node.routing.gate(now) {
            Gate::Busy => return,
            Gate::Until(at) => {
                self.timers.insert((at, Thing::Node(id)));
                return;
            }
            Gate::Free => {}
        }
        let rest: Vec<ComponentId> = node.owed.iter().copied().skip(ROWS).collect();
        let told = std::mem::replace(&mut node.owed, rest.into_iter().collect());
        let home = node.home();
        let rows: Vec<Row> = told.iter().map(|id| self.row(*id)).collect();
        self.acquaint(id, rows.iter());
        let epochs = rows.iter().map(|row| (row.component, row.epoch)).collect();
        let op = self.call(id, Job::Route(home, epochs), Call::SetRows(rows));
        if let Some(node) = self.registry.nodes.get_mut(&id) {
            node.telling_rows = told;
            node.routing.begin(op);
        }
    }

    pub(super) fn routed(&mut self, op: Op, home: Home, epochs: Vec<(ComponentId, u64)>, result: Result<(), Error>) {
        let Some(node) = self.registry.nodes.get_mut(&home.node).filter(|node| node.incarnation == home.incarnation)
        else {
            return;
        };
        if !node.routing.end(op) {
            return;
        }
        node.telling_rows.clear();
        self.marked.insert(Thing::Node(home.node));
        match result {
            Ok(()) => {
                node.routing.recover();
                self.caught_up(home.node, epochs);
            }
            Err(error) if error.code.is_refusal() => {
                // Its senders are wired instead, each with all the rows that it needs.
                if node.routing.back_off(self.now) == 1 {
                    self.note(Note::NodeFailing { node: home.node, attempt: "route on", error });
                }
                self.rewire(home);
                self.forgive(home.node, epochs.into_iter().map(|(id, _)| id));
            }
            Err(error) => {
                node.owed.extend(epochs.into_iter().map(|(id, _)| id));
                if node.routing.back_off(self.now) == 1 {
                    self.note(Note::NodeFailing { node: home.node, attempt: "route on", error });
                }
            }
        }
    }

    /// A node has these rows now, which may be old by now.
    pub(super) fn caught_up(&mut self, node: NodeId, rows: Vec<(ComponentId, u64)>) {
        for (id, epoch) in rows {
            if self.row_epoch(id) != epoch {
                self.owe(node, id);
            } else if self.registry.nodes.get(&node).is_none_or(|known| !known.owes(id)) {
                self.told(node, id);
            }
        }
    }

    fn rewire(&mut self, home: Home) {
        let Some(node) = self.registry.at(home) else { return };
        for (id, replica) in node.residents.clone() {
            let slot = self.components.get_mut(&id).and_then(|component| component.slots.get_mut(&replica));
            if let Some(Place::On(instance)) = slot.map(|slot| &mut slot.place) {
                instance.wiring = None;
                self.marked.insert(Thing::Slot(id, replica));
            }
        }
    }

    /// What an instance is sent to be wired, and the rows in it.
    pub(super) fn patch_of(&self, instance: InstanceId, wiring: &Wiring) -> (Patch, Vec<Row>) {
        let mut rows = Vec::new();
        let outputs = wiring.iter().map(|(channel, target)| {
            let target = match target {
                Target::Component(id) => {
                    let row = self.row(*id);
                    rows.push(row.clone());
                    Target::Row(row)
                }
                other => other.clone(),
            };
            (channel.clone(), target)
        });
        let patch = Patch::new(instance.function, outputs.collect());
        (patch, rows)
    }

    /// A node learns of others from rows: whoever of them is lost, it must be told.
    pub(super) fn acquaint<'r>(&mut self, node: NodeId, rows: impl Iterator<Item = &'r Row>) {
        for row in rows {
            for other in row.addresses.keys() {
                self.registry.acquaint(node, *other);
            }
        }
    }

    /// Takes over where components run that have left the domain. Of others nobody here wants to know.
    pub(super) fn learn_all(&mut self, rows: Vec<Row>) {
        for row in rows {
            if self.links.contains_key(&row.component) {
                self.learn(row);
            }
        }
    }

    /// Takes over where a component of another domain runs.
    pub(super) fn learn(&mut self, row: Row) {
        let id = row.component;
        if self.foreign.get(&id).is_some_and(|known| known.epoch >= row.epoch) {
            return;
        }
        let runs = !row.instances.is_empty();
        self.foreign.insert(id, row);
        self.touch_link(id);
        if !self.components.contains_key(&id) {
            self.spread_row(id);
            if let Some(link) = self.links.get_mut(&id).filter(|_| runs) {
                let until = self.now + FORWARDS;
                link.former.values_mut().for_each(|kept| *kept = until);
            }
        }
    }

    /// Tells other domains of the rows that have changed for them.
    pub(super) fn publish_rows(&mut self) {
        if !self.unpublished.is_empty() {
            let changed = std::mem::take(&mut self.unpublished);
            self.effects.push(Effect::PublishRows(changed.into_iter().map(|id| self.row(id)).collect()));
        }
    }
}
