//! Each command at a small size: its keys, and what must hold however slow the machine is.

use std::io::Write as _;
use std::process::Command;

use serde_json::Value;

use super::program::{benchmark, measure, repository, run};

/// Every figure is there and measured something.
fn are_positive(figures: &Value, keys: &[&str]) {
    for key in keys {
        assert!(figures[key].as_f64().is_some_and(|figure| figure > 0.0), "{key} in {figures:#}");
    }
}

/// Quantiles are in order.
fn are_in_order(figures: &Value, lower: &str, higher: &str) {
    assert!(figures[lower].as_f64() <= figures[higher].as_f64(), "{lower} and {higher} in {figures:#}");
}

#[test]
fn ring() {
    let figures = measure(&["ring"]);
    are_positive(
        &figures,
        &["hops_per_s_1", "hops_per_s_64", "limit_hops_per_s_1", "limit_hops_per_s_64", "ratio_1", "ratio_64"],
    );
}

#[test]
fn peer_ring() {
    let figures = measure(&["peer-ring"]);
    are_positive(&figures, &["hops_per_s_1", "hops_per_s_64", "hop_us_p50", "hop_us_p99"]);
    are_positive(&figures, &["limit_hops_per_s", "limit_hops_per_s_64", "ratio_1", "ratio_64"]);
    are_in_order(&figures, "hop_us_p50", "hop_us_p99");
}

#[test]
fn flood_loses_nothing() {
    let figures = measure(&["flood"]);
    are_positive(&figures, &["events_per_s", "limit_events_per_s", "ratio", "sent"]);
    assert_eq!(figures["lost"], 0, "{figures:#}");
    assert!(figures["resident_growth_mib"].as_f64().is_some_and(|growth| growth >= 0.0), "{figures:#}");
}

#[test]
fn http() {
    let figures = measure(&["http"]);
    are_positive(&figures, &["req_per_s_1", "req_per_s_16", "req_per_s_256", "limit_req_per_s", "ratio"]);
    are_positive(&figures, &["ms_p50", "ms_p99"]);
    are_in_order(&figures, "ms_p50", "ms_p99");
    // The clock of processor time is coarse: in a short run a server may have taken none of it.
    for key in ["cpu_us_per_req", "limit_cpu_us_per_req"] {
        assert!(figures[key].is_number(), "{key} in {figures:#}");
    }
}

#[test]
fn start() {
    let figures = measure(&["start"]);
    are_positive(&figures, &["ms_p50", "ms_p99", "per_s", "flush_ms"]);
    are_in_order(&figures, "ms_p50", "ms_p99");
}

#[test]
fn cold() {
    let figures = measure(&["cold"]);
    are_positive(&figures, &["us_p50", "us_p99", "compile_ms", "limit_us_p50", "limit_compile_ms"]);
    are_in_order(&figures, "us_p50", "us_p99");
}

#[test]
fn density() {
    let figures = measure(&["density", "--instances", "50"]);
    are_positive(&figures, &["kib_per_instance", "threads", "start_per_s", "maps"]);
    assert_eq!(figures["instances"], 50, "{figures:#}");
}

#[test]
fn neighbour_names_what_became_of_each_hog() {
    let figures = measure(&["neighbour"]);
    are_positive(&figures, &["p99_alone_ms", "p99_ms", "p99_growth"]);
    for (hog, named) in
        [("loop", "wasm_runtime.cpu_limit"), ("memory", "wasm_runtime.memory_limit"), ("flood", "slowed")]
    {
        let fate = figures["hogs"][hog].as_str();
        assert!(fate.is_some_and(|fate| fate.contains(named)), "{hog} in {figures:#}");
    }
}

#[test]
fn orchestrate() {
    let output = run(&["orchestrate", "--nodes", "20", "--components", "100", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    are_positive(&figures, &["place_us_p50", "place_us_p99"]);
    are_in_order(&figures, "place_us_p50", "place_us_p99");
    // Too little to be counted.
    for key in ["recover_ms", "mib"] {
        assert!(figures[key].as_f64().is_some_and(|figure| figure >= 0.0), "{key} in {figures:#}");
    }
    let output = run(&["orchestrate", "--strategy", "Fastest"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no such strategy; there are: Random, RoundRobin"), "{said}");
}

#[test]
fn domains() {
    let output = run(&["domains", "--domains", "2", "--nodes", "1", "--workflows", "6", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    are_positive(&figures, &["ready_s", "relocated_s", "relocated"]);
    let grace = 1.0;
    assert!(figures["relocated_s"].as_f64().is_some_and(|time| time >= grace), "{figures:#}");
    let output = run(&["domains", "--domains", "1"]);
    assert_eq!(output.status.code(), Some(2), "where should its workflows go?");
}

/// Whatever is killed, what was acknowledged is there at the end, and nothing else.
#[test]
fn chaos() {
    let output = run(&[
        "chaos",
        "--seconds",
        "7",
        "--workflows",
        "5",
        "--events",
        "100",
        "--seed",
        "4",
        "--outages",
        "1",
        "--json",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    are_positive(&figures, &["kills", "started", "stopped", "events"]);
    are_positive(&figures["recover_ms_p99"], &["node_killed", "node_silent"]);
    are_positive(&figures["reconcile_ms_p99"], &["node_silent"]);
    for key in ["lost_events", "lost_workflows", "ghost_workflows", "duplicate_instances", "missing_instances", "stuck"]
    {
        assert_eq!(figures[key], 0, "{figures:#}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Whether there is a Docker engine to test with; said aloud where there is none.
fn has_docker(test: &str) -> bool {
    let answer = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
    if answer.is_ok_and(|answer| answer.status.success()) {
        return true;
    }
    let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "docker"), "no Docker engine answers, and EDGELESS_REQUIRE has it");
    // Not by a macro, whose output would be captured, and at once, so that it stays one line.
    std::io::stderr().write_all(format!("skipped: docker: {test}: no Docker engine answers\n").as_bytes()).unwrap();
    false
}

#[test]
fn containers_keep_to_their_limits_and_lose_nothing() {
    if !has_docker("containers_keep_to_their_limits_and_lose_nothing") {
        return;
    }
    let figures = measure(&["containers"]);
    are_positive(&figures, &["us_p50", "us_p99", "events_per_s", "limit_us_p50", "limit_events_per_s", "ratio"]);
    are_positive(&figures, &["unary_us_p50", "unary_events_per_s", "start_ms", "start_alone_ms"]);
    are_in_order(&figures, "us_p50", "us_p99");
    assert_eq!(figures["events_lost"], 0, "{figures:#}");
    for change in ["", "_changed"] {
        let share = |weight| figures[format!("cpu_share_{weight}{change}")].as_f64().unwrap();
        let (light, heavy) = (share(512), share(1024));
        assert!((light + heavy - 1.0).abs() < 1e-6 && light < heavy, "{change}: {figures:#}");
    }
    for direction in ["up", "down"] {
        let rate = |cap: u32| figures["bandwidth"][format!("{direction}_{cap}")].as_f64().unwrap();
        assert!([20, 50, 100, 200, 400].map(rate).is_sorted(), "{direction}: {figures:#}");
    }
    are_positive(&figures, &["bandwidth_worst_error", "neighbour_per_s", "neighbour_alone_per_s"]);
    assert!(figures["neighbour_change"].is_number(), "{figures:#}");
    let killed = figures["killed"].as_str();
    assert!(killed.is_some_and(|killed| killed.contains("limit of memory")), "{figures:#}");
}

#[test]
fn containers_need_an_engine() {
    let mut command = benchmark(&["containers", "--seconds", "0.2"]);
    // Where nothing listens.
    let output = command.env("DOCKER_HOST", "unix:///nowhere/docker.sock").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "edgeless_benchmark: there is no Docker engine to run containers on: start it, and try again (";
    assert!(said.starts_with(expected) && said.lines().count() == 1, "{said}");
}

/// `make bench` writes each table between its marks.
#[test]
fn the_documentation_has_a_place_for_each_table() {
    let text = std::fs::read_to_string(repository().join("docs/benchmarks.md")).unwrap();
    let makefile = std::fs::read_to_string(repository().join("Makefile")).unwrap();
    let measured = makefile.lines().find_map(|line| line.strip_prefix("BENCHMARKS := ")).unwrap();
    let commands: Vec<&str> = measured.split(' ').collect();
    assert!(commands.len() >= 11, "{commands:?}");
    for command in commands {
        for mark in [format!("<!-- measured:{command}:begin -->\n"), format!("<!-- measured:{command}:end -->\n")] {
            assert_eq!(text.matches(&mark).count(), 1, "{mark}");
        }
    }
}

#[test]
fn the_table_replaces_what_is_between_its_marks() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file.md");
    std::fs::write(&file, "a\n<!-- measured:cold:begin -->\nold\n<!-- measured:cold:end -->\nb\n").unwrap();
    let output = run(&["cold", "--seconds", "0.05", "--update", &file.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let expected = format!("a\n<!-- measured:cold:begin -->\n{table}<!-- measured:cold:end -->\nb\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    assert!(table.contains("| new instance of a known module"), "{table}");
    assert_eq!(table.contains("A debug build"), cfg!(debug_assertions), "{table}");
}

#[test]
fn errors_say_what_to_do() {
    let output = run(&["ring", "--functions", "nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "edgeless_benchmark: there is no nowhere/relay/function.json: name the directory of the functions \
                    with --functions\n";
    assert_eq!(said, expected);
    let output = run(&["ring", "--seconds", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("give a number of seconds from 0.01 to 3600"));
}
