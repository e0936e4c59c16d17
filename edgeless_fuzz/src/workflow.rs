//! Workflow files, which people write: wrong ones are refused with file, place and reason.

use std::path::Path;
use std::sync::LazyLock;

use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "workflow", make, run };

/// The workflows of the examples.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folders = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).expect("the examples");
    let files = folders.flatten().filter_map(|folder| std::fs::read(folder.path().join("workflow.json")).ok());
    let mut files: Vec<_> = files.collect();
    // The order of a folder is not the same everywhere.
    files.sort();
    files
});

const WORDS: [&[u8]; 16] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"null",
    b"-1",
    b"1e400",
    b"\"min_instances\": \"99999999999\",",
    b"\"cpu\": \"-0.5\",",
    b"\"memory\": \"1e9TiB\",",
    b"\"partition_by\": \"json:/~2\",",
    b"\"label_match_all\": \"[\",",
    b"\"functions\": [],",
    b"\\ud800",
];

fn run(input: &[u8]) {
    // Files that are named by their code are looked for beside the workflow, and there are none.
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("workflow.json");
    std::fs::write(&path, input).expect("room for a file");
    if let Err(problems) = edgeless_cli::check_workflow(Path::new(&path)) {
        assert!(!problems.is_empty() && problems.iter().all(|line| line.contains("workflow.json")), "{problems:?}");
    }
}

fn make(random: &mut Random) -> Vec<u8> {
    let mut text = random.pick(&FILES).clone();
    random.mutate(&mut text, &WORDS);
    text
}
