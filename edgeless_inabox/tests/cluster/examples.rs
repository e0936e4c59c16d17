//! The examples, run as their READMEs say, with functions that are compiled here.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::programs::{cli, free_port};
use super::support::{lines, repository, skip, wait_until};
use super::world::{Ended, World};

impl World {
    /// Builds what an example needs and starts it.
    fn run_example(&self, name: &str) -> String {
        let workflow = repository().join("examples").join(name).join("workflow.json");
        let text = std::fs::read_to_string(&workflow).unwrap();
        for function in text.split("functions/").skip(1).filter_map(|part| part.split('/').next()) {
            self.build(function);
        }
        cli(self.path(), &["workflow", "start", "--strict", workflow.to_str().unwrap()]).trim().to_string()
    }

    fn build(&self, function: &str) {
        let file = repository().join("functions").join(function).join("function.json");
        cli(self.path(), &["function", "build", file.to_str().unwrap()]);
    }

    fn file(&self, name: &str) -> Vec<String> {
        lines(&self.path().join(name))
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
    cli(world.path(), &["workflow", "stop", &id]);
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
        cli(world.path(), &["workflow", "logs", &ping, "ping"]).contains("ping 1 was answered: pong 1")
    })
    .await;
    assert!(cli(world.path(), &["workflow", "logs", &noop]).contains("Noop initialized"));
    let mut list: Vec<_> = cli(world.path(), &["workflow", "list"]).lines().map(str::to_string).collect();
    list.sort();
    assert_eq!(list.len(), 3);
    let stopped = cli(world.path(), &["workflow", "stop", "all"]);
    assert_eq!(stopped.lines().count(), 3);
    assert_eq!(cli(world.path(), &["workflow", "list"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_known_by_what_inspect_says() {
    let world = World::start();
    let id = world.run_example("http_ingress");
    let text = cli(world.path(), &["workflow", "inspect", &id]);
    for line in ["* function hello", "OUT log -> log", "CONF host -> demo.edgeless.local", "STATE hello -> running on "]
    {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let json = cli(world.path(), &["--output", "json", "workflow", "inspect", &id]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json.to_string().contains("\"state\":\"running\""), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_the_count() {
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("redis", "redis_holds_the_count", "redis-server is not installed");
        return;
    }
    let world = World::start();
    let port = free_port().to_string();
    let _server = Ended(
        Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
            .current_dir(world.path())
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
    std::fs::write(world.path().join("workflow.json"), copy).unwrap();
    cli(world.path(), &["workflow", "start", "--strict", "workflow.json"]);
    wait_until("the second message is counted", || async {
        ask("GET counter").is_some_and(|answer| answer.ends_with("\r\n2\r\n"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_starts_with_nothing_and_logs_all() {
    let world = World::start();
    let id = world.run_example("scaling");
    wait_until("the work of many messages is logged", || async { world.file("work.log").len() >= 100 }).await;
    let text = cli(world.path(), &["workflow", "inspect", &id]);
    assert!(text.contains("STATE work -> running"), "{text}");
    cli(world.path(), &["workflow", "stop", &id]);
    let log = world.file("work.log");
    // Each line is the number of the message and the result; file-log escapes what is between them.
    let mut numbers: Vec<u32> = log.iter().map(|line| line.split("\\n").next().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers[..20], (1..=20).collect::<Vec<_>>(), "none is lost, also not the first");
}

/// What Docker has of a workflow: containers, networks or volumes.
fn at_docker(what: &str, workflow: &str) -> String {
    let filter = format!("label=org.edgeless.workflow={workflow}");
    let output = Command::new("docker").args([what, "ls", "-q", "--filter", &filter]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_answers_as_its_function_does() {
    let test = "a_container_answers_as_its_function_does";
    let Some(world) = World::with_containers_of_ours(test, "") else { return };
    super::containers::build("http_hello");
    let workflow = repository().join("examples/container/workflow.json");
    let id = cli(world.path(), &["workflow", "start", "--strict", workflow.to_str().unwrap()]).trim().to_string();
    let url = format!("{}/hello?name=Ada", world.ingress);
    assert_eq!(curl(&["-H", "Host: demo.edgeless.local", &url]), "Hello, Ada!\n");
    wait_until("the request is in the file", || async { !world.file("http_hello.log").is_empty() }).await;
    cli(world.path(), &["workflow", "stop", &id]);
    assert_eq!(at_docker("container", &id), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_function_is_attached() {
    let test = "a_python_function_is_attached";
    let python = repository().join("target/python/bin/python");
    if !python.is_file() {
        skip("python", test, "there is no target/python: scripts/python.sh makes it");
        return;
    }
    let Some(world) = World::with_containers(test, "") else { return };
    let port = free_port().to_string();
    let script = repository().join("examples/container_python/shout.py");
    let _shout = Ended(
        Command::new(python)
            .arg(script)
            .args(["--host", "127.0.0.1", "--port", &port])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let is_up = || std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok();
    wait_until("the function listens", || async { is_up() }).await;
    // The example as it is, but for the port.
    let example = std::fs::read_to_string(repository().join("examples/container_python/workflow.json")).unwrap();
    std::fs::write(world.path().join("workflow.json"), example.replace(":7101", &format!(":{port}"))).unwrap();
    let id = cli(world.path(), &["workflow", "start", "--strict", "workflow.json"]).trim().to_string();
    let host = "Host: shout.edgeless.local";
    assert_eq!(curl(&["-H", host, &format!("{}/?text=hello+there", world.ingress)]), "HELLO THERE!\n");
    assert_eq!(curl(&["-H", host, "-d", "good bye", &world.ingress]), "GOOD BYE!\n");
    wait_until("both are in the file", || async { world.file("shout.log").len() == 2 }).await;
    assert!(world.file("shout.log")[1].ends_with("2: GOOD BYE!"));
    cli(world.path(), &["workflow", "stop", &id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_and_its_store_are_services() {
    let test = "a_web_server_and_its_store_are_services";
    let Some(world) = World::with_containers_of_ours(test, "") else { return };
    let example = repository().join("examples/web_service");
    cli(world.path(), &["function", "build", example.to_str().unwrap()]);
    let workflow = example.join("workflow.json");
    let id = cli(world.path(), &["workflow", "start", "--strict", workflow.to_str().unwrap()]).trim().to_string();
    let (host, url) = ("Host: notes.edgeless.local", format!("{}/notes", world.ingress));
    assert_eq!(curl(&["-H", host, "-d", "buy bread", &url]), "kept\n");
    assert_eq!(curl(&["-H", host, "-d", "call Ada", &url]), "kept\n");
    assert_eq!(curl(&["-H", host, &url]), "buy bread\ncall Ada\n");
    // As its README says: they are still there.
    let containers = at_docker("container", &id);
    assert_eq!(containers.lines().count(), 2);
    let killed = Command::new("docker").arg("kill").args(containers.lines()).stdout(Stdio::null()).status();
    assert!(killed.unwrap().success());
    let all = || curl(&["-H", host, &url]);
    wait_until("both are replaced", || async { all() == "buy bread\ncall Ada\n" }).await;
    cli(world.path(), &["workflow", "stop", &id]);
    for what in ["container", "network", "volume"] {
        assert_eq!(at_docker(what, &id), "", "{what}");
    }
    let status = curl(&["-o", "/dev/null", "-w", "%{http_code}", "-H", host, &url]);
    assert_eq!(status, "404");
}
