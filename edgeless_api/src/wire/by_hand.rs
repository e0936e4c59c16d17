//! The wire format against bytes written by hand from the tables of the EDGELESS 1.2 protocol, so that
//! a wrong number in `proto/` cannot hide behind a conversion that makes the same mistake.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::pb;
use crate::component::{ComponentRef, ComponentSpec, FunctionClass, Patch, Start, StatePolicy, Target};
use crate::domain::DomainRegistration;
use crate::error::Error;
use crate::event::{Reply, Trace};
use crate::id::{ComponentId, InstanceId, NodeId, WorkflowId};
use crate::node::{NodeKey, PeerUpdate, Proof, Registration};
use crate::peer::{self, Call, Fate, Frame, Hello, Item, Settled, Window};
use crate::status::{ComponentStatus, Limit, Usage};
use crate::workflow::{Workflow, WorkflowStatus};

const ONE: &str = "00000000-0000-0000-0000-000000000001";
const TWO: &str = "00000000-0000-0000-0000-000000000002";

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// A field of type 2: text, bytes or a message.
fn field(number: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// A field of type 0: a number, a truth value or an enum.
fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

/// A field of type 5: a float.
fn float(number: u64, value: f32) -> Vec<u8> {
    [varint(number << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

/// A field of type 1: 64 bits.
fn fixed(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

/// An entry of a map from text to `value`, which is a field 2.
fn entry(number: u64, key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    field(number, [field(1, key), field(2, value)].concat())
}

fn instance(node: &str, function: &str) -> Vec<u8> {
    [field(1, node), field(2, function)].concat()
}

fn id(node: u128, function: u128) -> InstanceId {
    InstanceId { node: NodeId(Uuid::from_u128(node)), function: Uuid::from_u128(function) }
}

fn class() -> Vec<u8> {
    [
        field(1, "id"),
        field(2, "RUST_WASM"),
        field(3, "0.1"),
        field(4, [0, 0xff]),
        field(5, "code"),
        field(6, "out"),
        field(6, "err"),
    ]
    .concat()
}

/// The SHA-256 of the code of [`class`].
const DIGEST: &str = "06eb7d6a69ee19e5fbdf749018d3d2abfa04bcbd1365db312eb86dc7169389b8";

fn digest() -> Vec<u8> {
    (0..32).map(|byte| u8::from_str_radix(&DIGEST[2 * byte..2 * byte + 2], 16).unwrap()).collect()
}

#[test]
fn the_services_have_the_names_of_the_protocol() {
    let names = [
        pb::function_instance_server::SERVICE_NAME,
        pb::resource_configuration_server::SERVICE_NAME,
        pb::node_management_server::SERVICE_NAME,
        pb::node_registration_server::SERVICE_NAME,
        pb::domain_registration_server::SERVICE_NAME,
        pb::workflow_instance_server::SERVICE_NAME,
        pb::function_invocation_server::SERVICE_NAME,
        pb::peer_stream_server::SERVICE_NAME,
        pb::guest_api_function_server::SERVICE_NAME,
        pb::guest_api_host_server::SERVICE_NAME,
    ];
    let expected = [
        "FunctionInstance",
        "ResourceConfiguration",
        "NodeManagement",
        "NodeRegistration",
        "DomainRegistration",
        "WorkflowInstance",
        "FunctionInvocation",
        "PeerStream",
        "GuestAPIFunction",
        "GuestAPIHost",
    ];
    for (name, expected) in names.iter().zip(expected) {
        assert_eq!(*name, format!("edgeless_api.{expected}"));
    }
}

#[test]
fn the_start_of_a_function() {
    let request = |class: Vec<u8>| {
        let state = [field(1, TWO), number(2, 1)].concat();
        [field(2, class), entry(3, "init-payload", "hello"), field(4, state), field(5, ONE)].concat()
    };
    let bytes = request(class());
    let start = Start::try_from(pb::SpawnFunctionRequest::decode(bytes.as_slice()).unwrap()).unwrap();
    let ComponentSpec::Function(spec) = &start.spec else { panic!("a function") };
    assert_eq!((spec.class.id.as_str(), spec.class.function_type.as_str()), ("id", "RUST_WASM"));
    assert_eq!((spec.class.version.as_str(), spec.class.code.as_str()), ("0.1", "code"));
    assert_eq!(spec.class.binary.bytes(), Some(&Bytes::from_static(&[0, 0xff])));
    assert_eq!(spec.class.outputs, ["out", "err"]);
    assert_eq!(spec.annotations["init-payload"], "hello");
    assert_eq!((spec.state.id.0, spec.state.policy), (Uuid::from_u128(2), StatePolicy::NodeLocal));
    assert_eq!(spec.workflow, WorkflowId(Uuid::from_u128(1)));
    assert_eq!(start.context, None);
    let ComponentSpec::Function(spec) = start.spec else { panic!("a function") };
    let with_digest = request([class(), field(1000, digest())].concat());
    assert_eq!(super::component::function_request(spec, None).encode_to_vec(), with_digest);
}

#[test]
fn code_by_its_digest() {
    let parse = |class: Vec<u8>| {
        FunctionClass::try_from(pb::FunctionClassSpecification::decode(class.as_slice()).unwrap())
            .map(|class| class.binary)
    };
    let named = [field(1, "id"), field(2, "RUST_WASM"), field(1000, digest())].concat();
    let binary = parse(named.clone()).unwrap();
    assert_eq!((binary.digest().to_string().as_str(), binary.bytes()), (DIGEST, None));
    let class = FunctionClass { binary, id: "id".into(), function_type: "RUST_WASM".into(), ..Default::default() };
    assert_eq!(pb::FunctionClassSpecification::from(class).encode_to_vec(), named);

    let whole = parse([class_with(&[0, 0xff]), field(1000, digest())].concat()).unwrap();
    assert_eq!(whole.bytes().map(|bytes| bytes.len()), Some(2));
    let error = parse([class_with(&[0, 0xfe]), field(1000, digest())].concat()).unwrap_err();
    assert!(error.message.contains(&format!("not {DIGEST} as its digest says")), "{error}");
    let error = parse(field(1000, [0; 31])).unwrap_err();
    assert!(error.message.contains("31 bytes"), "{error}");
    assert!(parse(field(1, "id")).unwrap().is_empty(), "no code at all");
}

fn class_with(code: &[u8]) -> Vec<u8> {
    [field(1, "id"), field(2, "RUST_WASM"), field(4, code)].concat()
}

#[test]
fn the_start_of_a_resource() {
    let bytes = [field(1, "file-log"), entry(2, "filename", "log"), field(3, ONE)].concat();
    let request = pb::ResourceInstanceSpecification::decode(bytes.as_slice()).unwrap();
    let ComponentSpec::Resource(spec) = Start::try_from(request).unwrap().spec else { panic!("a resource") };
    assert_eq!((spec.class_type.as_str(), spec.configuration["filename"].as_str()), ("file-log", "log"));
    assert_eq!(spec.workflow, WorkflowId(Uuid::from_u128(1)));
}

#[test]
fn ids_and_the_answer_to_a_start() {
    let of_instance = field(1, instance(ONE, TWO));
    let of_component = field(2, field(1, TWO));
    let decode = |bytes: &[u8]| ComponentRef::try_from(pb::InstanceIdVariant::decode(bytes).unwrap()).unwrap();
    assert_eq!(decode(&of_instance), ComponentRef::Instance(id(1, 2)));
    assert_eq!(decode(&of_component), ComponentRef::Component(ComponentId(Uuid::from_u128(2))));

    let answer =
        |bytes: Vec<u8>| super::component::started(pb::StartComponentResponse::decode(bytes.as_slice()).unwrap());
    let refusal = field(1, [field(1, "summary"), field(2, "detail")].concat());
    assert_eq!(answer(refusal.clone()).unwrap_err().message, "detail");
    assert!(answer([refusal, field(2, of_instance)].concat()).is_ok(), "the id wins");
    assert!(answer(vec![]).is_err(), "neither is an error");
}

#[test]
fn the_outputs_of_a_component() {
    let nil = "00000000-0000-0000-0000-000000000000";
    let bytes = [field(1, ONE), entry(3, "a", instance(ONE, TWO)), entry(3, "b", instance(nil, TWO))].concat();
    let patch = Patch::try_from(pb::PatchRequest::decode(bytes.as_slice()).unwrap()).unwrap();
    let expected = BTreeMap::from([
        ("a".to_string(), Target::Instance(id(1, 2))),
        ("b".to_string(), Target::Component(ComponentId(Uuid::from_u128(2)))),
    ]);
    assert_eq!(patch, Patch::new(Uuid::from_u128(1), expected));
    assert_eq!(pb::PatchRequest::from(patch).encode_to_vec(), bytes);
}

#[test]
fn the_registration_of_a_node() {
    let capabilities = [
        number(10, 4),
        field(11, "model"),
        float(12, 5000.5),
        number(13, 2),
        number(14, 1024),
        field(20, "gpu"),
        number(30, 1),
        number(40, 1),
        field(50, "RUST_WASM"),
        number(70, 9),
        number(80, 1),
        field(81, "graphics"),
        number(82, 8),
    ]
    .concat();
    let bytes = [
        field(2, ONE),
        field(3, "http://a:1"),
        field(4, "http://b:2"),
        field(5, [field(1, "file-log-1"), field(2, "file-log"), field(3, "out")].concat()),
        field(6, capabilities),
        number(10, 1),
        number(11, 77),
        field(20, [number(20, 5), number(40, 150), number(41, 50), number(42, 25)].concat()),
    ]
    .concat();
    let node = Registration::try_from(pb::UpdateNodeRequest::decode(bytes.as_slice()).unwrap()).unwrap();
    assert_eq!((node.node, node.nonce, node.native), (NodeId(Uuid::from_u128(1)), 77, false));
    assert_eq!(
        (node.agent_url.to_string(), node.invocation_url.to_string()),
        ("http://a:1".into(), "http://b:2".into())
    );
    assert_eq!((node.providers[0].id.as_str(), node.providers[0].class_type.as_str()), ("file-log-1", "file-log"));
    assert_eq!(node.providers[0].outputs, ["out"]);
    assert_eq!(node.lifetime, Some(Duration::ZERO), "a deadline of 1970 has passed");
    let own = node.capabilities;
    assert_eq!((own.num_cpus, own.num_cores, own.mem_size, own.disk_tot_space), (4, 2, 1024, 9));
    assert_eq!((own.model_name_cpu.as_str(), own.clock_freq_cpu), ("model", 5000.5));
    assert_eq!((own.labels, own.runtimes), (vec!["gpu".to_string()], vec!["RUST_WASM".to_string()]));
    assert!(own.is_tee_running && own.has_tpm);
    assert_eq!((own.num_gpus, own.model_name_gpu.as_str(), own.mem_size_gpu), (1, "graphics", 8));
    assert_eq!((node.health.mem_free, node.health.load_avg), (Some(5), Some([150, 50, 25])));
}

/// What a node signs, and how it shows that: byte by byte, as somebody else would write it.
#[test]
fn the_registration_of_a_node_with_a_key() {
    let shown = |key: &[u8], signature: &[u8]| {
        let told = [field(2, ONE), field(3, "http://a:1/"), field(4, "http://b:22"), field(6, []), number(11, 77)];
        let bytes = [told.concat(), number(1002, 1), field(1004, key), field(1005, signature)].concat();
        Registration::try_from(pb::UpdateNodeRequest::decode(bytes.as_slice()).unwrap())
    };
    let node = shown(&[7; 32], &[9; 64]).unwrap();
    assert_eq!(node.proof, Some(Proof { key: NodeKey([7; 32]), signature: [9; 64] }));
    let claim: [&[u8]; 7] = [
        b"edgeless node registration 1\0",
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        b"\0\0\0\x0ahttp://a:1",
        b"\0\0\0\x0bhttp://b:22",
        b"\0\0\0\0\0\0\0",
        b"M",
        b"\x01",
    ];
    assert_eq!(node.claim(), claim.concat());
    let again = Registration::try_from(pb::UpdateNodeRequest::from(node.clone())).unwrap();
    assert_eq!((again.proof, again.claim()), (node.proof, node.claim()));
    assert_eq!(shown(&[], &[]).unwrap().proof, None);
    for (key, signature) in [(&[7; 32][..], &[][..]), (&[7; 31], &[9; 64]), (&[], &[9; 64])] {
        assert!(shown(key, signature).unwrap_err().message.contains("32 bytes"));
    }
}

#[test]
fn a_provider_without_a_name_refuses_the_whole_registration() {
    let provider = field(5, field(2, "file-log"));
    let bytes = [field(2, ONE), field(3, "http://a:1"), field(4, "http://b:2"), provider, field(6, [])].concat();
    let error = Registration::try_from(pb::UpdateNodeRequest::decode(bytes.as_slice()).unwrap()).unwrap_err();
    assert!(error.message.contains("provider_id"), "{error}");
}

#[test]
fn the_registration_of_a_domain() {
    let capabilities = [
        number(1, 3),
        number(10, 12),
        number(11, 24),
        number(12, 4096),
        field(20, "gpu"),
        number(30, 1),
        number(40, 2),
        field(50, "RUST_WASM"),
        number(60, 100),
        number(70, 5),
        number(71, 6),
        field(80, "file-log-1"),
        field(81, "file-log"),
    ]
    .concat();
    let bytes = [
        field(10, "domain-7000"),
        field(20, "http://a:1"),
        field(30, capabilities),
        number(40, 1),
        number(50, 8),
        number(51, 9),
    ]
    .concat();
    let domain = DomainRegistration::try_from(pb::UpdateDomainRequest::decode(bytes.as_slice()).unwrap()).unwrap();
    assert_eq!((domain.domain.0.as_str(), domain.counter, domain.nonce), ("domain-7000", 8, 9));
    let own = domain.capabilities;
    assert_eq!((own.num_nodes, own.num_cpus, own.num_cores, own.mem_size), (3, 12, 24, 4096));
    assert_eq!((own.num_tee, own.num_tpm, own.disk_tot_space, own.num_gpus, own.mem_size_gpu), (1, 2, 100, 5, 6));
    assert!(own.labels.contains("gpu") && own.runtimes.contains("RUST_WASM"));
    assert!(own.resource_providers.contains("file-log-1") && own.resource_classes.contains("file-log"));
    let reset = pb::UpdateDomainResponse::decode(number(2, 1).as_slice()).unwrap();
    assert!(crate::domain::DomainRegistered::try_from(reset).unwrap().reset);
}

#[test]
fn a_workflow_and_what_became_of_it() {
    let class = [class(), field(1000, digest())].concat();
    let function = [field(1, "f"), field(2, class), entry(3, "out", "r"), entry(4, "tee", "required")].concat();
    let resource = [field(1, "r"), field(2, "file-log"), entry(3, "back", "f"), entry(4, "filename", "log")].concat();
    let bytes = [field(1, function), field(2, resource), entry(3, "key", "value")].concat();
    let request = pb::SpawnWorkflowRequest::decode(bytes.as_slice()).unwrap();
    let workflow = Workflow::try_from(request).unwrap();
    assert_eq!(workflow.functions()[0].outputs["out"], "r");
    assert_eq!(workflow.functions()[0].annotations["tee"], "required");
    assert_eq!(workflow.resources()[0].class_type, "file-log");
    assert_eq!(workflow.resources()[0].outputs["back"], "f");
    assert_eq!(workflow.resources()[0].configuration["filename"], "log");
    assert_eq!(workflow.annotations()["key"], "value");
    assert_eq!(pb::SpawnWorkflowRequest::from(workflow).encode_to_vec(), bytes);

    let mapping = [field(1, "f"), field(2, TWO), field(3, "domain-1")].concat();
    let bytes = [field(1, field(1, ONE)), field(2, mapping)].concat();
    let status = pb::WorkflowInstanceStatus::decode(bytes.as_slice()).unwrap();
    let status = WorkflowStatus::try_from(status).unwrap();
    assert_eq!(status.workflow, WorkflowId(Uuid::from_u128(1)));
    assert_eq!((status.mapping[0].name.as_str(), status.mapping[0].domain.0.as_str()), ("f", "domain-1"));
    assert_eq!(status.mapping[0].component, ComponentId(Uuid::from_u128(2)));
    assert_eq!(pb::WorkflowInstanceStatus::from(status).encode_to_vec(), bytes);
}

/// Ours alone, so that nothing but these bytes holds its numbers in place.
#[test]
fn the_limits_of_a_component_and_what_it_uses() {
    let limit = [field(1, "cpu"), field(2, "0.5"), field(3, "0.50")].concat();
    let usage = [number(1, 1_500_000_000), number(2, 7 << 20), number(3, 3), number(4, 1000), number(5, 20)].concat();
    let bytes =
        [field(1, ONE), field(2, "f"), field(3, "running"), number(5, 2), field(12, limit.clone()), field(13, usage)]
            .concat();
    let status = ComponentStatus::try_from(pb::ComponentStatus::decode(bytes.as_slice()).unwrap()).unwrap();
    let cpu = Limit { name: "cpu".into(), asked: "0.5".into(), kernel: "0.50".into() };
    assert_eq!(status.limits, std::slice::from_ref(&cpu));
    let usage = Usage { cpu: Duration::from_millis(1500), memory: 7 << 20, processes: 3, received: 1000, sent: 20 };
    assert_eq!(status.usage, Some(usage));
    assert_eq!(pb::ComponentStatus::from(status).encode_to_vec(), bytes);

    let bytes = [field(1, ONE), entry(2, "cpu", "0.5")].concat();
    let request = pb::LimitsRequest::decode(bytes.as_slice()).unwrap();
    assert_eq!((request.component_id.as_str(), request.changes["cpu"].as_str()), (ONE, "0.5"));
    let response = pb::LimitsResponse::decode(field(2, limit.clone()).as_slice()).unwrap();
    assert_eq!(super::status::limits(response), Ok(vec![cpu.clone()]));
    assert_eq!(super::status::limits_response(Ok(vec![cpu])).unwrap().encode_to_vec(), field(2, limit));
    let refusal = field(1, [field(1, "Request rejected"), field(2, "why"), field(1000, "rejected")].concat());
    let refused = Error::rejected("why");
    let response = pb::LimitsResponse::decode(refusal.as_slice()).unwrap();
    assert_eq!(super::status::limits(response), Err(refused.clone()));
    assert_eq!(super::status::limits_response(Err(refused)).unwrap().encode_to_vec(), refusal);
}

#[test]
fn a_frame_between_nodes() {
    let node = Uuid::from_u128(0x0102);
    let hello = [
        field(1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]),
        fixed(2, 11),
        fixed(3, 12),
        number(4, 13),
        number(5, 256),
        number(6, 8 << 20),
        number(7, 1000),
        number(8, 4 << 20),
        number(9, 14),
    ]
    .concat();
    let ends = |source, target| [fixed(1, 1), fixed(2, source), fixed(3, 1), fixed(4, target)].concat();
    let id = |low| Uuid::from_u64_pair(1, low);
    let call = [
        ends(2, 3),
        field(5, "hello"),
        number(6, 21),
        number(7, 22),
        fixed(8, 1_000_000_005),
        fixed(9, 23),
        fixed(10, 24),
        fixed(11, 25),
        fixed(12, 1),
        fixed(13, 6),
    ]
    .concat();
    let reply = [ends(4, 5), number(5, 31), number(6, 2), field(7, "world"), fixed(8, 51), fixed(9, 52), fixed(10, 53)]
        .concat();
    let settled = [number(1, 41), number(2, 42), number(3, 4)].concat();
    let bytes = [
        field(1, hello),
        number(2, 300),
        field(3, field(1, call)),
        field(3, field(2, reply)),
        field(3, field(3, settled)),
        number(4, 400),
    ]
    .concat();
    let frame = Frame {
        hello: Some(Hello {
            node: NodeId(node),
            session: 11,
            known: 12,
            taken: 13,
            window: Window { events: 256, bytes: 8 << 20, total: 1000 },
            max_payload: 4 << 20,
            links: 14,
            invocation_url: None,
        }),
        first: 300,
        items: vec![
            Item::Event(peer::Event {
                source: id(2),
                source_node: Some(NodeId(id(6))),
                target: id(3),
                payload: Bytes::from_static(b"hello"),
                call: Some(Call { stream: 21, remaining: Some(Duration::from_millis(22)) }),
                created: SystemTime::UNIX_EPOCH + Duration::new(1, 5),
                trace: Trace { trace_id: 23 << 64 | 24, span_id: 25 },
                id: None,
            }),
            Item::Reply(peer::Reply {
                source: id(4),
                target: id(5),
                stream: 31,
                reply: Reply::Message(Bytes::from_static(b"world")),
                trace: Trace { trace_id: 51 << 64 | 52, span_id: 53 },
            }),
            Item::Settled(Settled { first: 41, count: 42, fate: Fate::MailboxFull }),
        ],
        accepted: 400,
    };
    assert_eq!(Frame::try_from(pb::PeerFrame::decode(bytes.as_slice()).unwrap()).unwrap(), frame);
    assert_eq!(pb::PeerFrame::from(frame).encode_to_vec(), bytes);
}

#[test]
fn updates_of_peers() {
    let decode = |bytes: Vec<u8>| PeerUpdate::try_from(pb::UpdatePeersRequest::decode(bytes.as_slice()).unwrap());
    let node = NodeId(Uuid::from_u128(1));
    let add = [field(2, ONE), field(3, "http://a:1")].concat();
    assert_eq!(decode(add).unwrap(), PeerUpdate::Add(node, "http://a:1".parse().unwrap()));
    assert_eq!(decode([number(1, 1), field(2, ONE)].concat()).unwrap(), PeerUpdate::Remove(node));
    assert_eq!(decode(number(1, 2)).unwrap(), PeerUpdate::Clear);
    assert!(decode(number(1, 3)).is_err());
    assert!(decode(field(2, ONE)).is_err(), "an address is missing");
}

#[test]
fn what_containers_are_told_and_tell() {
    let boot = [field(1, "http://a:1"), field(2, instance(ONE, TWO))].concat();
    let boot = pb::BootData::decode(boot.as_slice()).unwrap();
    assert_eq!(boot.guest_api_host_endpoint, "http://a:1");
    let init = pb::FunctionInstanceInit::decode([field(1, "payload"), field(10, [1])].concat().as_slice()).unwrap();
    assert_eq!((init.init_payload.as_str(), init.serialized_state.as_ref()), ("payload", [1].as_slice()));
    let delayed = [field(2, "out"), field(3, "message"), number(4, 1000), field(5, field(1, [0; 16]))].concat();
    let delayed = pb::DelayedEventData::decode(delayed.as_slice()).unwrap();
    assert_eq!((delayed.alias.as_str(), delayed.delay), ("out", 1000));
    assert_eq!(delayed.metadata.unwrap().trace_id.len(), 16);
    let answer = pb::CallReturn::decode([number(1, 1), field(2, "reply")].concat().as_slice()).unwrap();
    assert_eq!((answer.r#type(), answer.msg.as_ref()), (pb::CallRetType::CallRetReply, b"reply".as_slice()));
    let log = [number(2, 4), field(3, "target"), field(4, "message")].concat();
    assert_eq!(pb::TelemetryLogEvent::decode(log.as_slice()).unwrap().log_level(), pb::TelemetryLogLevel::LogTrace);
}

/// A controller trusts no client: what a command line would have refused is refused again.
#[test]
fn a_workflow_that_cannot_be_one_is_refused() {
    let function = |name: &str, class: Vec<u8>, target: &str| {
        field(1, [field(1, name), field(2, class), entry(3, "out", target)].concat())
    };
    let refusal = |bytes: Vec<u8>| {
        Workflow::try_from(pb::SpawnWorkflowRequest::decode(bytes.as_slice()).unwrap()).unwrap_err().message
    };
    let nowhere = refusal(function("f", class(), "g"));
    assert!(nowhere.contains("functions[0].output_mapping") && nowhere.contains("'g' is not a component"), "{nowhere}");
    let twice = refusal([function("f", class(), "f"), function("f", class(), "f")].concat());
    assert!(twice.contains("functions[1].name: the name 'f' is taken"), "{twice}");
    let unnamed = refusal(function("", class(), "f"));
    assert!(unnamed.contains("functions[0].name: must not be empty"), "{unnamed}");
    let without_class = refusal(field(1, field(1, "f")));
    assert!(without_class.contains("function 'f': the message lacks 'class_spec'"), "{without_class}");
    assert!(refusal(vec![]).contains("no component"));
    let bad_annotation = [field(1, "f"), field(2, class()), entry(4, "node_id_match_any", "here")].concat();
    let bad_annotation = refusal(field(1, bad_annotation));
    assert!(bad_annotation.contains("'node_id_match_any' has the value 'here'"), "{bad_annotation}");
}
