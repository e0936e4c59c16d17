//! What a node still knows when its process has ended, however that was.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::StartContext;
use edgeless_api::event::Reply;
use edgeless_api::node::{Registered, Registration, Running};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::status::State;
use edgeless_api::{ComponentId, Error, NodeId, Url};
use edgeless_daemon::{Daemon, listen};
use edgeless_node::{Config, Node};
use tokio_util::sync::CancellationToken;

use super::guest_abi::{STOP, module};
use super::support::{TestNode, config_text, context, function, wait_until};

const SYNC: &str = r#"(import "env" "sync_asm" (func $sync (param i32 i32)))"#;

/// Saves what is cast to it, and 3 MiB for an empty cast; a call is answered with what init was given.
pub(crate) fn keeper() -> Vec<u8> {
    module(
        SYNC,
        &format!(
            r#"{STOP}
            (func (export "handle_init_asm") (param i32 i32) (param $state i32) (param $len i32)
                (i32.store (i32.const 0) (local.get $len))
                (memory.copy (i32.const 16) (local.get $state) (local.get $len)))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (if (local.get $len)
                    (then (call $sync (local.get $payload) (local.get $len)))
                    (else
                        (drop (memory.grow (i32.const 48)))
                        (call $sync (i32.const 0) (i32.const 0x300000)))))
            (func (export "handle_call_asm") (param i32 i32 i32 i32) (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (i32.const 16))
                (i32.store (local.get $out_len) (i32.load (i32.const 0)))
                (i32.const 1))"#
        ),
    )
}

pub(crate) fn said(text: &str) -> Reply {
    Reply::Message(Bytes::copy_from_slice(text.as_bytes()))
}

#[tokio::test]
async fn a_saved_state_outlives_the_node_until_its_component_is_stopped() {
    let node = TestNode::start().await;
    let (spec, first) = (function(&keeper(), &[]), context("keeper"));
    let id = node.create(spec.clone(), first.clone()).await.unwrap();
    node.cast(id, "kept").await;
    node.call(id, "").await;
    let node = node.crash().await;
    let second = StartContext { epoch: 2, ..first.clone() };
    let id = node.create(spec.clone(), second.clone()).await.unwrap();
    assert_eq!(node.call(id, "").await, said("kept"));
    let error = node.create(spec.clone(), first.clone()).await.unwrap_err();
    assert!(error.message.contains("epoch 1 is older than 2"), "{error}");

    // One that ran elsewhere meanwhile brings what it saved there.
    let moved = StartContext { epoch: 3, state: Some("from elsewhere".into()), ..first.clone() };
    node.create(spec.clone(), moved).await.unwrap();
    let node = node.crash().await;
    let id = node.create(spec.clone(), StartContext { epoch: 4, ..first.clone() }).await.unwrap();
    assert_eq!(node.call(id, "").await, said("from elsewhere"));
    let node = node.crash().await;
    let error = node.create(spec.clone(), second).await.unwrap_err();
    assert!(error.message.contains("epoch 2 is older than 4"), "{error}");

    let id = node.create(spec.clone(), StartContext { epoch: 5, ..first.clone() }).await.unwrap();
    node.stop(Function, id).await;
    let node = node.crash().await;
    let id = node.create(spec, StartContext { epoch: 6, ..first }).await.unwrap();
    assert_eq!(node.call(id, "").await, said(""));
}

#[tokio::test]
async fn a_reset_forgets_what_was_saved() {
    let node = TestNode::start().await;
    let (spec, context) = (function(&keeper(), &[]), context("keeper"));
    let id = node.create(spec.clone(), context.clone()).await.unwrap();
    node.cast(id, "kept").await;
    node.call(id, "").await;
    node.management.reset().await.unwrap();
    let id = node.create(spec, context).await.unwrap();
    assert_eq!(node.call(id, "").await, said(""));
}

#[tokio::test]
async fn a_damaged_store_stops_the_node_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let config: Config = edgeless_daemon::config::parse(&config_text(directory.path()), std::iter::empty()).unwrap();
    let file = edgeless_node::records::file(&config.general.state_directory, config.general.node_id);
    std::fs::create_dir(&config.general.state_directory).unwrap();
    std::fs::write(&file, b"no records".repeat(1000)).unwrap();
    let error = Node::start(config).await.err().expect("a damaged store");
    assert!(error.message.contains(&file.display().to_string()), "{error}");
    assert!(error.message.contains("is damaged") && error.message.contains("move the file away"), "{error}");
}

/// A file system of its own, with so little room that it can be full.
struct Disk<'d>(&'d Path);

impl<'d> Disk<'d> {
    fn mount(directory: &'d Path, test: &str) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(directory).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(directory));
        }
        let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "mount"), "cannot mount, and EDGELESS_REQUIRE has mount");
        // Not by a macro, whose output would be captured.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "skipped: mount: {test}: this user cannot mount a file system").unwrap();
        None
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0).output().ok();
    }
}

#[tokio::test]
async fn a_full_disk_fails_what_is_saved_and_not_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let name = "a_full_disk_fails_what_is_saved_and_not_the_node";
    let Some(disk) = Disk::mount(directory.path(), name) else { return };
    let node = TestNode::with(&[("state_directory", &format!("{:?}", directory.path()))]).await;
    let id = node.start_module(&keeper(), &[]).await.unwrap();
    node.cast(id, "before").await;
    // Events are handled one after the other: it is saved by then.
    node.call(id, "").await;
    disk.fill();
    node.cast(id, "").await;
    // It was replaced, and begins with what could be saved.
    wait_until("it runs again", || async {
        let status = node.status(id).await;
        status.state == State::Running && status.restarts == 1
    })
    .await;
    let status = node.status(id).await;
    assert!(status.reason.contains("cannot save the state"), "{}", status.reason);
    assert!(status.reason.contains(".redb"), "{}", status.reason);
    assert_eq!(node.call(id, "").await, said("before"));
    disk.free();
    node.cast(id, "after").await;
    node.call(id, "").await;
    assert_eq!(node.status(id).await.restarts, 1, "it could be saved");
    node.kill().await;
}

/// An orchestrator that asks a node what it runs once it may ask, and hears it.
#[derive(Default)]
struct Curious {
    asks: AtomicBool,
    told: Mutex<Option<Vec<Running>>>,
}

#[async_trait]
impl NodeRegistry for Curious {
    async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        let wants_report = node.reports && node.report.is_none() && self.asks.load(Ordering::SeqCst);
        if node.report.is_some() {
            *self.told.lock().unwrap() = node.report;
        }
        Ok(Registered { wants_report, ..Registered::new(Some(Duration::from_millis(150))) })
    }

    async fn wake(&self, _components: Vec<ComponentId>) -> Result<(), Error> {
        Ok(())
    }

    async fn locate(&self, _node: NodeId) -> Result<Option<Url>, Error> {
        Ok(None)
    }
}

#[tokio::test]
async fn a_node_that_is_asked_tells_all_that_it_runs() {
    let curious = Arc::new(Curious::default());
    let (listener, url) = listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = Server::new(edgeless_api::Limits::default(), CancellationToken::new());
    tokio::spawn(server.node_registry(curious.clone()).serve(listener));
    let node = TestNode::with(&[("orchestrator_url", &format!("\"{url}\""))]).await;
    let contexts = [StartContext { epoch: 7, replica: 3, ..context("one") }, context("other")];
    let mut expected = Vec::new();
    for context in contexts {
        let id = node.create(function(&keeper(), &[]), context.clone()).await.unwrap();
        let StartContext { component, replica, epoch, .. } = context;
        expected.push(Running { component, replica, epoch, instance: id.function, kind: Function, is_active: false });
    }
    node.components.activate(&[expected[0].instance]).await.unwrap();
    expected[0].is_active = true;
    assert_eq!(*curious.told.lock().unwrap(), None, "it was not asked");
    curious.asks.store(true, Ordering::SeqCst);
    wait_until("it tells", || async { curious.told.lock().unwrap().is_some() }).await;
    let mut told = curious.told.lock().unwrap().take().unwrap();
    told.sort_by_key(|running| running.instance);
    expected.sort_by_key(|running| running.instance);
    assert_eq!(told, expected);
}
