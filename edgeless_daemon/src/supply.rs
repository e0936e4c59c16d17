//! Starts components at a peer, whose code travels there once.
//!
//! ```text
//!  start, code by its digest -> started                    (the peer has it: mostly)
//!                            -> needs_code -> start, code along -> started
//! ```
//! The peer asks by its answer and is answered over the connection that there is: it need not reach
//! whoever starts, and keeps what it likes for as long as it likes. Of several that are asked for the
//! same code at the same time, one brings it, and the others go on by its digest.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use edgeless_api::client::Components;
use edgeless_api::component::{ComponentRef, ComponentSpec, Start};
use edgeless_api::error::{Code, Error};
use edgeless_api::{Binary, Digest};

/// Starts components at one peer; clones share what is under way.
#[derive(Clone, Debug)]
pub struct Supply {
    components: Components,
    /// Of those codes that somebody is starting at present.
    gates: Arc<Mutex<HashMap<Digest, Weak<Gate>>>>,
}

/// Lets one bring some code at a time.
#[derive(Debug, Default)]
struct Gate {
    turn: tokio::sync::Mutex<()>,
    /// How often it was brought.
    brought: AtomicU64,
}

/// How long a start waits for one that brings the same code. That one has brought it long before it has started,
/// and may even wait for this one: a service whose check is passed only when another one is there.
const PATIENCE: Duration = Duration::from_millis(500);

impl Gate {
    /// The turn to bring the code; `None`: whoever has it takes too long.
    async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        tokio::time::timeout(PATIENCE, self.turn.lock()).await.ok()
    }
}

type Started = Result<ComponentRef, Error>;

fn needs_code(answer: &Started) -> bool {
    answer.as_ref().is_err_and(|error| error.code == Code::NeedsCode)
}

fn binary(start: &Start) -> Option<&Binary> {
    match &start.spec {
        ComponentSpec::Function(function) => Some(&function.class.binary),
        ComponentSpec::Resource(_) => None,
    }
}

fn by_digest(start: &Start) -> Start {
    let mut start = start.clone();
    if let ComponentSpec::Function(function) = &mut start.spec {
        function.class.binary = function.class.binary.without_bytes();
    }
    start
}

impl Supply {
    /// Starts components by way of `components`.
    pub fn new(components: Components) -> Self {
        Self { components, gates: Arc::default() }
    }

    /// Starts a component. A peer that is not `native` speaks only EDGELESS 1.2 and is sent the code at
    /// once. `carries` is told of each message that carries code.
    ///
    /// # Errors
    /// It is refused, or the peer cannot be reached.
    pub async fn start(&self, start: Start, native: bool, carries: impl Fn()) -> Started {
        let Some(digest) = binary(&start).filter(|binary| !binary.is_empty()).map(Binary::digest) else {
            return self.components.start(start).await;
        };
        if !native {
            carries();
            return self.components.start(start).await;
        }
        let gate = self.gate(digest);
        let before = gate.brought.load(Ordering::Acquire);
        let answer = self.components.start(by_digest(&start)).await;
        if !needs_code(&answer) {
            return answer;
        }
        let mut turn = gate.turn().await;
        if turn.is_none() || gate.brought.load(Ordering::Acquire) != before {
            // Starts themselves need not wait for each other.
            drop(turn);
            let answer = self.components.start(by_digest(&start)).await;
            if !needs_code(&answer) {
                return answer;
            }
            turn = gate.turn().await;
        }
        let _turn = turn;
        carries();
        let answer = self.components.start(start).await;
        gate.brought.fetch_add(1, Ordering::Release);
        match answer {
            Err(error) if error.code == Code::NeedsCode => {
                Err(Error::bug(format!("the peer asks for the code {digest}, which it was sent")))
            }
            answer => answer,
        }
    }

    fn gate(&self, digest: Digest) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&digest).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::default());
        gates.insert(digest, Arc::downgrade(&gate));
        gate
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use async_trait::async_trait;
    use bytes::Bytes;
    use edgeless_api::client::{Connection, Options};
    use edgeless_api::component::{
        Annotations, ComponentKind, FunctionClass, FunctionSpec, Patch, StatePolicy, StateSpec,
    };
    use edgeless_api::server::{Components as Served, Server, Values};
    use edgeless_api::status::{ComponentStatus, Limit, LogLine};
    use edgeless_api::{ComponentId, Limits, StateId, WorkflowId};
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    const TOGETHER: usize = 8;

    /// Keeps what it is sent, and answers the first starts only when all of them have come.
    #[derive(Default)]
    struct Peer {
        kept: Mutex<HashSet<Digest>>,
        carried: AtomicUsize,
        by_digest: AtomicUsize,
        together: Option<tokio::sync::Barrier>,
        forgets: bool,
    }

    #[async_trait]
    impl Served for Peer {
        async fn start(&self, start: Start) -> Started {
            let binary = binary(&start).unwrap().clone();
            let knows = self.kept.lock().unwrap().contains(&binary.digest());
            if binary.bytes().is_some() {
                self.carried.fetch_add(1, Ordering::SeqCst);
                if !self.forgets {
                    self.kept.lock().unwrap().insert(binary.digest());
                }
            } else {
                let before = self.by_digest.fetch_add(1, Ordering::SeqCst);
                if !knows {
                    if let Some(together) = self.together.as_ref().filter(|_| before < TOGETHER) {
                        together.wait().await;
                    }
                    return Err(Error::needs_code(binary.digest()));
                }
            }
            Ok(ComponentRef::Component(ComponentId::random()))
        }
        async fn stop(&self, _: ComponentKind, _: ComponentRef) -> Result<(), Error> {
            Ok(())
        }
        async fn patch(&self, _: ComponentKind, _: Patch) -> Result<(), Error> {
            Ok(())
        }
        async fn activate(&self, _: Vec<Uuid>) -> Result<(), Error> {
            Ok(())
        }
        async fn status(&self, _: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
            Ok(vec![])
        }
        async fn logs(&self, _: Vec<Uuid>, _: bool) -> Result<Values<LogLine>, Error> {
            Err(Error::unimplemented("no logs"))
        }
        async fn limits(&self, _: Uuid, _: Annotations) -> Result<Vec<Limit>, Error> {
            Err(Error::unimplemented("no limits"))
        }
    }

    async fn supply(peer: &Arc<Peer>) -> Supply {
        let (listener, url) = crate::listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = Server::new(Limits::default(), CancellationToken::new()).components(peer.clone());
        tokio::spawn(server.serve(listener));
        Supply::new(Components::new(Connection::lazy(&url, Options::default()).unwrap()))
    }

    fn start(code: &'static [u8]) -> Start {
        let class = FunctionClass {
            id: "f".into(),
            function_type: "RUST_WASM".into(),
            binary: Bytes::from_static(code).into(),
            ..FunctionClass::default()
        };
        let state = StateSpec { id: StateId::random(), policy: StatePolicy::Transient };
        let spec = FunctionSpec { class, annotations: BTreeMap::new(), state, workflow: WorkflowId::random() };
        Start { spec: ComponentSpec::Function(spec), context: None }
    }

    #[tokio::test]
    async fn several_that_are_asked_for_the_same_code_bring_it_once() {
        let peer = Arc::new(Peer { together: Some(tokio::sync::Barrier::new(TOGETHER)), ..Peer::default() });
        let supply = supply(&peer).await;
        let carried = AtomicUsize::new(0);
        let carries = || {
            carried.fetch_add(1, Ordering::SeqCst);
        };
        let starts = (0..TOGETHER).map(|_| supply.start(start(b"code"), true, carries));
        assert!(futures_util::future::join_all(starts).await.iter().all(Result::is_ok));
        assert_eq!((peer.carried.load(Ordering::SeqCst), carried.load(Ordering::SeqCst)), (1, 1));
        assert_eq!(peer.by_digest.load(Ordering::SeqCst), 2 * TOGETHER - 1, "all ask, and all but one ask again");
        supply.start(start(b"code"), true, carries).await.unwrap();
        assert_eq!(peer.carried.load(Ordering::SeqCst), 1, "it is there");
        supply.start(start(b"other"), true, carries).await.unwrap();
        assert_eq!(supply.gates.lock().unwrap().len(), 1, "gates that nobody waits at are forgotten");
    }

    #[tokio::test]
    async fn a_peer_of_edgeless_1_2_gets_the_code_at_once() {
        let peer = Arc::new(Peer::default());
        let supply = supply(&peer).await;
        for _ in 0..2 {
            supply.start(start(b"code"), false, || {}).await.unwrap();
        }
        assert_eq!((peer.carried.load(Ordering::SeqCst), peer.by_digest.load(Ordering::SeqCst)), (2, 0));
    }

    /// A peer may have dropped the code since: it asks again, and is given it again.
    #[tokio::test]
    async fn a_peer_that_forgets_is_told_again() {
        let peer = Arc::new(Peer { forgets: true, ..Peer::default() });
        let supply = supply(&peer).await;
        for _ in 0..2 {
            supply.start(start(b"code"), true, || {}).await.unwrap();
        }
        assert_eq!(peer.carried.load(Ordering::SeqCst), 2);
    }
}
