//! Services, on the real Docker engine of this machine: a container that is no function.

use std::collections::HashSet;

use bytes::Bytes;
use edgeless_api::component::{ComponentKind, ComponentSpec, FunctionSpec, StartContext, StateSpec};
use edgeless_api::event::Reply;
use edgeless_api::status::State;
use edgeless_api::{Error, InstanceId, StateId, WorkflowId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::docker::{ask, contained, containers_of, docker, has_docker, image, networks_of, start_spec};
use crate::support::{TestNode, context, wait_until};

/// A web server of a workflow.
fn web(workflow: WorkflowId, annotations: &[(&str, &str)]) -> FunctionSpec {
    let mut all = vec![("command", "[\"web\"]"), ("health", "tcp:8080"), ("health_interval", "50ms")];
    all.retain(|(key, _)| !annotations.iter().any(|(other, _)| key == other));
    all.extend(annotations);
    FunctionSpec { workflow, ..contained("SERVICE", &all) }
}

async fn start_web(node: &TestNode, name: &str, annotations: &[(&str, &str)]) -> Result<InstanceId, Error> {
    start_spec(node, name, web(WorkflowId::random(), annotations)).await
}

/// A node that gives up soon on what does not come to work.
async fn impatient() -> TestNode {
    TestNode::with_containers("start_timeout = \"1s\"").await
}

/// The container of a component.
fn inspect(node: &TestNode, name: &str, format: &str) -> Option<String> {
    let (node, name) = (format!("label=org.edgeless.node={}", node.id()), format!("label=org.edgeless.name={name}"));
    let id = docker(&["ps", "-q", "--no-trunc", "--filter", &node, "--filter", &name]).unwrap();
    docker(&["inspect", "-f", format, id.lines().next()?]).ok()
}

fn volumes_of(node: &TestNode) -> Vec<String> {
    let filter = format!("label=org.edgeless.node={}", node.id());
    docker(&["volume", "ls", "-q", "--filter", &filter]).unwrap().lines().map(ToString::to_string).collect()
}

/// Status and body of what somebody answers; `None`: nobody does.
async fn request(at: &str, head: &str, host: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut stream = tokio::net::TcpStream::connect(at).await.ok()?;
    let length = body.len();
    let head = format!("{head} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let status = String::from_utf8_lossy(&answer[..end]).split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_off(end)))
}

/// What a service says to a request, sent to its own address.
async fn said(node: &TestNode, name: &str, path: &str) -> String {
    let address = inspect(node, name, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").unwrap();
    let (_, body) = request(&format!("{address}:8080"), &format!("GET {path}"), "localhost", b"").await.unwrap();
    String::from_utf8(body).unwrap()
}

/// Sends a request that ends the service, or makes it sick, and waits until it has been replaced.
async fn until_replaced(node: &TestNode, name: &str, id: InstanceId, path: &str) {
    let before = node.status(id).await.restarts;
    let address = inspect(node, name, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").unwrap();
    request(&format!("{address}:8080"), &format!("GET {path}"), "localhost", b"").await;
    wait_until("it is replaced", || async { node.status(id).await.restarts > before }).await;
}

/// A port of this machine that is free, and that no outgoing connection is given by itself.
fn free_port() -> u16 {
    loop {
        let port = 20_000 + u16::try_from(rand::random::<u32>() % 10_000).unwrap();
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// Ends a node of which nothing must be left at the engine.
async fn end(node: TestNode, services: &[InstanceId]) {
    for id in services {
        node.stop(ComponentKind::Function, *id).await;
    }
    wait_until("nothing is left", || async {
        containers_of(&node, "{{.Names}}").is_empty() && networks_of(&node).is_empty() && volumes_of(&node).is_empty()
    })
    .await;
    node.stop_node().await;
}

#[tokio::test]
async fn a_service_gets_its_environment_and_its_command_and_answers_at_its_published_ports() {
    if !has_docker("a_service_gets_its_environment_and_its_command_and_answers_at_its_published_ports") {
        return;
    }
    let lines = "publish_address = \"127.0.0.1\"\npublish_ports = \"20000-29999\"";
    let node = TestNode::with_containers(lines).await;
    let port = free_port();
    let publish = format!("{port}:9000, 9000");
    let annotations = [
        ("command", "[\"web\", \"9000\"]"),
        ("health", "tcp:9000"),
        ("env:GREETING", "good morning, \"world\""),
        ("publish", &publish),
    ];
    let service = start_web(&node, "web", &annotations).await.unwrap();
    // The engine has chosen the other one, which the log says.
    let told: HashSet<_> = node.status(service).await.log.into_iter().map(|line| line.message).collect();
    let prefix = "port 9000/tcp is published at 127.0.0.1:";
    let ports: HashSet<u16> =
        told.iter().filter_map(|line| line.strip_prefix(prefix)).map(|port| port.parse().unwrap()).collect();
    assert!(ports.len() == 2 && ports.contains(&port), "{told:?}");
    assert!(ports.iter().all(|port| (20_000..30_000).contains(port)), "as the operator says: {ports:?}");
    for port in ports {
        let answer = request(&format!("127.0.0.1:{port}"), "GET /env/GREETING", "localhost", b"").await;
        assert_eq!(answer, Some((200, b"good morning, \"world\"".to_vec())), "{port}");
    }
    end(node, &[service]).await;
}

#[tokio::test]
async fn a_volume_is_kept_until_its_service_is_stopped_for_good() {
    if !has_docker("a_volume_is_kept_until_its_service_is_stopped_for_good") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let spec = web(WorkflowId::random(), &[("volume:store", "/data")]);
    let context = context("store");
    let service = node.create(ComponentSpec::Function(spec.clone()), context.clone()).await.unwrap();
    assert_eq!(said(&node, "store", "/write//data/file").await, "written", "by who it runs as: nobody");
    until_replaced(&node, "store", service, "/exit").await;
    assert_eq!(said(&node, "store", "/read//data/file").await, "kept", "after a crash");
    let node = node.restart().await;
    assert_eq!(containers_of(&node, "{{.Names}}"), Vec::<String>::new());
    assert_eq!(volumes_of(&node).len(), 1);
    let again = StartContext { epoch: 2, ..context };
    let service = node.create(ComponentSpec::Function(spec), again).await.unwrap();
    assert_eq!(said(&node, "store", "/read//data/file").await, "kept", "after the end of the node");
    node.stop(ComponentKind::Function, service).await;
    assert_eq!(volumes_of(&node), Vec::<String>::new(), "stopped for good");
    end(node, &[]).await;
}

#[tokio::test]
async fn services_of_one_workflow_share_volumes_and_one_may_be_read_only() {
    if !has_docker("services_of_one_workflow_share_volumes_and_one_may_be_read_only") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let workflow = WorkflowId::random();
    let writer = start_spec(&node, "writer", web(workflow, &[("volume:shared", "/data")])).await.unwrap();
    let reader = start_spec(&node, "reader", web(workflow, &[("volume:shared", "/data:ro")])).await.unwrap();
    assert_eq!(said(&node, "writer", "/write//data/file").await, "written");
    assert_eq!(said(&node, "reader", "/read//data/file").await, "kept");
    let refused = said(&node, "reader", "/write//data/file").await;
    assert!(refused.contains("Read-only file system"), "{refused}");
    node.stop(ComponentKind::Function, writer).await;
    assert_eq!(said(&node, "reader", "/read//data/file").await, "kept", "the other one still has it");
    end(node, &[reader]).await;
}

#[tokio::test]
async fn containers_of_one_workflow_find_each_other_by_name_and_no_others_do() {
    if !has_docker("containers_of_one_workflow_find_each_other_by_name_and_no_others_do") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let workflow = WorkflowId::random();
    let first = start_spec(&node, "front", web(workflow, &[])).await.unwrap();
    let second = start_spec(&node, "My Data_Base", web(workflow, &[])).await.unwrap();
    let function = FunctionSpec { workflow, ..contained("CONTAINER", &[]) };
    let function = start_spec(&node, "logic", function).await.unwrap();
    let stranger = start_web(&node, "stranger", &[]).await.unwrap();
    for name in ["my-data-base", "MY-DATA-BASE", "front", "Front"] {
        assert_eq!(said(&node, "front", &format!("/reach/{name}/8080")).await, "connected", "{name}");
        assert_eq!(ask(&node, function, &format!("connect {name}:8080")).await, "connected", "{name}");
    }
    assert_eq!(said(&node, "My Data_Base", "/reach/logic/7101").await, "connected");
    for name in ["front", "my-data-base", "logic"] {
        assert_eq!(said(&node, "stranger", &format!("/reach/{name}/8080")).await, "unknown", "{name}");
    }
    assert_eq!(said(&node, "front", "/reach/stranger/8080").await, "unknown");
    // Nor by its address.
    let address = inspect(&node, "front", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").unwrap();
    assert_eq!(said(&node, "My Data_Base", &format!("/reach/{address}/8080")).await, "connected");
    assert_ne!(said(&node, "stranger", &format!("/reach/{address}/8080")).await, "connected");
    end(node, &[first, second, function, stranger]).await;
}

#[tokio::test]
async fn a_start_waits_until_the_check_is_passed() {
    if !has_docker("a_start_waits_until_the_check_is_passed") {
        return;
    }
    let node = TestNode::with_containers("").await;
    for check in ["tcp:8080", "http:8080/health", "cmd:/guest check", "cmd:[\"/guest\", \"check\"]"] {
        let annotations = [("health", check), ("env:DELAY", "300"), ("health_timeout", "5s")];
        let service = start_web(&node, "slow", &annotations).await.expect(check);
        if !check.starts_with("cmd:") {
            assert_eq!(said(&node, "slow", "/health").await, "hello from /health, 0 bytes taken\n", "{check}");
        }
        node.stop(ComponentKind::Function, service).await;
    }
    end(node, &[]).await;
}

#[tokio::test]
async fn a_service_that_does_not_come_to_work_is_refused_with_its_last_words() {
    if !has_docker("a_service_that_does_not_come_to_work_is_refused_with_its_last_words") {
        return;
    }
    let node = impatient().await;
    for (annotations, why) in [
        (vec![("health", "tcp:81")], "it did not pass its check within 1s: port 81: Connection refused"),
        (vec![("health", "http:8080/none"), ("command", "[\"sleep\"]")], "port 8080: Connection refused"),
        (vec![("health", "cmd:/guest wrong")], "'/guest wrong' ended with 2: guest function|web|"),
        (vec![("health", "cmd:exit 1; true")], "/bin/sh"),
        (vec![("command", "[\"fail\", \"no disk is left\"]")], "the container ended with exit code 3"),
    ] {
        let mut all = vec![("volume:store", "/data")];
        all.extend(&annotations);
        let error = start_web(&node, "broken", &all).await.unwrap_err().to_string();
        assert!(error.contains(why), "{annotations:?}: {error}");
        match annotations[..] {
            [("command", _)] => assert!(error.ends_with("it said last:\nno disk is left"), "{error}"),
            [_, ("command", _)] => assert!(error.ends_with("it said nothing"), "{error}"),
            _ => assert!(error.ends_with("it said last:\nserving at port 8080"), "{error}"),
        }
    }
    end(node, &[]).await;
}

#[tokio::test]
async fn a_service_that_fails_its_check_is_replaced() {
    if !has_docker("a_service_that_fails_its_check_is_replaced") {
        return;
    }
    let node = TestNode::with_containers("").await;
    for (check, why) in
        [("http:8080/health", "GET /health: 503"), ("cmd:/guest check", "'/guest check' ended with 1: I am sick")]
    {
        let service = start_web(&node, "web", &[("health", check), ("health_timeout", "5s")]).await.unwrap();
        until_replaced(&node, "web", service, "/write//tmp/sick").await;
        let status = node.status(service).await;
        assert_eq!((status.state, status.restarts), (State::Running, 1));
        assert!(status.reason.starts_with(&format!("it failed its check 3 times: {why}")), "{}", status.reason);
        assert!(status.log.iter().any(|line| line.message.contains(why)), "{:?}", status.log);
        assert_eq!(said(&node, "web", "/health").await, "hello from /health, 0 bytes taken\n");
        node.stop(ComponentKind::Function, service).await;
    }
    end(node, &[]).await;
}

#[tokio::test]
async fn the_check_of_an_image_counts_unless_the_workflow_has_another() {
    if !has_docker("the_check_of_an_image_counts_unless_the_workflow_has_another") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let (name, made_from) = (format!("edgeless-test-checked:{}", rand::random::<u32>()), image());
    let made = docker(&["create", made_from]).unwrap();
    let check = "HEALTHCHECK --interval=100ms --timeout=5s CMD [\"/guest\", \"check\"]";
    docker(&["commit", "-c", check, &made, &name]).unwrap();
    docker(&["rm", &made]).unwrap();
    let mut spec = contained("SERVICE", &[("command", "[\"web\"]")]);
    spec.class.code = format!("container:{name}");
    let service = start_spec(&node, "web", spec).await.unwrap();
    wait_until("it listens", || async {
        node.status(service).await.log.iter().any(|line| line.message.contains("serving"))
    })
    .await;
    until_replaced(&node, "web", service, "/write//tmp/sick").await;
    let reason = node.status(service).await.reason;
    assert!(reason.contains("'/guest check' ended with 1: I am sick"), "{reason}");
    end(node, &[service]).await;
    docker(&["rmi", &name]).unwrap();
}

/// A node with an ingress, and where that is.
async fn with_ingress() -> (TestNode, String) {
    let port = free_port();
    let lines = format!("http_ingress_url = \"http://127.0.0.1:{port}\"\nhttp_ingress_provider = \"http-ingress-1\"");
    (TestNode::with_containers_and("", &lines).await, format!("127.0.0.1:{port}"))
}

#[tokio::test]
async fn a_service_is_behind_the_ingress_at_its_host_and_path_as_long_as_it_runs() {
    if !has_docker("a_service_is_behind_the_ingress_at_its_host_and_path_as_long_as_it_runs") {
        return;
    }
    let (node, ingress) = with_ingress().await;
    let place = [("http_host", "shop.local"), ("http_path", "/shop"), ("http_port", "8080")];
    let service = start_web(&node, "shop", &place).await.unwrap();
    let get = async |host: &str, path: &str| {
        let (status, body) = request(&ingress, &format!("GET {path}"), host, b"").await.unwrap();
        (status, String::from_utf8(body).unwrap())
    };
    let answer = (200, "hello from /shop/cart?all=1, 0 bytes taken\n".to_string());
    assert_eq!(get("shop.local", "/shop/cart?all=1").await, answer);
    assert_eq!(get("shop.local", "/shops").await.0, 404);
    assert_eq!(get("other.local", "/shop").await.0, 404);

    let error = start_web(&node, "copy", &place).await.unwrap_err().to_string();
    assert!(error.contains("'copy' cannot take requests") && error.contains("'shop' takes them already"), "{error}");
    assert_eq!(get("shop.local", "/shop/cart?all=1").await, answer, "the first one goes on");

    until_replaced(&node, "shop", service, "/exit").await;
    assert_eq!(get("shop.local", "/shop/cart?all=1").await, answer, "from the new container");
    node.stop(ComponentKind::Function, service).await;
    assert_eq!(get("shop.local", "/shop").await.0, 404);
    end(node, &[]).await;
}

#[tokio::test]
async fn large_bodies_pass_through_the_ingress_to_a_service_and_back() {
    const LARGE: usize = 16 << 20;
    if !has_docker("large_bodies_pass_through_the_ingress_to_a_service_and_back") {
        return;
    }
    let (node, ingress) = with_ingress().await;
    let service = start_web(&node, "files", &[("http_path", "/"), ("http_port", "8080")]).await.unwrap();
    let (status, body) = request(&ingress, &format!("GET /bytes/{LARGE}"), "any", b"").await.unwrap();
    assert_eq!((status, body.len()), (200, LARGE));
    let (status, body) = request(&ingress, "PUT /up", "any", &vec![b'x'; LARGE]).await.unwrap();
    assert_eq!((status, String::from_utf8(body).unwrap()), (200, format!("hello from /up, {LARGE} bytes taken\n")));
    end(node, &[service]).await;
}

#[tokio::test]
async fn a_service_that_reaches_the_platform_only_is_reached_by_the_ingress_only() {
    if !has_docker("a_service_that_reaches_the_platform_only_is_reached_by_the_ingress_only") {
        return;
    }
    let (node, ingress) = with_ingress().await;
    let workflow = WorkflowId::random();
    let place = [("network", "platform"), ("http_path", "/"), ("http_port", "8080")];
    let shut = start_spec(&node, "shut", web(workflow, &place)).await.unwrap();
    let open = start_spec(&node, "open", web(workflow, &[])).await.unwrap();
    assert_eq!(request(&ingress, "GET /env/HOME", "any", b"").await.unwrap().0, 200);
    let address = |name| inspect(&node, name, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").unwrap();
    for (from, to) in [("open", "shut"), ("shut", "open")] {
        assert_eq!(said(&node, from, &format!("/reach/{to}/8080")).await, "unknown", "{from} {to}");
        assert_ne!(said(&node, from, &format!("/reach/{}/8080", address(to))).await, "connected", "{from} {to}");
    }
    end(node, &[shut, open]).await;
}

#[tokio::test]
async fn a_service_without_a_network_has_no_ports() {
    if !has_docker("a_service_without_a_network_has_no_ports") {
        return;
    }
    let node = TestNode::with_containers("").await;
    for annotation in [("health", "tcp:8080"), ("publish", "8080"), ("http_path", "/")] {
        let mut all = vec![("network", "none"), ("health", "image")];
        all.retain(|(key, _)| *key != annotation.0);
        all.push(annotation);
        let error = start_web(&node, "web", &all).await.unwrap_err().to_string();
        assert!(error.contains("network: none leaves no way to the service's ports"), "{annotation:?}: {error}");
    }
    let error = start_web(&node, "web", &[("network", "platform"), ("publish", "8080")]).await.unwrap_err().to_string();
    assert!(error.contains("publish: nobody reaches a service with network=platform"), "{error}");
    let annotations = [("network", "none"), ("health", "cmd:/guest check")];
    let service = start_web(&node, "web", &annotations).await.unwrap();
    assert_eq!(inspect(&node, "web", "{{.HostConfig.NetworkMode}}").unwrap(), "none");
    assert_eq!(networks_of(&node), Vec::<String>::new());
    end(node, &[service]).await;
}

#[tokio::test]
async fn a_service_with_a_fixed_port_is_replaced_by_itself() {
    if !has_docker("a_service_with_a_fixed_port_is_replaced_by_itself") {
        return;
    }
    let node = TestNode::with_containers("publish_address = \"127.0.0.1\"").await;
    let port = free_port();
    let publish = format!("{port}:8080");
    let spec = web(WorkflowId::random(), &[("publish", &publish)]);
    let context = context("web");
    let service = node.create(ComponentSpec::Function(spec.clone()), context.clone()).await.unwrap();
    until_replaced(&node, "web", service, "/exit").await;
    let answers = async || request(&format!("127.0.0.1:{port}"), "GET /", "localhost", b"").await.unwrap().0;
    assert_eq!(answers().await, 200, "after a crash");
    let again = StartContext { epoch: 2, ..context };
    let service = node.create(ComponentSpec::Function(spec.clone()), again).await.unwrap();
    assert_eq!(answers().await, 200, "placed again");
    let state = StateSpec { id: StateId::random(), ..spec.state };
    let other = FunctionSpec { workflow: WorkflowId::random(), state, ..spec };
    let error = start_spec(&node, "other", other).await.unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("already"), "{error}");
    assert_eq!(answers().await, 200, "the first goes on");
    end(node, &[service]).await;
}

#[tokio::test]
async fn events_for_a_service_are_refused_and_do_no_harm() {
    if !has_docker("events_for_a_service_are_refused_and_do_no_harm") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let service = start_web(&node, "web", &[]).await.unwrap();
    assert!(matches!(node.call(service, Bytes::from_static(b"hello")).await, Reply::Error));
    for _ in 0..3 {
        node.cast(service, "hello").await;
    }
    wait_until("all are counted", || async { node.status(service).await.handled == 4 }).await;
    let status = node.status(service).await;
    let why = "an event was not handled: a service takes no events: lead the output to a function";
    assert!(status.log.iter().any(|line| line.message == why), "{:?}", status.log);
    assert_eq!((status.state, status.restarts), (State::Running, 0));
    assert_eq!(said(&node, "web", "/").await, "hello from /, 0 bytes taken\n");
    end(node, &[service]).await;
}

#[tokio::test]
async fn a_service_may_do_little_unless_it_is_allowed_more() {
    if !has_docker("a_service_may_do_little_unless_it_is_allowed_more") {
        return;
    }
    let node = TestNode::with_containers("capabilities = [\"NET_RAW\"]\ndevices = [\"/dev/zero\"]").await;
    let of = async |name: &str, field: &str| {
        let status = said(&node, name, "/read//proc/self/status").await;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap().to_string();
        line.split_whitespace().next_back().unwrap().to_string()
    };
    let plain = start_web(&node, "plain", &[]).await.unwrap();
    assert_eq!(of("plain", "Uid:").await, "65534");
    assert_eq!(of("plain", "CapBnd:").await, "0000000000000000");
    assert_eq!(of("plain", "NoNewPrivs:").await, "1");
    assert!(said(&node, "plain", "/write//x").await.contains("Read-only file system"));
    assert_eq!(said(&node, "plain", "/write//tmp/x").await, "written");

    let annotations = [
        ("user", "1234:1234"),
        ("read_only", "false"),
        ("tmp", "1MiB"),
        ("capabilities", "NET_RAW"),
        ("devices", "/dev/zero"),
    ];
    let more = start_web(&node, "more", &annotations).await.unwrap();
    assert_eq!(of("more", "Uid:").await, "1234");
    assert_eq!(of("more", "CapBnd:").await, "0000000000002000");
    assert!(said(&node, "more", "/write//x").await.contains("Permission denied"), "not read-only, but root's");
    assert!(said(&node, "more", "/read//proc/mounts").await.contains("size=1024k"), "its /tmp");
    let format = "{{range .HostConfig.Devices}}{{.PathOnHost}}{{end}}";
    assert_eq!(inspect(&node, "more", format).unwrap(), "/dev/zero");

    let error = start_web(&node, "root", &[("user", "0")]).await.unwrap_err().to_string();
    assert!(error.contains("container_runtime.allow_root"), "{error}");
    end(node, &[plain, more]).await;

    let node = TestNode::with_containers("allow_root = true").await;
    let root = start_web(&node, "root", &[("user", "0"), ("read_only", "false")]).await.unwrap();
    assert_eq!(said(&node, "root", "/write//x").await, "written");
    end(node, &[root]).await;
}
