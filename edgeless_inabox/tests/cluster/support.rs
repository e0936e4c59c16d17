//! What the tests of the whole platform share.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::workflow::{Function, Resource, Workflow};
use edgeless_api::{FunctionClass, Url};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: waited until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// A function that passes casts on to `out` and answers calls with their payload.
pub fn relay_module() -> Bytes {
    wat::parse_str(
        r#"(module
            (import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "out")
            (global $top (mut i32) (i32.const 1024))
            (func (export "edgeless_mem_alloc") (param $len i32) (result i32)
                (local $at i32)
                (local.set $at (global.get $top))
                (global.set $top (i32.add (global.get $top) (local.get $len)))
                (local.get $at))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear") (global.set $top (i32.const 1024)))
            (func (export "handle_init_asm") (param i32 i32 i32 i32))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))
            (func (export "handle_call_asm")
                (param i32 i32) (param $payload i32) (param $len i32) (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (local.get $payload))
                (i32.store (local.get $out_len) (local.get $len))
                (i32.const 1))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap()
    .into()
}

pub fn function(name: &str, module: &Bytes, outputs: &[(&str, &str)], annotations: &[(&str, &str)]) -> Function {
    Function {
        name: name.to_string(),
        class: FunctionClass {
            id: "test".to_string(),
            function_type: "RUST_WASM".to_string(),
            version: "0.1".to_string(),
            binary: module.clone().into(),
            code: String::new(),
            outputs: vec!["out".to_string()],
        },
        outputs: map(outputs),
        annotations: map(annotations),
    }
}

pub fn resource(name: &str, class: &str, outputs: &[(&str, &str)], configuration: &[(&str, &str)]) -> Resource {
    Resource {
        name: name.to_string(),
        class_type: class.to_string(),
        outputs: map(outputs),
        configuration: map(configuration),
    }
}

pub fn workflow(functions: Vec<Function>, resources: Vec<Resource>) -> Workflow {
    Workflow::new(functions, resources, BTreeMap::new()).unwrap()
}

/// What monitoring is told, with status line and headers.
pub async fn get(url: &Url, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect((url.host(), url.port())).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", url.host());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

/// The lines of a file that may not be there yet.
pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_string).collect()
}

/// Says that a test is skipped, which is a failure if what it needs is required.
pub fn skip(what: &str, test: &str, why: &str) {
    let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == what), "{what} is required: {why}");
    // Not by a macro, whose output would be captured.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {what}: {test}: {why}").unwrap();
}

/// The target of static executables for this machine, as all are that are built for containers.
pub fn musl() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}
