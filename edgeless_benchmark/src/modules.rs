//! The modules and images of the functions that are measured, built where they are missing or out of date.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::Bench;
use crate::programs;

/// The module of one of our functions.
pub(crate) async fn module(bench: &Bench, name: &str) -> Result<Bytes> {
    read(&build(bench, name, &[]).await?.join(format!("{name}.wasm")))
}

/// The archive with the image of one of our functions.
pub(crate) async fn archive(bench: &Bench, name: &str) -> Result<PathBuf> {
    Ok(build(bench, name, &["--container"]).await?.join(format!("{name}.tar")))
}

/// Builds one of our functions; returns its directory.
async fn build(bench: &Bench, name: &str, options: &[&str]) -> Result<PathBuf> {
    let directory = bench.functions.join(name);
    let manifest = directory.join("function.json");
    if !manifest.is_file() {
        bail!("there is no {}: name the directory of the functions with --functions", manifest.display());
    }
    bench.progress.say(&format!("building {}", directory.display()));
    // It knows whether there is anything to do.
    let build = &mut Command::new(programs::path("edgeless_cli")?);
    programs::run(build.args(["function", "build"]).args(options).arg(&manifest)).await?;
    Ok(directory)
}

pub(crate) fn read(file: &Path) -> Result<Bytes> {
    let code = std::fs::read(file)
        .with_context(|| format!("{}: build it with `edgeless_cli function build`", file.display()))?;
    Ok(code.into())
}
