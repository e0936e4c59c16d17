//! What operators do, what nodes ask for, and what other domains are told, over the real wire.

use edgeless_api::component::StatePolicy;
use edgeless_api::operations::DrainProgress;

use super::*;

fn with_state(mut spec: ComponentSpec) -> ComponentSpec {
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = StatePolicy::NodeLocal;
    }
    spec
}

/// Two nodes; the components, of which the second keeps state, run on the first one.
async fn domain(orchestrator: &Orchestrator) -> (Controller, client::Operations, [Node; 2], [ComponentId; 3]) {
    let nodes = [Node::join(orchestrator.url()).await, Node::join(orchestrator.url()).await];
    let controller = Controller::of(orchestrator);
    let operations = client::Operations::new(connection(orchestrator.url()));
    controller.until_nodes(2).await;
    operations.cordon(nodes[1].id(), true).await.unwrap();
    let ids = [ComponentId::random(), ComponentId::random(), ComponentId::random()];
    for (n, id) in ids.iter().enumerate() {
        let spec = function("f", &[]);
        controller.start(*id, if n == 1 { with_state(spec) } else { spec }).await.unwrap();
        assert!(nodes[0].runs(*id).is_some());
    }
    operations.cordon(nodes[1].id(), false).await.unwrap();
    (controller, operations, nodes, ids)
}

#[tokio::test]
async fn a_component_is_moved_and_its_node_releases_it() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let (controller, operations, [from, to], [one, two, _]) = domain(&orchestrator).await;
    controller.patch(one, two).await;
    controller.components.activate(&[one.0, two.0]).await.unwrap();
    for id in [one, two] {
        let old = from.runs(id).unwrap();
        operations.move_component(id, to.id()).await.unwrap();
        let new = to.runs(id).unwrap();
        assert!(from.see(|asked| asked.released.contains(&old.function)));
        assert!(to.see(|asked| asked.activated.contains(&new.function)));
        let status = controller.components.status(&[id.0]).await.unwrap().remove(0);
        let places: Vec<_> = status.instances.iter().map(|one| (one.instance, one.hostname.as_str())).collect();
        assert_eq!((status.instance, places), (Some(new), vec![(new, "test")]));
    }
    let state = |n: usize| to.see(|asked| asked.started[n].0.context.as_ref().unwrap().state.clone());
    assert_eq!((state(0), state(1)), (None, Some(Bytes::from_static(b"saved"))));
    let new = to.runs(two).unwrap();
    let is_told = || to.see(|asked| asked.rows.get(&two).is_some_and(|row| row.instances == [new]));
    wait_until("its sender is told", is_told).await;
    let error = operations.move_component(one, NodeId::random()).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
}

#[tokio::test]
async fn a_node_is_drained_and_what_would_be_lost_is_foretold() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let (controller, operations, [from, to], ids) = domain(&orchestrator).await;
    let plan = operations.plan_loss(from.id()).await.unwrap();
    let planned: BTreeSet<_> = plan.iter().map(|one| (one.component, one.to.clone().unwrap().0)).collect();
    assert_eq!(planned, ids.iter().map(|id| (*id, to.id())).collect());
    let residents = operations.residents(from.id()).await.unwrap();
    assert_eq!(residents.len(), 3);
    assert!(residents.iter().all(|one| one.handled == 7), "its node was asked");
    let why = operations.why(ids[0]).await.unwrap();
    assert!(why.nodes.len() == 2 && why.outcome.contains(&from.id().to_string()), "{why:?}");

    let volume = ComponentId::random();
    let pinned = [("node_id_match_any", from.id().to_string()), ("volume:data", "/data".into())];
    let pinned: Vec<_> = pinned.iter().map(|(key, value)| (*key, value.as_str())).collect();
    controller.start(volume, function("f", &pinned)).await.unwrap();
    let drain = operations.drain(from.id()).await.unwrap();
    let said: Vec<DrainProgress> = drain.map(Result::unwrap).collect().await;
    assert_eq!((said.len(), said[0].total, said[0].component.as_str()), (5, 4, ""));
    let refused: Vec<_> = said.iter().filter(|one| !one.reason.is_empty()).collect();
    assert!(refused.len() == 1 && refused[0].reason.contains("has volumes"), "{said:?}");
    assert_eq!(said[4].moved, 3);
    assert!(ids.iter().all(|id| to.runs(*id).is_some()));
    let left = operations.residents(from.id()).await.unwrap();
    assert_eq!(left.iter().map(|one| one.component).collect::<Vec<_>>(), [volume]);
    let nodes = controller.domain.nodes().await.unwrap();
    let cordoned: Vec<_> = nodes.iter().filter(|node| node.cordoned).map(|node| node.node).collect();
    assert_eq!(cordoned, [from.id()]);
    let unknown = NodeId::random();
    assert_eq!(operations.cordon(unknown, true).await.unwrap_err().code, Code::NotFound);
    assert_eq!(operations.residents(unknown).await.unwrap_err().code, Code::NotFound);
    assert_eq!(operations.plan_loss(unknown).await.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn a_drain_that_nobody_waits_for_leaves_the_rest() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let (_, operations, [from, _], _) = domain(&orchestrator).await;
    let mut drain = operations.drain(from.id()).await.unwrap();
    assert_eq!(drain.next().await.unwrap().unwrap().total, 3);
    drop(drain);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let left = operations.residents(from.id()).await.unwrap().len();
    assert!(left > 0, "what was not asked for stays");
}

#[tokio::test]
async fn rows_of_what_is_exported_are_followed() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let (controller, operations, [from, to], [one, two, _]) = domain(&orchestrator).await;
    let export = Patch { exported: true, ..Patch::new(one.0, BTreeMap::new()) };
    controller.components.patch(ComponentKind::Function, export).await.unwrap();
    let mut rows = controller.domain.watch_rows(1).await.unwrap();
    let first = rows.next().await.unwrap().unwrap();
    let at = from.runs(one).unwrap();
    assert_eq!(first.iter().map(|row| (row.component, row.instances.clone())).collect::<Vec<_>>(), [(one, vec![at])]);
    assert!(first[0].addresses.contains_key(&from.id()));
    operations.move_component(two, to.id()).await.unwrap();
    operations.move_component(one, to.id()).await.unwrap();
    let next = rows.next().await.unwrap().unwrap();
    assert_eq!((next.len(), next[0].instances[0].node), (1, to.id()));
    assert!(next[0].epoch > first[0].epoch);
    let error = match controller.domain.watch_rows(2).await {
        Err(error) => error,
        Ok(mut rows) => rows.next().await.unwrap().unwrap_err(),
    };
    assert!(error.message.contains("works for another controller"), "{error}");
}

#[tokio::test]
async fn nodes_wake_components_and_find_each_other() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let node = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(1).await;
    let one = ComponentId::random();
    controller.start(one, function("f", &[("min_instances", "0")])).await.unwrap();
    assert_eq!(node.runs(one), None);
    let registry = client::NodeRegistry::new(connection(orchestrator.url()));
    registry.wake(&[one]).await.unwrap();
    wait_until("it runs", || node.runs(one).is_some()).await;
    let known = controller.domain.nodes().await.unwrap().remove(0);
    assert_eq!(registry.locate(node.id()).await.unwrap(), Some(known.invocation_url));
    assert_eq!(registry.locate(NodeId::random()).await.unwrap(), None);
}

#[tokio::test]
async fn several_instances_are_told_as_one_component() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let nodes = [Node::join(orchestrator.url()).await, Node::join(orchestrator.url()).await];
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(2).await;
    let one = ComponentId::random();
    controller.start(one, function("f", &[("min_instances", "2"), ("spread", "node")])).await.unwrap();
    let status = controller.components.status(&[one.0]).await.unwrap().remove(0);
    assert_eq!((status.instances.len(), status.handled, status.dropped, status.restarts), (2, 14, 2, 6));
    let at: BTreeSet<_> = status.instances.iter().map(|one| one.instance.node).collect();
    assert_eq!(at, nodes.iter().map(Node::id).collect());
    let lines = controller.components.logs(&[one.0], false).await.unwrap();
    assert_eq!(lines.collect::<Vec<_>>().await.len(), 2, "of both nodes");
}
