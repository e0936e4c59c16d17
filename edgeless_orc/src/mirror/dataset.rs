//! The history of the domain as CSV files, for whoever evaluates an experiment.
//!
//! Each line begins with what the configuration adds, and a comma. Nodes, their health and components
//! have a line whenever they changed, measurements one each. It does not depend on the database.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::node::{Capabilities, Health};
use edgeless_daemon::engine::Inbox;

use super::document::time;
use super::domain::look;
use super::reports::{Queue, Report};
use crate::config::DatasetSettings;
use crate::engine::{ComponentState, Engine, NodeState};

/// The time between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// A file, by its place in [`FILES`].
#[derive(Clone, Copy, Debug)]
enum Which {
    Logs,
    Samples,
    Mapping,
    Capabilities,
    Health,
}

/// Names and columns.
const FILES: [(&str, &str); 5] = [
    ("application_logs.csv", "identifier,target,timestamp,value"),
    ("performance_samples.csv", "identifier,metric,timestamp,value"),
    ("mapping_to_instance_id.csv", "timestamp,logical_id,workflow_id,node_id,physical_id"),
    (
        "capabilities.csv",
        "timestamp,node_id,num_cpus,model_name_cpu,clock_freq_cpu,num_cores,mem_size,labels,is_tee_running,has_tpm,\
         runtimes,disk_tot_space,num_gpus,model_name_gpu,mem_size_gpu",
    ),
    (
        "health_status.csv",
        "timestamp,node_id,mem_free,mem_used,mem_available,proc_cpu_usage,proc_memory,proc_vmemory,load_avg_1,\
         load_avg_5,load_avg_15,tot_rx_bytes,tot_rx_pkts,tot_rx_errs,tot_tx_bytes,tot_tx_pkts,tot_tx_errs,\
         disk_free_space,disk_tot_reads,disk_tot_writes,gpu_load_perc,gpu_temp_cels,active_power",
    ),
];

/// Lines that are still to be written, and the last one of everything that has one only when it changes.
#[derive(Debug, Default)]
struct Lines {
    additional: String,
    files: [String; FILES.len()],
    mapping: BTreeMap<ComponentId, String>,
    capabilities: BTreeMap<NodeId, String>,
    health: BTreeMap<NodeId, String>,
}

impl Lines {
    fn add(&mut self, which: Which, line: &dyn Display) {
        if let Some(file) = self.files.get_mut(which as usize) {
            // A String never fails to be written to.
            let _written = writeln!(file, "{},{line}", self.additional);
        }
    }

    fn add_node(&mut self, now: &str, state: &NodeState) {
        let line = format!("{},{}", state.node, capabilities(&state.capabilities));
        if self.capabilities.insert(state.node, line.clone()).as_ref() != Some(&line) {
            self.add(Which::Capabilities, &format_args!("{now},{line}"));
        }
    }

    fn add_component(&mut self, now: &str, state: &ComponentState) {
        let mut line = format!("{},{}", state.component, state.spec.workflow());
        for instance in &state.instances {
            let _written = write!(line, ",{},{}", instance.node, instance.function);
        }
        if self.mapping.insert(state.component, line.clone()).as_ref() != Some(&line) && !state.instances.is_empty() {
            self.add(Which::Mapping, &format_args!("{now},{line}"));
        }
    }

    /// What is gone is not remembered.
    fn forget_others(&mut self, nodes: &BTreeSet<NodeId>, components: &BTreeSet<ComponentId>) {
        self.mapping.retain(|id, _| components.contains(id));
        self.capabilities.retain(|id, _| nodes.contains(id));
        self.health.retain(|id, _| nodes.contains(id));
    }

    fn add_report(&mut self, report: &Report) {
        if let Some(own) = &report.health {
            let line = format!("{},{}", report.node, health(own));
            if self.health.insert(report.node, line.clone()).as_ref() != Some(&line) {
                self.add(Which::Health, &format_args!("{},{line}", time(report.at)));
            }
        }
        for sample in &report.performance.samples {
            let (metric, at) = (sample.phase.name(), time(sample.at));
            self.add(Which::Samples, &format_args!("{},{metric},{at},{}", sample.instance, sample.seconds));
        }
        for entry in &report.performance.entries {
            let (target, at, message) = (field(&entry.target), time(entry.at), field(&entry.message));
            self.add(Which::Logs, &format_args!("{},{target},{at},{message}", entry.instance));
        }
    }
}

fn capabilities(own: &Capabilities) -> String {
    let list = |values: &[String]| field(&format!("[{}]", values.join(";")));
    let values: [&dyn Display; 13] = [
        &own.num_cpus,
        &field(&own.model_name_cpu),
        &own.clock_freq_cpu,
        &own.num_cores,
        &own.mem_size,
        &list(&own.labels),
        &own.is_tee_running,
        &own.has_tpm,
        &list(&own.runtimes),
        &own.disk_tot_space,
        &own.num_gpus,
        &field(&own.model_name_gpu),
        &own.mem_size_gpu,
    ];
    values.map(ToString::to_string).join(",")
}

/// -1: not measured.
fn health(own: &Health) -> String {
    let number = |value: Option<i32>| i64::from(value.unwrap_or(-1));
    let count = |value: Option<i64>| value.unwrap_or(-1);
    let [one, five, fifteen] = own.load_avg.unwrap_or([-1; 3]).map(i64::from);
    let before = [
        number(own.mem_free),
        number(own.mem_used),
        number(own.mem_available),
        number(own.proc_cpu_usage),
        number(own.proc_memory),
        number(own.proc_vmemory),
        one,
        five,
        fifteen,
        count(own.rx_bytes),
        count(own.rx_packets),
        count(own.rx_errors),
        count(own.tx_bytes),
        count(own.tx_packets),
        count(own.tx_errors),
        count(own.disk_free_space),
        count(own.disk_reads),
        count(own.disk_writes),
        number(own.gpu_load),
    ];
    let degrees = own.gpu_temperature.map_or(-1.0, |thousandths| f64::from(thousandths) / 1000.0);
    let values = before.map(|value| value.to_string()).join(",");
    format!("{values},{degrees},{}", number(own.active_power))
}

/// A text as a field: in quotes where it would be taken for more than one.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    }
}

/// The files and what is still to be written to them.
pub(super) struct Dataset {
    files: Vec<File>,
    lines: Lines,
    queue: Queue,
    inbox: Inbox<Engine>,
    is_failing: bool,
}

impl Dataset {
    /// Opens the files.
    ///
    /// # Errors
    /// One of them cannot be written to.
    pub(super) fn open(settings: &DatasetSettings, queue: Queue, inbox: Inbox<Engine>) -> Result<Self, Error> {
        let open = |(name, columns): (&str, &str)| {
            let path = format!("{}{name}", settings.dataset_path);
            open(&path, settings, columns).map_err(|error| {
                Error::rejected(format!(
                    "proxy.dataset_settings.dataset_path: cannot write to {path}: {error}: name a directory that is \
                     there, with a slash at its end, or the beginning of the names of files"
                ))
            })
        };
        let files = FILES.into_iter().map(open).collect::<Result<_, _>>()?;
        let lines = Lines { additional: settings.additional_fields.clone(), ..Lines::default() };
        Ok(Self { files, lines, queue, inbox, is_failing: false })
    }

    /// Where to put what nodes measure.
    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Writes until this is dropped.
    pub(super) async fn run(mut self) {
        let mut rounds = tokio::time::interval(PERIOD);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = None;
        loop {
            rounds.tick().await;
            let (lines, now) = (&mut self.lines, time(SystemTime::now()));
            // An orchestrator that is too busy to be looked at is looked at later.
            let (mut nodes, mut components) = (BTreeSet::new(), BTreeSet::new());
            let looked = look(&self.inbox, known, |page| {
                page.nodes.iter().for_each(|node| lines.add_node(&now, node));
                page.components.iter().for_each(|component| lines.add_component(&now, component));
                nodes.extend(page.nodes.iter().map(|node| node.node));
                components.extend(page.components.iter().map(|component| component.component));
            });
            if let Ok(Some(generation)) = looked.await {
                known = Some(generation);
                self.lines.forget_others(&nodes, &components);
            }
            while let Some(report) = self.queue.take() {
                self.lines.add_report(&report);
            }
            self.write();
        }
    }

    /// What cannot be written is lost: a disk that is full stays so.
    fn write(&mut self) {
        let mut result = Ok(());
        for (file, lines) in self.files.iter_mut().zip(&mut self.lines.files) {
            if !lines.is_empty() {
                result = result.and(file.write_all(std::mem::take(lines).as_bytes()));
            }
        }
        let was_failing = std::mem::replace(&mut self.is_failing, result.is_err());
        if let (Err(error), false) = (result, was_failing) {
            tracing::warn!(%error, "the files of [proxy.dataset_settings] cannot be written to: lines are missing");
        }
    }
}

fn open(path: &str, settings: &DatasetSettings, columns: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true);
    let options = if settings.append { options.append(true) } else { options.write(true).truncate(true) };
    let mut file = options.open(path)?;
    if file.metadata()?.len() == 0 {
        writeln!(file, "{},{columns}", settings.additional_header)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use edgeless_api::component::{Annotations, ComponentSpec, ResourceSpec};
    use edgeless_api::id::{InstanceId, WorkflowId};
    use edgeless_api::node::{LogEntry, Performance, Phase, Sample};
    use uuid::Uuid;

    use super::*;

    const ID: Uuid = Uuid::from_u128(1);

    #[test]
    fn lines_are_those_that_scripts_read_and_come_when_something_changed() {
        let mut lines = Lines { additional: "run1".into(), ..Lines::default() };
        let mut node = NodeState {
            node: NodeId(ID),
            capabilities: Capabilities {
                model_name_cpu: "a, \"b\"".into(),
                labels: vec!["x".into(), "y".into()],
                ..Capabilities::default()
            },
            providers: vec![],
        };
        let mut component = ComponentState {
            component: ComponentId(ID),
            spec: ComponentSpec::Resource(ResourceSpec {
                class_type: "file-log".into(),
                configuration: Annotations::new(),
                workflow: WorkflowId(ID),
            }),
            instances: vec![],
            outputs: BTreeMap::new(),
        };
        for now in ["1.0", "2.0"] {
            lines.add_node(now, &node);
            lines.add_component(now, &component);
        }
        node.capabilities.num_cpus = 2;
        component.instances = vec![InstanceId { node: NodeId(ID), function: ID }; 2];
        lines.add_node("3.0", &node);
        lines.add_component("3.0", &component);
        let at = UNIX_EPOCH + Duration::from_millis(1500);
        let performance = Performance {
            samples: vec![Sample { instance: ID, phase: Phase::Init, at, seconds: 0.5 }],
            entries: vec![LogEntry { instance: ID, at, target: "t".into(), message: "two\nlines".into() }],
            left_out: 0,
        };
        let health = Health { gpu_temperature: Some(50_500), ..Health::default() };
        let mut report = Report::new(NodeId(ID), Some(health), performance);
        report.at = at;
        lines.add_report(&report);
        report.performance = Default::default();
        lines.add_report(&report);

        let rest = r#""a, ""b""",0,0,0,[x;y],false,false,[],0,0,,0"#;
        let expected = [
            format!("run1,{ID},t,1.500000000,\"two\nlines\"\n"),
            format!("run1,{ID},function_init_time,1.500000000,0.5\n"),
            format!("run1,3.0,{ID},{ID},{ID},{ID},{ID},{ID}\n"),
            format!("run1,1.0,{ID},0,{rest}\nrun1,3.0,{ID},2,{rest}\n"),
            format!("run1,1.500000000,{ID},{}50.5,-1\n", "-1,".repeat(19)),
        ];
        assert_eq!(lines.files, expected);
        for (index, lines) in [(3, "run1,1.0,1,0,[],0,0,0,[],f,f,[],0,0,,0"), (4, &expected[4])] {
            assert_eq!(FILES[index].1.split(',').count() + 1, lines.split(',').count(), "{}", FILES[index].0);
        }
    }

    #[test]
    fn files_go_on_or_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.csv").display().to_string();
        let settings = |append| DatasetSettings { append, additional_header: "run".into(), ..Default::default() };
        for (append, expected) in [(true, "run,c\nline\n"), (true, "run,c\nline\nline\n"), (false, "run,c\nline\n")] {
            writeln!(open(&path, &settings(append), "c").unwrap(), "line").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
    }
}
