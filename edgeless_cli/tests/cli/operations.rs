//! What operators do: `node inspect`, `cordon`, `uncordon` and `drain`, `component move` and `why`, `plan`.

use std::sync::atomic::Ordering;

use crate::fixture::{Controller, Folder, Served, id};
use crate::reading::{cluster, component};

fn done(controller: &Controller) -> Vec<String> {
    controller.done.lock().unwrap().clone()
}

#[test]
fn a_node_is_named_by_its_id_or_by_its_host_name() {
    let (controller, _served, folder) = cluster();
    let (first, second) = (component(0xa), component(0xb));
    folder.run("node cordon edge-1").prints(&format!("node {first} cordoned\n"));
    folder.run(&format!("node uncordon {second}")).prints(&format!("node {second} uncordoned\n"));
    assert_eq!(done(&controller), [format!("cordon {first} true"), format!("cordon {second} false")]);
    folder.run("node cordon edge-9").fails(1, "error: there is no node edge-9: `edgeless_cli node list` shows all\n");
}

#[test]
fn a_node_that_is_gone_is_uncordoned_or_forgotten_by_its_id() {
    let (controller, _served, folder) = cluster();
    let (there, gone) = (component(0xa), component(0xc));
    folder.run(&format!("node uncordon {gone}")).prints(&format!("node {gone} uncordoned\n"));
    folder.run(&format!("node forget {gone}")).prints(&format!("node {gone} forgotten\n"));
    assert_eq!(done(&controller), [format!("cordon {gone} false"), format!("forget {gone}")]);
    folder.run(&format!("node forget {there}")).fails(1, &format!("error: node {there} is there: stop it first\n"));
    assert_eq!(folder.run("node forget edge-1").code, 2, "a host name is not enough");
}

#[test]
fn a_node_is_shown_with_what_runs_there() {
    let (_controller, _served, folder) = cluster();
    let shown = folder.run("node inspect edge-1");
    let first = component(0xa);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert!(
        shown.stdout.starts_with(&format!("node {first} (edge-1) in domain-1\n8 CPUs, 2048 MiB")),
        "{}",
        shown.stdout
    );
    assert!(shown.stdout.contains("counter  ") && shown.stdout.contains("out of bounds"), "{}", shown.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&folder.run("node inspect edge-1 --output json").stdout).unwrap();
    assert_eq!(json["node"]["cordoned"], false);
    assert_eq!(json["runs"][0]["name"], "log");
}

#[test]
fn a_drain_ends_when_the_node_is_empty_or_says_what_stays() {
    let (_controller, _served, folder) = cluster();
    let (first, second) = (component(0xa), component(0xb));
    let emptied = folder.run(&format!("node drain {second}"));
    assert_eq!((emptied.code, emptied.stdout), (0, format!("node {second} is empty\n")));
    assert_eq!(emptied.stderr, "'counter' moved (1 of 2)\n'log' moved (2 of 2)\n");
    folder.run("node drain edge-1").fails(
        1,
        &format!(
            "'counter' moved (1 of 2)\nerror: 'log': no node for 'log': 0 of 1 nodes offer file-log\n\
             error: node {first} is cordoned and not empty: 'log' left\n"
        ),
    );
}

#[test]
fn a_component_moves_to_a_node() {
    let (controller, _served, folder) = cluster();
    let (node, moved) = (component(0xa), component(1));
    let shown = folder.run(&format!("component move {}/counter edge-1", id(1)));
    assert_eq!((shown.code, shown.stdout), (0, format!("component {moved} moved to node {node}\n")));
    assert_eq!(done(&controller), [format!("move {moved} {node}")]);
    *controller.refusal.lock().unwrap() = Some(edgeless_api::Error::rejected("node edge-1 does not run RUST_WASM"));
    let refused = folder.run(&format!("component move {moved} {node}"));
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.ends_with("error: node edge-1 does not run RUST_WASM\n"), "{}", refused.stderr);
}

#[test]
fn a_decision_is_explained_node_by_node() {
    let (_controller, _served, folder) = cluster();
    let (first, second) = (component(0xa), component(0xb));
    folder.run(&format!("component why {}/counter", id(1))).prints(&format!(
        "'counter' [least loaded]: runs on edge-1\n\
         decided 1m 1s ago:\n\
         NODE                                  HOSTNAME  VERDICT   WHY\n\
         {first}  edge-1    chosen    load 0.10\n\
         {second}  -         excluded  it does not run RUST_WASM\n"
    ));
    let json = folder.run(&format!("component why {} --output json", component(1))).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["component"], &json["decided_s_ago"]), (&component(1).into(), &61.into()));
    assert_eq!(json["nodes"][1]["verdict"], "excluded");
}

#[test]
fn a_plan_says_what_would_move() {
    let (_controller, _served, folder) = cluster();
    let second = component(0xb);
    folder.run("plan --lose edge-1").prints(&format!(
        "NAME     COMPONENT                             WOULD RUN ON                          HOSTNAME  WHY NOT\n\
         counter  {}  {second}  edge-2    -\n\
         log      {}  -                                     -         no node for 'log': 0 of 1 nodes offer file-log\n",
        component(1),
        component(2)
    ));
    folder.run(&format!("plan --lose {second}")).prints("");
    folder
        .run("plan --add-workflow workflow.json")
        .prints(&folder.run("workflow start --dry-run workflow.json").stdout);
    assert_eq!(folder.run("plan").code, 2);
    assert_eq!(folder.run("plan --lose edge-1 --add-workflow workflow.json").code, 2);
}

#[test]
fn a_controller_that_cannot_do_it_says_so() {
    let (controller, _served, folder): (_, Served, Folder) = cluster();
    controller.is_old.store(true, Ordering::Relaxed);
    let refused = folder.run("node drain edge-1");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.starts_with("error: no list of nodes: "), "{}", refused.stderr);
}
