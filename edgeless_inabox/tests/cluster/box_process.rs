//! The program `edgeless_inabox`: files, none, and its end.

use super::programs::{Program, cli, free_port, run};

#[test]
fn templates_are_written_once_and_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let written = run("edgeless_inabox", path, &["-t", "-n", "2", "--initial-port", "23000"]);
    assert!(written.status.success());
    let said = String::from_utf8(written.stderr).unwrap();
    assert!(said.ends_with("last port used: 23012\n"), "{said}");
    let again = run("edgeless_inabox", path, &["-t", "-n", "2"]);
    assert!(again.status.success());
    assert!(String::from_utf8(again.stderr).unwrap().contains("node1.toml: exists, kept"));

    // The same files on ports that are free here.
    for name in ["controller.toml", "orchestrator.toml", "node0.toml", "node1.toml", "cli.toml"] {
        assert!(path.join(name).is_file(), "{name}");
    }
    let ports: Vec<(u16, u16)> = (23001..=23012).map(|port| (port, free_port())).collect();
    for name in ["controller.toml", "orchestrator.toml", "node0.toml", "node1.toml", "cli.toml"] {
        let mut text = std::fs::read_to_string(path.join(name)).unwrap();
        for (from, to) in &ports {
            text = text.replace(&format!(":{from}\""), &format!(":{to}\""));
        }
        std::fs::write(path.join(name), text).unwrap();
    }
    let inabox = Program::start("edgeless_inabox", path, &[]);
    inabox.says("2 node(s) with HTTP ingress at");
    assert_eq!(cli(path, &["domain", "list"]), "domain domain-23000 (2 nodes)\n");
    assert_eq!(inabox.interrupt(), Some(0));
}

#[test]
fn a_port_in_use_ends_it_with_the_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(run("edgeless_inabox", path, &["-t", "--initial-port", "24000"]).status.success());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for name in ["controller.toml", "orchestrator.toml", "node.toml"] {
        let mut text = std::fs::read_to_string(path.join(name)).unwrap();
        for from in 24001..=24008 {
            text =
                text.replace(&format!(":{from}\""), &format!(":{}\"", if from == 24005 { port } else { free_port() }));
        }
        std::fs::write(path.join(name), text).unwrap();
    }
    let output = run("edgeless_inabox", path, &[]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("node: cannot listen on http://127.0.0.1:{port}")), "{said}");
}
