//! `workflow start`, `stop` and `migrate`; `function invoke`.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use edgeless_api::InstanceId;
use edgeless_api::event::Kind;
use uuid::Uuid;

use super::fixture::{Controller, Ended, Folder, NODE, Node, Served, id, nobody, wait_until, workflow_but};

fn cluster() -> (Arc<Controller>, Served, Folder) {
    let controller = Controller::new();
    let served = Served::controller(&controller);
    let folder = Folder::for_controller(&served);
    (controller, served, folder)
}

#[test]
fn a_start_prints_the_id_and_nothing_else() {
    let (controller, _served, folder) = cluster();
    folder.run("workflow start workflow.json").prints(&format!("{}\n", id(1)));
    let started = controller.started();
    let class = &started[0].functions()[0].class;
    assert_eq!(class.binary, b"\0asm\x01\0\0\0".to_vec().into(), "the code travels with the workflow");
    assert_eq!(class.code, "count.wasm");
    assert!(controller.requests.lock().unwrap()[0].is_some(), "a repeat can be told from a second start");
}

#[test]
fn the_wasm_file_is_found_from_any_folder() {
    let (_controller, _served, folder) = cluster();
    let path = folder.path("workflow.json");
    let mut elsewhere = folder.program(["workflow", "start", path.to_str().unwrap(), "-c"]);
    elsewhere.arg(folder.path("cli.toml")).current_dir("/");
    Ended::of(elsewhere).prints(&format!("{}\n", id(1)));
}

#[test]
fn a_refused_start_leaves_stdout_empty() {
    let (controller, _served, folder) = cluster();
    controller.refuse("counter: no node runs RUST_WASM: start edgeless_node_d");
    folder
        .run("workflow start workflow.json")
        .fails(1, "error: workflow.json is refused: counter: no node runs RUST_WASM: start edgeless_node_d\n");
}

#[test]
fn a_start_whose_answer_is_lost_happens_once() {
    let (controller, _served, folder) = cluster();
    controller.losses.store(2, Ordering::Relaxed);
    folder.run("workflow start workflow.json").is(0, &format!("{}\n", id(1)), "waiting: the answer is lost\n");
    let requests = controller.requests.lock().unwrap();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
    assert_eq!(controller.started().len(), 1);
}

/// As when the platform is just coming up.
#[test]
fn a_start_waits_for_a_domain_that_is_not_ready_yet() {
    let (controller, _served, folder) = cluster();
    controller.unready.store(3, Ordering::Relaxed);
    let begun = Instant::now();
    let ended = folder.run("workflow start workflow.json");
    ended.is(0, &format!("{}\n", id(1)), "waiting: no orchestration domain is ready\n");
    assert!(begun.elapsed() > Duration::from_secs(1), "the attempts were over in {:?}", begun.elapsed());
    let requests = controller.requests.lock().unwrap();
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
}

#[test]
fn a_start_does_not_wait_for_ever() {
    let (controller, _served, folder) = cluster();
    controller.unready.store(u32::MAX, Ordering::Relaxed);
    let ended = folder.run("workflow start workflow.json");
    let reason = "no orchestration domain is ready\n";
    ended.fails(3, &format!("waiting: {reason}error: {reason}"));
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn an_interrupted_start_leaves_nothing_behind() {
    let (controller, _served, folder) = cluster();
    controller.is_held.store(true, Ordering::Relaxed);
    let mut command = folder.program(["workflow", "start", "workflow.json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the workflow runs", || !controller.started().is_empty());
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(130), "interrupted: the workflow was stopped\n"));
    assert!(output.stdout.is_empty() && controller.started().is_empty());
    let requests = controller.requests.lock().unwrap();
    assert!(requests.len() == 2 && requests[0] == requests[1], "{requests:?}");
}

/// It would start the workflow a second time.
#[test]
fn an_interrupted_start_does_not_ask_a_controller_of_edgeless_1_2_again() {
    let (controller, _served, folder) = cluster();
    controller.is_held.store(true, Ordering::Relaxed);
    controller.is_old.store(true, Ordering::Relaxed);
    let mut command = folder.program(["workflow", "start", "workflow.json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the workflow runs", || !controller.started().is_empty());
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "interrupted: the workflow may still start: see `edgeless_cli workflow list`\n"
    );
    assert_eq!(controller.requests.lock().unwrap().len(), 1);
}

#[test]
fn an_id_that_cannot_be_written_is_in_the_error() {
    let (_controller, _served, folder) = cluster();
    let mut command = folder.program(["workflow", "start", "workflow.json"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = format!("error: the workflow {} runs, but its id cannot be written: no space left on device\n", id(1));
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), said));
}

/// It forgets request ids: a repeat would start the workflow a second time.
#[test]
fn a_controller_of_edgeless_1_2_is_not_asked_twice() {
    let (controller, _served, folder) = cluster();
    controller.losses.store(1, Ordering::Relaxed);
    controller.is_old.store(true, Ordering::Relaxed);
    let ended = folder.run("workflow start workflow.json");
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""));
    assert!(ended.stderr.contains("the answer is lost"), "{}", ended.stderr);
    assert_eq!(controller.requests.lock().unwrap().len(), 1);
}

#[test]
fn bad_workflow_files_are_refused_before_anything_is_sent() {
    let (controller, _served, folder) = cluster();
    let folder = folder.with("text.wasm", "hello");
    std::fs::File::create(folder.path("large.wasm")).unwrap().set_len((64 << 20) + 1).unwrap();
    let resource_to = |target: &str| format!(r#""class_type": "file-log", "output_mapping": {target}"#);
    for (text, expected) in [
        ("workflow".to_string(), "bad.json:1:1: this is not JSON: expected value"),
        (workflow_but("\"resources\": [", "\"resources\": ]"), "bad.json:16:18: this is not JSON: expected value"),
        (
            workflow_but("                \"version\": \"0.1\",\n", ""),
            "bad.json:10:13: functions[0].class_specification: missing field 'version'",
        ),
        (workflow_but("    \"annotations\": {}\n}", "    \"x\": {}\n}"), "bad.json:25:1: missing field 'annotations'"),
        (
            workflow_but("\"version\": \"0.1\"", "\"version\": 0.1"),
            "bad.json:8:30: functions[0].class_specification.version: invalid type: floating point '0.1', expected a string",
        ),
        (
            workflow_but("{ \"out\": \"log\" }", "{ \"out\": [\"log\"] }"),
            "bad.json:12:39: functions[0].output_mapping.out: invalid type: sequence, expected a string",
        ),
        (
            workflow_but("{ \"out\": \"log\" }", "{ \"out\": \"log\", \"out\": \"counter\" }"),
            "bad.json:12:64: functions[0].output_mapping: the key 'out' is repeated",
        ),
        (
            workflow_but("count.wasm", "none.wasm"),
            "bad.json: functions[0].class_specification.code: there is no file 'none.wasm': the path is relative to the \
             folder of the workflow file",
        ),
        (
            workflow_but("count.wasm", "text.wasm"),
            "bad.json: functions[0].class_specification.code: this is not a WebAssembly module: it does not begin with \
             \\0asm",
        ),
        (
            workflow_but("count.wasm", "large.wasm"),
            "bad.json: functions[0].class_specification.code: 'large.wasm' has 67108865 bytes: 67043328 are the limit for \
             all code of a workflow",
        ),
        (
            workflow_but("\"out\": \"log\"", "\"out\": \"logg\""),
            "bad.json: functions[0].output_mapping.out: 'logg' is not a component of this workflow; there are: counter, \
             log",
        ),
        (
            workflow_but(
                "\"class_type\": \"file-log\",\n            \"output_mapping\": {}",
                &resource_to("{\"new\": \"x\"}"),
            ),
            "bad.json: resources[0].output_mapping.new: 'x' is not a component of this workflow; there are: counter, log",
        ),
        (
            workflow_but("\"name\": \"log\"", "\"name\": \"counter\"").replace("{ \"out\": \"log\" }", "{}"),
            "bad.json: resources[0].name: the name 'counter' is taken: give each component its own",
        ),
        (
            "{\"functions\": [], \"resources\": [], \"annotations\": {}}".to_string(),
            "bad.json: functions: the workflow has no component: name a function or a resource",
        ),
    ] {
        folder.write("bad.json", &text);
        folder.run("workflow start bad.json").fails(2, &format!("error: {expected}\n"));
        folder.run("workflow start --dry-run bad.json").fails(2, &format!("error: {expected}\n"));
    }
    folder.run("workflow start none.json").fails(2, "error: cannot read none.json: no such file or directory\n");
    assert!(controller.requests.lock().unwrap().is_empty(), "something was sent");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let (_controller, _served, folder) = cluster();
    let text = workflow_but("count.wasm", "none.wasm").replace("\"out\": \"log\"", "\"out\": \"logg\"");
    let folder = folder.with("bad.json", text);
    folder.run("workflow start bad.json").fails(
        2,
        "error: bad.json: functions[0].class_specification.code: there is no file 'none.wasm': the path is relative to \
         the folder of the workflow file\n\
         error: bad.json: functions[0].output_mapping.out: 'logg' is not a component of this workflow; there are: \
         counter, log\n",
    );
}

#[test]
fn a_missing_module_is_told_with_the_command_that_makes_it() {
    let (_controller, _served, folder) = cluster();
    let folder = folder
        .with("examples/workflow.json", workflow_but("count.wasm", "../functions/count/count.wasm"))
        .with("functions/count/function.json", "{}");
    folder.run("workflow start examples/workflow.json").fails(
        2,
        "error: examples/workflow.json: functions[0].class_specification.code: there is no file \
         '../functions/count/count.wasm': `edgeless_cli function build functions/count/function.json` makes it\n",
    );
    let container = workflow_but("count.wasm", "archive:../functions/count/count.tar");
    folder.write("examples/workflow.json", container.replacen("RUST_WASM", "CONTAINER", 1));
    folder.run("workflow start examples/workflow.json").fails(
        2,
        "error: examples/workflow.json: functions[0].class_specification.code: there is no file \
         '../functions/count/count.tar': `edgeless_cli function build --container functions/count/function.json` makes it\n",
    );
}

#[test]
fn what_is_doubtful_is_a_warning_and_strict_refuses_it() {
    let (controller, _served, folder) = cluster();
    let text = workflow_but("\"outputs\": [\"out\"]", "\"outputs\": [], \"output\": [\"out\"]");
    let folder = folder.with("odd.json", text);
    let key = "odd.json: functions[0].class_specification.output: this key has no meaning\n";
    let channel = "odd.json: functions[0].output_mapping.out: the class 'count' does not list the output 'out'\n";
    folder.run("workflow start --strict odd.json").fails(2, &format!("error: {key}error: {channel}"));
    assert!(controller.requests.lock().unwrap().is_empty());
    let warnings = format!("warning: {key}warning: {channel}");
    folder.run("workflow start odd.json").is(0, &format!("{}\n", id(1)), &warnings);
    assert_eq!(controller.started()[0].functions()[0].outputs["out"], "log", "it is wired all the same");
}

#[test]
fn an_annotation_that_nobody_knows_is_a_warning_and_strict_refuses_it() {
    let (_controller, _served, folder) = cluster();
    let folder = folder.with("odd.json", workflow_but("\"init-payload\"", "\"node_id_mach_any\""));
    let told = "odd.json: functions[0].annotations: the annotation 'node_id_mach_any' has no effect; there are: \
                init-payload, state, node_id_match_any, label_match_all, label_match_any, resource_match_all, tee, \
                tpm, spread, cpu, memory, min_instances, max_instances, partition_by, delivery, delivery:<output>, \
                input_delivery\n";
    folder.run("workflow start --strict odd.json").fails(2, &format!("error: {told}"));
    folder.run("workflow start odd.json").is(0, &format!("{}\n", id(1)), &format!("warning: {told}"));
}

#[test]
fn a_dry_run_says_where_everything_would_go_and_starts_nothing() {
    let (controller, _served, folder) = cluster();
    folder.run("workflow start --dry-run workflow.json").prints(&format!(
        "COMPONENT  DOMAIN    NODE                                  HOSTNAME\n\
         counter    domain-1  {NODE}  edge-1\n\
         log        domain-1  {NODE}  edge-1\n"
    ));
    let place = |name: &str| {
        format!(
            "  {{\n    \"component\": \"{name}\",\n    \"domain\": \"domain-1\",\n    \"node\": \"{NODE}\",\n    \
             \"hostname\": \"edge-1\"\n  }}"
        )
    };
    let json = format!("[\n{},\n{}\n]\n", place("counter"), place("log"));
    folder.run("workflow start --dry-run workflow.json --output json").prints(&json);
    controller.refuse("counter: no node runs RUST_WASM");
    let refused = "error: workflow.json is refused: counter: no node runs RUST_WASM\n";
    folder.run("workflow start --dry-run workflow.json").fails(1, refused);
    assert!(controller.requests.lock().unwrap().is_empty());
}

#[test]
fn workflows_are_stopped_one_by_one_or_all() {
    let (controller, _served, folder) = cluster();
    for _ in 0..3 {
        folder.run("workflow start workflow.json");
    }
    folder.run(&format!("workflow stop {}", id(2))).prints(&format!("Workflow {} stopped\n", id(2)));
    let unknown = format!("error: there is no workflow {}: `edgeless_cli workflow list` shows all\n", id(2));
    folder.run(&format!("workflow stop {}", id(2))).fails(1, &unknown);

    controller.refuse("not now");
    let (first, third) = (id(1), id(3));
    folder.run("workflow stop all").fails(
        1,
        &format!("error: workflow {first} is not stopped: not now\nerror: workflow {third} is not stopped: not now\n"),
    );
    *controller.refusal.lock().unwrap() = None;
    folder.run("workflow stop all").prints(&format!("Workflow {first} stopped\nWorkflow {third} stopped\n"));
    folder.run("workflow stop all").prints("");
}

#[test]
fn a_migration_tells_its_outcome() {
    let (controller, _served, folder) = cluster();
    folder.run("workflow start workflow.json");
    let id = id(1);
    folder
        .run(&format!("workflow migrate {id} domain-2"))
        .prints(&format!("migration of {id} to domain-2 successful\n"));
    folder
        .run(&format!("workflow migrate-component {id} domain-2 counter"))
        .prints(&format!("migration of counter of {id} to domain-2 successful\n"));
    controller.refuse("no such domain");
    folder
        .run(&format!("workflow migrate {id} domain-9"))
        .fails(1, &format!("error: migration of {id} to domain-9 failed: no such domain\n"));
}

#[test]
fn an_event_is_cast_to_an_instance() {
    let node = Arc::new(Node::default());
    let served = Served::node(&node);
    let folder = Folder::new();
    let function = Uuid::from_u128(7);
    let url = &served.url;
    folder.run(&format!("function invoke cast {url} {NODE} {function} hello")).prints("event casted\n");
    let events = node.events.lock().unwrap().clone();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, Kind::Cast("hello".into()));
    assert_eq!((events[0].source, events[0].target), (InstanceId::NONE, InstanceId { node: NODE, function }));

    folder
        .run(&format!("function invoke cast {url} {function} {function} hello"))
        .fails(1, "error: the event is for another node\n");
    let url = nobody();
    folder.run(&format!("function invoke cast {url} {NODE} {function} hello")).fails(
        3,
        &format!(
            "error: cannot reach {url}: connection refused; is edgeless_node_d running? its invocation_url is needed \
             here\n"
        ),
    );
}

#[test]
fn an_event_for_what_is_no_node_says_so() {
    let (_controller, served, folder) = cluster();
    let (url, function) = (&served.url, Uuid::from_u128(7));
    folder.run(&format!("function invoke cast {url} {NODE} {function} hello")).fails(
        1,
        &format!("error: {url} answers, but is not what was expected there: an EDGELESS node that offers this\n"),
    );
}

/// Scripts read the id through `$(…)`, which must not wait for anything else.
#[test]
fn a_start_needs_no_input() {
    let (_controller, _served, folder) = cluster();
    let mut command = folder.program(["workflow", "start", "workflow.json"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, format!("{}\n", id(1)).into_bytes());
}
