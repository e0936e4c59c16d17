//! Files of parameters, and the modules that they name.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use edgeless_api::FunctionClass;
use edgeless_api::component::RUST_WASM;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads parameters; without a file they are the defaults.
pub(super) fn read<P: DeserializeOwned + Default>(files: &[PathBuf]) -> Result<P> {
    match files.first() {
        None => Ok(P::default()),
        Some(file) => {
            let shown = file.display();
            serde_json::from_str(&text(file)?).with_context(|| format!("{shown} is not what is expected there"))
        }
    }
}

/// The defaults as a file.
pub(super) fn template<P: Serialize + Default>() -> Result<String> {
    Ok(serde_json::to_string_pretty(&P::default())?)
}

/// The text of a file.
pub(super) fn text(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// From the least to the most of something.
pub(super) fn range(what: &str, min: u32, max: u32) -> Result<RangeInclusive<u32>> {
    ensure!(min <= max, "min_{what} {min} is above max_{what} {max}");
    Ok(min..=max)
}

/// The same of something of which there is at least one.
pub(super) fn range_from_one(what: &str, min: u32, max: u32) -> Result<RangeInclusive<u32>> {
    ensure!(min > 0, "min_{what} must be 1 or more");
    range(what, min, max)
}

/// A class of function whose module is this file.
pub(super) fn class(id: &str, outputs: Vec<String>, wasm: &Path) -> Result<FunctionClass> {
    Ok(FunctionClass {
        id: id.to_string(),
        function_type: RUST_WASM.to_string(),
        version: "0.1".to_string(),
        binary: module(wasm)?.into(),
        code: wasm.display().to_string(),
        outputs,
    })
}

/// The bytes of a module.
pub(super) fn module(wasm: &Path) -> Result<bytes::Bytes> {
    let shown = wasm.display();
    let bytes = std::fs::read(wasm)
        .with_context(|| format!("cannot read the module {shown}: build it with `edgeless_cli function build`"))?;
    ensure!(bytes.starts_with(b"\0asm"), "{shown} is not a WebAssembly module: it does not begin with \\0asm");
    Ok(bytes.into())
}
