//! State that is kept in Redis: it outlives the node, and belongs to the newest instance.

use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::{ComponentSpec, StartContext, StatePolicy};
use edgeless_api::status::State;
use edgeless_api::{Code, ComponentId};

use super::durable::{keeper, said};
use super::resources::Redis;
use super::support::{TestNode, context, function, wait_until};

fn global() -> ComponentSpec {
    let mut spec = function(&keeper(), &[]);
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = StatePolicy::Global;
    }
    spec
}

/// What Redis has of a state, by the name of a field.
fn field(redis: &Redis, spec: &ComponentSpec, name: &str) -> Option<String> {
    let ComponentSpec::Function(function) = spec else { return None };
    let key = format!("edgeless:state:{}", function.state.id);
    redis::from_redis_value(redis.command(&["HGET", &key, name])).unwrap()
}

/// The seconds until Redis removes a state.
fn expires(redis: &Redis, spec: &ComponentSpec) -> i64 {
    let ComponentSpec::Function(function) = spec else { return -2 };
    redis::from_redis_value(redis.command(&["TTL", &format!("edgeless:state:{}", function.state.id)])).unwrap()
}

async fn node(redis: &Redis) -> TestNode {
    TestNode::with_general(&format!("state_url = \"{}\"", redis.url())).await
}

#[tokio::test]
async fn a_state_goes_from_node_to_node_and_the_instance_before_saves_no_more() {
    let Some(redis) = Redis::start().await else { return };
    let (one, other) = (node(&redis).await, node(&redis).await);
    let (spec, first) = (global(), context("keeper"));
    let old = one.create(spec.clone(), first.clone()).await.unwrap();
    one.cast(old, "before").await;
    one.cast(old, "kept").await;
    one.call(old, "").await;
    assert_eq!(field(&redis, &spec, "state").as_deref(), Some("kept"));
    assert_eq!(field(&redis, &spec, "syncs").as_deref(), Some("2"));

    let second = StartContext { epoch: 2, ..first.clone() };
    let new = other.create(spec.clone(), second).await.unwrap();
    assert_eq!(other.call(new, "").await, said("kept"));
    // Nobody told the one before, and the new one has saved nothing yet.
    one.cast(old, "late").await;
    wait_until("it ends", || async { one.status(old).await.state == State::Failed }).await;
    let reason = one.status(old).await.reason;
    assert!(reason.contains("epoch 1 is older than 2"), "{reason}");
    one.stop(Function, old).await;
    other.cast(new, "newest").await;
    other.call(new, "").await;
    assert_eq!(field(&redis, &spec, "epoch").as_deref(), Some("2"));
    assert_eq!(field(&redis, &spec, "state").as_deref(), Some("newest"), "its end takes nothing along");

    // What was handed over is not newer than what is there.
    let third = StartContext { epoch: 3, state: Some("handed over".into()), ..first };
    let last = one.create(spec.clone(), third).await.unwrap();
    assert_eq!(one.call(last, "").await, said("newest"));
    assert_eq!(expires(&redis, &spec), -1, "never");
    one.stop(Function, last).await;
    assert!(expires(&redis, &spec) > 0, "it is stopped");
    // By mistake, so to speak: a successor was on its way.
    let id = other.create(spec.clone(), StartContext { epoch: 4, ..context("keeper") }).await.unwrap();
    assert_eq!(other.call(id, "").await, said("newest"));
    assert_eq!(expires(&redis, &spec), -1);
}

#[tokio::test]
async fn a_state_that_redis_has_never_seen_begins_with_what_was_handed_over() {
    let Some(redis) = Redis::start().await else { return };
    let node = node(&redis).await;
    let (spec, handed) = (global(), StartContext { state: Some("handed over".into()), ..context("keeper") });
    let id = node.create(spec.clone(), handed).await.unwrap();
    assert_eq!(node.call(id, "").await, said("handed over"));
    assert_eq!(field(&redis, &spec, "state").as_deref(), Some("handed over"));
}

#[tokio::test]
async fn a_sync_that_redis_does_not_take_fails_with_the_reason_and_it_goes_on_when_redis_is_back() {
    let Some(mut redis) = Redis::start().await else { return };
    let node = node(&redis).await;
    let spec = global();
    let id = node.create(spec.clone(), context("keeper")).await.unwrap();
    node.cast(id, "before").await;
    node.call(id, "").await;
    redis.stop();
    node.cast(id, "lost").await;
    wait_until("it waits for Redis", || async {
        let status = node.status(id).await;
        status.state == State::Restarting && status.reason.contains("cannot be used")
    })
    .await;
    let log = node.status(id).await.log;
    assert!(log.iter().any(|line| line.message.contains("cannot save the state")), "{log:?}");
    let other = StartContext { component: ComponentId::random(), ..context("another") };
    let error = node.create(global(), other).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");

    redis.come_back().await;
    wait_until("it runs again", || async { node.status(id).await.state == State::Running }).await;
    // This server keeps nothing on disk.
    node.cast(id, "after").await;
    node.call(id, "").await;
    assert_eq!(field(&redis, &spec, "state").as_deref(), Some("after"));
}

#[tokio::test]
async fn a_node_without_a_state_url_says_what_is_missing() {
    let node = TestNode::start().await;
    let error = node.create(global(), context("keeper")).await.unwrap_err();
    assert!(error.message.contains("state_url"), "{error}");
}
