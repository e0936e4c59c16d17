//! Configuration files of the daemons: wrong ones are refused with a reason.

use std::sync::LazyLock;

use edgeless_daemon::config::{Config, parse};

use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "config", make, run };

/// What the daemons write for their users.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    vec![
        edgeless_con::config::Config::template().into_bytes(),
        edgeless_orc::config::Config::template().into_bytes(),
        edgeless_node::config::Config::template().into_bytes(),
    ]
});

const WORDS: [&[u8]; 14] = [
    b"\"",
    b"\n",
    b" = ",
    b"[general]\n",
    b"[[resources]]\n",
    b"\"1s\"",
    b"\"99999999999999999s\"",
    b"\"4GiB\"",
    b"-1",
    b"1e999",
    b"true",
    b"\"http://[::]:0\"",
    b"\"http://\"",
    b"{}",
];

/// The first byte chooses whose it is; the others are its text.
fn run(input: &[u8]) {
    let Some((chosen, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match chosen % 3 {
        0 => check::<edgeless_con::config::Config>(text),
        1 => check::<edgeless_orc::config::Config>(text),
        _ => check::<edgeless_node::config::Config>(text),
    }
}

fn check<C: Config>(text: &str) {
    if let Err(reason) = parse::<C>(text, std::iter::empty()) {
        assert!(!reason.trim().is_empty(), "no reason is given");
    }
}

fn make(random: &mut Random) -> Vec<u8> {
    let chosen = random.below(FILES.len());
    let mut text = FILES.get(chosen).expect("a file").clone();
    // Comments show keys that are not set.
    if random.one_in(2) {
        text = String::from_utf8_lossy(&text).replace("\n# ", "\n").replace("\n#", "\n").into_bytes();
    }
    random.mutate(&mut text, &WORDS);
    text.insert(0, u8::try_from(chosen).expect("few files"));
    text
}
