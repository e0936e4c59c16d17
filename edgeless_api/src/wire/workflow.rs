//! Workflows, as users send them and controllers report them.

use super::{pb, required, uuid};
use crate::component::FunctionClass;
use crate::error::Error;
use crate::id::{ComponentId, DomainId, WorkflowId};
use crate::workflow::{Function, Mapping, Resource, Workflow, WorkflowStatus};

impl From<WorkflowId> for pb::WorkflowId {
    fn from(id: WorkflowId) -> Self {
        Self { workflow_id: id.to_string() }
    }
}

impl TryFrom<pb::WorkflowId> for WorkflowId {
    type Error = Error;

    fn try_from(id: pb::WorkflowId) -> Result<Self, Error> {
        Ok(Self(uuid(&id.workflow_id, "workflow_id")?))
    }
}

impl From<Workflow> for pb::SpawnWorkflowRequest {
    fn from(workflow: Workflow) -> Self {
        let function = |function: &Function| pb::WorkflowFunction {
            name: function.name.clone(),
            class_spec: Some(function.class.clone().into()),
            output_mapping: function.outputs.clone(),
            annotations: function.annotations.clone(),
        };
        let resource = |resource: &Resource| pb::WorkflowResource {
            name: resource.name.clone(),
            class_type: resource.class_type.clone(),
            output_mapping: resource.outputs.clone(),
            configurations: resource.configuration.clone(),
        };
        Self {
            workflow_functions: workflow.functions().iter().map(function).collect(),
            workflow_resources: workflow.resources().iter().map(resource).collect(),
            annotations: workflow.annotations().clone(),
            request_id: String::new(),
        }
    }
}

impl TryFrom<pb::SpawnWorkflowRequest> for Workflow {
    type Error = Error;

    fn try_from(request: pb::SpawnWorkflowRequest) -> Result<Self, Error> {
        let function = |function: pb::WorkflowFunction| {
            let class = required(function.class_spec, "class_spec").and_then(FunctionClass::try_from);
            let class = class.map_err(|error| error.context(format!("function '{}'", function.name)))?;
            Ok(Function {
                name: function.name,
                class,
                outputs: function.output_mapping,
                annotations: function.annotations,
            })
        };
        let resource = |resource: pb::WorkflowResource| Resource {
            name: resource.name,
            class_type: resource.class_type,
            outputs: resource.output_mapping,
            configuration: resource.configurations,
        };
        let functions = request.workflow_functions.into_iter().map(function).collect::<Result<_, Error>>()?;
        let resources = request.workflow_resources.into_iter().map(resource).collect();
        Workflow::new(functions, resources, request.annotations).map_err(Error::rejected)
    }
}

impl From<WorkflowStatus> for pb::WorkflowInstanceStatus {
    fn from(status: WorkflowStatus) -> Self {
        let mapping = |mapping: Mapping| pb::WorkflowFunctionMapping {
            name: mapping.name,
            function_id: mapping.component.to_string(),
            domain_id: mapping.domain.0,
        };
        Self {
            workflow_id: Some(status.workflow.into()),
            domain_mapping: status.mapping.into_iter().map(mapping).collect(),
        }
    }
}

impl TryFrom<pb::WorkflowInstanceStatus> for WorkflowStatus {
    type Error = Error;

    fn try_from(status: pb::WorkflowInstanceStatus) -> Result<Self, Error> {
        let mapping = |mapping: pb::WorkflowFunctionMapping| {
            Ok(Mapping {
                name: mapping.name,
                component: ComponentId(uuid(&mapping.function_id, "function_id")?),
                domain: DomainId(mapping.domain_id),
            })
        };
        Ok(Self {
            workflow: required(status.workflow_id, "workflow_id")?.try_into()?,
            mapping: status.domain_mapping.into_iter().map(mapping).collect::<Result<_, Error>>()?,
        })
    }
}
