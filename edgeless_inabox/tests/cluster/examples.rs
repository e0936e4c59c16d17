//! The examples, run as their READMEs say, with functions that are compiled here.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::programs::{Program, cli, free_port, run};
use super::support::{lines, repository, wait_until};

/// A platform of its own, with the ingress on a free port.
struct World {
    _directory: tempfile::TempDir,
    _inabox: Program,
    path: std::path::PathBuf,
    ingress: String,
}

impl World {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_path_buf();
        assert!(run("edgeless_inabox", &path, &["-t", "--initial-port", "22000"]).status.success());
        let ports: Vec<(u16, u16)> = (22001..=22008).map(|port| (port, free_port())).collect();
        let mut ingress = String::new();
        for name in ["controller.toml", "orchestrator.toml", "node.toml", "cli.toml"] {
            let mut text = std::fs::read_to_string(path.join(name)).unwrap();
            for (from, to) in &ports {
                text = text.replace(&format!(":{from}\""), &format!(":{to}\""));
            }
            if let Some(line) = text.lines().find(|line| line.starts_with("http_ingress_url")) {
                ingress = line.split('"').nth(1).unwrap().to_string();
            }
            std::fs::write(path.join(name), text).unwrap();
        }
        let inabox = Program::start("edgeless_inabox", &path, &[]);
        inabox.says("ready");
        Self { _directory: directory, _inabox: inabox, path, ingress }
    }

    /// Builds what an example needs and starts it.
    fn run_example(&self, name: &str) -> String {
        let workflow = repository().join("examples").join(name).join("workflow.json");
        let text = std::fs::read_to_string(&workflow).unwrap();
        for function in text.split("functions/").skip(1).filter_map(|part| part.split('/').next()) {
            self.build(function);
        }
        cli(&self.path, &["workflow", "start", "--strict", workflow.to_str().unwrap()]).trim().to_string()
    }

    fn build(&self, function: &str) {
        let file = repository().join("functions").join(function).join("function.json");
        cli(&self.path, &["function", "build", file.to_str().unwrap()]);
    }

    fn file(&self, name: &str) -> Vec<String> {
        lines(&self.path.join(name))
    }
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").arg("-sS").args(arguments).output().expect("curl is installed");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_ingress_answers_and_logs() {
    let world = World::start();
    let id = world.run_example("http_ingress");
    let host = "Host: demo.edgeless.local";
    let url = format!("{}/greet?name=Ada", world.ingress);
    assert_eq!(curl(&["-H", host, &url]), "Hello, Ada!\n");
    wait_until("the request is in the file", || async { !world.file("http_hello.log").is_empty() }).await;
    let log = world.file("http_hello.log");
    assert!(log[0].ends_with("GET demo.edgeless.local/greet?name=Ada -> 200"), "{log:?}");
    let status = |arguments: &[&str]| curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], arguments].concat());
    assert_eq!(status(&[&url]), "404", "another host");
    cli(&world.path, &["workflow", "stop", &id]);
    assert_eq!(status(&["-H", host, &url]), "404", "nobody is there any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipeline_gives_the_numbers_of_its_readme() {
    let world = World::start();
    world.run_example("pipeline");
    let expected = ["4", "5", "6", "8", "10", "12", "14", "16", "18"];
    wait_until("all averages are logged", || async { world.file("averages.log").len() >= expected.len() }).await;
    assert_eq!(world.file("averages.log"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_log_and_ping_pong_and_noop_run() {
    let world = World::start();
    let noop = world.run_example("noop");
    let ping = world.run_example("ping_pong");
    world.run_example("file_log");
    let file = repository().join("examples/file_log/workflow.json");
    let text = std::fs::read_to_string(file).unwrap();
    let name = text.split("\"filename\": \"").nth(1).unwrap().split('"').next().unwrap().to_string();
    wait_until("messages are in the file", || async { world.file(&name).len() >= 2 }).await;
    wait_until("ping was answered", || async {
        cli(&world.path, &["workflow", "logs", &ping, "ping"]).contains("ping 1 was answered: pong 1")
    })
    .await;
    assert!(cli(&world.path, &["workflow", "logs", &noop]).contains("Noop initialized"));
    let mut list: Vec<_> = cli(&world.path, &["workflow", "list"]).lines().map(str::to_string).collect();
    list.sort();
    assert_eq!(list.len(), 3);
    let stopped = cli(&world.path, &["workflow", "stop", "all"]);
    assert_eq!(stopped.lines().count(), 3);
    assert_eq!(cli(&world.path, &["workflow", "list"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_known_by_what_inspect_says() {
    let world = World::start();
    let id = world.run_example("http_ingress");
    let text = cli(&world.path, &["workflow", "inspect", &id]);
    for line in ["* function hello", "OUT log -> log", "CONF host -> demo.edgeless.local", "STATE hello -> running on "]
    {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let json = cli(&world.path, &["--output", "json", "workflow", "inspect", &id]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json.to_string().contains("\"state\":\"running\""), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_the_count() {
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "redis"), "redis-server is required and not installed");
        // Not by a macro, whose output would be captured.
        writeln!(std::io::stderr(), "skipped: redis: redis_holds_the_count: redis-server is not installed").unwrap();
        return;
    }
    let world = World::start();
    let port = free_port().to_string();
    let _server = Ended(
        Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
            .current_dir(&world.path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let ask = |command: &str| {
        let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    wait_until("Redis answers", || async { ask("PING").is_some_and(|answer| answer == "+PONG\r\n") }).await;
    // The example as it is, but for the address of the server and, since the copy lies elsewhere, of
    // the modules.
    for function in ["message_generator", "counter"] {
        world.build(function);
    }
    let example = std::fs::read_to_string(repository().join("examples/redis/workflow.json")).unwrap();
    let functions = repository().join("functions").display().to_string();
    let copy = example.replace("127.0.0.1:6379", &format!("127.0.0.1:{port}")).replace("../../functions", &functions);
    std::fs::write(world.path.join("workflow.json"), copy).unwrap();
    cli(&world.path, &["workflow", "start", "--strict", "workflow.json"]);
    wait_until("the second message is counted", || async {
        ask("GET counter").is_some_and(|answer| answer.ends_with("\r\n2\r\n"))
    })
    .await;
}

/// A process that is ended with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
