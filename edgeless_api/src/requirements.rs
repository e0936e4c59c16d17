//! What a component asks of the node that shall run it, read from its annotations.

use std::fmt;

use crate::amount::{self, Bytes, Cpu};
use crate::annotation::{self, AnnotationError};
use crate::component::Annotations;
use crate::id::NodeId;

/// The restrictions of one component. All of them must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// `node_id_match_any`: the node is one of these; empty: any node.
    pub nodes: Vec<NodeId>,
    /// `label_match_all`: the node has all of these labels.
    pub labels: Vec<String>,
    /// `label_match_any`: the node has one of these labels; empty: any node.
    pub any_labels: Vec<String>,
    /// `resource_match_all`: the node offers all of these providers.
    pub providers: Vec<String>,
    /// `tee`: the node runs in a trusted execution environment.
    pub tee: bool,
    /// `tpm`: the node has a trusted platform module.
    pub tpm: bool,
    /// `spread`: no two instances of it are on one node.
    pub spread: bool,
    /// `cpu`: the node has so much left that nobody else has reserved.
    pub cpu: Option<Cpu>,
    /// `memory`: the node has so much left that nobody else has reserved.
    pub memory: Option<Bytes>,
}

/// The annotations that restrict placement, with what they mean: the list that docs and checks share.
pub const KEYS: [(&str, &str); 9] = [
    ("node_id_match_any", "comma-separated UUIDs: the node is one of them"),
    ("label_match_all", "comma-separated labels: the node has all of them; blanks count"),
    ("label_match_any", "comma-separated labels: the node has at least one of them; blanks count"),
    ("resource_match_all", "comma-separated provider ids: the node offers all of them"),
    ("tee", "`required`: the node runs in a trusted execution environment"),
    ("tpm", "`required`: the node has a trusted platform module"),
    ("spread", "`node`: each instance is on a node of its own"),
    ("cpu", "cores, such as 0.5: the node has so much that is not reserved; for a container the limit, too"),
    ("memory", "a size, such as 64MiB: the node has so much that is not reserved; for a container the limit, too"),
];

impl Requirements {
    /// Reads the annotations that restrict placement and ignores all others.
    ///
    /// # Errors
    /// A known key has a value that cannot be understood.
    pub fn parse(annotations: &Annotations) -> Result<Self, AnnotationError> {
        let list = |key: &str| -> Vec<String> {
            annotations.get(key).map(|text| text.split(',').map(str::to_string).collect()).unwrap_or_default()
        };
        let required = |key: &str| annotations.get(key).is_some_and(|value| value.eq_ignore_ascii_case("required"));
        let mut nodes = Vec::new();
        for text in list("node_id_match_any").iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            nodes.push(text.parse().map_err(|error| AnnotationError::value("node_id_match_any", text, error))?);
        }
        let spread = match annotations.get("spread").map(String::as_str) {
            None => false,
            Some("node") => true,
            Some(other) => return Err(AnnotationError::value("spread", other, "write node, or leave it out")),
        };
        Ok(Self {
            nodes,
            labels: list("label_match_all"),
            any_labels: list("label_match_any"),
            providers: list("resource_match_all"),
            tee: required("tee"),
            tpm: required("tpm"),
            spread,
            cpu: reservation(annotations, "cpu")?,
            memory: reservation(annotations, "memory")?,
        })
    }

    /// The restrictions one by one, each with the words that say it in a refusal.
    pub fn each(&self) -> Vec<Requirement<'_>> {
        let mut each = Vec::new();
        if !self.nodes.is_empty() {
            each.push(Requirement::Node(&self.nodes));
        }
        each.extend(self.labels.iter().map(|label| Requirement::Label(label)));
        if !self.any_labels.is_empty() {
            each.push(Requirement::AnyLabel(&self.any_labels));
        }
        each.extend(self.providers.iter().map(|provider| Requirement::Provider(provider)));
        if self.tee {
            each.push(Requirement::Tee);
        }
        if self.tpm {
            each.push(Requirement::Tpm);
        }
        if self.spread {
            each.push(Requirement::Spread);
        }
        each.extend(self.cpu.map(Requirement::Cpu));
        each.extend(self.memory.map(Requirement::Memory));
        each
    }
}

/// An amount that is kept free for a component.
fn reservation<T: std::str::FromStr<Err = String>>(
    annotations: &Annotations,
    key: &'static str,
) -> Result<Option<T>, AnnotationError> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    amount::parse(&annotation::shown(text)).map_err(|reason| AnnotationError::amount(key, &reason))
}

/// One restriction. What it says of several nodes stands in its `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// The node is one of these.
    Node(&'a [NodeId]),
    /// The node has this label.
    Label(&'a str),
    /// The node has one of these labels.
    AnyLabel(&'a [String]),
    /// The node offers this provider.
    Provider(&'a str),
    /// The node runs in a trusted execution environment.
    Tee,
    /// The node has a trusted platform module.
    Tpm,
    /// The node has no other instance of it.
    Spread,
    /// The node has so much that is not reserved.
    Cpu(Cpu),
    /// The node has so much that is not reserved.
    Memory(Bytes),
}

impl fmt::Display for Requirement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(nodes) => {
                let ids: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
                write!(f, "are named by node_id_match_any ({})", ids.join(", "))
            }
            Self::Label(label) => write!(f, "have the label '{label}'"),
            Self::AnyLabel(labels) => write!(f, "have one of the labels {}", one_of(labels)),
            Self::Provider(provider) => write!(f, "offer the provider '{provider}'"),
            Self::Tee => f.write_str("run in a trusted execution environment"),
            Self::Tpm => f.write_str("have a trusted platform module"),
            Self::Spread => f.write_str("have no other instance of it (spread)"),
            Self::Cpu(cpu) => write!(f, "have {cpu} cores that are not reserved (cpu)"),
            Self::Memory(memory) => write!(f, "have {memory} of memory that are not reserved (memory)"),
        }
    }
}

/// Names in quotes, with commas.
fn one_of(names: &[String]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Requirements, AnnotationError> {
        Requirements::parse(&pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn every_restricting_annotation_is_read() {
        let node = NodeId::random();
        let all = parse(&[
            ("node_id_match_any", &format!("{node}")),
            ("label_match_all", "gpu, fast"),
            ("label_match_any", "left,right"),
            ("resource_match_all", "redis-1"),
            ("tee", "Required"),
            ("tpm", "no"),
            ("spread", "node"),
            ("cpu", "0.5"),
            ("memory", "64MiB"),
            ("init-payload", "anything"),
        ])
        .unwrap();
        assert_eq!(all.nodes, [node]);
        assert_eq!(all.labels, ["gpu", " fast"], "blanks in labels count");
        assert_eq!(all.providers, ["redis-1"]);
        assert_eq!(all.any_labels, ["left", "right"]);
        assert!(all.tee && !all.tpm && all.spread);
        assert_eq!((all.cpu, all.memory), (Some(Cpu::cores(0.5)), Some(Bytes(64 << 20))));
        assert_eq!(all.each().len(), 9);
    }

    #[test]
    fn empty_label_text_is_the_empty_label() {
        assert_eq!(parse(&[("label_match_all", "")]).unwrap().labels, [""]);
    }

    #[test]
    fn a_node_id_that_is_none_is_refused() {
        let error = parse(&[("node_id_match_any", "here")]).unwrap_err().to_string();
        assert!(error.contains("'node_id_match_any'") && error.contains("'here'"), "{error}");
    }

    #[test]
    fn a_value_that_means_nothing_is_refused_with_what_to_write() {
        for (key, value, said) in [
            ("spread", "rack", "annotation 'spread' has the value 'rack': write node, or leave it out"),
            ("spread", "", "annotation 'spread' has the value '': write node, or leave it out"),
            ("cpu", "much", "annotation 'cpu': 'much' is not a number of cores, such as 0.5"),
            ("cpu", "0", "annotation 'cpu': '0' cores are too few: 0.01 are the least"),
            ("cpu", "-1", "annotation 'cpu': '-1' cores are too few: 0.01 are the least"),
            ("memory", "lots", "annotation 'memory': 'lots' is not a size, such as 128MiB"),
            ("memory", "0", "annotation 'memory': '0' is nothing: 'none' takes a limit away"),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap_err().to_string(), said);
        }
        assert!(parse(&[("cpu", &"9".repeat(1000))]).unwrap().cpu.is_some(), "as many as there can be");
        assert!(parse(&[("cpu", &"x".repeat(1000))]).unwrap_err().to_string().len() < 200);
    }

    /// What a container may be given while it runs, and what is kept then, must be understood, too.
    #[test]
    fn a_limit_that_was_taken_away_reserves_nothing() {
        let none = parse(&[("cpu", "none"), ("memory", " none ")]).unwrap();
        assert_eq!((none.cpu, none.memory), (None, None));
    }
}
