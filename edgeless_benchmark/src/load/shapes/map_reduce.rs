//! `map-reduce`: a trigger, and stages of workers.
//!
//! ```text
//!   trigger ──next──▶ stage-0 ──part-i──▶ process-0-i        (as many as fan_out says)
//!                        │    ◀──result──┘
//!                        └──next──▶ stage-1 … ──result──▶ redis
//! ```

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::Result;
use edgeless_api::FunctionClass;
use edgeless_api::workflow::{Resource, Workflow};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::{Shape, function, parameters};

/// The name of the resource that holds the last result, and of its key.
const REDIS: &str = "redis";
const KEY: &str = "map-reduce";

/// The parameters. Interval, input size and number of stages are drawn for each workflow, the fan-out for
/// each stage, the work for each worker.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MapReduce {
    min_transaction_interval_ms: u32,
    max_transaction_interval_ms: u32,
    min_input_size: u32,
    max_input_size: u32,
    min_num_stages: u32,
    max_num_stages: u32,
    min_fan_out: u32,
    max_fan_out: u32,
    min_fibonacci: u32,
    max_fibonacci: u32,
    min_memory_bytes: u32,
    max_memory_bytes: u32,
    functions_path: PathBuf,
    /// Empty: the last result goes nowhere.
    redis_url: String,
}

impl Default for MapReduce {
    fn default() -> Self {
        Self {
            min_transaction_interval_ms: 500,
            max_transaction_interval_ms: 1500,
            min_input_size: 100,
            max_input_size: 1000,
            min_num_stages: 1,
            max_num_stages: 3,
            min_fan_out: 1,
            max_fan_out: 3,
            min_fibonacci: 1000,
            max_fibonacci: 5000,
            min_memory_bytes: 0,
            max_memory_bytes: 0,
            functions_path: "functions".into(),
            redis_url: "redis://127.0.0.1:6379".to_string(),
        }
    }
}

struct Stages {
    interval_ms: RangeInclusive<u32>,
    input_size: RangeInclusive<u32>,
    num_stages: RangeInclusive<u32>,
    fan_out: RangeInclusive<u32>,
    fibonacci: RangeInclusive<u32>,
    memory_bytes: RangeInclusive<u32>,
    redis_url: String,
    stage: FunctionClass,
    process: FunctionClass,
}

pub(super) fn load(files: &[PathBuf]) -> Result<Box<dyn Shape>> {
    Ok(Box::new(stages(parameters::read(files)?)?))
}

fn stages(parameters: MapReduce) -> Result<Stages> {
    use parameters::{range, range_from_one};
    let p = parameters;
    let class =
        |id: &str, outputs| parameters::class(id, outputs, &p.functions_path.join(id).join(format!("{id}.wasm")));
    let parts = (0..p.max_fan_out).map(part);
    let outputs = ["next", "result"].map(str::to_string).into_iter().chain(parts).collect();
    Ok(Stages {
        interval_ms: range_from_one(
            "transaction_interval_ms",
            p.min_transaction_interval_ms,
            p.max_transaction_interval_ms,
        )?,
        input_size: range("input_size", p.min_input_size, p.max_input_size)?,
        num_stages: range_from_one("num_stages", p.min_num_stages, p.max_num_stages)?,
        fan_out: range_from_one("fan_out", p.min_fan_out, p.max_fan_out)?,
        fibonacci: range("fibonacci", p.min_fibonacci, p.max_fibonacci)?,
        memory_bytes: range("memory_bytes", p.min_memory_bytes, p.max_memory_bytes)?,
        stage: class("bench_mapreduce", outputs)?,
        process: class("bench_process", vec!["result".to_string()])?,
        redis_url: p.redis_url,
    })
}

fn part(index: u32) -> String {
    format!("part-{index}")
}

impl Shape for Stages {
    fn draw(&mut self, random: &mut StdRng, _number: u64) -> Result<Option<Workflow>> {
        let mut draw = |range: &RangeInclusive<u32>| random.random_range(range.clone());
        let payload = format!(
            "trigger=true,interval_ms={},input_size={},seed={}",
            draw(&self.interval_ms),
            draw(&self.input_size),
            draw(&(0..=u32::MAX))
        );
        let num_stages = draw(&self.num_stages);
        let mut functions = vec![function("trigger".to_string(), &self.stage, &[("next", "stage-0")], payload)];
        for stage in 0..num_stages {
            let name = format!("stage-{stage}");
            let (next, is_last) = (format!("stage-{}", stage + 1), stage + 1 == num_stages);
            let fan_out = draw(&self.fan_out);
            let workers: Vec<_> = (0..fan_out).map(|index| (part(index), format!("process-{stage}-{index}"))).collect();
            let mut outputs: Vec<_> = workers.iter().map(|(part, worker)| (part.as_str(), worker.as_str())).collect();
            let has_result = is_last && !self.redis_url.is_empty();
            match is_last {
                true if has_result => outputs.push(("result", REDIS)),
                true => {}
                false => outputs.push(("next", &next)),
            }
            let payload = format!("fan_out={fan_out},last={is_last},result={has_result}");
            functions.push(function(name.clone(), &self.stage, &outputs, payload));
            for (_, worker) in workers {
                let payload = format!("fibonacci={},memory_bytes={}", draw(&self.fibonacci), draw(&self.memory_bytes));
                functions.push(function(worker, &self.process, &[("result", &name)], payload));
            }
        }
        Ok(Some(Workflow::new(functions, self.redis().into_iter().collect(), [].into())?))
    }
}

impl Stages {
    fn redis(&self) -> Option<Resource> {
        let text = |(key, value): (&str, &str)| (key.to_string(), value.to_string());
        let configuration = [("url", self.redis_url.as_str()), ("key", KEY), ("add-workflow-id", "true")].map(text);
        (!self.redis_url.is_empty()).then(|| Resource {
            name: REDIS.to_string(),
            class_type: "redis".to_string(),
            outputs: [].into(),
            configuration: configuration.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    fn drawn(change: impl Fn(&mut MapReduce), count: u64) -> Vec<Workflow> {
        let directory = tempfile::tempdir().unwrap();
        for id in ["bench_mapreduce", "bench_process"] {
            std::fs::create_dir(directory.path().join(id)).unwrap();
            std::fs::write(directory.path().join(id).join(format!("{id}.wasm")), b"\0asm").unwrap();
        }
        let mut parameters = MapReduce { functions_path: directory.path().into(), ..MapReduce::default() };
        change(&mut parameters);
        let mut stages = stages(parameters).unwrap();
        let mut random = StdRng::seed_from_u64(42);
        (0..count).map(|number| stages.draw(&mut random, number).unwrap().unwrap()).collect()
    }

    #[test]
    fn every_part_goes_to_a_worker_that_answers_its_stage() {
        let workflows = drawn(|_| {}, 100);
        let mut stages_seen = BTreeSet::new();
        for workflow in &workflows {
            assert_eq!(workflow.warnings(), []);
            let functions = workflow.functions();
            let named = |name: &str| functions.iter().find(|function| function.name == name).unwrap();
            let (mut stage, mut count, mut seen) = (&named("trigger").outputs["next"], 0, 1);
            loop {
                let function = named(stage);
                let workers: Vec<_> =
                    function.outputs.iter().filter(|(output, _)| output.starts_with("part-")).collect();
                assert!(function.annotations["init-payload"].starts_with(&format!("fan_out={},", workers.len())));
                assert!(workers.iter().all(|(_, worker)| named(worker).outputs["result"] == *stage));
                (count, seen) = (count + 1, seen + 1 + workers.len());
                match function.outputs.get("next") {
                    Some(next) => stage = next,
                    None => {
                        assert!(function.annotations["init-payload"].ends_with("last=true,result=true"));
                        assert_eq!(function.outputs["result"], "redis");
                        break;
                    }
                }
            }
            assert_eq!(seen, functions.len(), "no function is left over");
            stages_seen.insert(count);
        }
        assert_eq!(stages_seen, BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn without_redis_the_result_goes_nowhere() {
        let workflow = drawn(|parameters| parameters.redis_url.clear(), 1).remove(0);
        assert!(workflow.resources().is_empty());
        assert!(
            workflow
                .functions()
                .iter()
                .all(|function| !function.outputs.contains_key("result") || function.class.id == "bench_process")
        );
    }

    #[test]
    fn a_template_has_the_keys_and_defaults_that_are_documented() {
        let template: serde_json::Value = serde_json::from_str(&parameters::template::<MapReduce>().unwrap()).unwrap();
        let expected = serde_json::json!({
            "min_transaction_interval_ms": 500, "max_transaction_interval_ms": 1500,
            "min_input_size": 100, "max_input_size": 1000, "min_num_stages": 1, "max_num_stages": 3,
            "min_fan_out": 1, "max_fan_out": 3, "min_fibonacci": 1000, "max_fibonacci": 5000,
            "min_memory_bytes": 0, "max_memory_bytes": 0,
            "functions_path": "functions", "redis_url": "redis://127.0.0.1:6379",
        });
        assert_eq!(template, expected);
    }
}
