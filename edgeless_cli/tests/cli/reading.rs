//! The commands that read: `workflow list`, `inspect` and `logs`, `component limits`, `domain`, `node`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fixture::{Controller, Folder, Follow, NODE, Served, id};

/// A controller that runs one workflow.
pub(crate) fn cluster() -> (Arc<Controller>, Served, Folder) {
    let controller = Controller::new();
    let served = Served::controller(&controller);
    let folder = Folder::for_controller(&served);
    assert_eq!(folder.run("workflow start workflow.json").code, 0);
    (controller, served, folder)
}

pub(crate) fn component(n: u32) -> String {
    format!("00000000-0000-0000-0000-{n:012x}")
}

/// What was asked for and where it is: all that EDGELESS 1.2 prints.
fn parts() -> String {
    format!(
        "* function counter\n\
         run-time RUST_WASM class count version 0.1 code Some(\"count.wasm\")\n\
         OUT out -> log\n\
         F_ANN init-payload -> two\\nlines\n\
         * resource log\n\
         class file-log\n\
         CONF filename -> count.log\n\
         * mapping\n\
         MAP counter -> domain-1 [logical ID {}]\n\
         MAP log -> domain-1 [logical ID {}]\n",
        component(1),
        component(2)
    )
}

fn status() -> String {
    format!(
        "* status\n\
         STATE counter -> failed [epoch 1, restarts 3, handled 5, dropped 2]\n\
         REASON counter -> trap: out of bounds\n    0: count!handle_cast\n\
         INSTANCE counter -> running on {NODE} [instance {}, handled 4, queued 1, host edge-1]\n\
         INSTANCE counter -> running on {NODE} [instance {}, handled 4, queued 1, host edge-1]\n\
         SENT counter count -> 7 [handled 5, queued 1, MailboxFull 1]\n\
         LOG counter -> 1970-01-01T00:00:01.000000Z INFO count: hello\n\
         LOG counter -> 1970-01-01T00:00:02.000000Z ERROR count: trap\n    0: count!handle_cast\n\
         STATE log -> running on {NODE} [instance {}, epoch 1, restarts 0, handled 5, dropped 0]\n\
         LIMIT log cpu -> 0.5 [kernel 0.5]\n\
         LIMIT log memory -> 128MiB [kernel ]\n\
         USE log -> cpu 1.500 s [memory 7340032, processes 3, received 1000, sent 20]\n",
        component(0x11),
        component(0x21),
        component(0x12)
    )
}

#[test]
fn workflows_are_listed_one_on_a_line() {
    let (_controller, _served, folder) = cluster();
    folder.run("workflow start workflow.json");
    folder.run("workflow list").prints(&format!("{}\n{}\n", id(1), id(2)));
    folder.run("workflow list --output json").prints(&format!("[\n  \"{}\",\n  \"{}\"\n]\n", id(1), id(2)));
    folder.run("workflow stop all");
    folder.run("workflow list").prints("");
    folder.run("workflow list --output json").prints("[]\n");
}

#[test]
fn a_workflow_is_shown_with_its_parts_and_how_they_fare() {
    let (controller, _served, folder) = cluster();
    let id = id(1);
    folder.run(&format!("workflow inspect {id}")).prints(&format!("{}{}", parts(), status()));
    folder.run("workflow inspect all").prints(&format!("** workflow {id}\n{}{}", parts(), status()));
    controller.is_old.store(true, Ordering::Relaxed);
    folder.run(&format!("workflow inspect {id}")).prints(&parts());
}

#[test]
fn a_workflow_that_is_unknown_is_an_error() {
    let (_controller, _served, folder) = cluster();
    let error = format!("error: there is no workflow {}\n", id(9));
    folder.run(&format!("workflow inspect {}", id(9))).fails(1, &error);
    folder.run(&format!("workflow logs {}", id(9))).fails(1, &error);
}

#[test]
fn a_workflow_is_shown_as_json() {
    let (_controller, _served, folder) = cluster();
    let shown = folder.run(&format!("workflow inspect {} --output json", id(1)));
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let line = |time: &str, level: &str, message: &str| serde_json::json!({"time": time, "level": level, "component": "counter", "target": "count", "message": message});
    let instance = |n: u32| serde_json::json!({"instance": {"node": NODE, "function": component(n)}, "hostname": "edge-1", "state": "running", "handled": 4, "queued": 1});
    let expected = serde_json::json!({
        "workflow": id(1),
        "functions": [{
            "name": "counter",
            "class_specification": {
                "id": "count", "function_type": "RUST_WASM", "version": "0.1", "code": "count.wasm", "outputs": ["out"],
            },
            "output_mapping": {"out": "log"},
            "annotations": {"init-payload": "two\nlines"},
        }],
        "resources": [{
            "name": "log",
            "class_type": "file-log",
            "output_mapping": {},
            "configurations": {"filename": "count.log"},
        }],
        "annotations": {},
        "mapping": [
            {"name": "counter", "domain": "domain-1", "component": component(1)},
            {"name": "log", "domain": "domain-1", "component": component(2)},
        ],
        "components": [
            {
                "name": "counter", "component": component(1), "state": "failed", "instance": null,
                "epoch": 1, "restarts": 3, "handled": 5, "dropped": 2,
                "reason": "trap: out of bounds\n0: count!handle_cast",
                "outputs": [{
                    "output": "count", "produced": 7, "handled": 5, "queued": 1, "in_flight": 0, "delayed": 0,
                    "expired": 0, "dropped": {"MailboxFull": 1}, "unknown": 0, "handed_over": 0,
                }],
                "log": [
                    line("1970-01-01T00:00:01.000000Z", "INFO", "hello"),
                    line("1970-01-01T00:00:02.000000Z", "ERROR", "trap\n0: count!handle_cast"),
                ],
                "limits": [], "usage": null,
                "instances": [instance(0x11), instance(0x21)],
            },
            {
                "name": "log", "component": component(2), "state": "running",
                "instance": {"node": NODE, "function": component(0x12)},
                "epoch": 1, "restarts": 0, "handled": 5, "dropped": 0, "reason": "", "outputs": [], "log": [],
                "limits": [
                    {"name": "cpu", "asked": "0.5", "kernel": "0.5"},
                    {"name": "memory", "asked": "128MiB", "kernel": ""},
                ],
                "instances": [instance(0x12)],
                "usage": {"cpu_seconds": 1.5, "memory": 7 << 20, "processes": 3, "received": 1000, "sent": 20},
            },
        ],
    });
    assert_eq!(shown, expected);
    let all = folder.run("workflow inspect all --output json").stdout;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&all).unwrap(), serde_json::json!([expected]));
}

fn unoffered(served: &Served) -> String {
    format!("{} answers, but is not what was expected there: an EDGELESS controller that offers this", served.url)
}

const FIRST: &str = "1970-01-01T00:00:01.000000Z INFO counter count: hello\n";
const SECOND: &str = "1970-01-01T00:00:02.000000Z ERROR counter count: trap\n    0: f\\u{1b}[2J\n";

#[test]
fn logs_are_lines_that_cannot_command_a_terminal() {
    let (controller, served, folder) = cluster();
    let id = id(1);
    folder.run(&format!("workflow logs {id}")).prints(&format!("{FIRST}{SECOND}"));
    folder.run(&format!("workflow logs {id} counter")).prints(&format!("{FIRST}{SECOND}"));
    folder.run(&format!("workflow logs {id} nobody")).fails(1, "error: there is no component 'nobody'\n");
    folder.run(&format!("workflow logs {id} --output json")).prints(
        "{\"time\":\"1970-01-01T00:00:01.000000Z\",\"level\":\"INFO\",\"component\":\"counter\",\"target\":\"count\",\
         \"message\":\"hello\"}\n\
         {\"time\":\"1970-01-01T00:00:02.000000Z\",\"level\":\"ERROR\",\"component\":\"counter\",\"target\":\"count\",\
         \"message\":\"trap\\n0: f\\u001b[2J\"}\n",
    );
    controller.is_old.store(true, Ordering::Relaxed);
    let ended = folder.run(&format!("workflow logs {id}"));
    ended.fails(1, &format!("error: no log: {}\n", unoffered(&served)));
}

#[test]
fn logs_are_followed_until_ctrl_c() {
    let (_controller, _served, folder) = cluster();
    let mut command = folder.program(["workflow", "logs", "-f", &id(1).to_string()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    while seen.len() < FIRST.len() + SECOND.len() {
        lines.read_line(&mut seen).unwrap();
    }
    assert_eq!(seen, format!("{FIRST}{SECOND}"));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(130), &b""[..]));
}

#[test]
fn a_log_that_is_followed_ends_with_its_workflow_or_with_an_error() {
    let (controller, _served, folder) = cluster();
    let follow = format!("workflow logs -f {}", id(1));
    let lines = format!("{FIRST}{SECOND}");
    *controller.follow.lock().unwrap() = Follow::Closed;
    folder.run(&follow).is(3, &lines, "error: the log ends here although the workflow runs: follow it again\n");
    *controller.follow.lock().unwrap() = Follow::Stopped;
    folder.run(&follow).prints(&lines);
}

#[test]
fn limits_are_changed_and_shown_as_a_table() {
    let (controller, _served, folder) = cluster();
    let limits = format!("component limits {}", component(1));
    folder.run(&limits).prints("LIMIT  ASKED  KERNEL\n");
    let table = "LIMIT   ASKED   KERNEL\ncpu     0.5     0.5\nmemory  128MiB  -\n";
    folder.run(&format!("{limits} cpu=0.5 memory=128MiB")).prints(table);
    folder.run(&limits).prints(table);
    folder.run(&format!("component limits {}/counter", id(1))).prints(table);
    let json: serde_json::Value = serde_json::from_str(&folder.run(&format!("{limits} --output json")).stdout).unwrap();
    let expected = serde_json::json!({
        "component": component(1),
        "limits": [
            {"name": "cpu", "asked": "0.5", "kernel": "0.5"},
            {"name": "memory", "asked": "128MiB", "kernel": ""},
        ],
    });
    assert_eq!(json, expected);
    folder.run(&format!("{limits} cpu=a=b")).prints(&table.replace("0.5     0.5", "a=b     a=b"));
    let kept: Vec<_> = controller.limits.lock().unwrap().clone().into_iter().collect();
    assert_eq!(kept, [("cpu".into(), "a=b".into()), ("memory".into(), "128MiB".into())]);
}

#[test]
fn limits_that_cannot_be_changed_are_an_error_that_says_why() {
    let (controller, _served, folder) = cluster();
    let limits = format!("component limits {}", component(1));
    folder
        .run(&format!("component limits {}", component(2)))
        .fails(1, "error: 'log' is a resource of class file-log: only containers have limits that can be changed\n");
    let unknown = format!("error: there is no component {}\n", component(9));
    folder.run(&format!("component limits {}", component(9))).fails(1, &unknown);
    let unknown = format!("error: there is no component 'nobody' in {}; there are: log, counter\n", id(1));
    folder.run(&format!("component limits {}/nobody", id(1))).fails(1, &unknown);
    folder
        .run(&format!("component limits {}/counter", id(9)))
        .fails(1, &format!("error: there is no workflow {}\n", id(9)));
    controller.refuse("'cpu' is 0: ask for more than that");
    folder.run(&format!("{limits} cpu=0")).fails(1, "error: 'cpu' is 0: ask for more than that\n");
    *controller.refusal.lock().unwrap() = Some(edgeless_api::Error::unavailable("domain d: cannot reach http://a:1"));
    folder.run(&limits).fails(3, "error: domain d: cannot reach http://a:1\n");
    for wrong in ["component limits x", "component limits", &format!("{limits} cpu"), &format!("{limits} =1")] {
        let ended = folder.run(wrong);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{wrong}: {}", ended.stderr);
    }
}

const DOMAIN_1: &str = "domain domain-1,1 nodes, 2 CPUs (8 cores) with 2048 MiB, labels [gpu, hostname=edge-1], num TEE 0, \
     num TPM 0, runtimes [RUST_WASM], resources classes [file-log, redis] providers [file-log-1, redis-1], \
     disk space 0 MiB, 0 GPUs with 0 MiB\n";
const DOMAIN_2: &str = "domain domain-2,0 nodes, 0 CPUs (0 cores) with 0 MiB, labels [], num TEE 0, num TPM 0, \
     runtimes [], resources classes [] providers [], disk space 0 MiB, 0 GPUs with 0 MiB\n";

#[test]
fn domains_are_listed_and_shown() {
    let (controller, _served, folder) = cluster();
    folder.run("domain list").prints("domain domain-1 (1 nodes)\ndomain domain-2 (0 nodes)\n");
    folder.run("domain inspect domain-1").prints(DOMAIN_1);
    folder.run("domain inspect all").prints(&format!("{DOMAIN_1}{DOMAIN_2}"));
    folder
        .run("domain inspect domain-9")
        .fails(1, "error: domain domain-9 not found: `edgeless_cli domain list` shows all\n");
    folder.run("domain inspect away").fails(3, "error: the domain away is out of reach: connection refused\n");
    controller.is_empty.store(true, Ordering::Relaxed);
    folder.run("domain list").prints("");
}

#[test]
fn domains_are_shown_as_json() {
    let (_controller, _served, folder) = cluster();
    let domain = serde_json::json!({
        "domain": "domain-1", "num_nodes": 1, "num_cpus": 2, "num_cores": 8, "mem_size": 2048,
        "labels": ["gpu", "hostname=edge-1"], "num_tee": 0, "num_tpm": 0, "runtimes": ["RUST_WASM"],
        "resource_classes": ["file-log", "redis"], "resource_providers": ["file-log-1", "redis-1"],
        "disk_tot_space": 0, "num_gpus": 0, "mem_size_gpu": 0,
    });
    let json = |args: &str| serde_json::from_str::<serde_json::Value>(&folder.run(args).stdout).unwrap();
    assert_eq!(json("domain inspect domain-1 --output json"), domain);
    assert_eq!(json("domain inspect all --output json")[0], domain);
    assert_eq!(json("domain list --output json")[0], domain);
}

#[test]
fn nodes_are_a_table() {
    let (controller, served, folder) = cluster();
    let header = "NODE                                  HOSTNAME  DOMAIN    RUNTIMES   PROVIDERS            COMPONENTS  \
                  PLACEMENT  CPUS  MEMORY/MiB  AGENT\n";
    let first = format!(
        "{}  edge-1    domain-1  RUST_WASM  file-log-1, redis-1  2           open       8     2048        http://10.0.0.1:7021\n",
        component(0xa)
    );
    let second = format!(
        "{}  -         domain-2  -          -                    2           open       0     0           http://10.0.0.1:7021\n",
        component(0xb)
    );
    folder.run("node list").prints(&format!("{header}{first}{second}"));
    folder.run("node list domain-1").prints(&format!("{header}{first}"));
    folder.run("node list domain-9").prints("");
    let json: serde_json::Value = serde_json::from_str(&folder.run("node list --output json").stdout).unwrap();
    assert_eq!(json[0]["node"], component(0xa));
    assert_eq!(json[0]["providers"][1]["class_type"], "redis");
    assert_eq!(json[1]["agent_url"], "http://10.0.0.1:7021");
    controller.is_old.store(true, Ordering::Relaxed);
    folder.run("node list").fails(1, &format!("error: no list of nodes: {}\n", unoffered(&served)));
}
