//! What a node must meet to run a component, rule by rule: the order here is the order in refusals, explanations
//! and the documentation.

use std::fmt;

use edgeless_api::component::{ComponentSpec, StatePolicy};
use edgeless_api::delivery::Deliveries;
use edgeless_api::requirements::Requirement;
use fixedbitset::FixedBitSet;

use super::Question;
use super::index::Index;
use super::slots::{Slot, keep, retain};

/// One rule. What it says of several nodes stands in its `Display`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule<'q> {
    /// It runs functions of this type.
    Runs(&'q str),
    /// It opens resources of this class.
    Offers(&'q str),
    /// It has a processor core.
    HasCore,
    /// It reaches the states that are kept outside the nodes.
    HasGlobalState,
    /// It knows an event that is repeated.
    KnowsRepeats,
    /// What the component asks for.
    Asked(Requirement<'q>),
    /// It takes new components.
    IsOpen,
}

/// The rules for a component, those first that nothing changes but another node.
pub(super) fn rules<'q>(question: &Question<'q>) -> Vec<Rule<'q>> {
    let mut rules = match question.spec {
        ComponentSpec::Function(function) => {
            let mut rules = vec![Rule::Runs(&function.class.function_type), Rule::HasCore];
            rules.extend((function.state.policy == StatePolicy::Global).then_some(Rule::HasGlobalState));
            rules
        }
        ComponentSpec::Resource(resource) => vec![Rule::Offers(&resource.class_type)],
    };
    let deliveries = Deliveries::parse(question.spec.annotations());
    rules.extend(deliveries.is_ok_and(|deliveries| deliveries.needs_repeats()).then_some(Rule::KnowsRepeats));
    rules.extend(question.requirements.each().into_iter().map(Rule::Asked));
    rules.push(Rule::IsOpen);
    rules
}

impl Rule<'_> {
    /// As good as every node meets it, so that it is mentioned only where it matters.
    pub(super) fn is_tacit(&self) -> bool {
        matches!(self, Self::HasCore | Self::IsOpen)
    }

    /// Leaves in a set only the nodes that meet it.
    pub(super) fn narrow(&self, left: &mut FixedBitSet, index: &Index, question: &Question<'_>) {
        let facts = index.facts();
        match self {
            Self::Runs(kind) => facts.runtimes.keep_in(kind, left),
            Self::Offers(class) => facts.classes.keep_in(class, left),
            Self::HasCore => left.intersect_with(&facts.with_core),
            Self::HasGlobalState => left.intersect_with(&facts.global_state),
            Self::KnowsRepeats => left.intersect_with(&facts.native),
            Self::IsOpen => left.difference_with(index.cordoned()),
            Self::Asked(Requirement::Node(nodes)) => keep(left, nodes.iter().filter_map(|node| facts.slot(*node))),
            Self::Asked(Requirement::Label(label)) => facts.labels.keep_in(label, left),
            Self::Asked(Requirement::AnyLabel(labels)) => {
                let mut any = FixedBitSet::with_capacity(left.len());
                labels.iter().filter_map(|label| facts.labels.get(label)).for_each(|slots| slots.add_to(&mut any));
                left.intersect_with(&any);
            }
            Self::Asked(Requirement::Provider(provider)) => facts.providers.keep_in(provider, left),
            Self::Asked(Requirement::Tee) => left.intersect_with(&facts.tee),
            Self::Asked(Requirement::Tpm) => left.intersect_with(&facts.tpm),
            Self::Asked(Requirement::Spread) => index.take_out(left, question.taken),
            Self::Asked(Requirement::Cpu(cpu)) => {
                retain(left, |slot| index.room(slot).is_some_and(|room| room.has_cpu(*cpu)));
            }
            Self::Asked(Requirement::Memory(memory)) => {
                retain(left, |slot| index.room(slot).is_some_and(|room| room.has_memory(*memory)));
            }
        }
    }

    /// What is said of one node that does not meet it.
    pub(super) fn miss(&self, slot: Slot, index: &Index) -> String {
        let room = index.room(slot);
        match self {
            Self::Runs(kind) => format!("does not run {kind}"),
            Self::Offers(class) => format!("does not offer {class}"),
            Self::HasCore => "has no processor core".into(),
            Self::HasGlobalState => "has no state_url (state=global)".into(),
            Self::KnowsRepeats => "is of EDGELESS 1.x, which cannot deliver at least once (delivery)".into(),
            Self::IsOpen => "is cordoned".into(),
            Self::Asked(Requirement::Node(_)) => "is not named by node_id_match_any".into(),
            Self::Asked(Requirement::Label(label)) => format!("lacks the label '{label}'"),
            Self::Asked(Requirement::AnyLabel(_)) => "has none of the labels of label_match_any".into(),
            Self::Asked(Requirement::Provider(provider)) => format!("does not offer the provider '{provider}'"),
            Self::Asked(Requirement::Tee) => "does not run in a trusted execution environment".into(),
            Self::Asked(Requirement::Tpm) => "has no trusted platform module".into(),
            Self::Asked(Requirement::Spread) => "has another instance of it (spread)".into(),
            Self::Asked(Requirement::Cpu(cpu)) => {
                let left = room.map(super::room::Room::lack_of_cpu).unwrap_or_default();
                format!("{left}, {cpu} are asked for (cpu)")
            }
            Self::Asked(Requirement::Memory(memory)) => {
                let left = room.map(super::room::Room::lack_of_memory).unwrap_or_default();
                format!("{left}, {memory} are asked for (memory)")
            }
        }
    }
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs(kind) => write!(f, "run {kind}"),
            Self::Offers(class) => write!(f, "offer {class}"),
            Self::HasCore => f.write_str("have a processor core"),
            Self::HasGlobalState => f.write_str("have a state_url (state=global)"),
            Self::KnowsRepeats => f.write_str("can deliver at least once (delivery)"),
            Self::Asked(requirement) => requirement.fmt(f),
            Self::IsOpen => f.write_str("are not cordoned"),
        }
    }
}
