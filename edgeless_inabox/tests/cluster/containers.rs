//! Functions that are made with our SDK, in containers, on the whole platform: as a user would have them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::programs::{cli, free_port, program, run};
use super::support::{musl, repository, wait_until};
use super::world::{Ended, World};

/// The image of an example function, as an archive.
pub fn build(function: &str) -> PathBuf {
    // The first one takes its time: all that a function needs is compiled.
    let output = Command::new(program("edgeless_cli"))
        .args(["function", "build", "--container"])
        .arg(repository().join("functions").join(function))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl World {
    /// Starts a workflow of one function behind the ingress, which writes each count down; its id.
    fn start_counter(&self, class: &str, annotations: &str) -> Result<String, String> {
        let text = format!(
            r#"{{"functions": [{{"name": "counter", "class_specification": {class},
                "output_mapping": {{"output": "log"}}, "annotations": {annotations}}}],
            "resources": [{{"name": "log", "class_type": "file-log", "output_mapping": {{}},
                "configurations": {{"filename": "counted.log"}}}}, {{"name": "ingress", "class_type": "http-ingress",
                "output_mapping": {{"new_request": "counter"}}, "configurations": {{"host": "counter.local"}}}}],
            "annotations": {{}}}}"#
        );
        std::fs::write(self.path().join("workflow.json"), text).unwrap();
        let output = run("edgeless_cli", self.path(), &["workflow", "start", "--strict", "workflow.json"]);
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_string()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    fn inspect(&self, workflow: &str) -> String {
        cli(self.path(), &["workflow", "inspect", workflow])
    }

    /// An asynchronous request: one event to the counter.
    fn request(&self) -> String {
        let output = Command::new("curl").args(["-sS", "-H", "Host: counter.local", &self.ingress]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn class(archive: &Path, code: &str) -> String {
    let code = if code.is_empty() { format!("archive:{}", archive.display()) } else { code.to_string() };
    format!(
        r#"{{"id": "counter", "function_type": "CONTAINER", "version": "0.1", "code": "{code}", "outputs": ["output"]}}"#
    )
}

fn containers(name: &str, node: &str) -> Vec<String> {
    let output = Command::new("docker")
        .args(["ps", "-q", "--no-trunc", "--filter", &format!("label=org.edgeless.name={name}")])
        .args(["--filter", &format!("label=org.edgeless.node={node}")])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect()
}

/// The node that a component runs on, by what inspect says.
fn node_of(inspected: &str) -> String {
    let line = inspected.lines().find(|line| line.starts_with("STATE counter -> running on ")).expect(inspected);
    line.split(' ').nth(5).unwrap().to_string()
}

/// How many events the counter has counted, over all its containers.
fn counted(world: &World) -> Option<u64> {
    std::fs::read_to_string(world.path().join("counted.log")).ok()?.lines().last()?.parse().ok()
}

/// Waits until it has counted so many, and no more.
async fn counts(world: &World, expected: u64) {
    wait_until(&format!("it has counted {expected}"), || async { counted(world) >= Some(expected) }).await;
    assert_eq!(counted(world), Some(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_without_a_network_keeps_its_state_over_the_end_of_its_container() {
    let Some(world) = World::with_containers_of_ours(
        "a_function_without_a_network_keeps_its_state_over_the_end_of_its_container",
        "",
    ) else {
        return;
    };
    let archive = build("counter");
    let id = world.start_counter(&class(&archive, ""), r#"{"network": "none", "memory": "64MiB"}"#).unwrap();
    let inspected = world.inspect(&id);
    let node = node_of(&inspected);
    assert!(inspected.contains("LIMIT counter memory -> 64MiB [kernel 64MiB]"), "{inspected}");
    assert!(inspected.contains("USE counter -> cpu "), "{inspected}");
    // The counter's reply is no HTTP response, which is what the ingress says; the request counts.
    world.request();
    world.request();
    counts(&world, 2).await;
    let before = containers("counter", &node);
    let limits = cli(world.path(), &["component", "limits", &format!("{id}/counter"), "memory=32MiB", "cpu=0.5"]);
    assert!(
        limits.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == ["memory", "32MiB", "32MiB"]),
        "{limits}"
    );

    assert!(Command::new("docker").args(["kill", &before[0]]).stdout(Stdio::null()).status().unwrap().success());
    wait_until("it is replaced", || async { world.inspect(&id).contains("restarts 1,") }).await;
    world.request();
    // It goes on where it was.
    counts(&world, 3).await;
    let inspected = world.inspect(&id);
    assert!(inspected.contains("LIMIT counter memory -> 32MiB [kernel 32MiB]"), "{inspected}");
    assert!(inspected.contains("REASON counter -> the container was killed"), "{inspected}");
    let after = containers("counter", &node);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    cli(world.path(), &["workflow", "stop", &id]);
    assert_eq!(containers("counter", &node), Vec::<String>::new());
}

/// The reason of a start that fails gets to the user, with what the container said.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_a_container_reach_who_started_it() {
    let Some(world) =
        World::with_containers_of_ours("the_last_words_of_a_container_reach_who_started_it", "start_timeout = \"2s\"")
    else {
        return;
    };
    let archive = build("counter");
    let error = world.start_counter(&class(&archive, ""), r#"{"env:EDGELESS_HOST_SOCKET": "/nowhere"}"#).unwrap_err();
    assert!(error.contains("counter") && error.contains("it did not come to its node's socket in time"), "{error}");
    assert!(error.contains("it said last:"), "{error}");
    let error = world.start_counter(&class(&archive, ""), r#"{"cpu": "lots"}"#).unwrap_err();
    assert!(error.contains("annotation 'cpu': 'lots' is not a number of cores, such as 0.5"), "{error}");
    let error = world.start_counter(&class(&archive, "container:nowhere.invalid/f:1"), "{}").unwrap_err();
    assert!(error.contains("the image nowhere.invalid/f:1 is not there and cannot be pulled"), "{error}");
}

/// A program of our SDK that runs already shows the token that it was given, and gets its events over a stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_sdk_is_attached_with_its_token() {
    let Some(world) = World::with_containers_of_ours("a_process_of_the_sdk_is_attached_with_its_token", "") else {
        return;
    };
    let archive = build("counter");
    let port = free_port();
    let executable = repository().join("functions/target").join(musl()).join("release/counter");
    let spawn = || {
        let child = Command::new(&executable).env("EDGELESS_PORT", port.to_string()).stderr(Stdio::null()).spawn();
        Ended(child.unwrap())
    };
    let code = format!("grpc:http://127.0.0.1:{port}");
    let process = spawn();
    wait_until("it listens", || async { std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() }).await;
    let id = world.start_counter(&class(&archive, &code), "{}").unwrap();
    world.request();
    counts(&world, 1).await;
    drop(process);
    let _process = spawn();
    wait_until("it counts again", || async {
        world.request();
        counted(&world).is_some_and(|count| count >= 2)
    })
    .await;
    cli(world.path(), &["workflow", "stop", &id]);
}

/// A platform that was killed finds its containers again: the workflow comes back to the process that it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_taken_over_by_the_workflow_that_it_was_of() {
    let test = "a_container_is_taken_over_by_the_workflow_that_it_was_of";
    let Some(mut world) = World::with_containers_of_ours(test, "") else { return };
    let archive = build("counter");
    let id = world.start_counter(&class(&archive, ""), "{}").unwrap();
    let node = node_of(&world.inspect(&id));
    let before = containers("counter", &node);
    assert_eq!(before.len(), 1);
    world.kill();
    world.run();
    wait_until("it runs again", || async { world.inspect(&id).contains("STATE counter -> running on") }).await;
    assert_eq!(containers("counter", &node), before);
    cli(world.path(), &["workflow", "stop", &id]);
    assert_eq!(world.interrupt(), Some(0));
    assert_eq!(containers("counter", &node), Vec::<String>::new());
}

/// A node that was killed finds its containers again, and removes them if nobody comes for them.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_left_alone_by_a_platform_that_only_stops() {
    let Some(mut world) = World::with_containers_of_ours(
        "what_runs_is_left_alone_by_a_platform_that_only_stops",
        "adopt_within = \"500ms\"",
    ) else {
        return;
    };
    let archive = build("counter");
    let id = world.start_counter(&class(&archive, ""), "{}").unwrap();
    let node = node_of(&world.inspect(&id));
    assert_eq!(containers("counter", &node).len(), 1);
    // As a power cut: nobody removes anything.
    world.kill();
    assert_eq!(containers("counter", &node).len(), 1);
    // A controller without its file knows nothing of the workflow, so that nobody takes it over.
    std::fs::remove_dir_all(world.path().join("edgeless_con_state")).unwrap();
    world.run();
    wait_until("nothing is left behind", || async { containers("counter", &node).is_empty() }).await;
    let id = world.start_counter(&class(&archive, ""), "{}").unwrap();
    assert_eq!(containers("counter", &node).len(), 1);
    // Ctrl-C takes everything along.
    assert_eq!(world.interrupt(), Some(0), "{id}");
    assert_eq!(containers("counter", &node), Vec::<String>::new());
}

/// What runs when a component stops, runs: also the stop handler of a guest whose node speaks to it over a stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_its_stop_handler_run() {
    let Some(world) = World::with_containers_of_ours("a_container_has_its_stop_handler_run", "") else { return };
    let archive = build("noop");
    let text = format!(
        r#"{{"functions": [{{"name": "noop", "class_specification": {{"id": "noop", "function_type": "CONTAINER",
            "version": "0.1", "code": "archive:{}", "outputs": []}}, "output_mapping": {{}}, "annotations": {{}}}}],
        "resources": [], "annotations": {{}}}}"#,
        archive.display()
    );
    std::fs::write(world.path().join("workflow.json"), text).unwrap();
    let id = cli(world.path(), &["workflow", "start", "workflow.json"]).trim().to_string();
    cli(world.path(), &["workflow", "stop", &id]);
    world.says("Noop stopped");
}
