//! A component of a workflow: what was asked for, and where it is and is to be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use edgeless_api::component::{
    Annotations, ComponentKind, ComponentSpec, FunctionSpec, ResourceSpec, StatePolicy, StateSpec,
};
use edgeless_api::delivery::{Deliveries, Delivery};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, StateId, WorkflowId};
use edgeless_api::workflow::Workflow;
use uuid::Uuid;

use super::place::Place;
use crate::placement;

/// A component of a workflow.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) kind: ComponentKind,
    pub(super) state: Option<StateSpec>,
    /// Output channel to the place of its target among the components.
    pub(super) outputs: Vec<(String, usize)>,
    /// Those that have outputs to it.
    pub(super) senders: Vec<usize>,
    /// Chosen by the controller, for life.
    pub(super) id: ComponentId,
    /// Of all its places so far.
    pub(super) last_epoch: u64,
    pub(super) place: Place,
    /// Where it is to be moved.
    pub(super) next: Option<Place>,
    /// Senders in other domains are told that it runs nowhere, so that they keep their events.
    pub(super) is_parked: bool,
    /// Why it has not the state that it had before it was to move.
    pub(super) loss: String,
}

/// The components of a workflow: functions, then resources. `id` makes ids: of each function its state's and its
/// own, then those of the resources.
pub(super) fn components(workflow: &Workflow, mut id: impl FnMut() -> Uuid) -> Result<Vec<Component>, Error> {
    let names = workflow.functions().iter().map(|function| &function.name);
    let names = names.chain(workflow.resources().iter().map(|resource| &resource.name));
    let places: HashMap<&String, usize> = names.enumerate().map(|(place, name)| (name, place)).collect();
    let outputs = |mapping: &BTreeMap<String, String>| {
        mapping.iter().filter_map(|(channel, target)| Some((channel.clone(), *places.get(target)?))).collect()
    };
    let mut all = Vec::with_capacity(places.len());
    for function in workflow.functions() {
        let in_component = |error: Error| error.context(format!("component '{}'", function.name));
        let policy = StatePolicy::parse(&function.annotations).map_err(|error| in_component(Error::rejected(error)))?;
        placement::check_scale(&function.annotations, policy).map_err(in_component)?;
        let state = StateSpec { id: StateId(id()), policy };
        let own = ComponentId(id());
        all.push(Component::new(own, &function.name, Some(state), outputs(&function.outputs)));
    }
    for resource in workflow.resources() {
        let own = ComponentId(id());
        all.push(Component::new(own, &resource.name, None, outputs(&resource.outputs)));
    }
    let edges = edges(&all);
    for (sender, target) in edges {
        if let Some(target) = all.get_mut(target) {
            target.senders.push(sender);
        }
    }
    Ok(all)
}

/// Who sends events to whom, each pair once.
pub(super) fn edges(components: &[Component]) -> BTreeSet<(usize, usize)> {
    let outputs = components.iter().enumerate();
    outputs.flat_map(|(from, component)| component.outputs.iter().map(move |(_, to)| (from, *to))).collect()
}

/// What the user asks of the component at a place.
fn annotations(workflow: &Workflow, place: usize) -> Option<&Annotations> {
    let resource = || workflow.resources().get(place.checked_sub(workflow.functions().len())?);
    match workflow.functions().get(place) {
        Some(function) => Some(&function.annotations),
        None => resource().map(|resource| &resource.configuration),
    }
}

/// Whether an output that delivers at least once leads to the component at a place.
fn is_sure_target(workflow: &Workflow, place: usize, component: &Component, all: &[Component]) -> bool {
    component.senders.iter().any(|sender| {
        let deliveries = annotations(workflow, *sender).and_then(|annotations| Deliveries::parse(annotations).ok());
        let outputs = all.get(*sender).map(|sender| sender.outputs.as_slice()).unwrap_or_default();
        let leads_here = |output: &&(String, usize)| output.1 == place;
        deliveries.is_some_and(|deliveries| {
            outputs.iter().filter(leads_here).any(|(output, _)| deliveries.of(output) == Delivery::AtLeastOnce)
        })
    })
}

/// The specification of the component at a place.
pub(super) fn spec(workflow: &Workflow, id: WorkflowId, place: usize, all: &[Component]) -> Option<ComponentSpec> {
    let component = all.get(place)?;
    let mut spec = if let Some(state) = component.state {
        let function = workflow.functions().get(place)?;
        ComponentSpec::Function(FunctionSpec {
            class: function.class.clone(),
            annotations: function.annotations.clone(),
            state,
            workflow: id,
        })
    } else {
        let resource = workflow.resources().get(place.checked_sub(workflow.functions().len())?)?;
        ComponentSpec::Resource(ResourceSpec {
            class_type: resource.class_type.clone(),
            configuration: resource.configuration.clone(),
            workflow: id,
        })
    };
    if is_sure_target(workflow, place, component, all) {
        Deliveries::mark_target(spec.annotations_mut());
    }
    Some(spec)
}

/// Some components with their specifications, to be planned.
pub(super) fn items(
    workflow: &Workflow,
    id: WorkflowId,
    components: &[Component],
    places: &[usize],
) -> Vec<(String, ComponentSpec)> {
    let item = |place: &usize| {
        let component = components.get(*place)?;
        Some((component.name.clone(), spec(workflow, id, *place, components)?))
    };
    places.iter().filter_map(item).collect()
}

impl Component {
    /// A function has a state, a resource has none.
    pub(super) fn new(id: ComponentId, name: &str, state: Option<StateSpec>, outputs: Vec<(String, usize)>) -> Self {
        Self {
            name: name.to_string(),
            kind: if state.is_some() { ComponentKind::Function } else { ComponentKind::Resource },
            state,
            outputs,
            senders: Vec::new(),
            id,
            last_epoch: 1,
            place: Place::new(0, 1, id),
            next: None,
            is_parked: false,
            loss: String::new(),
        }
    }

    /// An epoch that no place of it had.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    /// It has something to remember when it moves.
    pub(super) fn has_state(&self) -> bool {
        self.state.is_some_and(|state| state.policy != StatePolicy::Transient)
    }

    pub(super) fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::FunctionClass;
    use edgeless_api::workflow::{Function, Resource};

    use super::*;

    /// Where its events may come twice, a component must run on a node that knows it.
    #[test]
    fn the_targets_of_sure_outputs_are_marked() {
        let class = FunctionClass { id: "f".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() };
        let outputs = [("sure".into(), "log".into()), ("quick".into(), "b".into())].into();
        let annotations = [("delivery:sure".into(), "at-least-once".into())].into();
        let a = Function { name: "a".into(), class: class.clone(), outputs, annotations };
        let b = Function { name: "b".into(), class, outputs: [].into(), annotations: [].into() };
        let (class_type, configuration) = ("file-log".to_string(), Annotations::new());
        let log = Resource { name: "log".into(), class_type, outputs: [].into(), configuration };
        let workflow = Workflow::new(vec![a, b], vec![log], [].into()).unwrap();
        let all = components(&workflow, Uuid::new_v4).unwrap();
        let marked = |place| {
            let spec = spec(&workflow, WorkflowId::random(), place, &all).unwrap();
            spec.annotations().contains_key("input_delivery")
        };
        assert_eq!([0, 1, 2].map(marked), [false, false, true]);
    }
}
