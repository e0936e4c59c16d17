//! A forwarder between nodes that are played over the real wire.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use edgeless_api::Limits;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::component::Row;
use edgeless_api::error::Error;
use edgeless_api::event::{Event, Kind, Reply, Trace};
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::node::PeerUpdate;
use edgeless_api::server::{Invocation, NodeManagement, Server};
use edgeless_api::url::Url;
use edgeless_daemon::listen;
use edgeless_daemon::status::Status;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::rows::{Contact, Rows};
use super::{Forwarder, Identity};
use crate::metrics::{Forwarded, Metrics};

const PATIENCE: Duration = Duration::from_secs(20);

fn free() -> Url {
    Url::of(([127, 0, 0, 1], 0).into())
}

/// What a played domain says.
#[derive(Default)]
struct Domain {
    rows: Mutex<HashMap<ComponentId, Row>>,
    contacts: Mutex<HashMap<NodeId, Contact>>,
}

#[async_trait]
impl Rows for Domain {
    async fn row(&self, component: ComponentId) -> Result<Option<Row>, Error> {
        Ok(self.rows.lock().unwrap().get(&component).cloned())
    }

    async fn contact(&self, node: NodeId) -> Result<Option<Contact>, Error> {
        Ok(self.contacts.lock().unwrap().get(&node).cloned())
    }
}

/// Takes events after a pause, and notes who they say they come from.
struct Played {
    events: mpsc::Sender<(Event, Option<Url>)>,
    pause: Duration,
    peers: Mutex<Vec<PeerUpdate>>,
}

#[async_trait]
impl Invocation for Played {
    async fn handle(&self, _: Event) -> Result<(), Error> {
        Err(Error::bug("the forwarder says where it is"))
    }

    async fn handle_from(&self, event: Event, sender: Option<Url>) -> Result<(), Error> {
        tokio::time::sleep(self.pause).await;
        self.events.send((event, sender)).await.unwrap();
        Ok(())
    }
}

#[async_trait]
impl NodeManagement for Played {
    async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error> {
        self.peers.lock().unwrap().push(update);
        Ok(())
    }

    async fn reset(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct Node {
    id: NodeId,
    url: Url,
    played: Arc<Played>,
    events: mpsc::Receiver<(Event, Option<Url>)>,
    _server: DropGuard,
}

impl Node {
    async fn start(pause: Duration) -> Self {
        let (listener, url) = listen(&free()).await.unwrap();
        let (sender, events) = mpsc::channel(1000);
        let played = Arc::new(Played { events: sender, pause, peers: Mutex::default() });
        let cancel = CancellationToken::new();
        let server = Server::new(Limits::default(), cancel.clone());
        let server = server.invocation(played.clone()).node_management(played.clone());
        tokio::spawn(async move { server.serve(listener).await.unwrap() });
        Self { id: NodeId::random(), url, played, events, _server: cancel.drop_guard() }
    }

    fn instance(&self) -> InstanceId {
        InstanceId::random(self.id)
    }

    async fn next(&mut self) -> Event {
        let next = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        next.expect("an event comes in time").unwrap().0
    }
}

/// A domain with one node, a node outside, and the forwarder between them.
struct World {
    domain: Arc<Domain>,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    inside: Node,
    outside: Node,
    wire: client::Invocation,
    _server: DropGuard,
}

impl World {
    async fn new() -> Self {
        let domain = Arc::new(Domain::default());
        let (inside, outside) = (Node::start(Duration::ZERO).await, Node::start(Duration::ZERO).await);
        let contact = Contact { events: inside.url.clone(), agent: inside.url.clone() };
        domain.contacts.lock().unwrap().insert(inside.id, contact);
        let (listener, url) = listen(&free()).await.unwrap();
        let me = Identity { node: NodeId::random(), url: url.clone(), limits: Limits::default() };
        let (metrics, cancel) = (Arc::new(Metrics::new()), CancellationToken::new());
        let forwarder = Forwarder::new(me, 100, domain.clone(), None, metrics.clone(), cancel.clone());
        let server = Server::new(Limits::default(), cancel.clone()).invocation(forwarder.clone());
        tokio::spawn(async move { server.serve(listener).await.unwrap() });
        let connection = Connection::lazy(&url, Options::default()).unwrap();
        let wire = client::Invocation::new(connection).of_node_at(&outside.url);
        Self { domain, forwarder, metrics, inside, outside, wire, _server: cancel.drop_guard() }
    }

    /// A component of the domain, and whom others take for it.
    fn own(&self, instances: &[InstanceId], partition_by: &str) -> InstanceId {
        let row = Row { partition_by: partition_by.into(), ..Row::new(ComponentId::random(), 1, instances.to_vec()) };
        let outside = self.forwarder.outgoing(vec![Row { instances: vec![self.inside.instance()], ..row.clone() }]);
        self.domain.rows.lock().unwrap().insert(row.component, row);
        outside[0].instances[0]
    }

    /// A component elsewhere, and whom the domain takes for it.
    fn foreign(&self, instance: InstanceId, url: &Url) -> InstanceId {
        let addresses = BTreeMap::from([(instance.node, url.clone())]);
        let row = Row { addresses, ..Row::new(ComponentId::random(), 1, vec![instance]) };
        let alias = self.forwarder.table(|table, now| table.foreign(now, row));
        InstanceId { node: self.forwarder.node(), function: alias }
    }

    async fn until_counted(&self, outcome: &str, count: usize) {
        let line = format!("events_total{{outcome=\"{outcome}\"}} {count}");
        let deadline = Instant::now() + PATIENCE;
        while !self.metrics.metrics().contains(&line) {
            assert!(Instant::now() < deadline, "{line} is not in {}", self.metrics.metrics());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn event(source: InstanceId, target: InstanceId, kind: Kind) -> Event {
    let trace = Trace { trace_id: 1, span_id: 2 };
    Event { source, target, kind, created: SystemTime::UNIX_EPOCH + Duration::from_secs(7), trace, id: None }
}

fn cast(text: &str) -> Kind {
    Kind::Cast(text.to_string().into())
}

fn call(stream: u64) -> Kind {
    Kind::Call { payload: "?".into(), stream, remaining: Some(Duration::from_secs(60)) }
}

fn reply(stream: u64) -> Kind {
    Kind::Reply { reply: Reply::Message("!".into()), stream }
}

#[tokio::test]
async fn a_cast_comes_through_and_a_raw_cast_finds_back() {
    let mut world = World::new().await;
    let (sender, inside) = (world.outside.instance(), world.inside.instance());
    let alias = world.own(&[inside], "");
    world.wire.handle(event(sender, alias, cast("a"))).await.unwrap();
    let (came, from) = world.inside.events.recv().await.unwrap();
    assert_eq!(from.as_ref(), Some(world.forwarder.url()), "where replies go");
    let disguised = came.source;
    assert_eq!(came, event(disguised, inside, cast("a")), "nothing else has changed");
    assert!(disguised.node == world.forwarder.node() && disguised != alias);
    let introduced = PeerUpdate::Add(world.forwarder.node(), world.forwarder.url().clone());
    assert_eq!(*world.inside.played.peers.lock().unwrap(), [introduced], "before the first event");

    world.wire.handle(event(inside, disguised, cast("b"))).await.unwrap();
    let back = world.outside.next().await;
    assert_eq!((back.target, &back.kind), (sender, &cast("b")));
    world.wire.handle(event(sender, back.source, cast("c"))).await.unwrap();
    let again = world.inside.next().await;
    assert_eq!((again.source, again.target), (disguised, inside), "both keep their aliases");
    world.wire.handle(event(InstanceId::NONE, alias, cast("d"))).await.unwrap();
    assert_eq!(world.inside.next().await.source, InstanceId::NONE, "a user is nobody on both sides");
    assert_eq!(world.inside.played.peers.lock().unwrap().len(), 1);
    world.until_counted("handed over", 4).await;
}

#[tokio::test]
async fn a_reply_comes_from_what_was_called_and_goes_to_who_called() {
    let mut world = World::new().await;
    let (caller, callee) = (world.outside.instance(), world.inside.instance());
    let alias = world.own(&[callee], "");
    world.wire.handle(event(caller, alias, call(5))).await.unwrap();
    let came = world.inside.next().await;
    let Kind::Call { stream: 5, remaining: Some(remaining), .. } = came.kind else { panic!("{came:?}") };
    assert!(remaining <= Duration::from_secs(60) && remaining > Duration::from_secs(30));
    let forger = world.inside.instance();
    world.wire.handle(event(forger, came.source, reply(5))).await.unwrap();
    world.wire.handle(event(callee, came.source, reply(6))).await.unwrap();
    world.until_counted("forged reply", 1).await;
    world.until_counted("unknown call", 1).await;
    world.wire.handle(event(callee, came.source, reply(5))).await.unwrap();
    assert_eq!(world.outside.next().await, event(alias, caller, reply(5)));
    world.wire.handle(event(callee, came.source, reply(5))).await.unwrap();
    world.until_counted("unknown call", 2).await;
}

#[tokio::test]
async fn a_component_elsewhere_is_called_from_inside() {
    let mut world = World::new().await;
    let (caller, callee) = (world.inside.instance(), world.outside.instance());
    let url = world.outside.url.clone();
    let alias = world.foreign(callee, &url);
    world.wire.handle(event(caller, alias, call(9))).await.unwrap();
    let came = world.outside.next().await;
    assert_eq!(came.target, callee);
    assert_ne!(came.source.node, world.inside.id, "nobody outside learns of the node");
    world.wire.handle(event(callee, came.source, reply(9))).await.unwrap();
    assert_eq!(world.inside.next().await, event(alias, caller, reply(9)));
}

#[tokio::test]
async fn a_call_that_cannot_come_through_is_answered_at_once() {
    let mut world = World::new().await;
    let caller = world.outside.instance();
    let failed = |target, stream| {
        let event = event(target, caller, Kind::Reply { reply: Reply::Error, stream });
        Event { created: SystemTime::UNIX_EPOCH, ..event }
    };
    let nobody = InstanceId { node: world.forwarder.node(), function: Uuid::nil() };
    world.wire.handle(event(caller, nobody, call(1))).await.unwrap();
    assert_eq!(world.outside.next().await, failed(nobody, 1));
    world.until_counted("unknown target", 1).await;

    let dead = listen(&free()).await.unwrap().1;
    let away = world.foreign(InstanceId::random(NodeId::random()), &dead);
    world.wire.handle(event(caller, away, call(2))).await.unwrap();
    assert_eq!(world.outside.next().await, failed(away, 2));
    world.until_counted("unreachable", 1).await;

    let lost = world.own(&[InstanceId::random(NodeId::random())], "");
    world.wire.handle(event(caller, lost, call(3))).await.unwrap();
    assert_eq!(world.outside.next().await, failed(lost, 3));
    world.until_counted("no address", 1).await;
}

#[tokio::test]
async fn a_call_in_the_hands_of_a_lost_node_fails() {
    let mut world = World::new().await;
    let watching = tokio::spawn(world.forwarder.clone().watch());
    let (caller, callee) = (world.outside.instance(), world.inside.instance());
    let alias = world.own(&[callee], "");
    world.wire.handle(event(caller, alias, call(5))).await.unwrap();
    world.inside.next().await;
    world.domain.contacts.lock().unwrap().clear();
    let failed = world.outside.next().await;
    assert_eq!((failed.source, failed.kind), (alias, Kind::Reply { reply: Reply::Error, stream: 5 }));
    watching.abort();
}

#[tokio::test]
async fn what_would_come_back_is_dropped() {
    let world = World::new().await;
    let (me, sender) = (world.forwarder.node(), world.outside.instance());
    let url = world.forwarder.url().clone();
    let circle = world.foreign(InstanceId::random(me), &url);
    world.wire.handle(event(sender, circle, cast("a"))).await.unwrap();
    world.until_counted("unknown target", 1).await;
    let component = ComponentId::random();
    let itself = world.forwarder.table(|table, now| {
        let alias = table.foreign(now, Row::new(component, 0, vec![]));
        let itself = InstanceId { node: me, function: alias };
        table.set_row(Row::new(component, 1, vec![itself]));
        itself
    });
    world.wire.handle(event(sender, itself, cast("a"))).await.unwrap();
    world.until_counted("loop", 1).await;
    world.wire.handle(event(itself, circle, cast("a"))).await.unwrap();
    world.until_counted("loop", 2).await;
    let error = world.wire.handle(event(sender, sender, cast("a"))).await.unwrap_err();
    assert!(error.message.contains("the event is for"), "{error}");
}

/// A row of the parent may lead to what the domain itself runs.
#[tokio::test]
async fn a_component_elsewhere_that_is_here_is_reached() {
    let mut world = World::new().await;
    let inside = world.inside.instance();
    let alias = world.own(&[inside], "");
    let url = world.forwarder.url().clone();
    let roundabout = world.foreign(alias, &url);
    world.wire.handle(event(world.inside.instance(), roundabout, cast("a"))).await.unwrap();
    assert_eq!(world.inside.next().await.target, inside);
}

#[tokio::test]
async fn several_instances_share_the_events() {
    let mut world = World::new().await;
    let instances = [world.inside.instance(), world.inside.instance()];
    let (alias, sender) = (world.own(&instances, ""), world.outside.instance());
    let mut targets = Vec::new();
    for _ in 0..4 {
        world.wire.handle(event(sender, alias, cast("a"))).await.unwrap();
        targets.push(world.inside.next().await.target);
    }
    assert!(targets[0] != targets[1] && targets[..2] == targets[2..], "in turns: {targets:?}");
    let sticky = world.own(&instances, "source");
    for _ in 0..4 {
        world.wire.handle(event(sender, sticky, cast("a"))).await.unwrap();
    }
    let first = world.inside.next().await.target;
    for _ in 1..4 {
        assert_eq!(world.inside.next().await.target, first);
    }
}

#[tokio::test]
async fn an_event_waits_for_a_component_that_runs_nowhere() {
    let mut world = World::new().await;
    let (sender, alias) = (world.outside.instance(), world.own(&[], ""));
    let wire = world.wire.clone();
    let sending = tokio::spawn(async move { wire.handle(event(sender, alias, cast("a"))).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let inside = world.inside.instance();
    for row in world.domain.rows.lock().unwrap().values_mut() {
        row.instances = vec![inside];
    }
    assert_eq!(world.inside.next().await.target, inside);
    sending.await.unwrap().unwrap();
    let patience = Kind::Call { payload: "?".into(), stream: 1, remaining: Some(Duration::from_millis(50)) };
    let nowhere = world.own(&[], "");
    world.wire.handle(event(sender, nowhere, patience)).await.unwrap();
    world.until_counted("no instance", 1).await;
}

/// By the clock of the test, which leaps to whatever is waited for.
#[tokio::test(start_paused = true)]
async fn an_event_waits_longer_for_a_component_that_is_on_its_way() {
    let world = World::new().await;
    let (sender, alias) = (world.outside.instance(), world.own(&[], ""));
    let set = |is_moving: bool, instances: &[InstanceId]| {
        for row in world.domain.rows.lock().unwrap().values_mut() {
            (row.moving, row.instances) = (is_moving, instances.to_vec());
        }
    };
    let event = event(sender, alias, cast("a"));
    let began = tokio::time::Instant::now();
    let lost = async || world.forwarder.place(&event).await.unwrap_err();
    assert_eq!(lost().await, Forwarded::NoInstance);
    assert_eq!(began.elapsed().as_secs(), 10, "for one that runs nowhere");
    set(true, &[]);
    assert_eq!(lost().await, Forwarded::NoInstance);
    assert_eq!(began.elapsed().as_secs(), 40);
    let stays = async {
        tokio::time::sleep(Duration::from_secs(15)).await;
        set(false, &[]);
    };
    assert_eq!(tokio::join!(lost(), stays).0, Forwarded::NoInstance);
    assert_eq!(began.elapsed().as_secs(), 65, "its time begins when it is not on its way any more");
    set(true, &[]);
    let inside = world.inside.instance();
    let arrives = async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        set(false, &[inside]);
    };
    assert_eq!(tokio::join!(world.forwarder.place(&event), arrives).0.unwrap().target, inside);
}

/// A thousand casts keep their order by sender and target; a slow and a dead node cost nothing but time of
/// their own.
#[tokio::test]
async fn order_is_kept_and_nobody_waits_for_a_dead_node() {
    let mut world = World::new().await;
    let slow = Node::start(Duration::from_millis(300)).await;
    let (silent, silent_url) = listen(&free()).await.unwrap();
    let slowly = world.foreign(slow.instance(), &slow.url);
    let never = world.foreign(InstanceId::random(NodeId::random()), &silent_url);
    let alias = world.own(&[world.inside.instance()], "");
    let (sender, other) = (world.outside.instance(), world.outside.instance());
    for n in 0..100 {
        if n % 10 == 0 {
            world.wire.handle(event(sender, slowly, cast("slow"))).await.unwrap();
            world.wire.handle(event(sender, never, cast("never"))).await.unwrap();
        }
        world.wire.handle(event(sender, alias, cast(&n.to_string()))).await.unwrap();
        world.wire.handle(event(other, alias, cast(&n.to_string()))).await.unwrap();
    }
    let mut by_source: HashMap<InstanceId, Vec<Kind>> = HashMap::new();
    for _ in 0..200 {
        let came = world.inside.next().await;
        by_source.entry(came.source).or_default().push(came.kind);
    }
    let in_order: Vec<Kind> = (0..100).map(|n: i32| cast(&n.to_string())).collect();
    assert_eq!(by_source.len(), 2);
    assert!(by_source.values().all(|came| *came == in_order));
    drop(silent);
}
