//! What rows and patches say on the other side of the border. Pure.
//!
//! A row that leaves the domain names the forwarder in the place of the instances, and so does one that
//! comes in. A component that runs nowhere runs nowhere on the other side too, so that its senders keep
//! their events. Which of several instances takes an event, and by which rule, is the forwarder's business.

use std::collections::BTreeMap;
use std::time::Instant;

use edgeless_api::component::{Patch, Row, Target};
use edgeless_api::id::{InstanceId, NodeId};
use edgeless_api::url::Url;
use uuid::Uuid;

use super::table::Table;

/// A row of a component that others reach by an alias at the forwarder.
pub(crate) fn readdressed(row: Row, forwarder: NodeId, url: &Url, alias: Uuid) -> Row {
    if row.instances.is_empty() {
        return Row { moving: row.moving, ..Row::new(row.component, row.epoch, vec![]) };
    }
    let instances = vec![InstanceId { node: forwarder, function: alias }];
    let addresses = BTreeMap::from([(forwarder, url.clone())]);
    Row { addresses, ..Row::new(row.component, row.epoch, instances) }
}

/// A row of a component of the domain, as other domains shall see it.
pub(crate) fn outgoing(table: &mut Table, now: Instant, url: &Url, row: Row) -> Row {
    let alias = table.own(now, row.component);
    readdressed(row, table.me(), url, alias)
}

/// A row of a component elsewhere, as the domain shall see it. The table keeps the row itself.
pub(crate) fn incoming(table: &mut Table, now: Instant, url: &Url, row: Row) -> Row {
    let alias = table.foreign(now, row.clone());
    readdressed(row, table.me(), url, alias)
}

/// A patch whose outputs may lead elsewhere, as the domain shall see it.
pub(crate) fn patch(table: &mut Table, now: Instant, url: &Url, patch: Patch) -> Patch {
    let target = |(channel, target)| match target {
        Target::Row(row) => (channel, Target::Row(incoming(table, now, url, row))),
        other => (channel, other),
    };
    Patch { outputs: patch.outputs.into_iter().map(target).collect(), ..patch }
}

#[cfg(test)]
mod tests {
    use edgeless_api::id::ComponentId;

    use super::*;
    use crate::forwarder::table::Meaning;

    fn url(port: u16) -> Url {
        Url::of(([127, 0, 0, 1], port).into())
    }

    fn row(instances: usize) -> Row {
        let node = NodeId::random();
        let instances: Vec<_> = (0..instances).map(|_| InstanceId::random(node)).collect();
        Row {
            addresses: BTreeMap::from([(node, url(1))]),
            partition_by: "source".into(),
            ..Row::new(ComponentId::random(), 3, instances)
        }
    }

    #[test]
    fn rows_name_the_forwarder_on_the_other_side() {
        let (me, now) = (NodeId::random(), Instant::now());
        let mut table = Table::new(me, 10);
        let inside = row(2);
        let outside = outgoing(&mut table, now, &url(9), inside.clone());
        assert_eq!((outside.component, outside.epoch, outside.instances.len()), (inside.component, 3, 1));
        assert_eq!(outside.instances[0].node, me);
        assert_eq!(outside.addresses, BTreeMap::from([(me, url(9))]), "nothing tells where the nodes are");
        assert_eq!(outside.partition_by, "");
        let meaning = table.meaning(now, outside.instances[0].function);
        assert_eq!(meaning, Some(Meaning::Own(inside.component)));
        assert!(!table.knows(inside.component));
    }

    #[test]
    fn a_component_that_runs_nowhere_runs_nowhere_on_the_other_side() {
        let mut table = Table::new(NodeId::random(), 10);
        let outside = outgoing(&mut table, Instant::now(), &url(9), row(0));
        assert!(outside.instances.is_empty() && outside.addresses.is_empty());
    }

    #[test]
    fn a_patch_leads_to_the_forwarder_where_it_led_elsewhere() {
        let (me, now) = (NodeId::random(), Instant::now());
        let mut table = Table::new(me, 10);
        let (foreign, own) = (row(1), Target::Component(ComponentId::random()));
        let outputs = [("far".to_string(), Target::Row(foreign.clone())), ("near".to_string(), own.clone())];
        let asked = Patch { exported: true, ..Patch::new(Uuid::nil(), BTreeMap::from(outputs)) };
        let patch = patch(&mut table, now, &url(9), asked);
        assert!(patch.exported);
        assert_eq!(patch.outputs["near"], own);
        let Target::Row(inside) = &patch.outputs["far"] else { panic!("{patch:?}") };
        assert_eq!(inside.instances[0].node, me);
        assert_eq!(table.meaning(now, inside.instances[0].function), Some(Meaning::Foreign(foreign.component)));
        assert_eq!(table.row(foreign.component), Some(&foreign), "the forwarder knows where it really runs");
    }
}
