//! What a component asks of the node that shall run it, read from its annotations.

use crate::component::Annotations;
use crate::id::NodeId;
use crate::node::Capabilities;

/// The restrictions of one component. All of them must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// `node_id_match_any`: the node is one of these; empty: any node.
    pub nodes: Vec<NodeId>,
    /// `label_match_all`: the node has all of these labels.
    pub labels: Vec<String>,
    /// `resource_match_all`: the node offers all of these providers.
    pub providers: Vec<String>,
    /// `tee`: the node runs in a trusted execution environment.
    pub tee: bool,
    /// `tpm`: the node has a trusted platform module.
    pub tpm: bool,
}

/// The annotations that restrict placement, with what they mean: the list that docs and checks share.
pub const KEYS: [(&str, &str); 5] = [
    ("node_id_match_any", "comma-separated UUIDs: the node is one of them"),
    ("label_match_all", "comma-separated labels: the node has all of them; blanks count"),
    ("resource_match_all", "comma-separated provider ids: the node offers all of them"),
    ("tee", "`required`: the node runs in a trusted execution environment"),
    ("tpm", "`required`: the node has a trusted platform module"),
];

/// An annotation has a value that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation '{key}' has the value '{value}': {reason}")]
pub struct RequirementError {
    key: &'static str,
    value: String,
    reason: String,
}

impl Requirements {
    /// Reads the annotations that restrict placement and ignores all others.
    ///
    /// # Errors
    /// A known key has a value that cannot be understood.
    pub fn parse(annotations: &Annotations) -> Result<Self, RequirementError> {
        let list = |key: &str| -> Vec<String> {
            annotations.get(key).map(|text| text.split(',').map(str::to_string).collect()).unwrap_or_default()
        };
        let required = |key: &str| annotations.get(key).is_some_and(|value| value.eq_ignore_ascii_case("required"));
        let mut nodes = Vec::new();
        for text in list("node_id_match_any").iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            let node = text.parse().map_err(|error: crate::id::IdError| RequirementError {
                key: "node_id_match_any",
                value: text.to_string(),
                reason: error.to_string(),
            })?;
            nodes.push(node);
        }
        Ok(Self {
            nodes,
            labels: list("label_match_all"),
            providers: list("resource_match_all"),
            tee: required("tee"),
            tpm: required("tpm"),
        })
    }

    /// The restrictions one by one, each with the words that say it in a refusal.
    pub fn each(&self) -> Vec<Requirement<'_>> {
        let mut each = Vec::new();
        if !self.nodes.is_empty() {
            each.push(Requirement::Node(&self.nodes));
        }
        each.extend(self.labels.iter().map(|label| Requirement::Label(label)));
        each.extend(self.providers.iter().map(|provider| Requirement::Provider(provider)));
        if self.tee {
            each.push(Requirement::Tee);
        }
        if self.tpm {
            each.push(Requirement::Tpm);
        }
        each
    }
}

/// One restriction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// The node is one of these.
    Node(&'a [NodeId]),
    /// The node has this label.
    Label(&'a str),
    /// The node offers this provider.
    Provider(&'a str),
    /// The node runs in a trusted execution environment.
    Tee,
    /// The node has a trusted platform module.
    Tpm,
}

impl Requirement<'_> {
    /// Whether a node meets it.
    pub fn is_met_by<'p>(
        &self,
        node: NodeId,
        capabilities: &Capabilities,
        mut providers: impl Iterator<Item = &'p str>,
    ) -> bool {
        match self {
            Self::Node(any) => any.contains(&node),
            Self::Label(label) => capabilities.labels.iter().any(|own| own == label),
            Self::Provider(provider) => providers.any(|own| own == *provider),
            Self::Tee => capabilities.is_tee_running,
            Self::Tpm => capabilities.has_tpm,
        }
    }
}

impl std::fmt::Display for Requirement<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(nodes) => {
                let ids: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
                write!(f, "are named by node_id_match_any ({})", ids.join(", "))
            }
            Self::Label(label) => write!(f, "have the label '{label}'"),
            Self::Provider(provider) => write!(f, "offer the provider '{provider}'"),
            Self::Tee => f.write_str("run in a trusted execution environment"),
            Self::Tpm => f.write_str("have a trusted platform module"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Requirements, RequirementError> {
        Requirements::parse(&pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn every_restricting_annotation_is_read() {
        let node = NodeId::random();
        let all = parse(&[
            ("node_id_match_any", &format!("{node}")),
            ("label_match_all", "gpu, fast"),
            ("resource_match_all", "redis-1"),
            ("tee", "Required"),
            ("tpm", "no"),
            ("init-payload", "anything"),
        ])
        .unwrap();
        assert_eq!(all.nodes, [node]);
        assert_eq!(all.labels, ["gpu", " fast"], "blanks in labels count");
        assert_eq!(all.providers, ["redis-1"]);
        assert!(all.tee && !all.tpm);
        assert_eq!(all.each().len(), 5);
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
}
