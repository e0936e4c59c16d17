//! Chains of functions that multiply.
//!
//! Both are rings when they are closed: the last function leads to the first one, or to the client.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result};
use edgeless_api::FunctionClass;
use edgeless_api::workflow::{Function, Workflow};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::{Shape, function, parameters};

/// The output of every function of a chain.
const OUTPUT: &str = "output";

/// The parameters of `matrix-mul-chain`. Length and sizes are drawn for each workflow, a size for each
/// function.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MatrixMul {
    min_chain_length: u32,
    max_chain_length: u32,
    min_matrix_size: u32,
    max_matrix_size: u32,
    /// Milliseconds; 0 is a closed loop.
    transaction_interval: u32,
    function_wasm_path: PathBuf,
}

impl Default for MatrixMul {
    fn default() -> Self {
        Self {
            min_chain_length: 1,
            max_chain_length: 3,
            min_matrix_size: 100,
            max_matrix_size: 500,
            transaction_interval: 0,
            function_wasm_path: "functions/matrix_mul/matrix_mul.wasm".into(),
        }
    }
}

/// The parameters of `vector-mul-chain`. Length and input size are drawn for each workflow.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct VectorMul {
    min_chain_length: u32,
    max_chain_length: u32,
    min_input_size: u32,
    max_input_size: u32,
    function_wasm_path: PathBuf,
}

impl Default for VectorMul {
    fn default() -> Self {
        Self {
            min_chain_length: 1,
            max_chain_length: 3,
            min_input_size: 100,
            max_input_size: 500,
            function_wasm_path: "functions/vector_mul/vector_mul.wasm".into(),
        }
    }
}

struct MatrixMulChain {
    length: RangeInclusive<u32>,
    size: RangeInclusive<u32>,
    interval_ms: u32,
    class: FunctionClass,
}

pub(super) fn matrix_mul(files: &[PathBuf]) -> Result<Box<dyn Shape>> {
    let parameters: MatrixMul = parameters::read(files)?;
    Ok(Box::new(MatrixMulChain {
        length: chain_length(parameters.min_chain_length, parameters.max_chain_length)?,
        size: parameters::range_from_one("matrix_size", parameters.min_matrix_size, parameters.max_matrix_size)?,
        interval_ms: parameters.transaction_interval,
        class: parameters::class("matrix_mul", vec![OUTPUT.to_string()], &parameters.function_wasm_path)?,
    }))
}

impl Shape for MatrixMulChain {
    fn draw(&mut self, random: &mut StdRng, _number: u64) -> Result<Option<Workflow>> {
        let length = random.random_range(self.length.clone());
        let interval_ms = self.interval_ms;
        let links = (0..length).map(|index| {
            let size = random.random_range(self.size.clone());
            let (first, last) = (index == 0, index + 1 == length);
            let payload = format!(
                "matrix_size={size},seed={},first={first},last={last},interval_ms={interval_ms}",
                random.random::<u32>()
            );
            (format!("matrix-{index}"), payload)
        });
        ring(&self.class, links.collect(), interval_ms == 0)
    }
}

struct VectorMulChain {
    length: RangeInclusive<u32>,
    size: RangeInclusive<u32>,
    class: FunctionClass,
}

pub(super) fn vector_mul(files: &[PathBuf]) -> Result<Box<dyn Shape>> {
    let parameters: VectorMul = parameters::read(files)?;
    Ok(Box::new(VectorMulChain {
        length: chain_length(parameters.min_chain_length, parameters.max_chain_length)?,
        size: parameters::range_from_one("input_size", parameters.min_input_size, parameters.max_input_size)?,
        class: parameters::class("vector_mul", vec![OUTPUT.to_string()], &parameters.function_wasm_path)?,
    }))
}

impl Shape for VectorMulChain {
    fn draw(&mut self, random: &mut StdRng, _number: u64) -> Result<Option<Workflow>> {
        let length = random.random_range(self.length.clone());
        let size = random.random_range(self.size.clone());
        let mut payload = |client| format!("input_size={size},seed={},client={client}", random.random::<u32>());
        let mut links = vec![("client".to_string(), payload(true))];
        links.extend((0..length).map(|index| (format!("vector-{index}"), payload(false))));
        ring(&self.class, links, true)
    }
}

fn chain_length(min: u32, max: u32) -> Result<RangeInclusive<u32>> {
    parameters::range_from_one("chain_length", min, max)
}

/// Functions of which each leads to the next one, and in a ring the last one to the first.
fn ring(class: &FunctionClass, links: Vec<(String, String)>, is_closed: bool) -> Result<Option<Workflow>> {
    let names: Vec<String> = links.iter().map(|(name, _)| name.clone()).collect();
    let functions = links.into_iter().enumerate().map(|(index, (name, payload))| -> Result<Function> {
        let next = match names.get(index + 1) {
            Some(next) => Some(next),
            None if is_closed => Some(names.first().context("a chain has a link")?),
            None => None,
        };
        let outputs: Vec<_> = next.map(|next| (OUTPUT, next.as_str())).into_iter().collect();
        Ok(function(name, class, &outputs, payload))
    });
    Ok(Some(Workflow::new(functions.collect::<Result<_>>()?, Vec::new(), [].into())?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    fn class() -> FunctionClass {
        FunctionClass {
            id: "f".into(),
            function_type: "RUST_WASM".into(),
            outputs: vec![OUTPUT.into()],
            ..FunctionClass::default()
        }
    }

    fn matrix_chain(interval_ms: u32) -> MatrixMulChain {
        MatrixMulChain { length: 1..=3, size: 10..=20, interval_ms, class: class() }
    }

    fn draw(shape: &mut dyn Shape, seed: u64, count: u64) -> Vec<Workflow> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..count).map(|number| shape.draw(&mut random, number).unwrap().unwrap()).collect()
    }

    fn payload(function: &Function) -> &str {
        &function.annotations["init-payload"]
    }

    fn value(function: &Function, key: &str) -> u32 {
        let entry = payload(function).split(',').find_map(|entry| entry.strip_prefix(&format!("{key}=")));
        entry.unwrap().parse().unwrap()
    }

    /// From one function along the outputs, until there is none or one is met again.
    fn walk(workflow: &Workflow) -> (usize, Option<&str>) {
        let functions = workflow.functions();
        let mut seen: Vec<&str> = vec![&functions[0].name];
        while let Some(next) = functions.iter().find(|f| f.name == *seen.last().unwrap()).unwrap().outputs.get(OUTPUT) {
            if seen.contains(&next.as_str()) {
                return (seen.len(), Some(next));
            }
            seen.push(next);
        }
        (seen.len(), None)
    }

    #[test]
    fn a_seed_repeats_the_shapes() {
        assert_eq!(draw(&mut matrix_chain(0), 1, 20), draw(&mut matrix_chain(0), 1, 20));
        assert_ne!(draw(&mut matrix_chain(0), 1, 20), draw(&mut matrix_chain(0), 2, 20));
    }

    #[test]
    fn matrix_chains_have_all_lengths_and_one_beginning_and_end() {
        for (interval, is_closed) in [(0, true), (50, false)] {
            let workflows = draw(&mut matrix_chain(interval), 42, 200);
            let mut lengths = BTreeSet::new();
            for workflow in &workflows {
                let functions = workflow.functions();
                lengths.insert(functions.len());
                assert!(functions.iter().all(|function| (10..=20).contains(&value(function, "matrix_size"))));
                let is =
                    |key: &str| functions.iter().position(|f| payload(f).contains(&format!("{key}=true"))).unwrap();
                assert_eq!((is("first"), is("last")), (0, functions.len() - 1));
                let end = is_closed.then_some("matrix-0");
                assert_eq!(walk(workflow), (functions.len(), end));
                assert_eq!(workflow.warnings(), []);
            }
            assert_eq!(lengths, BTreeSet::from([1, 2, 3]));
        }
    }

    #[test]
    fn vector_chains_lead_back_to_their_client_and_agree_on_a_size() {
        let mut shape = VectorMulChain { length: 1..=3, size: 100..=500, class: class() };
        let workflows = draw(&mut shape, 42, 200);
        let lengths: BTreeSet<_> = workflows.iter().map(|workflow| workflow.functions().len()).collect();
        assert_eq!(lengths, BTreeSet::from([2, 3, 4]), "a client and one to three others");
        for workflow in &workflows {
            let functions = workflow.functions();
            assert_eq!(walk(workflow), (functions.len(), Some("client")));
            let clients: Vec<_> = functions.iter().filter(|f| payload(f).contains("client=true")).collect();
            assert!(clients.len() == 1 && clients[0].name == "client");
            let sizes: BTreeSet<_> = functions.iter().map(|function| value(function, "input_size")).collect();
            assert!(sizes.len() == 1 && sizes.iter().all(|size| (100..=500).contains(size)));
        }
    }

    #[test]
    fn parameters_without_sense_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p.json");
        for (text, expected) in [
            (r#"{"min_chain_length": 5}"#, "min_chain_length 5 is above max_chain_length 3"),
            (r#"{"min_matrix_size": 0}"#, "min_matrix_size must be 1 or more"),
            (r#"{"chain_length": 5}"#, "unknown field `chain_length`"),
            ("{", "EOF"),
            (r#"{"function_wasm_path": "/nowhere.wasm"}"#, "cannot read the module /nowhere.wasm"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = matrix_mul(std::slice::from_ref(&file)).err().unwrap();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }

    #[test]
    fn a_template_has_the_keys_and_defaults_that_are_documented() {
        let template: serde_json::Value = serde_json::from_str(&parameters::template::<MatrixMul>().unwrap()).unwrap();
        let expected = serde_json::json!({
            "min_chain_length": 1, "max_chain_length": 3, "min_matrix_size": 100, "max_matrix_size": 500,
            "transaction_interval": 0, "function_wasm_path": "functions/matrix_mul/matrix_mul.wasm",
        });
        assert_eq!(template, expected);
        let template: serde_json::Value = serde_json::from_str(&parameters::template::<VectorMul>().unwrap()).unwrap();
        let expected = serde_json::json!({
            "min_chain_length": 1, "max_chain_length": 3, "min_input_size": 100, "max_input_size": 500,
            "function_wasm_path": "functions/vector_mul/vector_mul.wasm",
        });
        assert_eq!(template, expected);
    }
}
