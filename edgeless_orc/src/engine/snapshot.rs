//! The domain as others may copy it, page by page, so that a large one holds up nobody.
//!
//! A pure look at the engine. Pages that were read while something changed may contradict each other;
//! the generation tells, and the next look puts it right.

use std::collections::BTreeMap;
use std::ops::Bound;

use edgeless_api::component::ComponentSpec;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::node::{Capabilities, ProviderSpec};

use super::Engine;
use super::component::Component;

/// A node as it announced itself.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeState {
    /// Who it is.
    pub node: NodeId,
    /// What it has.
    pub capabilities: Capabilities,
    /// What opens resources there.
    pub providers: Vec<ProviderSpec>,
}

/// A component that is wanted, and where it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ComponentState {
    /// Who it is.
    pub component: ComponentId,
    /// What it is.
    pub spec: ComponentSpec,
    /// Its instances; none while it runs nowhere.
    pub instances: Vec<InstanceId>,
    /// What its outputs lead to.
    pub outputs: BTreeMap<String, ComponentId>,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cursor {
    /// At the first node.
    #[default]
    Start,
    /// After this node.
    Node(NodeId),
    /// After this component.
    Component(ComponentId),
}

/// Some nodes and components of the domain, in the order of their ids: all nodes come first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Differs from that of another page if something may have changed in between.
    pub generation: u64,
    /// Nodes.
    pub nodes: Vec<NodeState>,
    /// Components.
    pub components: Vec<ComponentState>,
    /// Where the next page begins; `None`: this is the last one.
    pub next: Option<Cursor>,
}

impl Engine {
    /// Raised whenever a new snapshot may differ from the last one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The next nodes and components, at most `size` of them.
    pub fn page(&self, from: Cursor, size: usize) -> Page {
        let (nodes_from, components_from) = match from {
            Cursor::Start => (Some(Bound::Unbounded), Bound::Unbounded),
            Cursor::Node(id) => (Some(Bound::Excluded(id)), Bound::Unbounded),
            Cursor::Component(id) => (None, Bound::Excluded(id)),
        };
        let mut page = Page { generation: self.generation, nodes: vec![], components: vec![], next: None };
        let (mut room, mut last) = (size, from);
        let nodes = nodes_from.into_iter().flat_map(|from| self.registry.nodes.range((from, Bound::Unbounded)));
        for (id, node) in nodes.take(size) {
            (room, last) = (room - 1, Cursor::Node(*id));
            let (capabilities, providers) = (node.about.capabilities.clone(), node.about.providers.clone());
            page.nodes.push(NodeState { node: *id, capabilities, providers });
        }
        for (id, component) in self.components.range((components_from, Bound::Unbounded)).take(room) {
            (room, last) = (room - 1, Cursor::Component(*id));
            // One that is about to go is not wanted any more.
            if !component.is_leaving {
                page.components.push(component.state(*id));
            }
        }
        page.next = (room == 0).then_some(last);
        page
    }
}

impl Component {
    fn state(&self, component: ComponentId) -> ComponentState {
        let instances = self.listed.clone();
        ComponentState { component, spec: self.spec.clone(), instances, outputs: self.outputs.clone() }
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::component::{ComponentRef, StartContext};
    use edgeless_daemon::engine::{Engine as _, Millis, Ticket};
    use uuid::Uuid;

    use super::*;
    use crate::engine::tests::{function, node};
    use crate::engine::{Call, Effect, Event, Outcome, Settings, Wanted};
    use crate::placement::Strategy;

    /// Lets something happen, and every call at a node succeed.
    fn happen(engine: &mut Engine, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in engine.on(Millis(1), event) {
                if let Effect::Call(op, peer, call) = effect {
                    let instance = ComponentRef::Instance(InstanceId::random(peer.node));
                    let is_start = matches!(call, Call::Create(_));
                    let outcome = if is_start { Outcome::Started(instance) } else { Outcome::Done };
                    events.push(Event::Done(op, Ok(outcome)));
                }
            }
        }
    }

    #[test]
    fn pages_are_the_whole_and_the_generation_tells_of_changes_only() {
        let mut engine = Engine::new(Settings {
            domain: edgeless_api::id::DomainId("d".into()),
            keep_alive: std::time::Duration::from_secs(60),
            state_grace: std::time::Duration::from_secs(30),
            strategy: Strategy::random(),
            seed: 1,
            max_nodes: 10,
            max_components: 10,
        });
        let id = |number| NodeId(Uuid::from_u128(number));
        for number in 1..=3 {
            happen(&mut engine, Event::Register(Ticket(number as u64), Box::new(node(id(number)))));
        }
        for number in 11..=14 {
            let component = ComponentId(Uuid::from_u128(number));
            let context = StartContext::new(component, 1, "f");
            let wanted = Wanted { spec: function(&[]), context, is_held: true };
            happen(&mut engine, Event::Start(Ticket(number as u64), Box::new(wanted)));
        }
        let whole = engine.page(Cursor::Start, 100);
        assert_eq!((whole.nodes.len(), whole.components.len(), whole.next), (3, 4, None));
        assert!(whole.components.iter().all(|component| component.instances.len() == 1));
        for size in 1..8 {
            let (mut nodes, mut components, mut cursor) = (vec![], vec![], Some(Cursor::Start));
            while let Some(from) = cursor {
                let page = engine.page(from, size);
                assert!(page.nodes.len() + page.components.len() <= size);
                nodes.extend(page.nodes);
                components.extend(page.components);
                cursor = page.next;
            }
            assert_eq!((&nodes, &components), (&whole.nodes, &whole.components), "pages of {size}");
        }

        // What the nodes have together is told with the next tick.
        happen(&mut engine, Event::Tick);
        let generation = engine.generation();
        happen(&mut engine, Event::Tick);
        happen(&mut engine, Event::Register(Ticket(1), Box::new(node(id(1)))));
        assert_eq!(engine.generation(), generation, "nothing has changed");
        let mut changed = node(id(1));
        changed.capabilities.labels.push("new".into());
        happen(&mut engine, Event::Register(Ticket(1), Box::new(changed)));
        assert!(engine.generation() > generation);
    }
}
