//! What the daemons read from their stores when they start, and what a component takes along when it moves. What is
//! read has the same bytes when it is written again and read once more.

use std::fmt::Debug;

use bytes::Bytes;
use edgeless_api::journal::{Belongings, Handled, InstanceRecord, OutboxEvent, OutboxNumbers, SavedState};
use edgeless_api::record::Workflow;
use edgeless_api::{Error, domain_record as domain};

use crate::wire::message;
use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "record", make, run };

/// Takes bytes for a record.
type Take = fn(&[u8]);

/// The records by the names that they have in `proto/`.
const RECORDS: [(&str, Take); 13] = [
    ("WorkflowRecord", |bytes| again(bytes, Workflow::decode, |read| read.encode())),
    ("DomainComponentRecord", |bytes| again(bytes, |bytes| domain::Component::decode(&bytes), |read| read.encode())),
    ("DomainLeftRecord", |bytes| again(bytes, |bytes| domain::Left::decode(&bytes), |read| read.encode())),
    ("DomainGoneRecord", |bytes| again(bytes, |bytes| domain::Gone::decode(&bytes), |read| read.encode())),
    ("DomainNodeRecord", |bytes| again(bytes, |bytes| domain::Node::decode(&bytes), |read| read.encode())),
    ("DomainRowRecord", |bytes| again(bytes, |bytes| domain::Foreign::decode(&bytes), |read| read.encode())),
    ("DomainSelfRecord", |bytes| again(bytes, |bytes| domain::Domain::decode(&bytes), |read| read.encode())),
    ("SavedStateRecord", |bytes| again(bytes, |bytes| SavedState::decode(&bytes), |read| read.encode())),
    ("InstanceRecord", |bytes| again(bytes, |bytes| InstanceRecord::decode(&bytes), |read| read.encode())),
    ("OutboxEventRecord", |bytes| again(bytes, |bytes| OutboxEvent::decode(&bytes), |read| read.encode())),
    ("OutboxNumbersRecord", |bytes| again(bytes, |bytes| OutboxNumbers::decode(&bytes), |read| read.encode())),
    ("HandledRecord", |bytes| again(bytes, |bytes| Handled::decode(&bytes), |read| read.encode())),
    ("BelongingsRecord", belongings),
];

fn again<T: Debug>(bytes: &[u8], read: impl Fn(Bytes) -> Result<T, Error>, write: impl Fn(T) -> Bytes) {
    let Ok(known) = read(Bytes::copy_from_slice(bytes)) else { return };
    let shown = format!("{known:?}");
    let written = write(known);
    let again = read(written.clone()).expect("what was written is read");
    assert_eq!(write(again), written, "{shown}");
}

/// They begin with a mark of their own, unless they are a state alone.
fn belongings(bytes: &[u8]) {
    let marked = Belongings { handled: vec![Default::default()], ..Belongings::default() }.encode();
    let mark = marked.expect("something is taken along").slice(..16);
    let bytes = [mark.as_ref(), bytes].concat();
    again(&bytes, Belongings::decode, |read| read.encode().unwrap_or_default());
}

/// The first byte chooses the record; the others are it.
fn run(input: &[u8]) {
    let Some((chosen, bytes)) = input.split_first() else { return };
    if let Some((_, take)) = RECORDS.get(usize::from(*chosen) % RECORDS.len()) {
        take(bytes);
    }
}

fn make(random: &mut Random) -> Vec<u8> {
    let chosen = random.below(RECORDS.len());
    let mut input = vec![u8::try_from(chosen).expect("few records")];
    input.extend(message(random, RECORDS.get(chosen).expect("a record").0));
    if random.one_in(4) {
        random.mutate(&mut input, &[]);
    }
    input
}
