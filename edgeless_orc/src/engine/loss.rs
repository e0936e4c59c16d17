//! What would become of the components of a node if it were lost: the same steps on a copy.

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
        let mut copy = self.clone();
        copy.lose_node(node, "it is imagined to be lost");
        copy.settle();
        Ok(residents.into_iter().filter_map(|(id, replica)| copy.relocation(id, replica)).collect())
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
