//! Messages of peers: every message that is converted to a type of ours. What is accepted means the same when it is
//! sent on.

use std::sync::LazyLock;

use edgeless_api::fuzz::MESSAGES;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "wire", make, run };

/// How deep messages of messages go.
const DEEP: usize = 5;

/// What the protocol says that there is.
pub(crate) static PROTOCOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto");
    let files: Vec<_> = std::fs::read_dir(folder).expect("the protocol").flatten().map(|file| file.path()).collect();
    let files = files.iter().filter(|path| path.extension().is_some_and(|end| end == "proto"));
    let compiled = protox::compile(files, [folder]).expect("a protocol that compiles");
    DescriptorPool::decode(compiled.encode_to_vec().as_slice()).expect("a protocol that can be described")
});

/// The first byte chooses the message; the others are it.
fn run(input: &[u8]) {
    let Some((chosen, bytes)) = input.split_first() else { return };
    let Some((name, take)) = MESSAGES.get(usize::from(*chosen) % MESSAGES.len()) else { return };
    if let Err(lost) = take(bytes) {
        panic!("{name}: {lost}");
    }
}

fn make(random: &mut Random) -> Vec<u8> {
    let chosen = random.below(MESSAGES.len());
    let mut input = vec![u8::try_from(chosen).expect("few messages")];
    input.extend(message(random, MESSAGES.get(chosen).expect("a message").0));
    if random.one_in(4) {
        random.mutate(&mut input, &[]);
    }
    input
}

/// A message of the protocol with anything that may be in it.
pub(crate) fn message(random: &mut Random, name: &str) -> Vec<u8> {
    let descriptor = PROTOCOL.get_message_by_name(&format!("edgeless_api.{name}")).expect(name);
    any(random, &descriptor, DEEP).encode_to_vec()
}

fn any(random: &mut Random, descriptor: &MessageDescriptor, deep: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    // Most of what matters is there most of the time.
    for field in descriptor.fields().filter(|_| deep > 0) {
        if !random.one_in(6) {
            message.set_field(&field, values(random, &field, deep - 1));
        }
    }
    message
}

fn values(random: &mut Random, field: &FieldDescriptor, deep: usize) -> Value {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return Value::Map(Default::default()) };
        let entries = (0..random.below(4)).map(|_| {
            let key = MapKey::String(text(random));
            (key, value(random, &entry.map_entry_value_field(), deep))
        });
        return Value::Map(entries.collect());
    }
    if field.is_list() {
        return Value::List((0..random.below(4)).map(|_| value(random, field, deep)).collect());
    }
    value(random, field, deep)
}

fn value(random: &mut Random, field: &FieldDescriptor, deep: usize) -> Value {
    let number = random.number();
    match field.kind() {
        Kind::Double => Value::F64(float(random)),
        Kind::Float => Value::F32(float(random) as f32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number),
        Kind::Bool => Value::Bool(number.is_multiple_of(2)),
        Kind::String => Value::String(text(random)),
        Kind::Bytes => {
            // Ids travel as bytes too.
            let bytes = if random.one_in(2) { vec![7; 16] } else { random.bytes(40) };
            Value::Bytes(bytes.into())
        }
        Kind::Enum(_) => Value::EnumNumber(random.below(7) as i32 - 1),
        Kind::Message(message) => Value::Message(any(random, &message, deep)),
    }
}

fn float(random: &mut Random) -> f64 {
    match random.below(4) {
        0 => f64::from_bits(random.number()),
        1 => -1.5,
        _ => random.below(1000) as f64 / 10.0,
    }
}

/// Texts that are something: an id, an address, an annotation, a name; or nothing of that.
fn text(random: &mut Random) -> String {
    const TEXTS: [&str; 20] = [
        "00000000-0000-0000-0000-000000000000",
        "fda6ce79-46df-4f96-a0d2-456f720f606c",
        "ffffffff-ffff-ffff-fffe-ffffffffffff",
        "http://127.0.0.1:7001",
        "https://[::1]:1",
        "coap://a:0/",
        "RUST_WASM",
        "CONTAINER",
        "http-ingress",
        "domain-1",
        "out",
        "max_instances",
        "label_match_all",
        "partition_by",
        "json:/a/b",
        "state",
        "-1",
        "99999999999999999999",
        "",
        "\u{0}\u{202e}",
    ];
    match random.below(10) {
        0 => String::from_utf8_lossy(&random.bytes(24)).into_owned(),
        1 => "a".repeat(random.below(2000)),
        _ => (*random.pick(&TEXTS)).to_string(),
    }
}
