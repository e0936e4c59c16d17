//! `edgeless_benchmark load`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use edgeless_inabox::Cluster;
use futures_util::StreamExt;
use serde_json::Value;

use super::controller::Difficult;
use super::support::{ended, functions, load, module, output, said, wait_until};

/// A platform, and a place for files.
struct World {
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::builder(directory.path()).start().await.unwrap();
        Self { cluster, directory }
    }

    /// Writes a file and returns its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn load(&self, arguments: &[&str]) -> Command {
        let url = self.cluster.controller_url().to_string();
        load(&[&["--controller-url", &url, "--json"], arguments].concat())
    }

    async fn running(&self) -> usize {
        self.cluster.workflows().unwrap().list().await.unwrap().len()
    }
}

fn summary(output: &Output) -> BTreeMap<String, Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// One row of the output, behind the columns of [`ADDITIONAL`].
struct Row {
    metric: String,
    target: String,
    value: String,
}

const ADDITIONAL: [&str; 4] = ["--additional-fields", "a test,7", "--additional-header", "name,round"];

fn rows(path: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("name,round,seed,timestamp,metric,target,value"));
    let mut last = 0.0;
    let row = |line: &str| {
        let columns: Vec<_> = line.splitn(7, ',').collect();
        assert_eq!(columns[..3], ["a test", "7", "42"], "{line}");
        let timestamp: f64 = columns[3].parse().unwrap();
        assert!(timestamp >= last && timestamp > 1.7e9, "{line}");
        last = timestamp;
        let value = columns[6];
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        Row { metric: columns[4].into(), target: columns[5].into(), value: value.replace("\"\"", "\"") }
    };
    lines.map(row).collect()
}

/// The targets of a metric, in order of their numbers.
fn targets(rows: &[Row], metric: &str) -> Vec<u64> {
    let rows = rows.iter().filter(|row| row.metric == metric);
    let mut numbers: Vec<u64> = rows.map(|row| row.target.strip_prefix("wf").unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

const SHORT: [&str; 8] = ["--duration", "2", "--interarrival", "0.3", "--lifetime", "0.5", "--warmup", "1"];

#[tokio::test(flavor = "multi_thread")]
async fn every_arrival_model_leaves_its_rows_and_nothing_else() {
    let world = World::start().await;
    let trace = world.file("trace", "0,0.2\n0.1,5\n0.1,0.4\n1,1\n");
    let noop = noop();
    let models: [(&str, &[&str], Option<usize>); 5] = [
        ("poisson", &[], None),
        ("incremental", &[], Some(7)),
        ("incr-and-keep", &[], Some(4)),
        ("single", &[], Some(1)),
        ("trace", &["--workload-trace", &trace], Some(4)),
    ];
    let world = &world;
    let runs = models.iter().flat_map(|model| [(model, "none"), (model, noop.as_str())]).map(
        async |((model, more, expected), wf_type)| {
            let path = world.directory.path().join(format!("{model}{}.csv", wf_type.len()));
            let arguments = ["--arrival-model", model, "--wf-type", wf_type, "--output", path.to_str().unwrap()];
            let ended = output(world.load(&[&arguments, &SHORT[..], &ADDITIONAL, more].concat())).await;
            assert_eq!(ended.status.code(), Some(0), "{model}: {}", said(&ended));
            let (summary, rows) = (summary(&ended), rows(&path));
            let requested = targets(&rows, "workflow:request");
            assert!(!requested.is_empty() && expected.is_none_or(|count| requested.len() == count), "{model}");
            assert_eq!(requested, (0..requested.len() as u64).collect::<Vec<_>>());
            for metric in ["workflow:response", "workflow:end"] {
                assert_eq!(targets(&rows, metric), requested, "{model} {metric}");
            }
            for row in rows.iter().filter(|row| row.metric == "workflow:response") {
                let reply: Value = serde_json::from_str(&row.value).unwrap();
                assert_eq!(reply["workflow_id"].is_string(), wf_type != "none", "{reply}");
                assert!(wf_type == "none" || reply["domain_mapping"][0]["name"] == "noop", "{reply}");
            }
            for (key, expected) in [
                ("workflows_requested", requested.len()),
                ("workflows_started", requested.len()),
                ("workflows_stopped", requested.len()),
                ("failed_stops", 0),
                ("workflows_left", 0),
            ] {
                assert_eq!(summary[key], expected, "{model} {key}");
            }
            assert_eq!(summary["blocking_probability"], 0.0);
            assert!(summary["response_ms_p50"].as_f64() <= summary["response_ms_p99"].as_f64());
        },
    );
    futures_util::future::join_all(runs).await;
    assert_eq!(world.running().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_works_on_transactions_and_is_kept_if_asked() {
    let world = World::start().await;
    // The modules where map-reduce looks for them.
    for id in ["bench_mapreduce", "bench_process"] {
        std::fs::create_dir(world.directory.path().join(id)).unwrap();
        std::fs::copy(module(id), world.directory.path().join(id).join(format!("{id}.wasm"))).unwrap();
    }
    let (matrix_mul, vector_mul) = (module("matrix_mul"), module("vector_mul"));
    let map_reduce = serde_json::json!({
        "functions_path": world.directory.path(), "redis_url": "", "min_num_stages": 2, "min_fan_out": 2,
        "min_transaction_interval_ms": 10, "max_transaction_interval_ms": 10, "max_memory_bytes": 100_000,
    });
    let open = serde_json::json!({
        "function_wasm_path": &matrix_mul, "transaction_interval": 10, "min_matrix_size": 5, "max_matrix_size": 9,
    });
    let closed = serde_json::json!({
        "function_wasm_path": &matrix_mul, "min_matrix_size": 5, "max_matrix_size": 9, "min_chain_length": 2,
    });
    let spec = include_str!("../../../examples/noop/workflow.json");
    let spec = spec.replace("../../functions/noop/noop.wasm", module("noop").to_str().unwrap());
    assert!(spec.contains("\"name\": \"noop\""), "{spec}");
    let spec = spec.replace("\"name\": \"noop\"", "\"name\": \"noop-@WF_ID\"");
    let vector = serde_json::json!({ "function_wasm_path": &vector_mul });
    let runs = [
        ("matrix-mul-chain", open.to_string(), "tend 5"),
        ("matrix-mul-chain", closed.to_string(), "tend 5"),
        ("vector-mul-chain", vector.to_string(), "tend 5"),
        ("map-reduce", map_reduce.to_string(), "tend 5"),
        ("json-spec", spec, "Noop initialized"),
    ];
    for (index, (name, parameters, expected)) in runs.iter().enumerate() {
        let wf_type = format!("{name};{}", world.file(&format!("{index}.json"), parameters));
        let arguments = ["--wf-type", &wf_type, "--arrival-model", "single", "--keep-workflows", "--duration", "0.1"];
        let ended = output(world.load(&arguments)).await;
        assert_eq!(ended.status.code(), Some(0), "{name}: {}", said(&ended));
        let summary = summary(&ended);
        assert_eq!((&summary["workflows_started"], &summary["workflows_left"]), (&1.into(), &1.into()), "{name}");

        let workflows = world.cluster.workflows().unwrap();
        let kept = workflows.list().await.unwrap();
        assert_eq!(kept.len(), 1, "{name}");
        wait_until(&format!("{name} logs {expected}"), || async {
            let lines = workflows.logs(kept[0], None, false).await.unwrap();
            let lines: Vec<_> = lines.map(|line| line.unwrap()).collect().await;
            // Nothing of it fails.
            let failed = lines.iter().find(|line| line.level <= edgeless_api::status::Level::Warn);
            assert!(failed.is_none(), "{name}: {failed:?}");
            lines.iter().any(|line| format!("{} {}", line.target, line.message).contains(expected))
        })
        .await;
        if *name == "json-spec" {
            let (workflow, _) = workflows.inspect(kept[0]).await.unwrap();
            assert_eq!(workflow.functions()[0].name, "noop-0");
        }
        workflows.stop(kept[0]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_come_and_go() {
    let world = World::start().await;
    let small = |name: &str, size: &str| {
        let text = serde_json::json!({
            "function_wasm_path": module(name), format!("min_{size}"): 5, format!("max_{size}"): 9,
        });
        world.file(&format!("{name}.json"), &text.to_string())
    };
    let types = [
        format!("matrix-mul-chain;{}", small("matrix_mul", "matrix_size")),
        format!("vector-mul-chain;{}", small("vector_mul", "input_size")),
    ];
    for wf_type in types {
        let ended = output(world.load(&[&["--wf-type", &wf_type], &SHORT[..]].concat())).await;
        assert_eq!(ended.status.code(), Some(0), "{wf_type}: {}", said(&ended));
        let summary = summary(&ended);
        assert!(summary["workflows_started"].as_u64() > Some(0) && summary["blocking_probability"] == 0.0);
        assert_eq!(summary["workflows_stopped"], summary["workflows_started"], "{wf_type}");
        assert_eq!(world.running().await, 0, "{wf_type}");
    }
}

/// A workflow file whose function needs a label that no node has.
fn infeasible(world: &World) -> String {
    let spec = include_str!("../../../examples/noop/workflow.json");
    let mut spec: Value = serde_json::from_str(spec).unwrap();
    spec["functions"][0]["class_specification"]["code"] = module("noop").to_str().unwrap().into();
    spec["functions"][0]["annotations"]["label_match_all"] = "nowhere".into();
    format!("json-spec;{}", world.file("infeasible.json", &spec.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_blocked_with_its_reason() {
    let world = World::start().await;
    let path = world.directory.path().join("out.csv");
    let arguments = ["-w", &infeasible(&world), "--arrival-model", "incremental", "--output", path.to_str().unwrap()];
    let ended = output(world.load(&[&arguments, &SHORT[..], &ADDITIONAL].concat())).await;
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    let (summary, rows) = (summary(&ended), rows(&path));
    assert_eq!((&summary["workflows_requested"], &summary["workflows_started"]), (&7.into(), &0.into()));
    assert_eq!((&summary["blocking_probability"], &summary["response_ms_p50"]), (&1.0.into(), &Value::Null));
    assert_eq!((targets(&rows, "workflow:response").len(), targets(&rows, "workflow:end").len()), (7, 0));
    let reply = rows.iter().find(|row| row.metric == "workflow:response").unwrap();
    assert!(reply.value.starts_with("{\"response_error\":") && reply.value.contains("nowhere"), "{}", reply.value);
    let told: Vec<_> =
        said(&ended).lines().filter(|line| line.contains("is not started")).map(str::to_string).collect();
    assert!(told.len() == 1 && told[0].contains("nowhere"), "a reason is told once: {told:?}");
}

fn noop() -> String {
    format!("single;{};{}", functions().join("noop/function.json").display(), module("noop").display())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_experiment_stops_what_it_has_started() {
    let world = World::start().await;
    let path = world.directory.path().join("out.csv");
    let arguments = ["-w", &noop(), "--arrival-model", "incremental", "--output", path.to_str().unwrap()];
    let times = ["-d", "1000", "-i", "0.05", "-l", "1000"];
    let child = world.load(&[&arguments, &times[..], &ADDITIONAL].concat()).spawn().unwrap();
    wait_until("three workflows run", || async { world.running().await >= 3 }).await;
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = ended(child).await;
    assert_eq!(ended.status.code(), Some(130), "{}", said(&ended));
    let (summary, rows) = (summary(&ended), rows(&path));
    assert_eq!((&summary["interrupted"], &summary["workflows_left"]), (&true.into(), &0.into()));
    assert!(summary["workflows_stopped"].as_u64() >= Some(3));
    assert_eq!(targets(&rows, "workflow:end"), targets(&rows, "workflow:request"));
    assert_eq!(world.running().await, 0);
}

/// The first start is answered only when the fourth workflow has arrived.
#[tokio::test(flavor = "multi_thread")]
async fn no_arrival_waits_for_another_and_failed_stops_are_counted() {
    let (url, _serving) = Difficult::serve(4).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.csv");
    let arguments = ["-c", &url.to_string(), "--json", "-w", &noop(), "--output", path.to_str().unwrap()];
    let times = ["--arrival-model", "incremental", "-i", "0.1", "-d", "0.4", "-l", "0.2"];
    let ended = output(load(&[&arguments, &times[..], &ADDITIONAL].concat())).await;
    assert_eq!(ended.status.code(), Some(1), "{}", said(&ended));
    let summary = summary(&ended);
    for (key, expected) in [
        ("workflows_requested", 4),
        ("workflows_started", 4),
        ("workflows_stopped", 0),
        ("failed_stops", 4),
        ("workflows_left", 4),
    ] {
        assert_eq!(summary[key], expected, "{key}");
    }
    assert_eq!(said(&ended).matches("is not stopped: it shall go on").count(), 4, "{}", said(&ended));
    let rows = rows(&path);
    assert_eq!(targets(&rows, "workflow:end"), [0, 1, 2, 3]);
    let end = rows.iter().find(|row| row.metric == "workflow:end").unwrap();
    assert_eq!(end.value, r#"{"response_error":{"summary":"it shall go on"}}"#);
}

/// A second signal must end what would otherwise be waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait_for_answers() {
    let (url, _serving) = Difficult::serve(2).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.csv");
    let arguments = ["-c", &url.to_string(), "--json", "-w", &noop(), "--output", path.to_str().unwrap()];
    let mut command = load(&[&arguments, &["--arrival-model", "single"][..], &ADDITIONAL].concat());
    // A file can be read while the program writes to it.
    let stderr = directory.path().join("stderr");
    let child = command.stderr(std::fs::File::create(&stderr).unwrap()).spawn().unwrap();
    let terminate = || Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    wait_until("the start is asked for", || async { written(&path).contains("workflow:request") }).await;
    assert!(terminate().success());
    wait_until("the first is heard", || async { written(&stderr).contains("once more does not wait") }).await;
    assert!(terminate().success());
    let ended = ended(child).await;
    let said = written(&stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("1 requests were not waited for"), "{said}");
    let summary = summary(&ended);
    assert_eq!((&summary["workflows_requested"], &summary["workflows_started"]), (&1.into(), &0.into()));
}

/// What a file holds, which may not be there yet.
fn written(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_not_there_is_named() {
    let ended = output(load(&["-c", "http://127.0.0.1:1", "-w", "none"])).await;
    assert_eq!(ended.status.code(), Some(1));
    let expected = "edgeless_benchmark: there is no controller to ask for workflows: cannot reach http://127.0.0.1:1";
    assert!(said(&ended).starts_with(expected), "{}", said(&ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_before_anything_begins() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("trace"), "1,2\n0,3\n").unwrap();
    std::fs::write(path("kept.csv"), "seed\n").unwrap();
    let (trace, kept, gone) = (path("trace"), path("kept.csv"), path("gone"));
    let json_spec = format!("json-spec;{gone}");
    let cases: [(&[&str], &str); 13] = [
        (&["-w", "none", "--warmup", "31"], "--warmup 31 is longer than --duration 30"),
        (&["-w", "none", "-i", "0"], "--interarrival 0: must be above 0"),
        (&["-w", "none", "--arrival-model", "poison"], "invalid value 'poison' for '--arrival-model <MODEL>'"),
        (&["-w", "chain"], "there is no type 'chain', but: none, single, matrix-mul-chain"),
        (&["-w", "single;a"], "expected single;FUNCTION_JSON;WASM"),
        (&["-w", "none;template"], "the type none reads no file"),
        (&["-w", "none", "--arrival-model", "trace"], "--arrival-model trace needs --workload-trace FILE"),
        (&["-w", "none", "--workload-trace", &trace], "--workload-trace is for --arrival-model trace only"),
        (
            &["-w", "none", "--arrival-model", "trace", "--workload-trace", &trace],
            "line 2: the arrival 0 lies before the last one, 1",
        ),
        (&["-w", "none", "--arrival-model", "trace", "--workload-trace", &gone], "cannot read the trace"),
        (&["-w", &json_spec], "cannot read"),
        (&["-w", "none", "--output", &kept, "--additional-fields", "a,b", "--additional-header", "x"], "has 2 fields"),
        (&["-w", "none", "--output", &kept, "--append"], "has another header, 'seed'"),
    ];
    for (arguments, expected) in cases {
        let ended = output(load(arguments)).await;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {}", said(&ended));
        assert!(said(&ended).contains(expected), "{arguments:?}: {}", said(&ended));
        assert!(ended.stdout.is_empty());
    }
    assert_eq!(written(directory.path().join("kept.csv").as_path()), "seed\n", "a mistake costs no file");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_are_listed_and_have_templates() {
    let ended = output(load(&["-w", "help"])).await;
    assert_eq!(ended.status.code(), Some(0));
    let help = String::from_utf8(ended.stdout).unwrap();
    for name in ["none", "single;FUNCTION_JSON;WASM", "matrix-mul-chain[;FILE]", "json-spec;FILE"] {
        assert!(help.contains(name), "{help}");
    }
    for name in ["matrix-mul-chain", "vector-mul-chain", "map-reduce", "json-spec"] {
        let ended = output(load(&["-w", &format!("{name};template")])).await;
        assert_eq!(ended.status.code(), Some(0));
        serde_json::from_slice::<BTreeMap<String, Value>>(&ended.stdout).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_json_the_final_lines_and_a_table_are_printed() {
    let world = World::start().await;
    let url = world.cluster.controller_url().to_string();
    let ended = output(load(&["-c", &url, "-w", "none", "--arrival-model", "single", "-d", "0.1"])).await;
    let text = String::from_utf8(ended.stdout).unwrap();
    assert!(text.starts_with("workflows requested 1, started 1\nblocking probability 0.000000\n\n| what |"), "{text}");
}
