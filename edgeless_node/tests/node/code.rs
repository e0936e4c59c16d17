//! Code by its digest, and compiled modules that outlive the node.

use std::path::PathBuf;

use bytes::Bytes;
use edgeless_api::component::{ComponentKind, ComponentSpec, FunctionClass};
use edgeless_api::{Binary, Code, Digest, Error, InstanceId};
use futures_util::future::join_all;

use super::guest_abi::{CALL, CAST, INIT, STOP, module};
use super::support::{TestNode, context, function, wait_until};

/// A module whose content is its own.
pub(crate) fn code(number: u32) -> Bytes {
    module("", &format!("(global i32 (i32.const {number})) {INIT} {CAST} {CALL} {STOP}")).into()
}

async fn start(node: &TestNode, binary: Binary) -> Result<InstanceId, Error> {
    let ComponentSpec::Function(mut spec) = function(b"", &[]) else { panic!("it is a function") };
    spec.class = FunctionClass { binary, ..spec.class };
    node.create(ComponentSpec::Function(spec), context("f")).await
}

/// A new process of the node, in which nothing goes on.
async fn restart_empty(node: TestNode, running: &[InstanceId]) -> TestNode {
    for id in running {
        node.stop(ComponentKind::Function, *id).await;
    }
    node.restart().await
}

/// How often a step of a start was taken.
async fn count(node: &TestNode, step: &str) -> u64 {
    let labels = format!("{{node_id=\"{}\",function_class=\"test\",step=\"{step}\"}}", node.id());
    node.metric(&format!("function_start_times_count{labels}")).await
}

/// What is kept of the function, beside the module that all guests are entered by.
fn kept(node: &TestNode) -> Vec<PathBuf> {
    let digest = Digest::of(&code(1)).to_string();
    let is_of_function = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(&digest) && name.ends_with(".module")
    };
    let files = std::fs::read_dir(node.directory.path().join("cache")).into_iter().flatten();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(is_of_function).collect()
}

async fn until_kept(node: &TestNode, count: usize) {
    wait_until("what was compiled is kept", || async { kept(node).len() == count }).await;
}

#[tokio::test]
async fn code_that_is_not_known_is_asked_for_and_kept() {
    let node = TestNode::start().await;
    let binary = Binary::from(code(1));
    let error = start(&node, binary.without_bytes()).await.unwrap_err();
    assert!(error.code == Code::NeedsCode && error.message.contains(&binary.digest().to_string()), "{error}");
    let first = start(&node, binary.clone()).await.unwrap();
    let second = start(&node, binary.without_bytes()).await.unwrap();
    assert_ne!(first, second);
    assert_eq!((count(&node, "Compile").await, count(&node, "Load").await), (1, 0));
    assert_eq!((count(&node, "Instantiate").await, count(&node, "Init").await), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_first_starts_compile_once() {
    let node = TestNode::start().await;
    let starts = (0..8).map(|_| start(&node, code(1).into()));
    assert!(join_all(starts).await.iter().all(Result::is_ok));
    assert_eq!(count(&node, "Compile").await, 1);
}

#[tokio::test]
async fn a_node_that_starts_again_needs_neither_code_nor_compiler() {
    let node = TestNode::start().await;
    let binary = Binary::from(code(1));
    let id = start(&node, binary.clone()).await.unwrap();
    until_kept(&node, 1).await;
    let node = restart_empty(node, &[id]).await;
    for _ in 0..2 {
        start(&node, binary.without_bytes()).await.unwrap();
    }
    assert_eq!((count(&node, "Compile").await, count(&node, "Load").await), (0, 1), "from the disk, and once");
}

#[tokio::test]
async fn a_damaged_entry_is_compiled_again() {
    let node = TestNode::start().await;
    let binary = Binary::from(code(1));
    let id = start(&node, binary.clone()).await.unwrap();
    until_kept(&node, 1).await;
    let node = restart_empty(node, &[id]).await;
    let entry = kept(&node).remove(0);
    let mut bytes = std::fs::read(&entry).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&entry, bytes).unwrap();
    assert_eq!(start(&node, binary.without_bytes()).await.unwrap_err().code, Code::NeedsCode);
    let id = start(&node, binary.clone()).await.unwrap();
    assert_eq!((count(&node, "Compile").await, count(&node, "Load").await), (1, 0));
    until_kept(&node, 1).await;
    let node = restart_empty(node, &[id]).await;
    start(&node, binary.without_bytes()).await.unwrap();
}

/// What was compiled with other settings would run wrongly, or not at all.
#[tokio::test]
async fn an_entry_of_another_compiler_is_ignored() {
    let node = TestNode::start().await;
    let binary = Binary::from(code(1));
    let id = start(&node, binary.clone()).await.unwrap();
    until_kept(&node, 1).await;
    let node = restart_empty(node, &[id]).await;
    let own = kept(&node).remove(0);
    let name = own.file_name().unwrap().to_str().unwrap();
    let (digest, compiler) = name.strip_suffix(".module").unwrap().split_once('-').unwrap();
    assert_eq!((digest, compiler.len()), (binary.digest().to_string().as_str(), 16));
    let others = own.with_file_name(format!("{digest}-{}.module", "0".repeat(16)));
    std::fs::rename(&own, &others).unwrap();
    assert_eq!(start(&node, binary.without_bytes()).await.unwrap_err().code, Code::NeedsCode);
    start(&node, binary).await.unwrap();
    until_kept(&node, 2).await;
}

#[tokio::test]
async fn without_a_cache_nothing_is_written() {
    let node = TestNode::with(&[("cache_directory", "\"\"")]).await;
    let binary = Binary::from(code(1));
    let first = start(&node, binary.clone()).await.unwrap();
    let second = start(&node, binary.without_bytes()).await.unwrap();
    let node = restart_empty(node, &[first, second]).await;
    assert_eq!(start(&node, binary.without_bytes()).await.unwrap_err().code, Code::NeedsCode);
    assert!(!node.directory.path().join("cache").exists());
}

/// A disk that fails costs time and nothing else.
#[tokio::test]
async fn a_cache_that_cannot_be_written_harms_nobody() {
    let node = TestNode::with(&[("cache_directory", "\"/proc/nowhere\"")]).await;
    let binary = Binary::from(code(1));
    start(&node, binary.clone()).await.unwrap();
    start(&node, binary.without_bytes()).await.unwrap();
    assert_eq!(count(&node, "Compile").await, 1);
}
