//! What a controller reads from its store when it starts. What is read has the same bytes when it is written again
//! and read once more.

use edgeless_api::record::Workflow;

use crate::wire::message;
use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "record", make, run };

fn run(input: &[u8]) {
    let Ok(read) = Workflow::decode(input.to_vec().into()) else { return };
    let written = read.encode();
    let again = Workflow::decode(written.clone()).expect("what was written is read");
    assert_eq!(again.encode(), written, "{read:?}");
}

fn make(random: &mut Random) -> Vec<u8> {
    let mut record = message(random, "WorkflowRecord");
    if random.one_in(4) {
        random.mutate(&mut record, &[]);
    }
    record
}
