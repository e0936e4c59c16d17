//! Which of several instances takes an event.

use edgeless_api::component::Row;
use edgeless_api::event::{Event, Kind};
use edgeless_api::id::InstanceId;
use edgeless_api::partition;

/// The instance of a row that takes an event: the one that the key of the event belongs to, or each in its
/// turn where events have none. `None`: there is no instance.
///
/// A key keeps to its instance for as long as that is there, also while others come and go.
pub(crate) fn pick(row: &Row, event: &Event, turn: usize) -> Option<InstanceId> {
    let instances = row.instances.as_slice();
    if instances.len() < 2 {
        return instances.first().copied();
    }
    match row.partition_by.parse() {
        Ok(rule) => partition::pick(&rule, instances.iter(), event.source, payload(event)),
        // Empty, or a rule of a later version.
        Err(_) => instances.get(turn % instances.len()).copied(),
    }
}

fn payload(event: &Event) -> &[u8] {
    match &event.kind {
        Kind::Cast(payload) | Kind::Call { payload, .. } => payload,
        Kind::Reply { .. } => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use edgeless_api::event::Trace;
    use edgeless_api::id::{ComponentId, NodeId};

    use super::*;

    fn event(payload: &'static str) -> Event {
        let id = InstanceId::random(NodeId::random());
        let kind = Kind::Cast(payload.into());
        Event { source: id, target: id, kind, created: SystemTime::UNIX_EPOCH, trace: Trace::default(), id: None }
    }

    fn row(partition_by: &str, count: usize) -> Row {
        let instances = (0..count).map(|_| InstanceId::random(NodeId::random())).collect();
        Row { partition_by: partition_by.into(), ..Row::new(ComponentId::random(), 1, instances) }
    }

    #[test]
    fn several_instances_take_turns() {
        let row = row("", 3);
        let event = event("a");
        let picked: Vec<_> = (0..6).filter_map(|turn| pick(&row, &event, turn)).collect();
        assert_eq!(picked, [row.instances.clone(), row.instances.clone()].concat());
        assert_eq!(pick(&Row { instances: vec![], ..row }, &event, 0), None);
    }

    #[test]
    fn a_key_keeps_to_its_instance() {
        let mut by_source = row("source", 4);
        let events: Vec<_> = (0..32).map(|_| event("a")).collect();
        let picks = |row: &Row| -> Vec<_> { events.iter().filter_map(|event| pick(row, event, 0)).collect() };
        let before = picks(&by_source);
        assert!(before.iter().collect::<BTreeSet<_>>().len() > 1, "not all go to the same");
        let gone = by_source.instances.pop();
        for (before, after) in before.iter().zip(picks(&by_source)) {
            assert!(Some(*before) == gone || *before == after, "only those of the lost one move");
        }
        let by_payload = row("payload", 4);
        assert_eq!(pick(&by_payload, &event("b"), 0), pick(&by_payload, &event("b"), 1));
    }
}
