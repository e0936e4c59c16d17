//! What would become of the components of a node if it were lost: the same steps on a copy of what it is about.

use std::collections::BTreeSet;

use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::operations::Relocation;

use super::Engine;
use super::slot::Slot;

impl Engine {
    /// Where each replica on a node would go, if the node were lost now.
    ///
    /// # Errors
    /// There is no such node.
    pub fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error> {
        let unknown = || Error::not_found(format!("node {node} is not known in this domain"));
        let residents: BTreeSet<(ComponentId, u32)> =
            self.registry.nodes.get(&node).ok_or_else(unknown)?.residents.iter().copied().collect();
        let mut copy = self.excerpt(node, residents.iter().map(|(id, _)| *id).collect());
        copy.settings.state_grace = std::time::Duration::ZERO;
        copy.lose_node(node, "it is imagined to be lost");
        copy.settle();
        Ok(residents.into_iter().filter_map(|(id, replica)| copy.relocation(id, replica)).collect())
    }

    /// A copy with all nodes, and only as much of the components as the loss of this node is about: `lost` and
    /// what they are connected with.
    fn excerpt(&self, node: NodeId, lost: BTreeSet<ComponentId>) -> Self {
        let connected = |id: &ComponentId| {
            let outputs = self.components.get(id).into_iter().flat_map(|component| component.outputs.values());
            let senders = self.links.get(id).into_iter().flat_map(|link| &link.senders);
            outputs.chain(senders).copied().collect::<Vec<_>>()
        };
        let ids: BTreeSet<ComponentId> = lost.iter().flat_map(connected).chain(lost.iter().copied()).collect();
        let part = |id: &ComponentId| Some((*id, self.components.get(id)?.clone()));
        let link = |id: &ComponentId| Some((*id, self.links.get(id)?.clone()));
        Self {
            now: self.now,
            registry: self.registry.excerpt(node),
            placer: self.placer.clone(),
            components: ids.iter().filter_map(part).collect(),
            links: lost.iter().filter_map(link).collect(),
            ..Self::new(self.settings.clone())
        }
    }

    fn relocation(&self, component: ComponentId, replica: u32) -> Option<Relocation> {
        let known = self.components.get(&component)?;
        let slot = known.slots.get(&replica)?;
        let to = slot.home().and_then(|home| self.registry.at(home)).map(|node| {
            let hostname = node.about.capabilities.hostname().to_string();
            (node.about.node, hostname)
        });
        let reason = |slot: &Slot| slot.trouble.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        Some(Relocation { component, name: known.name.clone(), to: to.ok_or_else(|| reason(slot)) })
    }
}
