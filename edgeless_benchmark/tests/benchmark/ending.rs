//! Whoever has seen enough leaves nothing running.

use std::path::Path;
use std::process::Stdio;

use super::program::{Running, benchmark, signal, wait_for};

/// The children of a process, whichever of its threads started them: id and name.
fn children(pid: u32) -> Vec<(u32, String)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let ids: Vec<u32> =
        lists.flat_map(|list| list.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>()).collect();
    let name = |id| std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default().trim().to_string();
    ids.into_iter().map(|id| (id, name(id))).collect()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn ends_with_all_its_children(command: &str, awaited: &[&str], with: &str, code: i32) {
    let directory = tempfile::tempdir().unwrap();
    let child = benchmark(&[command, "--seconds", "3600"])
        .env("TMPDIR", directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut program = Running(child);
    let pid = program.0.id();
    let daemons: Vec<u32> = wait_for("all daemons", || {
        let children = children(pid);
        let find = |name: &&str| children.iter().find(|(_, child)| child == name).map(|(id, _)| *id);
        awaited.iter().map(find).collect()
    });
    signal(pid, with);
    let status = wait_for("its end", || program.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(code));
    for daemon in daemons {
        assert!(is_gone(daemon), "{command} left {daemon} behind");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "files are left behind");
}

#[test]
fn an_interrupted_http_leaves_no_node() {
    ends_with_all_its_children("http", &["edgeless_node_d"], "-INT", 130);
}

#[test]
fn a_terminated_start_leaves_no_daemon() {
    ends_with_all_its_children("start", &["edgeless_con_d", "edgeless_orc_d", "edgeless_node_d"], "-TERM", 143);
}
