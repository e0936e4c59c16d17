//! What once broke a target, and a few seconds of new inputs for each.
//!
//! `EDGELESS_FUZZ_SECONDS` makes it longer, `EDGELESS_FUZZ_SEED` begins elsewhere. An input that breaks a target is
//! written to `corpus/`, from where every later run takes it.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edgeless_fuzz::{Random, TARGETS, Target};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn drive(name: &str) {
    let target = TARGETS.into_iter().find(|target| target.name == name).unwrap();
    let folder = folder(&target);
    for file in std::fs::read_dir(&folder).into_iter().flatten().map(Result::unwrap) {
        let input = std::fs::read(file.path()).unwrap();
        let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        assert!(ended.is_ok(), "{} breaks it, as it did once", file.path().display());
    }
    let seed = setting("EDGELESS_FUZZ_SEED", u64::from(std::process::id()));
    let end = Instant::now() + Duration::from_secs(setting("EDGELESS_FUZZ_SECONDS", 5));
    let mut random = Random::new(seed);
    let mut inputs = 0_u64;
    while inputs == 0 || Instant::now() < end {
        let input = (target.make)(&mut random);
        inputs += 1;
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("seed-{seed}-{inputs}"));
            std::fs::write(&path, &input).unwrap();
            panic!("input {inputs} of seed {seed} breaks {name}: it is in {}", path.display());
        }
    }
    println!("{name}: {inputs} inputs of seed {seed}");
}

#[test]
fn config() {
    drive("config");
}

#[test]
fn guest() {
    drive("guest");
}

#[test]
fn record() {
    drive("record");
}

#[test]
fn store() {
    drive("store");
}

#[test]
fn wire() {
    drive("wire");
}

#[test]
fn workflow() {
    drive("workflow");
}

/// Here, and by hand in `fuzz/`, where a panic is the end even if it is caught.
#[test]
fn every_target_is_driven() {
    let (here, by_hand) = (include_str!("fuzz.rs"), include_str!("../fuzz/Cargo.toml"));
    for Target { name, .. } in TARGETS {
        assert!(here.contains(&format!("drive(\"{name}\");")), "no test drives {name}");
        let is_named = by_hand.contains(&format!("name = \"{name}\""));
        assert_eq!(is_named, name != "store", "{name} in fuzz/Cargo.toml");
    }
}
