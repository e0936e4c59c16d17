//! What a controller keeps of its workflows.

use bytes::Bytes;
use prost::Message;

use super::{pb, required, uuid};
use crate::binary::Binary;
use crate::error::Error;
use crate::id::{ComponentId, DomainId, StateId, WorkflowId};
use crate::record::{Component, Domain, Leftover, Phase, Place, Step, Workflow};

pub(crate) fn encode(record: &Workflow) -> Bytes {
    let place = |place: &Place| pb::PlaceRecord {
        domain: number(place.domain),
        epoch: place.epoch,
        known_as: place.known_as.map(|id| id.to_string()).unwrap_or_default(),
        step: step(place.step).into(),
        uncounted: place.uncounted,
        state: place.state.clone(),
    };
    let component = |component: &Component| pb::ComponentRecord {
        component_id: component.id.to_string(),
        name: component.name.clone(),
        state_id: component.state.map(|id| id.to_string()).unwrap_or_default(),
        last_epoch: component.last_epoch,
        place: Some(place(&component.place)),
        next: component.next.as_ref().map(place),
        parked: component.parked,
    };
    let domain = |domain: &Domain| pb::DomainRecord {
        domain_id: domain.id.0.clone(),
        nonce: domain.nonce,
        native: domain.native,
        orchestrator_url: domain.url.to_string(),
    };
    let leftover = |left: &Leftover| pb::LeftoverRecord {
        component: number(left.component),
        place: Some(place(&left.place)),
        drains: left.drains,
    };
    let phase = match record.phase {
        Phase::Starting => pb::WorkflowPhase::Starting,
        Phase::Running => pb::WorkflowPhase::Running,
        Phase::Stopping => pb::WorkflowPhase::Stopping,
    };
    let asked = record.asked.clone().map(|asked| {
        let Ok(asked) = asked.with_binaries(|binary: Binary| Ok::<_, std::convert::Infallible>(binary.without_bytes()));
        asked.into()
    });
    let message = pb::WorkflowRecord {
        workflow_id: record.id.to_string(),
        workflow: asked,
        request_id: record.request.map(|id| id.to_string()).unwrap_or_default(),
        phase: phase.into(),
        domains: record.domains.iter().map(domain).collect(),
        components: record.components.iter().map(component).collect(),
        leftovers: record.leftovers.iter().map(leftover).collect(),
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode(bytes: Bytes) -> Result<Workflow, Error> {
    let message = pb::WorkflowRecord::decode(bytes).map_err(Error::rejected)?;
    let (domains, components) = (message.domains.len(), message.components.len());
    let leftover = |left: pb::LeftoverRecord| {
        let place = place(required(left.place, "place")?, domains)?;
        Ok::<_, Error>(Leftover { component: index(left.component, components)?, place, drains: left.drains })
    };
    Ok(Workflow {
        id: WorkflowId(uuid(&message.workflow_id, "workflow_id")?),
        asked: message.workflow.map(TryInto::try_into).transpose()?,
        request: optional(&message.request_id, "request_id")?,
        phase: match pb::WorkflowPhase::try_from(message.phase) {
            Ok(pb::WorkflowPhase::Starting) => Phase::Starting,
            Ok(pb::WorkflowPhase::Running) => Phase::Running,
            Ok(pb::WorkflowPhase::Stopping) => Phase::Stopping,
            Ok(pb::WorkflowPhase::Unspecified) | Err(_) => return Err(unknown("phase", message.phase)),
        },
        domains: message.domains.into_iter().map(domain).collect::<Result<_, _>>()?,
        components: message.components.into_iter().map(|own| component(own, domains)).collect::<Result<_, _>>()?,
        leftovers: message.leftovers.into_iter().map(leftover).collect::<Result<_, _>>()?,
    })
}

/// There are never so many that it matters.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn index(number: u32, count: usize) -> Result<usize, Error> {
    let found = usize::try_from(number).ok().filter(|index| *index < count);
    found.ok_or_else(|| Error::rejected(format!("it names number {number} of {count}")))
}

fn unknown(field: &str, value: i32) -> Error {
    Error::rejected(format!("the {field} {value} is not known"))
}

fn optional(text: &str, name: &str) -> Result<Option<uuid::Uuid>, Error> {
    (!text.is_empty()).then(|| uuid(text, name)).transpose()
}

fn step(step: Step) -> pb::PlaceStep {
    match step {
        Step::Absent => pb::PlaceStep::Absent,
        Step::MayBeThere => pb::PlaceStep::MayBeThere,
        Step::There => pb::PlaceStep::There,
        Step::Released => pb::PlaceStep::Released,
    }
}

fn domain(domain: pb::DomainRecord) -> Result<Domain, Error> {
    Ok(Domain {
        id: DomainId(domain.domain_id),
        nonce: domain.nonce,
        native: domain.native,
        url: domain.orchestrator_url.parse()?,
    })
}

fn component(component: pb::ComponentRecord, domains: usize) -> Result<Component, Error> {
    Ok(Component {
        id: ComponentId(uuid(&component.component_id, "component_id")?),
        name: component.name,
        state: optional(&component.state_id, "state_id")?.map(StateId),
        last_epoch: component.last_epoch,
        place: place(required(component.place, "place")?, domains)?,
        next: component.next.map(|next| place(next, domains)).transpose()?,
        parked: component.parked,
    })
}

fn place(place: pb::PlaceRecord, domains: usize) -> Result<Place, Error> {
    Ok(Place {
        domain: index(place.domain, domains)?,
        epoch: place.epoch,
        known_as: optional(&place.known_as, "known_as")?.map(ComponentId),
        step: match pb::PlaceStep::try_from(place.step) {
            Ok(pb::PlaceStep::Absent) => Step::Absent,
            Ok(pb::PlaceStep::MayBeThere) => Step::MayBeThere,
            Ok(pb::PlaceStep::There) => Step::There,
            Ok(pb::PlaceStep::Released) => Step::Released,
            Ok(pb::PlaceStep::Unspecified) | Err(_) => return Err(unknown("step", place.step)),
        },
        uncounted: place.uncounted,
        state: place.state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{Annotations, FunctionClass};
    use crate::workflow::{self, Function, Resource};

    fn asked() -> workflow::Workflow {
        let class = FunctionClass {
            id: "f".into(),
            function_type: "RUST_WASM".into(),
            binary: Bytes::from_static(b"\0asm").into(),
            ..FunctionClass::default()
        };
        let outputs = [("out".to_string(), "l".to_string())].into();
        let annotations = Annotations::from([("state".into(), "global".into())]);
        let function = Function { name: "f".into(), class, outputs, annotations };
        let configuration = Annotations::from([("filename".into(), "out.log".into())]);
        let log =
            Resource { name: "l".into(), class_type: "file-log".into(), outputs: Annotations::new(), configuration };
        let relocate = Annotations::from([("relocate".into(), "after:1m".into())]);
        workflow::Workflow::new(vec![function], vec![log], relocate).unwrap()
    }

    fn place(domain: usize, step: Step) -> Place {
        Place { domain, epoch: 7, known_as: None, step, uncounted: 0, state: None }
    }

    fn record() -> Workflow {
        let known_as = Some(ComponentId::random());
        let function = Component {
            id: ComponentId::random(),
            name: "f".into(),
            state: Some(StateId::random()),
            last_epoch: 9,
            place: Place { uncounted: 2, ..place(0, Step::Released) },
            next: Some(Place { state: Some(Bytes::new()), ..place(1, Step::MayBeThere) }),
            parked: true,
        };
        let log = Component {
            id: ComponentId::random(),
            name: "l".into(),
            state: None,
            last_epoch: 1,
            place: Place { known_as, ..place(1, Step::There) },
            next: None,
            parked: false,
        };
        let domain = |name: &str, native| Domain {
            id: DomainId(name.into()),
            nonce: u64::MAX,
            native,
            url: format!("http://{name}:7011").parse().unwrap(),
        };
        Workflow {
            id: WorkflowId::random(),
            asked: Some(asked()),
            request: Some(uuid::Uuid::new_v4()),
            phase: Phase::Running,
            domains: vec![domain("a", true), domain("b", false)],
            components: vec![function, log],
            leftovers: vec![Leftover { component: 1, place: place(0, Step::Absent), drains: true }],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_names_its_code() {
        let record = record();
        let read = Workflow::decode(record.encode()).unwrap();
        let code = read.asked.as_ref().unwrap().functions()[0].class.binary.clone();
        assert_eq!((code.bytes(), code.digest()), (None, crate::Digest::of(b"\0asm")));
        let with_code = |asked: workflow::Workflow| {
            let code = Binary::from(Bytes::from_static(b"\0asm"));
            asked.with_binaries(|_| Ok::<_, Error>(code.clone())).unwrap()
        };
        assert_eq!(Workflow { asked: read.asked.map(with_code), ..read }, record);
        let least = Workflow { asked: None, request: None, phase: Phase::Stopping, leftovers: vec![], ..record };
        assert_eq!(Workflow::decode(least.encode()).unwrap(), least);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let mut nowhere = record();
        nowhere.components[0].place.domain = 2;
        let mut nobody = record();
        nobody.leftovers[0].component = 2;
        for (bytes, part) in [
            (nowhere.encode(), "number 2 of 2"),
            (nobody.encode(), "number 2 of 2"),
            (Bytes::new(), "workflow_id"),
            (Bytes::from_static(b"\xff\xff"), ""),
        ] {
            let error = Workflow::decode(bytes).unwrap_err().message;
            assert!(error.contains(part), "{error}");
        }
    }
}
