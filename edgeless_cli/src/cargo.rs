//! Compiles a crate to a WebAssembly module with the Rust that is installed on this machine.
//!
//! Everything is left to cargo but three things: to say what to install when the target is missing,
//! to build the standard library from its source where only that is there (as on Debian without
//! rustup), and to share one target folder among crates that are not in a workspace.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

use crate::failure::{Failure, reason};

const TARGET: &str = "wasm32-unknown-unknown";

const NO_RUST: &str = "\
is not installed
  https://rustup.rs installs Rust; then: rustup target add wasm32-unknown-unknown
  on Debian, without rustup: apt install rustc-web cargo-web rust-web-src rust-web-llvm,
  and the lld that /usr/bin/rust-lld then leads to (lld-22, for example)";

const NO_TARGET: &str = "\
the Rust target wasm32-unknown-unknown is not installed
  with rustup: rustup target add wasm32-unknown-unknown
  on Debian, without rustup: apt install rustc-web cargo-web rust-web-src rust-web-llvm,
  and the lld that /usr/bin/rust-lld then leads to (lld-22, for example); with the source of the standard library
  there, this command has cargo build it (RUSTC_BOOTSTRAP=1 cargo build -Z build-std=std,panic_abort)";

/// What became of a compilation.
pub(crate) struct Compiled {
    /// The module; none if the crate has errors.
    pub(crate) module: Option<PathBuf>,
    /// Warnings and errors, as cargo shows them.
    pub(crate) said: String,
}

/// Compiles the crate of a manifest.
pub(crate) fn compile(manifest: &Path, colour: bool) -> Result<Compiled, Failure> {
    let manifest = fs::canonicalize(manifest)
        .map_err(|error| Failure::input(format!("cannot read {}: {}", manifest.display(), reason(&error))))?;
    let folder = manifest.parent().unwrap_or(Path::new("/"));
    let standard_library = StandardLibrary::find(folder)?;

    let mut build = tool("cargo", folder);
    build.args(["build", "--release", "--all-features", "--quiet", "--target", TARGET]);
    build.args(["--message-format", "json-render-diagnostics", "--color", if colour { "always" } else { "never" }]);
    build.arg("--manifest-path").arg(&manifest);
    if let StandardLibrary::Source = standard_library {
        build.args(["-Z", "build-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1");
    }
    if let Some(shared) = shared_target_folder(&manifest, folder)? {
        build.arg("--target-dir").arg(shared);
    }
    let output = run("cargo", build)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Ok(Compiled { module: None, said });
    }
    match module_of(&manifest, &output.stdout) {
        Some(module) => Ok(Compiled { module: Some(module), said }),
        None => Err(Failure::Refused(format!(
            "{} makes no WebAssembly module: put crate-type = [\"cdylib\"] below [lib]",
            manifest.display()
        ))),
    }
}

/// A tool that runs in the folder of the crate, where its settings are, and yet puts its output where
/// the user, who is in another folder, said.
fn tool(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(folder);
    if let Some(Ok(target)) = env::var_os("CARGO_TARGET_DIR").map(std::path::absolute) {
        command.env("CARGO_TARGET_DIR", target);
    }
    command
}

fn run(name: &str, mut command: Command) -> Result<Output, Failure> {
    command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::Refused(format!("{name} {NO_RUST}")),
        _ => Failure::Refused(format!("cannot run {name}: {}", reason(&error))),
    })
}

/// The output of a tool that has to succeed for anything else to make sense.
fn answer(name: &str, command: Command) -> Result<String, Failure> {
    let output = run(name, command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Refused(format!("{name} failed: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How the standard library of the target is there.
enum StandardLibrary {
    /// Compiled.
    Ready,
    /// As source.
    Source,
}

impl StandardLibrary {
    fn find(folder: &Path) -> Result<Self, Failure> {
        let mut rustc = tool("rustc", folder);
        rustc.args(["--print", "sysroot"]);
        let sysroot = PathBuf::from(answer("rustc", rustc)?.trim());
        let libraries = sysroot.join("lib/rustlib");
        if libraries.join(TARGET).is_dir() {
            Ok(Self::Ready)
        } else if libraries.join("src/rust/library/Cargo.lock").is_file() {
            Ok(Self::Source)
        } else {
            Err(Failure::Refused(NO_TARGET.into()))
        }
    }
}

/// The folder beside that of the crate, unless the crate is in a workspace or the user chose another.
fn shared_target_folder(manifest: &Path, folder: &Path) -> Result<Option<PathBuf>, Failure> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }

    let mut metadata = tool("cargo", folder);
    metadata.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(manifest);
    let metadata: Metadata = serde_json::from_str(&answer("cargo", metadata)?)
        .map_err(|error| Failure::Refused(format!("cannot understand cargo metadata: {error}")))?;
    let is_own = metadata.target_directory == folder.join("target");
    Ok(folder.parent().filter(|_| is_own).map(|parent| parent.join("target")))
}

/// The module among the messages of a build.
fn module_of(manifest: &Path, messages: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Artifact {
        manifest_path: PathBuf,
        target: Target,
        filenames: Vec<PathBuf>,
    }

    #[derive(Deserialize)]
    struct Target {
        crate_types: Vec<String>,
    }

    // Messages of other kinds have other keys.
    let artifacts = messages.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let of_crate = |artifact: &Artifact| {
        let is_module = artifact.target.crate_types.iter().any(|kind| kind == "cdylib");
        is_module && fs::canonicalize(&artifact.manifest_path).is_ok_and(|path| path == manifest)
    };
    let is_wasm = |path: &PathBuf| path.extension() == Some(OsStr::new("wasm"));
    artifacts.filter(of_crate).find_map(|artifact| artifact.filenames.into_iter().find(is_wasm))
}

/// Writes a smaller module to `to` if wasm-opt is installed; otherwise leaves `to` as it is.
///
/// The names of functions stay, for the backtrace of a trap.
pub(crate) fn optimise(from: &Path, to: &Path) -> Result<(), String> {
    let mut wasm_opt = Command::new("wasm-opt");
    wasm_opt.args(["-Oz", "--all-features", "--debuginfo"]).arg(from).arg("-o").arg(to);
    let output: io::Result<Output> = wasm_opt.output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("wasm-opt failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("cannot run wasm-opt: {}", reason(&error))),
    }
}
