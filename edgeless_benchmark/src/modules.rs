//! The modules of the functions that are measured, built where they are missing or out of date.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::Bench;
use crate::programs;

/// The module of one of our functions.
pub(crate) async fn module(bench: &Bench, name: &str) -> Result<Bytes> {
    let directory = bench.functions.join(name);
    let manifest = directory.join("function.json");
    if !manifest.is_file() {
        bail!("there is no {}: name the directory of the functions with --functions", manifest.display());
    }
    bench.progress.say(&format!("building {}", directory.display()));
    // It knows whether there is anything to do.
    let build = &mut Command::new(programs::path("edgeless_cli")?);
    programs::run(build.args(["function", "build"]).arg(&manifest)).await?;
    read(&directory.join(format!("{name}.wasm")))
}

pub(crate) fn read(file: &Path) -> Result<Bytes> {
    let code = std::fs::read(file)
        .with_context(|| format!("{}: build it with `edgeless_cli function build`", file.display()))?;
    Ok(code.into())
}
