//! Components: starts, stops and outputs.

use bytes::Bytes;

use super::{pb, required, uuid};
use crate::binary::{Binary, Digest};
use crate::component::{
    ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, ResourceSpec, Row, Start, StartContext,
    StatePolicy, StateSpec, Target,
};
use crate::error::Error;
use crate::id::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
use pb::instance_id_variant::InstanceIdType;
use uuid::Uuid;

impl From<FunctionClass> for pb::FunctionClassSpecification {
    fn from(class: FunctionClass) -> Self {
        Self {
            id: class.id,
            function_type: class.function_type,
            version: class.version,
            digest: if class.binary.is_empty() { Bytes::new() } else { class.binary.digest().0.to_vec().into() },
            binary: class.binary.bytes().cloned().unwrap_or_default(),
            code: class.code,
            outputs: class.outputs,
        }
    }
}

/// Code by its digest, where there is one; the code itself must be what the digest says.
fn binary(bytes: Bytes, digest: &[u8]) -> Result<Binary, Error> {
    if digest.is_empty() {
        return Ok(bytes.into());
    }
    let length = digest.len();
    let digest = Digest(digest.try_into().map_err(|_| {
        Error::rejected(format!("'digest' has {length} bytes, which is no SHA-256: send 32, or the code alone"))
    })?);
    if bytes.is_empty() {
        return Ok(Binary::named(digest));
    }
    let binary = Binary::from(bytes);
    if binary.digest() == digest {
        Ok(binary)
    } else {
        let found = binary.digest();
        Err(Error::rejected(format!("the code is {found}, not {digest} as its digest says: send it again")))
    }
}

impl TryFrom<pb::FunctionClassSpecification> for FunctionClass {
    type Error = Error;

    fn try_from(class: pb::FunctionClassSpecification) -> Result<Self, Error> {
        Ok(Self {
            id: class.id,
            function_type: class.function_type,
            version: class.version,
            binary: binary(class.binary, &class.digest)?,
            code: class.code,
            outputs: class.outputs,
        })
    }
}

impl From<StateSpec> for pb::StateSpecification {
    fn from(state: StateSpec) -> Self {
        let policy = match state.policy {
            StatePolicy::Transient => pb::StatePolicy::Transient,
            // To whoever knows nothing of copies it is kept on the node.
            StatePolicy::NodeLocal | StatePolicy::Replicated => pb::StatePolicy::NodeLocal,
            StatePolicy::Global => pb::StatePolicy::Global,
        };
        let is_replicated = state.policy == StatePolicy::Replicated;
        Self { state_id: state.id.to_string(), policy: policy.into(), is_replicated }
    }
}

impl TryFrom<pb::StateSpecification> for StateSpec {
    type Error = Error;

    fn try_from(state: pb::StateSpecification) -> Result<Self, Error> {
        // A policy that is not known is transient, by the protocol.
        let policy = match pb::StatePolicy::try_from(state.policy) {
            Ok(pb::StatePolicy::NodeLocal) if state.is_replicated => StatePolicy::Replicated,
            Ok(pb::StatePolicy::NodeLocal) => StatePolicy::NodeLocal,
            Ok(pb::StatePolicy::Global) => StatePolicy::Global,
            Ok(pb::StatePolicy::Transient) | Err(_) => StatePolicy::Transient,
        };
        Ok(Self { id: StateId(uuid(&state.state_id, "state_id")?), policy })
    }
}

impl From<StartContext> for pb::StartContext {
    fn from(context: StartContext) -> Self {
        Self {
            component_id: context.component.to_string(),
            epoch: context.epoch,
            name: context.name,
            provider_id: context.provider,
            replica: context.replica,
            reports_load: context.reports_load,
            state: context.state,
        }
    }
}

impl TryFrom<pb::StartContext> for StartContext {
    type Error = Error;

    fn try_from(context: pb::StartContext) -> Result<Self, Error> {
        Ok(Self {
            component: ComponentId(uuid(&context.component_id, "component_id")?),
            epoch: context.epoch,
            name: context.name,
            provider: context.provider_id,
            replica: context.replica,
            reports_load: context.reports_load,
            state: context.state,
        })
    }
}

pub(crate) fn function_request(spec: FunctionSpec, context: Option<StartContext>) -> pb::SpawnFunctionRequest {
    pb::SpawnFunctionRequest {
        code: Some(spec.class.into()),
        annotations: spec.annotations,
        state_specification: Some(spec.state.into()),
        workflow_id: spec.workflow.to_string(),
        context: context.map(Into::into),
    }
}

pub(crate) fn resource_request(spec: ResourceSpec, context: Option<StartContext>) -> pb::ResourceInstanceSpecification {
    pb::ResourceInstanceSpecification {
        resource_class_type: spec.class_type,
        configuration: spec.configuration,
        workflow_id: spec.workflow.to_string(),
        context: context.map(Into::into),
    }
}

impl TryFrom<pb::SpawnFunctionRequest> for Start {
    type Error = Error;

    fn try_from(request: pb::SpawnFunctionRequest) -> Result<Self, Error> {
        let class: FunctionClass = required(request.code, "code")?.try_into()?;
        if class.function_type.is_empty() {
            return Err(Error::rejected("'function_type' is empty: name a runtime such as RUST_WASM"));
        }
        let spec = FunctionSpec {
            class,
            annotations: request.annotations,
            state: required(request.state_specification, "state_specification")?.try_into()?,
            workflow: WorkflowId(uuid(&request.workflow_id, "workflow_id")?),
        };
        let context = request.context.map(TryInto::try_into).transpose()?;
        Ok(Self { spec: ComponentSpec::Function(spec), context })
    }
}

impl TryFrom<pb::ResourceInstanceSpecification> for Start {
    type Error = Error;

    fn try_from(request: pb::ResourceInstanceSpecification) -> Result<Self, Error> {
        if request.resource_class_type.is_empty() {
            return Err(Error::rejected("'resource_class_type' is empty: name a class such as http-ingress"));
        }
        let spec = ResourceSpec {
            class_type: request.resource_class_type,
            configuration: request.configuration,
            workflow: WorkflowId(uuid(&request.workflow_id, "workflow_id")?),
        };
        let context = request.context.map(TryInto::try_into).transpose()?;
        Ok(Self { spec: ComponentSpec::Resource(spec), context })
    }
}

impl From<ComponentRef> for pb::InstanceIdVariant {
    fn from(id: ComponentRef) -> Self {
        let id = match id {
            ComponentRef::Instance(id) => InstanceIdType::InstanceId(id.into()),
            ComponentRef::Component(id) => {
                InstanceIdType::DomainManagedInstanceId(pb::DomainManagedInstanceId { instance_id: id.to_string() })
            }
        };
        Self { instance_id_type: Some(id) }
    }
}

impl TryFrom<pb::InstanceIdVariant> for ComponentRef {
    type Error = Error;

    fn try_from(id: pb::InstanceIdVariant) -> Result<Self, Error> {
        Ok(match required(id.instance_id_type, "instance_id")? {
            InstanceIdType::InstanceId(id) => Self::Instance(id.try_into()?),
            InstanceIdType::DomainManagedInstanceId(id) => {
                Self::Component(ComponentId(uuid(&id.instance_id, "instance_id")?))
            }
        })
    }
}

/// The answer to a start: the reference where there is one, even beside an error.
pub(crate) fn started(response: pb::StartComponentResponse) -> Result<ComponentRef, Error> {
    match (response.instance_id, response.response_error) {
        (Some(id), _) => id.try_into(),
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(Error::bug("the peer answered a start with neither an id nor an error")),
    }
}

impl From<Row> for pb::Row {
    fn from(row: Row) -> Self {
        Self {
            component_id: row.component.to_string(),
            epoch: row.epoch,
            instances: row.instances.into_iter().map(Into::into).collect(),
            addresses: row.addresses.into_iter().map(|(node, url)| (node.to_string(), url.to_string())).collect(),
            partition_by: row.partition_by,
            moving: row.moving,
        }
    }
}

impl TryFrom<pb::Row> for Row {
    type Error = Error;

    fn try_from(row: pb::Row) -> Result<Self, Error> {
        let address = |(node, url): (String, String)| Ok::<_, Error>((NodeId(uuid(&node, "addresses")?), url.parse()?));
        Ok(Self {
            component: ComponentId(uuid(&row.component_id, "component_id")?),
            epoch: row.epoch,
            instances: row.instances.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            addresses: row.addresses.into_iter().map(address).collect::<Result<_, _>>()?,
            partition_by: row.partition_by,
            moving: row.moving,
        })
    }
}

pub(crate) fn row_list(rows: Vec<Row>) -> pb::RowList {
    pb::RowList { rows: rows.into_iter().map(Into::into).collect() }
}

pub(crate) fn rows(list: pb::RowList) -> Result<Vec<Row>, Error> {
    list.rows.into_iter().map(TryInto::try_into).collect()
}

impl From<Vec<Row>> for pb::RowList {
    fn from(rows: Vec<Row>) -> Self {
        row_list(rows)
    }
}

impl From<Patch> for pb::PatchRequest {
    fn from(patch: Patch) -> Self {
        let mut request = Self { function_id: patch.id.to_string(), exported: patch.exported, ..Self::default() };
        for (channel, target) in patch.outputs {
            let instance = match &target {
                Target::Instance(id) => Some(*id),
                // To name a component, the protocol leaves the node nil.
                Target::Component(id) => Some(InstanceId { node: NodeId(Uuid::nil()), function: id.0 }),
                Target::Row(row) => row.instances.first().copied(),
            };
            if let Some(instance) = instance {
                request.output_mapping.insert(channel.clone(), instance.into());
            }
            if let Target::Row(row) = target {
                request.rows.insert(channel, row.into());
            }
        }
        request
    }
}

impl TryFrom<pb::PatchRequest> for Patch {
    type Error = Error;

    fn try_from(request: pb::PatchRequest) -> Result<Self, Error> {
        let id = uuid(&request.function_id, "function_id")?;
        let mut outputs = std::collections::BTreeMap::new();
        for (channel, instance) in request.output_mapping {
            let instance =
                InstanceId::try_from(instance).map_err(|error| error.context(format!("output '{channel}'")))?;
            let target = if instance.node.0.is_nil() {
                Target::Component(ComponentId(instance.function))
            } else {
                Target::Instance(instance)
            };
            outputs.insert(channel, target);
        }
        for (channel, row) in request.rows {
            outputs.insert(channel, Target::Row(row.try_into()?));
        }
        Ok(Self { id, outputs, exported: request.exported })
    }
}

pub(crate) fn plan_items(items: Vec<pb::PlanItem>) -> Result<Vec<(String, ComponentSpec)>, Error> {
    let parse = |item: pb::PlanItem| {
        let start: Start = match required(item.item, "item")? {
            pb::plan_item::Item::Function(request) => request.try_into()?,
            pb::plan_item::Item::Resource(request) => request.try_into()?,
        };
        Ok((item.name, start.spec))
    };
    items.into_iter().map(parse).collect()
}

/// Components to be planned. Their code stays here: no plan depends on it.
pub(crate) fn plan_request(items: Vec<(String, ComponentSpec)>) -> pb::PlanRequest {
    let item = |(name, spec): (String, ComponentSpec)| {
        let item = match spec {
            ComponentSpec::Function(mut spec) => {
                spec.class.binary = Binary::default();
                pb::plan_item::Item::Function(function_request(spec, None))
            }
            ComponentSpec::Resource(spec) => pb::plan_item::Item::Resource(resource_request(spec, None)),
        };
        pb::PlanItem { name, item: Some(item) }
    };
    pb::PlanRequest { items: items.into_iter().map(item).collect() }
}
