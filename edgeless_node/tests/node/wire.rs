//! Bytes on the wire that no client of ours would send: each is an error to its sender.

use bytes::{Buf, BufMut, Bytes};
use edgeless_api::Binary;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use super::code::code;
use super::support::TestNode;

/// Messages as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// A field of text, bytes or a message. Numbers and lengths take two bytes, which is one more than small
/// ones need and is understood.
fn field(number: u16, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let varint = |value: u16| [u8::try_from(value & 0x7f).unwrap() | 0x80, u8::try_from(value >> 7).unwrap()];
    [&varint(number << 3 | 2), &varint(u16::try_from(content.len()).unwrap()), content].concat()
}

#[tokio::test]
async fn what_is_no_event_is_refused_and_counted() {
    let node = TestNode::start().await;
    let channel = Endpoint::from_shared(node.invocation_url().to_string()).unwrap().connect().await.unwrap();
    let send = async |message: Vec<u8>| {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/edgeless_api.FunctionInvocation/Handle");
        grpc.unary(Request::new(Bytes::from(message)), path, Raw).await.map(|_| ()).unwrap_err()
    };
    let uuid = "00000000-0000-0000-0000-000000000001";
    let instance = [field(1, uuid), field(2, uuid)].concat();
    let nobody = [field(1, "here"), field(2, uuid)].concat();
    let message = [vec![0x08, 1], field(2, "x")].concat();
    let created = field(5, [0x08, 1]);
    let metadata = field(6, [field(1, [0; 16]), field(2, [0; 8])].concat());
    let short_metadata = field(6, [field(1, [0; 15]), field(2, [0; 8])].concat());
    let parts = |target: &[u8], metadata: &[u8]| {
        [field(1, target), field(2, &instance), field(4, &message), created.clone(), metadata.to_vec()].concat()
    };
    let refused = [
        (vec![], "lacks 'msg'"),
        ([field(2, &instance), field(4, &message), created.clone(), metadata.clone()].concat(), "lacks 'target'"),
        ([field(1, &instance), field(2, &instance), field(4, &message), metadata.clone()].concat(), "lacks 'created'"),
        (parts(&nobody, &metadata), "'node_id' is 'here', which is not a UUID"),
        (parts(&instance, &short_metadata), "trace_id has 15 bytes"),
        (parts(&instance, &metadata), "the event is for node"),
    ];
    for (number, (message, expected)) in refused.into_iter().enumerate() {
        let status = send(message).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{status}");
        let counted = format!("events_refused_total {}", number + 1);
        assert!(node.metrics().await.contains(&counted), "{counted}");
    }
    let garbage = send(vec![0xff; 100]).await;
    assert_eq!(garbage.code(), Code::Internal, "bytes that are no message at all: {garbage}");
}

/// Were it started, it would be kept under the name of the other, and run in its place ever after.
#[tokio::test]
async fn code_that_is_not_what_its_digest_says_is_refused() {
    let node = TestNode::start().await;
    let channel = Endpoint::from_shared(node.agent_url().to_string()).unwrap().connect().await.unwrap();
    let start = async |code: &[u8], digest: &[u8]| {
        let class = [field(1, "f"), field(2, "RUST_WASM"), field(4, code), field(1000, digest)].concat();
        let uuid = "00000000-0000-0000-0000-000000000001";
        let message = [field(2, class), field(4, field(1, uuid)), field(5, uuid)].concat();
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/edgeless_api.FunctionInstance/Start");
        let answer = grpc.unary(Request::new(Bytes::from(message)), path, Raw).await.unwrap().into_inner();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let (code, other) = (code(1), code(2));
    let digest = Binary::from(code.clone()).digest().0;
    let refusal = start(&other, &digest).await;
    assert!(refusal.contains("as its digest says"), "{refusal}");
    let unknown = start(b"", &digest).await;
    assert!(unknown.contains("needs_code"), "nothing was kept under that name: {unknown}");
    let started = start(&code, &digest).await;
    assert!(started.contains(&node.id().to_string()), "{started}");
    let started = start(b"", &digest).await;
    assert!(started.contains(&node.id().to_string()), "{started}");
}
