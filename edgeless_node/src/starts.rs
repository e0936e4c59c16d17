//! What functions take before their first event, step by step, as histograms by class.
//!
//! Users name classes: so many are told apart, and the others share a series (`function_class="other"`),
//! so that workflows cannot grow the memory of a monitor.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::node::Phase;
use edgeless_api::{InstanceId, NodeId};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::samples::Samples;

/// A step of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Step {
    /// The code is compiled.
    Compile,
    /// The compiled code is read from the disk.
    Load,
    /// An instance is made of it.
    Instantiate,
    /// The instance initialises itself.
    Init,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    node_id: String,
    function_class: String,
    step: Step,
}

/// Seconds: from what an instance takes to what the compilation of a large module does.
const BUCKETS: [f64; 12] = [0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// The classes that are told apart.
const MAX_CLASSES: usize = 100;
/// The longest name of a class that is shown, bytes.
const MAX_NAME: usize = 256;

/// The times of one node; clones share them.
#[derive(Clone, Debug)]
pub struct StartTimes {
    node: NodeId,
    times: Family<Labels, Histogram, fn() -> Histogram>,
    classes: Arc<Mutex<BTreeSet<String>>>,
    samples: Samples,
}

impl StartTimes {
    /// No times yet.
    pub fn new(node: NodeId) -> Self {
        let samples = Samples::default();
        Self { node, times: Family::new_with_constructor(histogram), classes: Arc::default(), samples }
    }

    /// The same, where those of single instances are also noted one by one.
    #[must_use]
    pub fn with_samples(self, samples: Samples) -> Self {
        Self { samples, ..self }
    }

    /// Shows them to monitoring.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time that a function takes before its first event, by step, seconds";
        registry.register("function_start_times", help, self.times.clone());
    }

    /// Takes note of a step of the start of a function of this class.
    pub fn observe(&self, class: &str, step: Step, took: Duration) {
        let labels = Labels { node_id: self.node.to_string(), function_class: self.shown(class), step };
        self.times.get_or_create_owned(&labels).observe(took.as_secs_f64());
    }

    /// The same, where it is known which instance it was.
    pub fn observe_one(&self, instance: InstanceId, class: &str, step: Step, took: Duration) {
        self.observe(class, step, took);
        match step {
            Step::Instantiate => self.samples.add(instance.function, Phase::Instantiate, took),
            Step::Init => self.samples.add(instance.function, Phase::Init, took),
            Step::Compile | Step::Load => {}
        }
    }

    fn shown(&self, class: &str) -> String {
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        if !classes.contains(class) {
            if classes.len() >= MAX_CLASSES || class.len() > MAX_NAME {
                return "other".to_string();
            }
            classes.insert(class.to_string());
        }
        class.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_apart_up_to_a_limit() {
        let starts = StartTimes::new(NodeId::random());
        for number in 0..MAX_CLASSES + 2 {
            starts.observe(&format!("class-{number}"), Step::Init, Duration::from_millis(1));
        }
        starts.observe(&"x".repeat(MAX_NAME + 1), Step::Init, Duration::from_millis(1));
        let (mut registry, mut text) = (Registry::default(), String::new());
        starts.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let series = |class: &str, count: u32| {
            let labels = format!("node_id=\"{}\",function_class=\"{class}\",step=\"Init\"", starts.node);
            text.contains(&format!("function_start_times_count{{{labels}}} {count}\n"))
        };
        assert!(series("class-0", 1) && series("class-99", 1) && series("other", 3), "{text}");
    }
}
