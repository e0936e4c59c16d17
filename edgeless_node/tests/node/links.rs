//! Links between two nodes, over real sockets that break.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::client::{Connection, Options as CallOptions, PeerStream};
use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::peer::{self, Fate as Said, Frame, Hello, Item, Settled, Window};
use edgeless_api::server::{Invocation, Server, Values};
use edgeless_api::{Error, Event, InstanceId, Limits, NodeId, Url};
use edgeless_node::fate::{Fate, Ticket};
use edgeless_node::metrics::Dropped;
use edgeless_node::peer::link::{Deliver, Options};
use edgeless_node::peer::peers::Peers;
use edgeless_node::peer::session;
use edgeless_node::peer::settler::Settler;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::support::wait_until;

/// What became of the events of one side.
#[derive(Debug, Default)]
struct Books {
    fates: Mutex<HashMap<Fate, u64>>,
    settled: AtomicU64,
}

impl Books {
    fn of(&self, fate: Fate) -> u64 {
        self.fates.lock().unwrap().get(&fate).copied().unwrap_or_default()
    }

    fn settled(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }
}

/// One event in the books.
struct Slip(Arc<Books>);

impl Ticket for Slip {
    fn settle(self, fate: Fate) {
        *self.0.fates.lock().unwrap().entry(fate).or_default() += 1;
        self.0.settled.fetch_add(1, Ordering::SeqCst);
    }
}

/// Targets below this handle nothing until they are let go.
const SLOW: u128 = 1000;

/// All targets of a node.
#[derive(Default)]
struct Targets {
    /// The last number that came, by source and target.
    last: Mutex<HashMap<(Uuid, Uuid), u64>>,
    came: AtomicU64,
    out_of_order: AtomicU64,
    held: Mutex<Vec<Settler>>,
    replies: Mutex<Vec<(u64, Reply)>>,
    refused: Mutex<Vec<String>>,
}

impl Targets {
    fn came(&self) -> u64 {
        self.came.load(Ordering::SeqCst)
    }
}

impl Deliver for Targets {
    fn deliver(&self, _from: NodeId, event: Event, settler: Settler) {
        let payload = match &event.kind {
            Kind::Cast(payload) | Kind::Call { payload, .. } => payload,
            Kind::Reply { .. } => panic!("a reply is no event"),
        };
        let number = u64::from_be_bytes(payload[..8].try_into().unwrap());
        let pair = (event.source.function, event.target.function);
        if self.last.lock().unwrap().insert(pair, number) >= Some(number) {
            self.out_of_order.fetch_add(1, Ordering::SeqCst);
        }
        self.came.fetch_add(1, Ordering::SeqCst);
        if event.target.function.as_u128() < SLOW {
            self.held.lock().unwrap().push(settler);
        } else {
            settler.settle(Fate::Handled);
        }
    }

    fn reply(&self, _callee: InstanceId, _caller: InstanceId, stream: u64, reply: Reply) {
        self.replies.lock().unwrap().push((stream, reply));
    }

    fn refused(&self, _from: NodeId, error: &Error) {
        self.refused.lock().unwrap().push(error.to_string());
    }
}

/// A node, as far as links go.
struct End {
    id: NodeId,
    peers: Arc<Peers<Slip>>,
    targets: Arc<Targets>,
    books: Arc<Books>,
    address: SocketAddr,
    cancel: CancellationToken,
    sent: AtomicU64,
}

fn options() -> Options {
    let window = Window { events: 16, bytes: 64 << 10, total: 1024 };
    let session = session::Options { window, max_payload: 64 << 10, queue: 256, ..session::Options::default() };
    let retry = [Duration::from_millis(5), Duration::from_millis(50)];
    Options { session, emit_wait: Duration::from_secs(20), retry, ..Options::default() }
}

fn limits() -> Limits {
    Limits { payload: 64 << 10, ..Limits::default() }
}

impl End {
    async fn start(options: Options) -> Self {
        let id = NodeId::random();
        let targets = Arc::new(Targets::default());
        let peers = Arc::new(Peers::new(id, options, targets.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(Server::new(limits(), cancel.clone()).peer_stream(peers.clone()).serve(listener));
        Self { id, peers, targets, books: Arc::default(), address, cancel, sent: AtomicU64::new(0) }
    }

    fn url(&self) -> Url {
        Url::of(self.address)
    }

    /// Sends the next event from one of a few sources.
    async fn send(&self, to: NodeId, target: u128) -> Result<(), Dropped> {
        let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        self.send_from(to, 1, target, number).await
    }

    async fn send_from(&self, to: NodeId, source: u128, target: u128, number: u64) -> Result<(), Dropped> {
        let event = Event {
            source: InstanceId { node: self.id, function: Uuid::from_u128(source) },
            target: InstanceId { node: to, function: Uuid::from_u128(target) },
            kind: Kind::Cast(Bytes::copy_from_slice(&number.to_be_bytes())),
            created: SystemTime::now(),
            trace: Trace::default(),
            id: None,
        };
        self.peers.send(event, Slip(self.books.clone())).await
    }
}

/// Between a node and those who dial it: connections that can be cut.
struct Proxy {
    address: SocketAddr,
    cut: Arc<Mutex<CancellationToken>>,
    open: Arc<AtomicUsize>,
    is_shut: Arc<AtomicBool>,
}

impl Proxy {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            cut: Arc::default(),
            open: Arc::default(),
            is_shut: Arc::default(),
        };
        let (cut, open, is_shut) = (proxy.cut.clone(), proxy.open.clone(), proxy.is_shut.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if is_shut.load(Ordering::SeqCst) {
                    continue;
                }
                let (cut, open) = (cut.lock().unwrap().clone(), open.clone());
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        near.set_nodelay(true).unwrap();
                        far.set_nodelay(true).unwrap();
                        cut.run_until_cancelled(copy_bidirectional(&mut near, &mut far)).await;
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        proxy
    }

    fn url(&self) -> Url {
        Url::of(self.address)
    }

    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// Two nodes that dial each other through proxies.
async fn pair(options: Options) -> ([Arc<End>; 2], [Proxy; 2]) {
    let ends = [Arc::new(End::start(options).await), Arc::new(End::start(options).await)];
    let proxies = [Proxy::to(ends[0].address).await, Proxy::to(ends[1].address).await];
    ends[0].peers.add(ends[1].id, &proxies[1].url()).unwrap();
    ends[1].peers.add(ends[0].id, &proxies[0].url()).unwrap();
    (ends, proxies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_over_connections_that_are_cut_again_and_again_loses_nothing() {
    const EACH: u64 = 3000;
    let (ends, proxies) = pair(options()).await;
    let mut floods = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        for source in 0..4 {
            let (from, to) = (ends[from].clone(), ends[to].id);
            floods.push(tokio::spawn(async move {
                for number in 1..=EACH {
                    from.send_from(to, source, SLOW + u128::from(number % 3), number).await.unwrap();
                }
            }));
        }
    }
    let came = || ends[0].targets.came() + ends[1].targets.came();
    for cut in 1..=15 {
        wait_until("the flood goes on", || async { came() >= cut * 1400 }).await;
        proxies.iter().for_each(Proxy::cut);
    }
    for flood in floods {
        flood.await.unwrap();
    }
    let books = || ends.iter().map(|end| end.books.settled()).sum::<u64>();
    wait_until("all is settled", || async { books() == 8 * EACH }).await;
    for end in &ends {
        assert_eq!(end.books.of(Fate::Handled), 4 * EACH, "{:?}", end.books);
        assert_eq!(end.targets.came(), 4 * EACH, "each came once");
        assert_eq!(end.targets.out_of_order.load(Ordering::SeqCst), 0);
        assert!(end.targets.refused.lock().unwrap().is_empty(), "{:?}", end.targets.refused);
    }
    let links = ends[0].peers.get(ends[1].id).unwrap().counts().links;
    assert!(links > 5, "it was cut, and there were only {links} links");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_leaves_books_that_add_up() {
    let options = Options { lost_after: Duration::from_millis(200), ..options() };
    let (ends, proxies) = pair(options).await;
    let [ours, theirs] = ends;
    let flood = {
        let (ours, to) = (ours.clone(), theirs.id);
        tokio::spawn(async move {
            let mut failed = 0;
            for number in 1..=5000 {
                // Two of three targets handle at once, and one never.
                let target = if number % 3 == 0 { 1 } else { SLOW + u128::from(number % 3) };
                failed += u64::from(ours.send_from(to, 1, target, number).await.is_err());
                if number > 1000 && failed > 0 {
                    return number;
                }
            }
            5000
        })
    };
    wait_until("its slow target is full", || async { theirs.targets.held.lock().unwrap().len() == 16 }).await;
    // Gone without a word, with all that it has in hand.
    proxies[1].is_shut.store(true, Ordering::SeqCst);
    theirs.cancel.cancel();
    proxies.iter().for_each(Proxy::cut);
    let came = {
        let theirs = theirs.clone();
        theirs.peers.nodes().into_iter().for_each(|node| theirs.peers.remove(node));
        move || theirs.targets.came()
    };
    wait_until("it is given up", || async { ours.books.of(Fate::Unknown) >= 16 }).await;
    ours.peers.remove(theirs.id);
    let sent = flood.await.unwrap();
    wait_until("every event has a fate", || async { ours.books.settled() == sent }).await;
    let (handled, unknown) = (ours.books.of(Fate::Handled), ours.books.of(Fate::Unknown));
    assert!(handled <= came() && came() <= handled + unknown, "{came} came, {:?}", ours.books, came = came());
    let lost: u64 =
        [Dropped::PeerLost, Dropped::UnknownPeer].map(|cause| ours.books.of(Fate::Dropped(cause))).iter().sum();
    assert_eq!(handled + unknown + lost, sent, "{:?}", ours.books);
}

#[tokio::test]
async fn a_sender_waits_for_a_slow_target_as_long_as_it_may() {
    let (ends, _proxies) = pair(Options { emit_wait: Duration::from_millis(1), ..options() }).await;
    let [ours, theirs] = ends;
    for _ in 0..16 {
        ours.send(theirs.id, 1).await.unwrap();
    }
    assert_eq!(ours.send(theirs.id, 1).await, Err(Dropped::MailboxFull), "16 may be unsettled");
    assert_eq!(ours.books.of(Fate::Dropped(Dropped::MailboxFull)), 1);
    ours.send(theirs.id, 2).await.unwrap();
}

#[tokio::test]
async fn a_slow_target_slows_its_own_senders_only_and_memory_stays_flat() {
    let (ends, _proxies) = pair(options()).await;
    let [ours, theirs] = ends;
    for _ in 0..16 {
        ours.send(theirs.id, 1).await.unwrap();
    }
    assert_eq!(ours.send(theirs.id, 1).now_or_never(), None, "whoever goes on has to wait");
    assert_eq!(ours.books.of(Fate::Dropped(Dropped::SenderGone)), 1, "and may give up");
    for _ in 0..2000 {
        ours.send(theirs.id, SLOW).await.unwrap();
    }
    wait_until("the others are handled", || async { ours.books.of(Fate::Handled) == 2000 }).await;
    // Many slow targets, whose senders try again and again: what is kept for them has a limit.
    wait_until("all that may come has come", || async {
        for target in 2..200 {
            // Here whoever has to wait gives up.
            if ours.send(theirs.id, target).now_or_never().is_none() {
                continue;
            }
            let counts = ours.peers.get(theirs.id).unwrap().counts();
            assert!(counts.held <= 256 && counts.queued + counts.unsettled <= 1024, "{counts:?}");
        }
        theirs.targets.held.lock().unwrap().len() == 1024
    })
    .await;
    assert!(ours.peers.get(theirs.id).unwrap().counts().targets <= 200);
    // Once they are through, everything goes on.
    let held = std::mem::take(&mut *theirs.targets.held.lock().unwrap());
    held.into_iter().for_each(|settler| settler.settle(Fate::Handled));
    wait_until("there is room", || async { ours.peers.get(theirs.id).unwrap().counts().unsettled == 0 }).await;
    ours.send(theirs.id, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dials_that_cross_end_with_one_connection() {
    for _ in 0..10 {
        let (ends, proxies) = pair(options()).await;
        let [one, two] = &ends;
        let (first, second) = tokio::join!(one.send(two.id, SLOW), two.send(one.id, SLOW));
        first.unwrap();
        second.unwrap();
        let settled = || one.books.of(Fate::Handled) + two.books.of(Fate::Handled);
        wait_until("both are handled", || async { settled() == 2 }).await;
        wait_until("one connection is left", || async { proxies.iter().map(Proxy::open).sum::<usize>() == 1 }).await;
        let linked = |end: &End, other: &End| end.peers.get(other.id).unwrap().is_linked();
        wait_until("both use it", || async { linked(one, two) && linked(two, one) }).await;
        // It stays the one, also for what follows.
        one.send(two.id, SLOW).await.unwrap();
        two.send(one.id, SLOW).await.unwrap();
        wait_until("all are handled", || async { settled() == 4 }).await;
        assert_eq!(proxies.iter().map(Proxy::open).sum::<usize>(), 1);
    }
}

#[tokio::test]
async fn calls_are_answered_over_the_link_they_came_by() {
    let (ends, _proxies) = pair(options()).await;
    let [ours, theirs] = ends;
    let (caller, callee) = (InstanceId::random(ours.id), InstanceId::random(theirs.id));
    let kind = Kind::Call { payload: Bytes::from(vec![0; 8]), stream: 7, remaining: None };
    let event =
        Event { source: caller, target: callee, kind, created: SystemTime::now(), trace: Trace::default(), id: None };
    ours.peers.send(event, Slip(ours.books.clone())).await.unwrap();
    wait_until("it came", || async { theirs.targets.came() == 1 }).await;
    let answer = Reply::Message(Bytes::from_static(b"yes"));
    let back = theirs.peers.get(ours.id).unwrap();
    back.reply(callee.function, caller.function, 7, answer.clone(), Trace::default()).unwrap();
    wait_until("the reply came", || async { *ours.targets.replies.lock().unwrap() == [(7, answer.clone())] }).await;
}

/// Takes events as EDGELESS 1.x nodes do.
#[derive(Default)]
struct Old(Mutex<Vec<Event>>);

#[async_trait]
impl Invocation for Old {
    async fn handle(&self, event: Event) -> Result<(), Error> {
        self.0.lock().unwrap().push(event);
        Ok(())
    }
}

#[tokio::test]
async fn a_node_that_knows_no_links_gets_its_events_one_by_one() {
    let (ours, old, id) = (End::start(options()).await, Arc::new(Old::default()), NodeId::random());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::of(listener.local_addr().unwrap());
    tokio::spawn(Server::new(limits(), CancellationToken::new()).invocation(old.clone()).serve(listener));
    ours.peers.add(id, &url).unwrap();
    for _ in 0..100 {
        ours.send(id, SLOW).await.unwrap();
    }
    wait_until("all are handed over", || async { ours.books.of(Fate::HandedOver) == 100 }).await;
    assert!(ours.peers.get(id).unwrap().is_unary());
    let number = |event: &Event| match &event.kind {
        Kind::Cast(payload) => u64::from_be_bytes(payload[..8].try_into().unwrap()),
        _ => 0,
    };
    let numbers: Vec<u64> = old.0.lock().unwrap().iter().map(number).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>(), "also what was queued before keeps its order");
    assert_eq!(ours.books.settled(), 100);
}

/// A node that says what it likes.
struct Rude {
    id: NodeId,
    url: Url,
}

impl Rude {
    /// Someone whom `end` knows.
    fn known_to(end: &End) -> Self {
        let id = NodeId::random();
        // Nobody is there: it dials itself.
        end.peers.add(id, &"http://127.0.0.1:1".parse().unwrap()).unwrap();
        Self { id, url: end.url() }
    }

    fn hello(&self) -> Hello {
        let window = Window { events: 16, bytes: 1 << 20, total: 100 };
        Hello {
            node: self.id,
            session: 5,
            known: 0,
            taken: 0,
            window,
            max_payload: 1 << 20,
            links: 0,
            invocation_url: None,
        }
    }

    /// Sends frames; those that come back.
    async fn say(&self, frames: Vec<Frame>) -> Result<Values<Frame>, Error> {
        let connection = Connection::for_link(&self.url, CallOptions::default()).unwrap();
        // The stream stays open, so that only the other side ends it.
        PeerStream::new(connection).link(stream::iter(frames).chain(stream::pending())).await
    }
}

#[tokio::test]
async fn whoever_does_what_it_must_not_loses_its_link_and_is_counted() {
    let end = End::start(options()).await;
    let greeting = |hello| Frame { hello: Some(hello), ..Frame::default() };
    let event = |payload: usize| {
        Item::Event(peer::Event {
            source: Uuid::nil(),
            source_node: None,
            target: Uuid::from_u128(1),
            payload: vec![0; payload].into(),
            call: None,
            created: SystemTime::UNIX_EPOCH,
            trace: Trace::default(),
            id: None,
        })
    };
    let with = |first, items| Frame { first, items, ..Frame::default() };
    let settled = |first, count| Item::Settled(Settled { first, count, fate: Said::Handled });
    let offences: [(&str, Vec<Frame>); 7] = [
        ("it accepts what was not sent", vec![Frame { accepted: 9, ..Frame::default() }]),
        ("items are missing", vec![with(2, vec![event(8)])]),
        ("items are missing", vec![with(u64::MAX, vec![event(8), event(8)])]),
        ("it settles what is not unsettled", vec![with(1, vec![settled(1, 1)])]),
        ("it settles beyond all numbers", vec![with(1, vec![settled(2, u64::MAX)])]),
        ("it says hello again", vec![greeting(Rude::known_to(&end).hello())]),
        ("it sends more than the window has room for", (0..5000).map(|n| with(n + 1, vec![event(8)])).collect()),
    ];
    for (count, (reason, frames)) in offences.into_iter().enumerate() {
        let rude = Rude::known_to(&end);
        let all = [vec![greeting(rude.hello())], frames].concat();
        let mut back = rude.say(all).await.unwrap();
        let answer = back.next().await.unwrap().unwrap();
        assert_eq!(answer.hello.unwrap().known, 5, "the link came to be");
        // Reads to the end, or to what ends it.
        while let Some(Ok(_)) = back.next().await {}
        wait_until(reason, || async { end.targets.refused.lock().unwrap().len() == count + 1 }).await;
        assert_eq!(end.targets.refused.lock().unwrap().last().unwrap(), reason);
        assert!(!end.peers.get(rude.id).unwrap().is_linked());
    }
    // Hellos that cannot be.
    let rude = Rude::known_to(&end);
    let refusal = async |frame: Frame| rude.say(vec![frame]).await.err().unwrap().to_string();
    assert!(refusal(Frame::default()).await.contains("no hello"));
    let stranger = Hello { node: NodeId::random(), ..rude.hello() };
    assert!(refusal(greeting(stranger)).await.contains("not known here yet"));
    // What is no frame at all.
    let nameless = Hello { session: 0, ..rude.hello() };
    assert!(refusal(greeting(nameless)).await.contains("the session is 0"));
}

/// The window holds whatever the sender thinks of it.
#[tokio::test]
async fn an_event_beyond_the_window_is_dropped_and_its_sender_told() {
    let end = End::start(options()).await;
    let rude = Rude::known_to(&end);
    let event = peer::Event {
        source: Uuid::nil(),
        source_node: None,
        target: Uuid::from_u128(1),
        payload: vec![0; 8].into(),
        call: None,
        created: SystemTime::UNIX_EPOCH,
        trace: Trace::default(),
        id: None,
    };
    let items = vec![Item::Event(event); 18];
    let hello = Frame { hello: Some(rude.hello()), ..Frame::default() };
    let mut back = rude.say(vec![hello, Frame { first: 1, items, ..Frame::default() }]).await.unwrap();
    back.next().await.unwrap().unwrap();
    let frame = back.next().await.unwrap().unwrap();
    assert_eq!(frame.accepted, 18);
    assert_eq!(frame.items, [Item::Settled(Settled { first: 17, count: 2, fate: Said::MailboxFull })]);
    assert_eq!(end.targets.held.lock().unwrap().len(), 16);
}
