//! Functions and services in containers, on the real Docker engine of this machine.

use edgeless_api::component::ComponentKind;
use edgeless_api::status::State;

use crate::docker::{ask, containers_of, has_docker, networks_of, start};
use crate::support::TestNode;

#[tokio::test]
async fn a_container_serves_as_a_function() {
    if !has_docker("a_container_serves_as_a_function") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = start(&node, &[("init-payload", "hello")]).await.unwrap();
    node.patch(ComponentKind::Function, guest, &[("out", node.peer.id)]).await;
    assert_eq!(ask(&node, guest, "echo once").await, "once");
    assert_eq!(ask(&node, guest, "nothing").await, "(empty)");
    assert_eq!(ask(&node, guest, "wrong").await, "(error)");
    assert_eq!(ask(&node, guest, "slf").await, guest.function.to_string());
    for (command, expected) in [("cast one", "one"), ("back two", "two"), ("later three", "three")] {
        node.cast(guest, command).await;
        assert_eq!(node.peer.next_cast().await, expected.as_bytes(), "{command}");
    }
    let status = node.status(guest).await;
    assert_eq!(status.state, State::Running);
    assert!(status.log.iter().any(|line| line.message == "init 'hello' ''"), "{:?}", status.log);
    node.stop(ComponentKind::Function, guest).await;
    assert_eq!(containers_of(&node, "{{.Names}}"), Vec::<String>::new());
    assert_eq!(networks_of(&node), Vec::<String>::new());
    node.stop_node().await;
}
