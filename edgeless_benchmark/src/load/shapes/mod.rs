//! What workflows look like.
//!
//! Pure but for the files that are read at the beginning: the same type, files and seed give the same
//! workflows in the same order. [`KINDS`] is the list of all types, of which each is a file here or, if
//! it draws nothing, in [`files`].

mod chains;
mod files;
mod map_reduce;
mod parameters;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use edgeless_api::FunctionClass;
use edgeless_api::component::INIT_PAYLOAD;
use edgeless_api::workflow::{Function, Workflow};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The seed of the shapes is that of the arrivals and so much: the two must not be correlated.
const SEED_OFFSET: u64 = 1000;

/// Makes one workflow after the other.
pub(super) trait Shape {
    /// The workflow of a number, or none if nothing is to be deployed.
    fn draw(&mut self, random: &mut StdRng, number: u64) -> Result<Option<Workflow>>;
}

/// A type of workflow.
struct Kind {
    name: &'static str,
    /// What stands behind the name.
    files: &'static [&'static str],
    /// How many of these files must be named.
    required: usize,
    about: &'static str,
    /// A file to begin with.
    template: Option<fn() -> Result<String>>,
    load: fn(&[PathBuf]) -> Result<Box<dyn Shape>>,
}

/// All types.
const KINDS: [Kind; 6] = [
    Kind {
        name: "none",
        files: &[],
        required: 0,
        about: "nothing is deployed: the workload itself",
        template: None,
        load: |_| Ok(Box::new(files::Nothing)),
    },
    Kind {
        name: "single",
        files: &["FUNCTION_JSON", "WASM"],
        required: 2,
        about: "one function",
        template: None,
        load: files::single,
    },
    Kind {
        name: "matrix-mul-chain",
        files: &["FILE"],
        required: 0,
        about: "a chain of functions that multiply matrices",
        template: Some(parameters::template::<chains::MatrixMul>),
        load: chains::matrix_mul,
    },
    Kind {
        name: "vector-mul-chain",
        files: &["FILE"],
        required: 0,
        about: "a client and a chain of functions that multiply a vector, in a closed loop",
        template: Some(parameters::template::<chains::VectorMul>),
        load: chains::vector_mul,
    },
    Kind {
        name: "map-reduce",
        files: &["FILE"],
        required: 0,
        about: "a trigger, and stages that map data to workers and reduce their results",
        template: Some(parameters::template::<map_reduce::MapReduce>),
        load: map_reduce::load,
    },
    Kind {
        name: "json-spec",
        files: &["FILE"],
        required: 1,
        about: "any workflow file; @WF_ID in it stands for the number of the workflow",
        template: Some(files::template),
        load: files::json_spec,
    },
];

impl Kind {
    fn usage(&self) -> String {
        let files = self.files.iter().enumerate().map(|(index, file)| match index < self.required {
            true => format!(";{file}"),
            false => format!("[;{file}]"),
        });
        self.name.to_string() + &files.collect::<String>()
    }
}

/// What was asked for with `--wf-type`.
#[derive(Clone)]
pub(super) enum WorkflowType {
    /// The list of all types.
    Help,
    /// A file to begin with.
    Template(fn() -> Result<String>),
    /// Workflows, made by this from these files.
    Load(fn(&[PathBuf]) -> Result<Box<dyn Shape>>, Vec<PathBuf>),
}

impl FromStr for WorkflowType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(';');
        let name = parts.next().unwrap_or_default();
        let files: Vec<_> = parts.collect();
        if name == "help" {
            return Ok(Self::Help);
        }
        let known = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        let kind = KINDS.iter().find(|kind| kind.name == name);
        let kind = kind.ok_or_else(|| format!("there is no type '{name}', but: {}", known()))?;
        if files == ["template"] {
            return kind
                .template
                .map(Self::Template)
                .ok_or_else(|| format!("the type {name} reads no file of its own"));
        }
        if !(kind.required..=kind.files.len()).contains(&files.len()) || files.contains(&"") {
            return Err(format!("expected {}", kind.usage()));
        }
        Ok(Self::Load(kind.load, files.into_iter().map(PathBuf::from).collect()))
    }
}

/// The types, one on a line.
pub(super) fn help() -> String {
    let mut text = String::from(
        "Types of workflows (NAME;template prints a FILE to begin with, whose values are the defaults):\n",
    );
    for kind in &KINDS {
        text.push_str(&format!("  {:<29} {}\n", kind.usage(), kind.about));
    }
    text
}

/// The workflows of an experiment.
pub(super) struct Shapes {
    shape: Box<dyn Shape>,
    random: StdRng,
}

impl Shapes {
    pub(super) fn new(shape: Box<dyn Shape>, seed: u64) -> Self {
        Self { shape, random: StdRng::seed_from_u64(seed.wrapping_add(SEED_OFFSET)) }
    }

    /// The workflow of a number, or none if nothing is to be deployed.
    pub(super) fn next(&mut self, number: u64) -> Result<Option<Workflow>> {
        self.shape.draw(&mut self.random, number)
    }
}

/// A function of a class, with its outputs and its init payload.
fn function(name: String, class: &FunctionClass, outputs: &[(&str, &str)], init_payload: String) -> Function {
    let text = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    Function {
        name,
        class: class.clone(),
        outputs: outputs.iter().map(text).collect(),
        annotations: BTreeMap::from([(INIT_PAYLOAD.to_string(), init_payload)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<WorkflowType>().err().unwrap_or_else(|| panic!("'{text}' is accepted"))
    }

    #[test]
    fn a_type_that_does_not_exist_is_told_from_one_that_is_incomplete() {
        let all = "none, single, matrix-mul-chain, vector-mul-chain, map-reduce, json-spec";
        assert_eq!(refusal("chain"), format!("there is no type 'chain', but: {all}"));
        assert_eq!(refusal("single;a.json"), "expected single;FUNCTION_JSON;WASM");
        assert_eq!(refusal("json-spec"), "expected json-spec;FILE");
        assert_eq!(refusal("map-reduce;a;b"), "expected map-reduce[;FILE]");
        assert_eq!(refusal("map-reduce;"), "expected map-reduce[;FILE]");
        assert_eq!(refusal("none;template"), "the type none reads no file of its own");
        assert!(matches!("none".parse(), Ok(WorkflowType::Load(_, files)) if files.is_empty()));
        assert!(matches!("help".parse(), Ok(WorkflowType::Help)));
    }

    #[test]
    fn help_names_every_type() {
        for kind in &KINDS {
            assert!(help().contains(&format!("\n  {}", kind.usage())), "{}", kind.name);
        }
    }
}
