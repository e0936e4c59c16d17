//! What an orchestrator is told of single measurements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::node::{Performance, Phase, Registered, Registration};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::{Error, Limits};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::guest_abi::{CALL, INIT, STOP, module};
use super::support::{PATIENCE, TestNode};

/// An orchestrator that is away every other time, and passes on what it is told at the others.
struct Forgetful {
    told: mpsc::Sender<Performance>,
    is_away: AtomicBool,
}

#[async_trait]
impl NodeRegistry for Forgetful {
    async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        if self.is_away.fetch_xor(true, Ordering::Relaxed) {
            return Err(Error::unavailable("away"));
        }
        self.told.send(node.performance).await.map_err(Error::bug)?;
        Ok(Registered::new(None))
    }

    async fn wake(&self, _: Vec<edgeless_api::ComponentId>) -> Result<(), Error> {
        Err(Error::unimplemented("not played here"))
    }

    async fn locate(&self, _: edgeless_api::NodeId) -> Result<Option<edgeless_api::Url>, Error> {
        Err(Error::unimplemented("not played here"))
    }
}

/// Logs "out" to the target "out" for each cast.
fn logger() -> Vec<u8> {
    const LOG: &str = r#"(import "env" "telemetry_log_asm" (func $log (param i32 i32 i32 i32 i32)))"#;
    module(
        LOG,
        &format!(
            r#"(data (i32.const 0) "out") {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (call $log (i32.const 3) (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3)))"#
        ),
    )
}

async fn node(lines: &str) -> (TestNode, mpsc::Receiver<Performance>) {
    let (listener, url) = edgeless_daemon::listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (told, performances) = mpsc::channel(64);
    let registry = Arc::new(Forgetful { told, is_away: AtomicBool::new(true) });
    let server = Server::new(Limits::default(), CancellationToken::new()).node_registry(registry);
    tokio::spawn(server.serve(listener));
    let last = format!("\"1s\"\n{lines}");
    let values =
        [("orchestrator_url", &*format!("\"{url}\"\nsubscription_refresh_interval_sec = 1")), ("grace", &*last)];
    (TestNode::with(&values).await, performances)
}

#[tokio::test]
async fn each_measurement_and_each_line_is_told_once() {
    let (node, mut performances) = node("[telemetry]\nperformance_samples = true").await;
    let before = SystemTime::now();
    let id = node.start_module(&logger(), &[]).await.unwrap();
    for _ in 0..3 {
        node.cast(id, "x").await;
    }
    let (mut counts, mut lines) = (BTreeMap::<Phase, usize>::new(), Vec::new());
    let mut is_stopped = false;
    let expected =
        [(Phase::Instantiate, 1), (Phase::Init, 1), (Phase::Execution, 3), (Phase::Stop, 1), (Phase::Transfer, 3)];
    while counts != BTreeMap::from(expected) {
        let told = tokio::time::timeout(PATIENCE, performances.recv()).await.unwrap_or_else(|_| {
            panic!("not all was told: {counts:?}");
        });
        for sample in told.as_ref().unwrap().samples.iter().filter(|sample| sample.instance == id.function) {
            assert!(sample.at >= before && (0.0..20.0).contains(&sample.seconds), "{sample:?}");
            *counts.entry(sample.phase).or_default() += 1;
        }
        lines.extend(told.unwrap().entries);
        // What is in the mailbox by then would be dropped.
        if counts.get(&Phase::Execution) == Some(&3) && !std::mem::replace(&mut is_stopped, true) {
            node.stop(Function, id).await;
        }
    }
    let said: Vec<(Uuid, &str, &str)> =
        lines.iter().map(|line| (line.instance, line.target.as_str(), line.message.as_str())).collect();
    assert_eq!(said, [(id.function, "out", "out"); 3]);
}

#[tokio::test]
async fn nothing_is_told_unless_it_is_wanted() {
    let (node, mut performances) = node("").await;
    let id = node.start_module(&logger(), &[]).await.unwrap();
    node.cast(id, "x").await;
    for _ in 0..2 {
        let told = tokio::time::timeout(PATIENCE, performances.recv()).await.unwrap().unwrap();
        assert_eq!(told, Performance::default());
    }
}
