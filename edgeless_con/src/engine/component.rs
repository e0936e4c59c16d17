//! A component of a workflow: what was asked for, and where it is and is to be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use edgeless_api::component::{ComponentKind, ComponentSpec, FunctionSpec, ResourceSpec, StatePolicy, StateSpec};
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

/// The specification of the component at a place.
pub(super) fn spec(workflow: &Workflow, id: WorkflowId, place: usize, component: &Component) -> Option<ComponentSpec> {
    if let Some(state) = component.state {
        let function = workflow.functions().get(place)?;
        return Some(ComponentSpec::Function(FunctionSpec {
            class: function.class.clone(),
            annotations: function.annotations.clone(),
            state,
            workflow: id,
        }));
    }
    let resource = workflow.resources().get(place.checked_sub(workflow.functions().len())?)?;
    Some(ComponentSpec::Resource(ResourceSpec {
        class_type: resource.class_type.clone(),
        configuration: resource.configuration.clone(),
        workflow: id,
    }))
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
        Some((component.name.clone(), spec(workflow, id, *place, component)?))
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
