//! A node that is alone: what it ran goes on before anybody else is there, and is left alone when they come.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::guide::configure;
use super::programs::{Program, cli};
use super::support::{lines, repository, wait_until};

/// A counter behind the ingress that writes each count down.
fn flow(wasm: &str) -> String {
    format!(
        r#"{{
            "functions": [{{
                "name": "counter",
                "class_specification": {{
                    "id": "counter", "function_type": "RUST_WASM", "version": "0.1", "code": "{wasm}",
                    "outputs": ["output"]
                }},
                "output_mapping": {{ "output": "log" }}, "annotations": {{}}
            }}],
            "resources": [
                {{ "name": "log", "class_type": "file-log", "output_mapping": {{}},
                   "configurations": {{ "filename": "counted.log" }} }},
                {{ "name": "ingress", "class_type": "http-ingress", "output_mapping": {{ "new_request": "counter" }},
                   "configurations": {{ "host": "counter.local" }} }}
            ],
            "annotations": {{}}
        }}"#
    )
}

/// What the ingress says to a request. The reply of the counter is no HTTP response.
fn request(port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}");
    let output = Command::new("curl").args(["-sS", "-i", "-H", "Host: counter.local", &url]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where everything runs, as which instance, in which epoch.
fn places(directory: &Path, workflow: &str) -> Vec<String> {
    let shown = cli(directory, &["workflow", "inspect", workflow]);
    let places = shown.lines().filter(|line| line.starts_with("MAP") || line.starts_with("STATE"));
    // What follows are counts.
    places.map(|line| line.split(", handled").next().unwrap_or_default().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_alone_serves_what_it_ran_and_is_left_alone_later() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let ports = configure(directory);
    let mut controller = Program::start("edgeless_con_d", directory, &[]);
    let mut orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    let mut node = Program::start("edgeless_node_d", directory, &[]);
    let counter = repository().join("functions/counter");
    cli(directory, &["function", "build", counter.join("function.json").to_str().unwrap()]);
    std::fs::write(directory.join("workflow.json"), flow(counter.join("counter.wasm").to_str().unwrap())).unwrap();
    wait_until("the node is known", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    let uuid = cli(directory, &["workflow", "start", "workflow.json"]).trim().to_string();
    let counted = directory.join("counted.log");
    let answer = request(ports.ingress);
    request(ports.ingress);
    wait_until("both are counted", || async { lines(&counted) == ["1", "2"] }).await;
    let before = places(directory, &uuid);
    assert!(before.iter().filter(|line| line.contains("instance")).count() >= 3, "{before:?}");

    for daemon in [&mut node, &mut orchestrator, &mut controller] {
        daemon.kill();
    }
    // What it compiled is lost, too.
    std::fs::remove_dir_all(directory.join("function_cache")).unwrap();
    let node = Program::start("edgeless_node_d", directory, &[]);
    let ready = Instant::now();
    assert_eq!(request(ports.ingress).lines().next(), answer.lines().next(), "it answers as before");
    assert!(ready.elapsed() < Duration::from_secs(5), "in time: {:?}", ready.elapsed());
    wait_until("it goes on from what was saved", || async { lines(&counted) == ["1", "2", "3"] }).await;

    let orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    let controller = Program::start("edgeless_con_d", directory, &[]);
    wait_until("the domain is back", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    wait_until("all is as it was", || async { places(directory, &uuid) == before }).await;
    request(ports.ingress);
    wait_until("it counts on", || async { lines(&counted) == ["1", "2", "3", "4"] }).await;
    assert_eq!(places(directory, &uuid), before, "the same instances");
    cli(directory, &["workflow", "stop", &uuid]);
    node.says("function stopped");
    for daemon in [node, orchestrator, controller] {
        assert_eq!(daemon.interrupt(), Some(0));
    }
}
