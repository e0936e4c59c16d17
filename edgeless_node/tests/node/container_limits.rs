//! The limits of containers: each read back from the kernel, and felt by what runs under it.

use edgeless_api::component::{Annotations, ComponentKind};
use edgeless_api::status::{ComponentStatus, Limit};
use edgeless_api::{Error, InstanceId};

use crate::docker::{ask, containers_of, docker, has_docker, start};
use crate::support::{TestNode, http_get, wait_until};

/// What the kernel has of one limit.
fn kernel<'a>(limits: &'a [Limit], name: &str) -> &'a str {
    &limits.iter().find(|limit| limit.name == name).unwrap_or_else(|| panic!("{name} is not shown")).kernel
}

async fn change(node: &TestNode, id: InstanceId, changes: &[(&str, &str)]) -> Result<Vec<Limit>, Error> {
    let changes: Annotations = changes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    node.components.limits(id.function, changes).await
}

/// What Linux itself says, by the id of the only container of a node.
fn cgroup(node: &TestNode, controller: &str, file: &str) -> String {
    let container = containers_of(node, "{{.ID}}").remove(0);
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &container]).unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller));
    match groups.lines().find(|line| of(line)) {
        Some(line) => {
            let path = format!("/sys/fs/cgroup/{controller}{}/{file}", line.splitn(3, ':').nth(2).unwrap());
            std::fs::read_to_string(path).unwrap().trim().to_string()
        }
        None => panic!("{groups} has no {controller}: these tests read version 1"),
    }
}

/// These tests read the files of version 1 by themselves; version 2 is read by the code they test alone.
fn is_version_1() -> bool {
    std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
}

async fn limited(node: &TestNode) -> InstanceId {
    start(
        node,
        &[
            ("cpu", "0.5"),
            ("cpu_shares", "512"),
            ("cpuset", "0"),
            ("memory", "64MiB"),
            ("pids", "32"),
            ("network_bandwidth", "10mbit"),
            ("network_bandwidth_down", "20mbit"),
        ],
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn every_limit_is_what_the_kernel_has() {
    if !has_docker("every_limit_is_what_the_kernel_has") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = limited(&node).await;
    let ComponentStatus { limits, usage, .. } = node.status(guest).await;
    for (name, asked, found) in [
        ("cpu", "0.5", "0.5"),
        ("cpu_shares", "512", "512"),
        ("cpuset", "0", "0"),
        ("memory", "64MiB", "64MiB"),
        ("pids", "32", "32"),
        ("network_bandwidth_up", "10mbit", "10mbit"),
        ("network_bandwidth_down", "20mbit", "20mbit"),
    ] {
        let expected = Limit { name: name.into(), asked: asked.into(), kernel: found.into() };
        assert!(limits.contains(&expected), "{name}: {limits:?}");
    }
    let usage = usage.unwrap();
    assert!(usage.memory > 0 && usage.processes > 0, "{usage:?}");
    if is_version_1() {
        let quota: f64 = cgroup(&node, "cpu", "cpu.cfs_quota_us").parse().unwrap();
        let period: f64 = cgroup(&node, "cpu", "cpu.cfs_period_us").parse().unwrap();
        assert!((quota / period - 0.5).abs() < 1e-6);
        assert_eq!(cgroup(&node, "cpu", "cpu.shares"), "512");
        assert_eq!(cgroup(&node, "cpuset", "cpuset.cpus"), "0");
        assert_eq!(cgroup(&node, "memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(cgroup(&node, "pids", "pids.max"), "32");
    }
    node.stop_node().await;
}

#[tokio::test]
async fn limits_change_while_a_container_runs_and_hold_for_its_replacement() {
    if !has_docker("limits_change_while_a_container_runs_and_hold_for_its_replacement") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = limited(&node).await;
    let changes = [("cpu", "0.25"), ("cpu_shares", "256"), ("memory", "48MiB"), ("network_bandwidth", "5mbit")];
    let limits = change(&node, guest, &changes).await.unwrap();
    let check = |limits: &[Limit]| {
        for (name, expected) in [
            ("cpu", "0.25"),
            ("cpu_shares", "256"),
            ("memory", "48MiB"),
            ("pids", "32"),
            ("network_bandwidth_up", "5mbit"),
            ("network_bandwidth_down", "5mbit"),
        ] {
            assert_eq!(kernel(limits, name), expected, "{name}");
        }
    };
    check(&limits);
    let limits = change(&node, guest, &[("cpu", "none"), ("network_bandwidth_up", "none"), ("pids", "none")]).await;
    let limits = limits.unwrap();
    for name in ["cpu", "network_bandwidth_up", "pids"] {
        assert_eq!(kernel(&limits, name), "none", "{name}");
    }
    let error = change(&node, guest, &[("memory", "32MiB"), ("cpu", "much")]).await.unwrap_err();
    assert_eq!(error.message, "cpu: 'much' is not a number of cores, such as 0.5");
    assert_eq!(kernel(&change(&node, guest, &[]).await.unwrap(), "memory"), "48MiB", "all or nothing");
    change(&node, guest, &changes).await.unwrap();
    change(&node, guest, &[("pids", "32")]).await.unwrap();

    docker(&["kill", &containers_of(&node, "{{.ID}}")[0]]).unwrap();
    wait_until("the container is replaced", || async { node.status(guest).await.restarts == 1 }).await;
    check(&node.status(guest).await.limits);
    node.stop_node().await;
}

#[tokio::test]
async fn processes_and_memory_end_where_they_are_limited() {
    if !has_docker("processes_and_memory_end_where_they_are_limited") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = start(&node, &[("pids", "16"), ("memory", "64MiB")]).await.unwrap();
    let started: u32 = ask(&node, guest, "threads 100").await.parse().unwrap();
    assert!(started < 16, "{started} threads where 16 are allowed");
    assert_eq!(ask(&node, guest, "echo on").await, "on");
    // No swap beside the memory: it cannot grow into it.
    assert_eq!(ask(&node, guest, "alloc 256").await, "(error)");
    wait_until("it is replaced", || async { node.status(guest).await.restarts == 1 }).await;
    let status = node.status(guest).await;
    assert!(
        status.reason.starts_with("the container was killed: it needed more than its limit of memory"),
        "{status:?}"
    );
    assert_eq!(ask(&node, guest, "echo again").await, "again");
    node.stop_node().await;
}

#[tokio::test]
async fn a_quota_is_felt() {
    if !has_docker("a_quota_is_felt") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = start(&node, &[("cpu", "0.2")]).await.unwrap();
    let used = || async { node.status(guest).await.usage.unwrap().cpu };
    let (before, began) = (used().await, std::time::Instant::now());
    ask(&node, guest, "spin 1500").await;
    let share = (used().await - before).as_secs_f64() / began.elapsed().as_secs_f64();
    // Never more, however busy the machine is; less is its own affair.
    assert!(share < 0.25, "{share} of a core where 0.2 are allowed");
    node.stop_node().await;
}

#[tokio::test]
async fn a_container_has_no_more_than_it_needs() {
    if !has_docker("a_container_has_no_more_than_it_needs") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = start(&node, &[]).await.unwrap();
    let status = ask(&node, guest, "read /proc/self/status").await;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_string();
    assert_eq!(line("Uid:").split_whitespace().nth(1), Some("65534"), "nobody");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set).split_whitespace().nth(1), Some("0000000000000000"), "{set}");
    }
    assert_eq!(line("NoNewPrivs:").split_whitespace().nth(1), Some("1"));
    assert!(ask(&node, guest, "write /x").await.contains("Read-only file system"));
    assert_eq!(ask(&node, guest, "write /tmp/x").await, "written");
    node.stop(ComponentKind::Function, guest).await;
    let writable = start(&node, &[("read_only", "false"), ("user", "1000:1000")]).await.unwrap();
    let status = ask(&node, writable, "read /proc/self/status").await;
    assert!(status.contains("Uid:\t1000\t"), "{status}");
    node.stop_node().await;
}

#[tokio::test]
async fn what_cannot_be_limited_or_is_not_allowed_is_refused() {
    if !has_docker("what_cannot_be_limited_or_is_not_allowed_is_refused") {
        return;
    }
    let node = TestNode::with_containers("[container_runtime.maxima]\nmemory = \"128MiB\"").await;
    for (key, value, why) in [
        ("memory", "1GiB", "memory: 1GiB is more than the 128MiB that this node allows"),
        ("user", "root", "user: this node runs no container as root"),
        ("devices", "/dev/kmsg", "devices: '/dev/kmsg' is not allowed on this node"),
        ("network", "none", "network: none is for services and for functions that are made with our SDK"),
    ] {
        let error = start(&node, &[(key, value)]).await.unwrap_err();
        assert!(error.message.starts_with(why), "{error}");
    }
    // Where the driver can limit it, it is limited.
    match start(&node, &[("disk", "64MiB"), ("read_only", "false")]).await {
        Ok(_) => {}
        Err(error) => assert!(error.message.starts_with("disk: the storage driver of this node"), "{error}"),
    }
    wait_until("nothing is left of those", || async { containers_of(&node, "{{.ID}}").len() <= 1 }).await;
    node.stop_node().await;
}

#[tokio::test]
async fn a_guest_of_the_platform_reaches_its_node_and_nothing_else() {
    if !has_docker("a_guest_of_the_platform_reaches_its_node_and_nothing_else") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let metrics = node.metrics_url().port();
    let other = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let other = other.local_addr().unwrap().port();
    let guest = start(&node, &[("network", "platform")]).await.unwrap();
    let neighbour = start(&node, &[("network", "platform")]).await.unwrap();
    let full = start(&node, &[]).await.unwrap();
    node.patch(ComponentKind::Function, guest, &[("out", node.peer.id)]).await;
    // The guest API works.
    node.cast(guest, "cast out").await;
    assert_eq!(node.peer.next_cast().await, "out");
    let networks = docker(&[
        "network",
        "ls",
        "--filter",
        &format!("label=org.edgeless.node={}", node.id()),
        "--format",
        "{{.Name}}",
    ]);
    let platform = networks.unwrap().lines().find(|name| name.ends_with("platform")).unwrap().to_string();
    let gateway = docker(&["network", "inspect", &platform, "--format", "{{(index .IPAM.Config 0).Gateway}}"]).unwrap();
    for target in [format!("{gateway}:{other}"), format!("{gateway}:{metrics}"), "1.1.1.1:53".into()] {
        assert_ne!(ask(&node, guest, &format!("connect {target}")).await, "connected", "{target}");
    }
    let address = |index: usize| {
        let ids = containers_of(&node, "{{.ID}}");
        docker(&["inspect", &ids[index], "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"])
            .unwrap()
    };
    for index in 0..3 {
        let (ip, me) = (address(index), ask(&node, guest, "read /proc/net/fib_trie").await);
        if !me.contains(&ip) {
            assert_ne!(ask(&node, guest, &format!("connect {ip}:7101")).await, "connected", "{ip}");
        }
    }
    assert_eq!(ask(&node, neighbour, "echo here").await, "here");
    // Who may reach everything does reach the node's ports.
    let networks = docker(&[
        "network",
        "ls",
        "--filter",
        &format!("label=org.edgeless.node={}", node.id()),
        "--format",
        "{{.Name}}",
    ]);
    let own = networks.unwrap().lines().find(|name| !name.ends_with("platform")).unwrap().to_string();
    let gateway = docker(&["network", "inspect", &own, "--format", "{{(index .IPAM.Config 0).Gateway}}"]).unwrap();
    let listening = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listening.local_addr().unwrap().port();
    assert_eq!(ask(&node, full, &format!("connect {gateway}:{port}")).await, "connected");
    assert_eq!(http_get(node.metrics_url(), "/healthz").await.0, 200);
    node.stop_node().await;
}
