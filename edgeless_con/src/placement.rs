//! Chooses the domains that may host a workflow, and says why the others may not.
//!
//! Pure: the same workflow and the same domains give the same answer. It knows what a domain has as
//! a whole and nothing of its nodes: whether nodes can really be found is for the domain's
//! orchestrator to say, and the engine asks it.

use std::collections::BTreeMap;

use edgeless_api::component::{Annotations, ComponentSpec, StatePolicy};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::DomainId;
use edgeless_api::scale::Scale;
use edgeless_api::workflow::Workflow;

/// What the components of a workflow ask of a domain; each with one component that asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    runtimes: BTreeMap<String, String>,
    resource_classes: BTreeMap<String, String>,
    /// One that keeps its state outside the nodes.
    global_state: Option<String>,
}

impl Needs {
    /// The needs of a workflow.
    pub fn of(workflow: &Workflow) -> Self {
        let mut needs = Self::default();
        for function in workflow.functions() {
            needs.runtimes.entry(function.class.function_type.clone()).or_insert_with(|| function.name.clone());
            if StatePolicy::parse(&function.annotations) == Ok(StatePolicy::Global) {
                needs.global_state.get_or_insert_with(|| function.name.clone());
            }
        }
        for resource in workflow.resources() {
            needs.resource_classes.entry(resource.class_type.clone()).or_insert_with(|| resource.name.clone());
        }
        needs
    }

    /// Adds what one more component needs.
    pub fn add(&mut self, name: &str, spec: &ComponentSpec) {
        if matches!(spec, ComponentSpec::Function(function) if function.state.policy == StatePolicy::Global) {
            self.global_state.get_or_insert_with(|| name.to_string());
        }
        let (needs, what) = match spec {
            ComponentSpec::Function(function) => (&mut self.runtimes, &function.class.function_type),
            ComponentSpec::Resource(resource) => (&mut self.resource_classes, &resource.class_type),
        };
        needs.entry(what.clone()).or_insert_with(|| name.to_string());
    }

    /// Why a domain cannot host the workflow; `None` if it may.
    pub fn miss(&self, domain: &DomainCapabilities) -> Option<Miss> {
        if domain.num_nodes == 0 {
            return Some(Miss::NotReady("has no node yet: start edgeless_node_d with its orchestrator_url".into()));
        }
        let lacking = self.lacking(domain);
        (!lacking.is_empty()).then_some(Miss::Lacks(lacking))
    }

    /// What a domain lacks, in words.
    fn lacking(&self, domain: &DomainCapabilities) -> Vec<String> {
        let missing = |what, needed: &BTreeMap<String, String>, offered: &std::collections::BTreeSet<String>| {
            needed
                .iter()
                .filter(|(name, _)| !offered.contains(*name))
                .map(|(name, component)| format!("the {what} {name}, which '{component}' needs"))
                .collect::<Vec<_>>()
        };
        let mut lacking = missing("runtime", &self.runtimes, &domain.runtimes);
        lacking.extend(missing("resource class", &self.resource_classes, &domain.resource_classes));
        if let Some(component) = self.global_state.as_ref().filter(|_| domain.num_global_state == 0) {
            lacking.push(format!("a node with a state_url, which '{component}' needs (state=global)"));
        }
        lacking
    }
}

/// Why a domain cannot host a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Its orchestrator looked at its nodes and refused.
    Refused(String),
    /// It lacks these things.
    Lacks(Vec<String>),
    /// It can be given work once somebody has done what this says.
    NotReady(String),
    /// It cannot be asked, which may pass.
    OutOfReach(String),
}

impl Miss {
    /// How far it is from hosting the workflow; the nearest comes first in a message.
    fn distance(&self) -> usize {
        match self {
            Self::Refused(_) => 0,
            Self::Lacks(things) => things.len(),
            Self::NotReady(_) => usize::MAX - 1,
            Self::OutOfReach(_) => usize::MAX,
        }
    }

    /// The reason, without the domain.
    pub fn reason(&self) -> String {
        match self {
            Self::Lacks(things) => format!("it lacks {}", things.join(" and ")),
            Self::Refused(reason) | Self::NotReady(reason) | Self::OutOfReach(reason) => reason.clone(),
        }
    }

    fn text(&self, domain: &DomainId) -> String {
        match self {
            Self::Refused(reason) => format!("{domain}: {reason}"),
            Self::Lacks(things) => format!("{domain} lacks {}", things.join(" and ")),
            Self::NotReady(reason) | Self::OutOfReach(reason) => format!("{domain} {reason}"),
        }
    }
}

/// The most domains that a refusal speaks about.
const SHOWN: usize = 8;

/// The refusal of a workflow that no domain can host, the nearest miss first.
pub fn refusal(mut misses: Vec<(DomainId, Miss)>) -> Error {
    misses.sort_by_key(|(_, miss)| miss.distance());
    let mut texts: Vec<_> = misses.iter().take(SHOWN).map(|(domain, miss)| miss.text(domain)).collect();
    if misses.len() > SHOWN {
        texts.push(format!("and {} more domains", misses.len() - SHOWN));
    }
    let texts = texts.join("; ");
    if misses.is_empty() {
        return Error::unavailable(
            "no orchestration domain is known: start an orchestrator and list it under 'orchestrators' in the \
             configuration of the controller, or let it announce itself to the controller",
        );
    }
    if !misses.iter().all(|(_, miss)| matches!(miss, Miss::NotReady(_) | Miss::OutOfReach(_))) {
        return Error::rejected(format!("no domain can host this workflow: {texts}"));
    }
    // The others say themselves what to do; this one is the last, beside the advice.
    let advice = match misses.last() {
        Some((_, Miss::OutOfReach(_))) => "; start its orchestrator, or try again in a moment",
        _ => "",
    };
    Error::unavailable(format!("no orchestration domain is ready: {texts}{advice}"))
}

/// What a failed question to a domain means for the workflow.
pub fn miss(error: Error) -> Miss {
    match error.code {
        Code::Unavailable | Code::Timeout => Miss::OutOfReach(format!("is out of reach: {error}")),
        Code::Rejected | Code::NotFound | Code::Unimplemented | Code::Exhausted | Code::NeedsCode | Code::Bug => {
            Miss::Refused(error.message)
        }
    }
}

/// Checks that several instances do not overwrite each other's state.
///
/// # Errors
/// They would, or the numbers of instances cannot be understood.
pub fn check_scale(annotations: &Annotations, policy: StatePolicy) -> Result<(), Error> {
    let scale = Scale::parse(annotations).map_err(Error::rejected)?;
    if scale.is_multiple() && policy != StatePolicy::Transient {
        return Err(Error::rejected(format!(
            "annotation 'max_instances' is {}, and several instances would overwrite each other's saved state: annotate \
             it with state=transient as well, or keep to one instance",
            scale.max
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeless_api::FunctionClass;
    use edgeless_api::workflow::{Function, Resource};

    fn workflow() -> Workflow {
        let function = Function {
            name: "resize".into(),
            class: FunctionClass { id: "r".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
            outputs: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        let resource = Resource {
            name: "store".into(),
            class_type: "redis".into(),
            outputs: BTreeMap::new(),
            configuration: BTreeMap::new(),
        };
        Workflow::new(vec![function], vec![resource], BTreeMap::new()).unwrap()
    }

    fn domain(runtimes: &[&str], classes: &[&str]) -> DomainCapabilities {
        DomainCapabilities {
            runtimes: runtimes.iter().map(|name| name.to_string()).collect(),
            resource_classes: classes.iter().map(|name| name.to_string()).collect(),
            ..DomainCapabilities::default()
        }
    }

    #[test]
    fn a_domain_must_cover_every_runtime_and_every_class() {
        let needs = Needs::of(&workflow());
        assert!(needs.lacking(&domain(&["CONTAINER", "RUST_WASM"], &["redis", "file-log"])).is_empty());
        assert_eq!(needs.lacking(&domain(&["RUST_WASM"], &[])), ["the resource class redis, which 'store' needs"]);
        assert_eq!(needs.lacking(&domain(&["CONTAINER"], &["redis"])), ["the runtime RUST_WASM, which 'resize' needs"]);
        assert_eq!(needs.lacking(&domain(&[], &[])).len(), 2);
        let annotations = Annotations::from([("state".into(), "global".into())]);
        let mut global = workflow();
        global.annotate("resize", &annotations).unwrap();
        let (needs_it, mut has) = (Needs::of(&global), domain(&["RUST_WASM"], &["redis"]));
        assert_eq!(needs_it.lacking(&has), ["a node with a state_url, which 'resize' needs (state=global)"]);
        has.num_global_state = 1;
        assert!(needs_it.lacking(&has).is_empty());
        let poor = DomainCapabilities { num_nodes: 1, ..domain(&[], &["redis"]) };
        assert_eq!(needs.miss(&poor), Some(Miss::Lacks(needs.lacking(&poor))));
        assert_eq!(needs.miss(&DomainCapabilities { num_nodes: 1, ..domain(&["RUST_WASM"], &["redis"]) }), None);
    }

    #[test]
    fn a_refusal_names_the_nearest_miss_first() {
        let id = |name: &str| DomainId(name.into());
        let error = refusal(vec![
            (id("far"), Miss::OutOfReach("is out of reach".into())),
            (id("poor"), Miss::Lacks(vec!["the runtime A".into(), "the resource class b".into()])),
            (id("near"), Miss::Refused("no node for 'resize'".into())),
        ]);
        assert_eq!(error.code, Code::Rejected);
        assert_eq!(
            error.message,
            "no domain can host this workflow: near: no node for 'resize'; \
             poor lacks the runtime A and the resource class b; far is out of reach"
        );
    }

    #[test]
    fn a_refusal_is_short_however_many_domains_there_are() {
        let misses = (0..1000).map(|n| (DomainId(format!("d{n}")), Miss::Lacks(vec!["the runtime A".into()])));
        let message = refusal(misses.collect()).message;
        assert!(message.ends_with("and 992 more domains") && message.len() < 500, "{message}");
    }

    /// What may come right by itself must not look like a mistake of the user.
    #[test]
    fn domains_that_are_merely_away_make_the_answer_unavailable() {
        assert_eq!(refusal(vec![]).code, Code::Unavailable);
        let away = (DomainId("d".into()), miss(Error::timeout("silent")));
        let error = refusal(vec![away.clone()]);
        assert_eq!(
            error,
            Error::unavailable(
                "no orchestration domain is ready: d is out of reach: silent; start its orchestrator, or try again in a \
                 moment"
            )
        );
        let bare = Needs::of(&workflow()).miss(&DomainCapabilities::default()).unwrap();
        let no_node = "new has no node yet: start edgeless_node_d with its orchestrator_url";
        let bare = (DomainId("new".into()), bare);
        let error = refusal(vec![bare.clone()]);
        assert_eq!(error, Error::unavailable(format!("no orchestration domain is ready: {no_node}")));
        let error = refusal(vec![away, bare]).message;
        assert!(error.contains(&format!("{no_node}; d is out of reach: silent; start its orchestrator")), "{error}");
    }

    #[test]
    fn several_instances_that_keep_state_are_refused() {
        let scale = |key: &str, value: &str, policy| {
            check_scale(&BTreeMap::from([(key.to_string(), value.to_string())]), policy).map_err(|error| error.message)
        };
        assert_eq!(scale("max_instances", "3", StatePolicy::Transient), Ok(()));
        assert_eq!(scale("min_instances", "0", StatePolicy::NodeLocal), Ok(()));
        for key in ["max_instances", "min_instances"] {
            let error = scale(key, "3", StatePolicy::NodeLocal).unwrap_err();
            assert!(
                error.starts_with("annotation 'max_instances' is 3") && error.contains("state=transient"),
                "{error}"
            );
        }
        assert!(scale("max_instances", "-1", StatePolicy::Transient).unwrap_err().contains("1 to 1000"));
    }
}
