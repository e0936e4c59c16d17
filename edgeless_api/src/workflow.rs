//! Workflows: a graph of functions and resources that send each other events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::annotation::AnnotationError;
use crate::binary::Binary;
use crate::component::{Annotations, FunctionClass, StatePolicy, is_of_container};
use crate::delivery::{self, Deliveries};
use crate::id::{ComponentId, DomainId, WorkflowId};
use crate::relocate;
use crate::requirements::{self, Requirements};
use crate::scale::{self, Scale};

/// A function in a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Unique in the workflow.
    pub name: String,
    /// What it is made of.
    pub class: FunctionClass,
    /// Output channel to the name of a component.
    pub outputs: BTreeMap<String, String>,
    /// What the user asks of it.
    pub annotations: Annotations,
}

/// A resource in a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Unique in the workflow.
    pub name: String,
    /// Its class, such as `http-ingress`.
    pub class_type: String,
    /// Output channel to the name of a component.
    pub outputs: BTreeMap<String, String>,
    /// What the user asks of it.
    pub configuration: Annotations,
}

/// What a user wants to run. Made by [`Workflow::new`], which checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workflow {
    functions: Vec<Function>,
    resources: Vec<Resource>,
    annotations: Annotations,
}

/// What is wrong with a workflow, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place, as a JSON path such as `functions[0].output_mapping.out`.
    pub place: String,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// A workflow is refused, for these reasons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidWorkflow(pub Vec<Problem>);

/// The longest name of a component or a channel, bytes.
pub const MAX_NAME: usize = 256;
/// The most components of a workflow.
pub const MAX_COMPONENTS: usize = 10_000;
/// The annotations of functions that have a meaning, besides those about placement and instances.
pub const ANNOTATIONS: [&str; 2] = ["init-payload", "state"];

/// All annotations of functions that have a meaning, whatever their type.
fn known_annotations() -> impl Iterator<Item = &'static str> {
    let keys = requirements::KEYS.into_iter().chain(scale::KEYS).chain(delivery::KEYS).map(|(key, _)| key);
    ANNOTATIONS.into_iter().chain(keys)
}

/// Checks the annotations of a component that everybody understands alike.
fn check_annotations(annotations: &Annotations) -> Result<(), AnnotationError> {
    Requirements::parse(annotations)?;
    Scale::parse(annotations)?;
    Deliveries::parse(annotations)?;
    Ok(())
}

impl Workflow {
    /// Checks what a user or a peer sent.
    ///
    /// # Errors
    /// Everything that is wrong with it: names that are empty, too long or repeated, outputs to
    /// components that do not exist, annotations that cannot be understood.
    pub fn new(
        functions: Vec<Function>,
        resources: Vec<Resource>,
        annotations: Annotations,
    ) -> Result<Self, InvalidWorkflow> {
        let workflow = Self { functions, resources, annotations };
        let problems = workflow.problems();
        if problems.is_empty() { Ok(workflow) } else { Err(InvalidWorkflow(problems)) }
    }

    /// The functions, in the order of the file.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The resources, in the order of the file.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// What the user asks of the whole.
    pub fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    /// The same workflow with the code of each function as `keep` gives it back.
    ///
    /// # Errors
    /// The first error of `keep`.
    pub fn with_binaries<E>(mut self, mut keep: impl FnMut(Binary) -> Result<Binary, E>) -> Result<Self, E> {
        for function in &mut self.functions {
            function.class.binary = keep(std::mem::take(&mut function.class.binary))?;
        }
        Ok(self)
    }

    /// Changes what the user asks of a function.
    ///
    /// # Errors
    /// There is no such function, or annotations of it cannot be understood then; nothing is changed.
    pub fn annotate(&mut self, name: &str, changes: &Annotations) -> Result<(), InvalidWorkflow> {
        let found = self.functions.iter_mut().enumerate().find(|(_, function)| function.name == name);
        let problem = |place: String, reason: String| InvalidWorkflow(vec![Problem { place, reason }]);
        let (index, function) =
            found.ok_or_else(|| problem("functions".into(), format!("there is no function '{name}'")))?;
        let mut annotations = function.annotations.clone();
        annotations.extend(changes.clone());
        check_annotations(&annotations)
            .map_err(|error| problem(format!("functions[{index}].annotations"), error.to_string()))?;
        function.annotations = annotations;
        Ok(())
    }

    /// Functions, then resources: place, name, outputs, annotations.
    fn components(&self) -> impl Iterator<Item = (String, &str, &BTreeMap<String, String>, &str, &Annotations)> {
        let functions = self.functions.iter().enumerate().map(|(index, function)| {
            let place = format!("functions[{index}]");
            (place, function.name.as_str(), &function.outputs, "annotations", &function.annotations)
        });
        let resources = self.resources.iter().enumerate().map(|(index, resource)| {
            let place = format!("resources[{index}]");
            (place, resource.name.as_str(), &resource.outputs, "configurations", &resource.configuration)
        });
        functions.chain(resources)
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut found = |place: String, reason: String| problems.push(Problem { place, reason });
        let count = self.functions.len() + self.resources.len();
        if count == 0 {
            found("functions".into(), "the workflow has no component: name a function or a resource".into());
        }
        if count > MAX_COMPONENTS {
            found("functions".into(), format!("{count} components are more than {MAX_COMPONENTS}"));
            return problems;
        }
        let names: BTreeSet<&str> = self.components().map(|(_, name, ..)| name).collect();
        let mut seen = BTreeSet::new();
        for (place, name, outputs, annotations_key, annotations) in self.components() {
            if let Err(reason) = check_name(name) {
                found(format!("{place}.name"), reason);
            } else if !seen.insert(name) {
                found(format!("{place}.name"), format!("the name '{name}' is taken: give each component its own"));
            }
            for (channel, target) in outputs {
                let place = channel_place(&place, channel);
                if let Err(reason) = check_name(channel) {
                    found(place.clone(), reason);
                }
                if !names.contains(target.as_str()) {
                    let known = names.iter().copied().collect::<Vec<_>>().join(", ");
                    found(place, format!("'{target}' is not a component of this workflow; there are: {known}"));
                }
            }
            if let Err(error) = check_annotations(annotations) {
                found(format!("{place}.{annotations_key}"), error.to_string());
            }
        }
        if let Err(reason) = relocate::parse(&self.annotations) {
            found("annotations".into(), reason);
        }
        for (index, function) in self.functions.iter().enumerate() {
            let place = format!("functions[{index}].class_specification");
            if function.class.id.is_empty() {
                found(format!("{place}.id"), "must not be empty".into());
            }
            if let Err(error) = StatePolicy::parse(&function.annotations) {
                found(format!("functions[{index}].annotations"), error.to_string());
            }
            if function.class.function_type.is_empty() {
                found(format!("{place}.function_type"), "must not be empty: RUST_WASM, for example".into());
            }
        }
        for (index, resource) in self.resources.iter().enumerate() {
            if resource.class_type.is_empty() {
                found(format!("resources[{index}].class_type"), "must not be empty".into());
            }
        }
        problems
    }

    /// What is allowed and yet probably a mistake: outputs that the function's class does not list,
    /// annotations that have no meaning.
    pub fn warnings(&self) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for (index, function) in self.functions.iter().enumerate() {
            for channel in function.outputs.keys().filter(|channel| !function.class.outputs.contains(channel)) {
                warnings.push(Problem {
                    place: channel_place(&format!("functions[{index}]"), channel),
                    reason: format!("the class '{}' does not list the output '{channel}'", function.class.id),
                });
            }
            let known: Vec<_> = known_annotations().collect();
            let has_effect = |key: &str| {
                let is_of_type = is_of_container(&function.class.function_type, key);
                known.contains(&key) || delivery::is_known(key) || is_of_type
            };
            for key in function.annotations.keys().filter(|key| !has_effect(key)) {
                let reason = format!("the annotation '{key}' has no effect; there are: {}", known.join(", "));
                warnings.push(Problem { place: format!("functions[{index}].annotations"), reason });
            }
        }
        for key in self.annotations.keys().filter(|key| *key != relocate::KEY.0) {
            let reason = format!("the annotation '{key}' has no effect on a workflow; there is: {}", relocate::KEY.0);
            warnings.push(Problem { place: "annotations".into(), reason });
        }
        warnings
    }
}

/// The place of an output channel; a name that would not be seen in it is quoted.
fn channel_place(component: &str, channel: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    match !channel.is_empty() && channel.chars().all(is_plain) {
        true => format!("{component}.output_mapping.{channel}"),
        false => format!("{component}.output_mapping.'{}'", channel.escape_debug()),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty".into());
    }
    if name.len() > MAX_NAME {
        return Err(format!("is {} bytes long: {MAX_NAME} is the limit", name.len()));
    }
    Ok(())
}

/// Where a component of a workflow runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its name in the workflow.
    pub name: String,
    /// What the domain knows it by.
    pub component: ComponentId,
    /// The domain.
    pub domain: DomainId,
}

/// A workflow that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowStatus {
    /// Its id.
    pub workflow: WorkflowId,
    /// Where its functions and resources run.
    pub mapping: Vec<Mapping>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, outputs: &[(&str, &str)]) -> Function {
        Function {
            name: name.into(),
            class: FunctionClass { id: "f".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
            outputs: outputs.iter().map(|(channel, target)| (channel.to_string(), target.to_string())).collect(),
            annotations: Annotations::new(),
        }
    }

    fn refusal(functions: Vec<Function>) -> String {
        Workflow::new(functions, vec![], Annotations::new()).unwrap_err().to_string()
    }

    #[test]
    fn an_output_to_nowhere_is_named_with_its_place() {
        let text = refusal(vec![function("a", &[("out", "c")]), function("b", &[])]);
        assert!(text.contains("functions[0].output_mapping.out: 'c' is not a component"), "{text}");
        assert!(text.contains("there are: a, b"), "{text}");
    }

    #[test]
    fn repeated_and_empty_names_are_refused() {
        let text = refusal(vec![function("a", &[]), function("a", &[]), function("", &[])]);
        assert!(text.contains("functions[1].name: the name 'a' is taken"), "{text}");
        assert!(text.contains("functions[2].name: must not be empty"), "{text}");
    }

    #[test]
    fn an_empty_workflow_is_refused() {
        assert!(refusal(vec![]).contains("no component"));
    }

    #[test]
    fn what_is_asked_of_the_whole_is_checked() {
        let workflow = |key: &str, value: &str| {
            Workflow::new(vec![function("a", &[])], vec![], Annotations::from([(key.into(), value.into())]))
        };
        assert_eq!(workflow("relocate", "after:1m").unwrap().warnings(), []);
        assert!(
            workflow("relocate", "soon").unwrap_err().to_string().starts_with("annotations: annotation 'relocate'")
        );
        let warnings = workflow("realocate", "after:1m").unwrap().warnings();
        assert_eq!(
            warnings[0].to_string(),
            "annotations: the annotation 'realocate' has no effect on a workflow; there is: relocate"
        );
    }

    #[test]
    fn an_undeclared_channel_is_a_warning() {
        let workflow = Workflow::new(vec![function("a", &[("out", "a")])], vec![], Annotations::new()).unwrap();
        let warnings = workflow.warnings();
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].place, "functions[0].output_mapping.out");
    }

    #[test]
    fn a_channel_that_would_not_be_seen_is_quoted() {
        let text = refusal(vec![function("a", &[("", "a")]), function("b", &[("an out", "c")])]);
        assert!(text.contains("functions[0].output_mapping.'': must not be empty"), "{text}");
        assert!(text.contains("functions[1].output_mapping.'an out': 'c' is not a component"), "{text}");
    }

    #[test]
    fn an_annotation_that_nobody_knows_is_a_warning() {
        let value = |key| match key {
            "cpu" | "max_instances" | "min_instances" => "1",
            "memory" => "64MiB",
            "partition_by" => "payload",
            "spread" => "node",
            "delivery" | "delivery:<output>" | "input_delivery" => "at-least-once",
            "state" => "transient",
            _ => "",
        };
        let mut annotations: Annotations =
            known_annotations().map(|key| (key.to_string(), value(key).to_string())).collect();
        let warnings = |annotations: &Annotations| {
            let function = Function { annotations: annotations.clone(), ..function("a", &[]) };
            Workflow::new(vec![function], vec![], Annotations::new()).unwrap().warnings()
        };
        assert_eq!(warnings(&annotations), []);
        let container = Annotations::from([("pids".into(), String::new()), ("env:A".into(), String::new())]);
        assert_eq!(warnings(&container).len(), 2, "of a module");
        annotations.insert("node_id_mach_any".into(), String::new());
        let warnings = warnings(&annotations);
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].place, "functions[0].annotations");
        assert!(warnings[0].reason.starts_with("the annotation 'node_id_mach_any' has no effect"), "{warnings:?}");
        assert!(warnings[0].reason.contains("node_id_match_any"), "what was probably meant: {warnings:?}");
    }
}
