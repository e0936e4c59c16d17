//! How surely the events of an output arrive, read from the annotations of its component.

use std::collections::BTreeMap;

use crate::annotation::AnnotationError;
use crate::component::Annotations;

/// The annotations that are read here, with what they mean: what docs and checks share.
pub const KEYS: [(&str, &str); 3] = [
    (
        "delivery",
        "how surely the casts of all outputs arrive: `at-most-once` (default) or `at-least-once`, which survives the death of any process",
    ),
    ("delivery:<output>", "the same of one output"),
    (
        INPUT,
        "`at-least-once`: the component runs only on a node that knows a repeated event; set by itself on the targets of such outputs",
    ),
];

const KEY: &str = "delivery";
const SURE: &str = "at-least-once";
const OF_OUTPUT: &str = "delivery:";
/// Said of a component that such an output leads to.
const INPUT: &str = "input_delivery";

/// Whether an annotation is about delivery.
pub fn is_known(key: &str) -> bool {
    key == KEY || key == INPUT || key.starts_with(OF_OUTPUT)
}

/// How surely the casts on an output arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Kept in memory alone: lost with a process that has it in hand.
    #[default]
    AtMostOnce,
    /// On the disk of the sender's node until the target has handled it; it may be handled more than once.
    AtLeastOnce,
}

/// How surely the casts of each output of a component arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    all: Delivery,
    input: Delivery,
    by_output: BTreeMap<String, Delivery>,
}

impl Deliveries {
    /// Reads the annotations about delivery and ignores all others.
    ///
    /// # Errors
    /// One has a value that cannot be understood.
    pub fn parse(annotations: &Annotations) -> Result<Self, AnnotationError> {
        let mut deliveries = Self::default();
        if let Some(text) = annotations.get(KEY) {
            deliveries.all = delivery(text)?;
        }
        if let Some(text) = annotations.get(INPUT) {
            deliveries.input = delivery(text)?;
        }
        for (key, text) in annotations.range(OF_OUTPUT.to_string()..) {
            let Some(output) = key.strip_prefix(OF_OUTPUT) else { break };
            deliveries.by_output.insert(output.to_string(), delivery(text)?);
        }
        Ok(deliveries)
    }

    /// Whether there may be an output whose casts arrive at least once.
    pub fn is_any_sure(&self) -> bool {
        self.all == Delivery::AtLeastOnce || self.by_output.values().any(|delivery| *delivery == Delivery::AtLeastOnce)
    }

    /// Whether it needs a node that can deliver at least once: EDGELESS 1.x nodes cannot.
    pub fn needs_repeats(&self) -> bool {
        self.input == Delivery::AtLeastOnce || self.is_any_sure()
    }

    /// Says of a component that events come to it which may be repeated.
    pub fn mark_target(annotations: &mut Annotations) {
        annotations.insert(INPUT.to_string(), SURE.to_string());
    }

    /// Of one output.
    pub fn of(&self, output: &str) -> Delivery {
        self.by_output.get(output).copied().unwrap_or(self.all)
    }
}

fn delivery(text: &str) -> Result<Delivery, AnnotationError> {
    match text.trim() {
        "at-most-once" => Ok(Delivery::AtMostOnce),
        SURE => Ok(Delivery::AtLeastOnce),
        _ => Err(AnnotationError::value(KEY, text, "write at-most-once or at-least-once")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &[(&str, &str)]) -> Result<Deliveries, AnnotationError> {
        let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Deliveries::parse(&annotations)
    }

    #[test]
    fn an_output_has_its_own_delivery_or_that_of_all() {
        let none = parse(&[("label_match_all", "x")]).unwrap();
        assert_eq!(none.of("out"), Delivery::AtMostOnce);
        let all = parse(&[("delivery", "at-least-once"), ("delivery:log", "at-most-once"), ("deliverz", "?")]).unwrap();
        assert_eq!((all.of("out"), all.of("log")), (Delivery::AtLeastOnce, Delivery::AtMostOnce));
        let one = parse(&[("delivery:out", " at-least-once ")]).unwrap();
        assert_eq!((one.of("out"), one.of("log")), (Delivery::AtLeastOnce, Delivery::AtMostOnce));
        assert!(!none.needs_repeats() && all.needs_repeats() && one.needs_repeats());
        let mut target = Annotations::new();
        Deliveries::mark_target(&mut target);
        let target = Deliveries::parse(&target).unwrap();
        assert!(target.needs_repeats() && !target.is_any_sure());
    }

    #[test]
    fn a_value_that_cannot_be_understood_is_named() {
        for key in ["delivery", "delivery:out"] {
            let error = parse(&[(key, "exactly-once")]).unwrap_err().to_string();
            assert!(error.contains("'exactly-once'") && error.contains("at-most-once or at-least-once"), "{error}");
        }
    }
}
