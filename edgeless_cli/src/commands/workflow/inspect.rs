//! `workflow inspect`: what a workflow is made of, where it runs and how it fares.
//!
//! Text is one fact on a line, each line beginning with what it is about, so that scripts can grep.
//! Components come in the order of the workflow file, whatever order the controller answers in.

use std::collections::BTreeMap;

use edgeless_api::client::Workflows;
use edgeless_api::component::FunctionClass;
use edgeless_api::status::{ComponentStatus, InstanceStatus, Limit, OutputBooks, State, Usage};
use edgeless_api::workflow::{Function, Mapping, Resource, Workflow, WorkflowStatus};
use edgeless_api::{Code, ComponentId, InstanceId, WorkflowId};
use serde::Serialize;

use super::logs::Line;
use super::sorted_ids;
use crate::failure::Failure;
use crate::opts::Which;
use crate::output::{Console, GREEN, RED, Report, Style, YELLOW, indented, one_line};

pub(super) async fn run(which: Which<WorkflowId>, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let id = match which {
        Which::One(id) => id,
        Which::All => return all(workflows, console).await,
    };
    console.report(&inspect(id, workflows, console).await?)
}

async fn all(workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let mut inspected = All(Vec::new());
    for id in sorted_ids(workflows).await? {
        match inspect(id, workflows, console).await {
            // It was stopped meanwhile.
            Err(Failure::Daemon(error)) if error.code == Code::NotFound => {}
            workflow => inspected.0.push(workflow?),
        }
    }
    console.report(&inspected)
}

async fn inspect(id: WorkflowId, workflows: &Workflows, console: &Console) -> Result<Inspected, Failure> {
    let (workflow, status) = workflows.inspect(id).await?;
    let components = match workflows.status(id).await {
        Ok(components) => Some(components),
        Err(error) if error.code == Code::NotFound => return Err(error.into()),
        Err(error) => {
            if error.code != Code::Unimplemented {
                console.warn(format!("how the components of {id} fare is not known: {error}"));
            }
            None
        }
    };
    Ok(Inspected::new(&workflow, status, components))
}

#[derive(Serialize)]
#[serde(transparent)]
struct All(Vec<Inspected>);

impl Report for All {
    fn text(&self, style: Style) -> String {
        let one = |workflow: &Inspected| {
            format!("{}\n{}", style.bold(format_args!("** workflow {}", workflow.workflow)), workflow.text(style))
        };
        self.0.iter().map(one).collect()
    }
}

/// A workflow, with the keys of the workflow file where there are such.
#[derive(Serialize)]
struct Inspected {
    workflow: WorkflowId,
    functions: Vec<FunctionPart>,
    resources: Vec<ResourcePart>,
    annotations: BTreeMap<String, String>,
    mapping: Vec<Mapped>,
    /// Absent if the controller does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    components: Option<Vec<Component>>,
}

#[derive(Serialize)]
struct FunctionPart {
    name: String,
    class_specification: Class,
    output_mapping: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Class {
    id: String,
    function_type: String,
    version: String,
    code: Option<String>,
    outputs: Vec<String>,
}

#[derive(Serialize)]
struct ResourcePart {
    name: String,
    class_type: String,
    output_mapping: BTreeMap<String, String>,
    configurations: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Mapped {
    name: String,
    domain: String,
    component: ComponentId,
}

#[derive(Serialize)]
struct Component {
    name: String,
    component: ComponentId,
    state: State,
    instance: Option<InstanceId>,
    epoch: u64,
    restarts: u64,
    handled: u64,
    dropped: u64,
    reason: String,
    outputs: Vec<OutputBooks>,
    limits: Vec<Limit>,
    usage: Option<Used>,
    log: Vec<Line>,
    instances: Vec<Instance>,
}

/// One of the instances of a component.
#[derive(Serialize)]
struct Instance {
    instance: InstanceId,
    hostname: String,
    state: State,
    handled: u64,
    queued: u64,
}

impl From<InstanceStatus> for Instance {
    fn from(status: InstanceStatus) -> Self {
        let InstanceStatus { instance, state, handled, queued, hostname } = status;
        Self { instance, hostname, state, handled, queued }
    }
}

/// What a component uses. The time is in seconds, sizes are in bytes.
#[derive(Serialize)]
struct Used {
    cpu_seconds: f64,
    memory: u64,
    processes: u64,
    received: u64,
    sent: u64,
}

impl Inspected {
    fn new(workflow: &Workflow, status: WorkflowStatus, components: Option<Vec<ComponentStatus>>) -> Self {
        let functions = workflow.functions().iter().map(|function| &function.name);
        let names: Vec<_> = functions.chain(workflow.resources().iter().map(|resource| &resource.name)).collect();
        let rank = |name: &String| names.iter().position(|known| *known == name).unwrap_or(names.len());
        let mut mapping: Vec<_> = status.mapping.into_iter().map(Mapped::from).collect();
        mapping.sort_by_key(|mapped| rank(&mapped.name));
        let components = components.map(|statuses| {
            let mut components: Vec<_> = statuses.into_iter().map(Component::from).collect();
            components.sort_by_key(|component| rank(&component.name));
            components
        });
        Self {
            workflow: status.workflow,
            functions: workflow.functions().iter().map(FunctionPart::from).collect(),
            resources: workflow.resources().iter().map(ResourcePart::from).collect(),
            annotations: workflow.annotations().clone(),
            mapping,
            components,
        }
    }
}

impl From<&Function> for FunctionPart {
    fn from(function: &Function) -> Self {
        let FunctionClass { id, function_type, version, code, outputs, .. } = function.class.clone();
        Self {
            name: function.name.clone(),
            class_specification: Class {
                id,
                function_type,
                version,
                code: (!code.is_empty()).then_some(code),
                outputs,
            },
            output_mapping: function.outputs.clone(),
            annotations: function.annotations.clone(),
        }
    }
}

impl From<&Resource> for ResourcePart {
    fn from(resource: &Resource) -> Self {
        Self {
            name: resource.name.clone(),
            class_type: resource.class_type.clone(),
            output_mapping: resource.outputs.clone(),
            configurations: resource.configuration.clone(),
        }
    }
}

impl From<Mapping> for Mapped {
    fn from(mapping: Mapping) -> Self {
        Self { name: mapping.name, domain: mapping.domain.0, component: mapping.component }
    }
}

impl From<ComponentStatus> for Component {
    fn from(status: ComponentStatus) -> Self {
        Self {
            name: status.name,
            component: status.component,
            state: status.state,
            instance: status.instance,
            epoch: status.epoch,
            restarts: status.restarts,
            handled: status.handled,
            dropped: status.dropped,
            reason: status.reason,
            outputs: status.outputs,
            limits: status.limits,
            usage: status.usage.map(Used::from),
            log: status.log.into_iter().map(Line::from).collect(),
            instances: status.instances.into_iter().map(Instance::from).collect(),
        }
    }
}

impl From<Usage> for Used {
    fn from(usage: Usage) -> Self {
        let Usage { cpu, memory, processes, received, sent } = usage;
        Self { cpu_seconds: cpu.as_secs_f64(), memory, processes, received, sent }
    }
}

impl Report for Inspected {
    fn text(&self, style: Style) -> String {
        let mut lines = Vec::new();
        for function in &self.functions {
            let class = &function.class_specification;
            lines.push(style.bold(format_args!("* function {}", one_line(&function.name))));
            lines.push(format!(
                "run-time {} class {} version {} code {:?}",
                one_line(&class.function_type),
                one_line(&class.id),
                one_line(&class.version),
                class.code
            ));
            lines.extend(arrows("OUT", &function.output_mapping));
            lines.extend(arrows("F_ANN", &function.annotations));
        }
        for resource in &self.resources {
            lines.push(style.bold(format_args!("* resource {}", one_line(&resource.name))));
            lines.push(format!("class {}", one_line(&resource.class_type)));
            lines.extend(arrows("OUT", &resource.output_mapping));
            lines.extend(arrows("CONF", &resource.configurations));
        }
        lines.push(style.bold("* mapping"));
        lines.extend(arrows("W_ANN", &self.annotations));
        for mapped in &self.mapping {
            let (name, domain) = (one_line(&mapped.name), one_line(&mapped.domain));
            lines.push(format!("MAP {name} -> {domain} [logical ID {}]", mapped.component));
        }
        if let Some(components) = &self.components {
            lines.push(style.bold("* status"));
            lines.extend(components.iter().flat_map(|component| component.lines(style)));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn arrows(what: &str, pairs: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    pairs.iter().map(move |(key, value)| format!("{what} {} -> {}", one_line(key), one_line(value)))
}

impl Component {
    fn lines(&self, style: Style) -> Vec<String> {
        let name = one_line(&self.name);
        let colour = match self.state {
            State::Running => GREEN,
            State::Failed => RED,
            State::Waiting | State::Starting | State::Restarting | State::Stopped => YELLOW,
        };
        let place = match self.instance {
            Some(instance) => format!(" on {} [instance {}, ", instance.node, instance.function),
            None => " [".into(),
        };
        let mut lines = vec![format!(
            "STATE {name} -> {}{place}epoch {}, restarts {}, handled {}, dropped {}]",
            style.paint(colour, self.state),
            self.epoch,
            self.restarts,
            self.handled,
            self.dropped
        )];
        if !self.reason.is_empty() {
            lines.push(format!("REASON {name} -> {}", indented(&self.reason)));
        }
        // A single one is in the first line.
        for own in self.instances.iter().filter(|_| self.instances.len() > 1) {
            let (place, hostname) = (own.instance, one_line(&own.hostname));
            lines.push(format!(
                "INSTANCE {name} -> {} on {} [instance {}, handled {}, queued {}, host {hostname}]",
                own.state, place.node, place.function, own.handled, own.queued
            ));
        }
        for books in &self.outputs {
            let fates: Vec<_> = books.fates().map(|(fate, count)| format!("{} {count}", one_line(fate))).collect();
            let (output, produced) = (one_line(&books.output), books.produced);
            lines.push(format!("SENT {name} {output} -> {produced} [{}]", fates.join(", ")));
        }
        for limit in &self.limits {
            let (limit, asked, kernel) = (one_line(&limit.name), one_line(&limit.asked), one_line(&limit.kernel));
            lines.push(format!("LIMIT {name} {limit} -> {asked} [kernel {kernel}]"));
        }
        if let Some(Used { cpu_seconds, memory, processes, received, sent }) = &self.usage {
            lines.push(format!(
                "USE {name} -> cpu {cpu_seconds:.3} s [memory {memory}, processes {processes}, received {received}, sent {sent}]"
            ));
        }
        lines.extend(self.log.iter().map(|line| format!("LOG {name} -> {}", line.without_component(style))));
        lines
    }
}
