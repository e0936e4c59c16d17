//! The deployment guide, step by step, with the real programs on free ports.

use std::path::Path;

use super::programs::{Program, cli, free_port, program, run, template};
use super::support::{lines, repository, wait_until};

pub(super) struct Ports {
    controller: u16,
    orchestrator: u16,
    pub(super) ingress: u16,
}

/// The folders of the guide: the programs' templates and relative paths are those of `target/debug`.
pub(super) fn configure(directory: &Path) -> Ports {
    let ports = Ports { controller: free_port(), orchestrator: free_port(), ingress: free_port() };
    template("edgeless_con_d", directory, "controller.toml", &[(7001, ports.controller), (7011, ports.orchestrator)]);
    template("edgeless_orc_d", directory, "orchestrator.toml", &[(7011, ports.orchestrator)]);
    node(directory, "node.toml", &ports, ports.ingress);
    template("edgeless_cli", directory, "cli.toml", &[(7001, ports.controller)]);
    ports
}

fn node(directory: &Path, file: &str, ports: &Ports, ingress: u16) {
    let own = [(7021, free_port()), (7002, free_port()), (7003, free_port()), (7035, ingress)];
    template("edgeless_node_d", directory, file, &[own.as_slice(), &[(7011, ports.orchestrator)]].concat());
}

#[test]
fn the_guide_runs_word_for_word() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let noop = repository().join("functions/noop");
    // What needs no controller needs no cli.toml either.
    let built = cli(directory, &["function", "build", noop.join("function.json").to_str().unwrap()]);
    assert!(built.trim().ends_with("noop.wasm") && noop.join("noop.wasm").is_file(), "{built}");

    let ports = configure(directory);
    let controller = Program::start("edgeless_con_d", directory, &[]);
    controller.says(&format!("Starting Edgeless Controller at http://127.0.0.1:{}", ports.controller));
    let orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    orchestrator.says(&format!("Starting Edgeless Orchestrator at http://127.0.0.1:{}", ports.orchestrator));
    orchestrator.says("node keep-alive enabled every 2 seconds");
    orchestrator.says("Orchestration logic strategy: random");
    orchestrator.says(&format!("Start OrchestratorAPIServer GRPC Server at http://127.0.0.1:{}", ports.orchestrator));

    let node = Program::start("edgeless_node_d", directory, &[]);
    node.says("Starting Edgeless Node");
    node.says("Start InvocationAPI GRPC Server at http://127.0.0.1:");
    node.says(&format!("Creating resource 'http-ingress-1' at http://127.0.0.1:{}", ports.ingress));
    for provider in ["http-egress-1", "file-log-1", "redis-1"] {
        node.says(&format!("Creating resource '{provider}'"));
    }
    node.says("Starting Edgeless Runner");
    node.says("Starting Edgeless Agent");
    node.says("Start AgentAPI GRPC Server at http://127.0.0.1:");
    let text = std::fs::read_to_string(directory.join("node.toml")).unwrap();
    let id = text.lines().find_map(|line| line.strip_prefix("node_id = \"")).unwrap().trim_end_matches('"');
    let e_orc = format!("http://127.0.0.1:{}", ports.orchestrator);
    node.says(&format!("Registering this node '{id}' on e-ORC {e_orc}, capabilities: "));
    node.says(&format!("this node '{id}' registered to e-ORC '{e_orc}'"));
    for (provider, class, outputs) in [
        ("http-ingress-1", "http-ingress", "[new_request]"),
        ("http-egress-1", "http-egress", "[]"),
        ("file-log-1", "file-log", "[]"),
        ("redis-1", "redis", "[]"),
    ] {
        let said = format!("node {id}: provider_id {provider}, class_type {class}, outputs {outputs}");
        orchestrator.says(&format!("new resource advertised by {said}"));
    }
    orchestrator.says(&format!("added function instance client: node_id {id}, agent URL http://127.0.0.1:"));

    let example = repository().join("examples/noop/workflow.json");
    // The controller hears of the node a moment after the orchestrator does.
    let patience = std::time::Instant::now() + super::support::PATIENCE;
    while !cli(directory, &["domain", "list"]).contains("(1 nodes)") {
        assert!(std::time::Instant::now() < patience, "the domain has no node");
    }
    let uuid = cli(directory, &["workflow", "start", example.to_str().unwrap()]);
    let uuid = uuid.strip_suffix('\n').unwrap();
    assert_eq!(uuid.len(), 36, "the variable holds the UUID and nothing else: '{uuid}'");
    controller.says(uuid);
    node.says("Noop initialized, payload: nothing interesting");
    assert_eq!(cli(directory, &["workflow", "list"]), format!("{uuid}\n"));
    assert_eq!(cli(directory, &["workflow", "stop", uuid]), format!("Workflow {uuid} stopped\n"));
    node.says("Noop stopped");
    assert_eq!(cli(directory, &["workflow", "list"]), "");

    for program in [node, orchestrator, controller] {
        assert_eq!(program.interrupt(), Some(0), "Ctrl-C ends it cleanly");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_replaced_by_another() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let ports = configure(directory);
    node(directory, "other.toml", &ports, free_port());
    // In another order than the guide's.
    let mut nodes = [
        Program::start("edgeless_node_d", directory, &[]),
        Program::start("edgeless_node_d", directory, &["-c", "other.toml"]),
    ];
    let orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    let _controller = Program::start("edgeless_con_d", directory, &[]);
    let counter = repository().join("functions/message_generator/function.json");
    cli(directory, &["function", "build", counter.to_str().unwrap()]);
    let wasm = repository().join("functions/message_generator/message_generator.wasm");
    let flow = serde_json_text(wasm.to_str().unwrap());
    std::fs::write(directory.join("workflow.json"), flow).unwrap();
    wait_until("both nodes are known", || async { cli(directory, &["domain", "list"]).contains("(2 nodes)") }).await;

    let uuid = cli(directory, &["workflow", "start", "workflow.json"]).trim().to_string();
    let log = directory.join("messages.log");
    wait_until("messages arrive", || async { lines(&log).len() > 3 }).await;
    let placed = cli(directory, &["workflow", "inspect", &uuid]);
    let runs_on = placed.lines().find(|line| line.starts_with("STATE generator")).unwrap().to_string();
    let own = std::fs::read_to_string(directory.join("node.toml")).unwrap();
    let is_first = own
        .lines()
        .any(|line| line.strip_prefix("node_id = \"").is_some_and(|id| runs_on.contains(id.trim_end_matches('"'))));
    nodes[usize::from(!is_first)].kill();
    orchestrator.says("lost");
    let before = lines(&log).len();
    wait_until("messages arrive again", || async { lines(&log).len() > before + 3 }).await;
    let placed = cli(directory, &["workflow", "inspect", &uuid]);
    assert!(placed.contains("STATE generator -> running") && !placed.contains(&runs_on), "{placed}");
    cli(directory, &["workflow", "stop", &uuid]);
}

/// The controller's file need not list a domain whose orchestrator announces itself; such a domain goes on for a
/// controller that was killed and knows it, and starts afresh for one that does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_announces_itself_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let ports = configure(directory);
    std::fs::write(
        directory.join("controller.toml"),
        format!("controller_url = \"http://127.0.0.1:{}\"\n", ports.controller),
    )
    .unwrap();
    let text = std::fs::read_to_string(directory.join("orchestrator.toml")).unwrap();
    let announced = format!("[general]\ndomain_register_url = \"http://127.0.0.1:{}\"", ports.controller);
    std::fs::write(directory.join("orchestrator.toml"), text.replacen("[general]", &announced, 1)).unwrap();
    let _orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    let node = Program::start("edgeless_node_d", directory, &[]);
    let mut controller = Program::start("edgeless_con_d", directory, &[]);
    let noop = repository().join("functions/noop/function.json");
    cli(directory, &["function", "build", noop.to_str().unwrap()]);
    let example = repository().join("examples/noop/workflow.json");
    wait_until("the domain has its node", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    let uuid = cli(directory, &["workflow", "start", example.to_str().unwrap()]);
    assert!(cli(directory, &["workflow", "inspect", uuid.trim()]).contains("STATE noop -> running on"));

    controller.kill();
    let mut controller = Program::start("edgeless_con_d", directory, &[]);
    wait_until("the domain is back", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    assert!(cli(directory, &["workflow", "inspect", uuid.trim()]).contains("STATE noop -> running on"));

    controller.kill();
    std::fs::remove_dir_all(directory.join("edgeless_con_state")).unwrap();
    let _controller = Program::start("edgeless_con_d", directory, &[]);
    node.says("Noop stopped");
    wait_until("the domain is back", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    let uuid = cli(directory, &["workflow", "start", example.to_str().unwrap()]);
    assert_eq!(cli(directory, &["workflow", "list"]), uuid);
}

/// Whichever daemon of the control plane is killed: it goes on with what it had and disturbs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_orchestrator_and_a_killed_controller_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    configure(directory);
    let mut orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    let node = Program::start("edgeless_node_d", directory, &[]);
    let mut controller = Program::start("edgeless_con_d", directory, &[]);
    let function = repository().join("functions/message_generator/function.json");
    cli(directory, &["function", "build", function.to_str().unwrap()]);
    let wasm = repository().join("functions/message_generator/message_generator.wasm");
    std::fs::write(directory.join("workflow.json"), serde_json_text(wasm.to_str().unwrap())).unwrap();
    wait_until("the node is known", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    let uuid = cli(directory, &["workflow", "start", "workflow.json"]).trim().to_string();
    let log = directory.join("messages.log");
    wait_until("messages arrive", || async { !lines(&log).is_empty() }).await;

    let places = || {
        let shown = cli(directory, &["workflow", "inspect", &uuid]);
        let places = shown.lines().filter(|line| line.starts_with("MAP") || line.starts_with("STATE"));
        // What follows are counts.
        places.map(|line| line.split(", handled").next().unwrap_or_default().to_string()).collect::<Vec<_>>()
    };
    let as_it_was = places();
    assert!(as_it_was.len() == 4 && as_it_was[2].contains("instance"), "{as_it_was:?}");
    orchestrator.kill();
    let before = lines(&log).len();
    wait_until("messages arrive without an orchestrator", || async { lines(&log).len() > before + 3 }).await;
    let orchestrator = Program::start("edgeless_orc_d", directory, &[]);
    orchestrator.says("runs component");
    wait_until("the domain is back", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    wait_until("the same instances run", || async { places() == as_it_was }).await;
    let before = lines(&log).len();
    wait_until("messages arrive again", || async { lines(&log).len() > before + 3 }).await;
    controller.kill();
    let before = lines(&log).len();
    wait_until("messages arrive without a controller", || async { lines(&log).len() > before + 3 }).await;
    let _controller = Program::start("edgeless_con_d", directory, &[]);
    wait_until("the domain is back", || async { cli(directory, &["domain", "list"]).contains("(1 nodes)") }).await;
    assert_eq!(cli(directory, &["workflow", "list"]).trim(), uuid);
    assert_eq!(places(), as_it_was, "the same instances");
    cli(directory, &["workflow", "stop", &uuid]);
    node.says("function stopped");
    wait_until("nothing runs any more", || async {
        cli(directory, &["--output", "json", "node", "list"]).contains("\"components\": 0")
    })
    .await;
    assert_eq!(cli(directory, &["workflow", "list"]), "");
    drop(orchestrator);
}

/// A generator and a file, wherever they are placed: both write below the same directory.
fn serde_json_text(wasm: &str) -> String {
    format!(
        r#"{{
            "functions": [{{
                "name": "generator",
                "class_specification": {{
                    "id": "message_generator", "function_type": "RUST_WASM", "version": "0.1",
                    "code": "{wasm}", "outputs": ["message"]
                }},
                "output_mapping": {{ "message": "log" }},
                "annotations": {{ "init-payload": "period_ms=50,message=hello" }}
            }}],
            "resources": [{{
                "name": "log", "class_type": "file-log", "output_mapping": {{}},
                "configurations": {{ "filename": "messages.log" }}
            }}],
            "annotations": {{}}
        }}"#
    )
}

#[test]
fn a_daemon_that_cannot_work_says_why_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for (name, file, main_port) in [
        ("edgeless_con_d", "controller.toml", 7001),
        ("edgeless_orc_d", "orchestrator.toml", 7011),
        ("edgeless_node_d", "node.toml", 7002),
    ] {
        let stderr = |arguments: &[&str]| {
            let output = run(name, directory, arguments);
            assert!(!output.status.success(), "{name} {arguments:?} must fail");
            String::from_utf8(output.stderr).unwrap()
        };
        assert!(stderr(&[]).contains(&format!("-t {file}")), "without a file it says how to get one");
        template(name, directory, file, &[]);
        let again = stderr(&["-t", file]);
        assert!(again.contains("cannot overwrite configuration file: "), "{again}");

        let good = std::fs::read_to_string(directory.join(file)).unwrap();
        std::fs::write(directory.join("bad.toml"), format!("spurious_key = 1\n{good}")).unwrap();
        let unknown = stderr(&["-c", "bad.toml"]);
        assert!(unknown.contains("bad.toml") && unknown.contains("spurious_key"), "{unknown}");

        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let text = good.replace(&format!("127.0.0.1:{main_port}\""), &format!("127.0.0.1:{port}\""));
        std::fs::write(directory.join("taken.toml"), text).unwrap();
        let taken = stderr(&["-c", "taken.toml"]);
        assert!(taken.contains(&format!("cannot listen on http://127.0.0.1:{port}")), "{taken}");

        let version = run(name, directory, &["--version"]);
        assert_eq!(String::from_utf8(version.stdout).unwrap().trim(), format!("{name} {}", env!("CARGO_PKG_VERSION")));
    }
    assert!(program("edgeless_cli").is_file());
}
