//! Compiles a crate to a WebAssembly module, or to an executable for a container, with the Rust that is
//! installed on this machine.
//!
//! Everything is left to cargo but three things: to say what to install when the target is missing,
//! to build the standard library from its source where only that is there (as on Debian without
//! rustup), and to share one target folder among crates that are not in a workspace.
//!
//! The crate of a function is a library. It becomes an executable by being compiled as one, which needs no
//! change to it: `export!` makes the `main` function that the SDK's feature asks for. The executable is
//! linked with musl, so that it is all that its image needs.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

use crate::failure::{Failure, reason};

const WASM: &str = "wasm32-unknown-unknown";

/// The processors that have containers, by the name that Rust has for them.
const MUSL: [(&str, &str); 2] = [("x86_64", "x86_64-unknown-linux-musl"), ("aarch64", "aarch64-unknown-linux-musl")];

/// The feature of the SDK with which a function is an executable.
const CONTAINER: &str = "edgeless_function/container";

const ON_DEBIAN: &str = "  on Debian, without rustup: apt install rustc-web cargo-web rust-web-src rust-web-llvm,
  and the lld that /usr/bin/rust-lld then leads to (lld-22, for example)";

const FROM_SOURCE: &str = "; with the source of the standard library
  there, this command has cargo build it (RUSTC_BOOTSTRAP=1 cargo build -Z build-std=std,panic_abort)";

/// What a crate is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    /// A WebAssembly module.
    Module,
    /// A function's executable for Linux on this processor.
    Executable,
    /// The executable of a crate that has a program already, likewise.
    Program,
}

impl Product {
    fn target(self) -> Result<&'static str, Failure> {
        match self {
            Self::Module => Ok(WASM),
            Self::Executable | Self::Program => {
                let target = MUSL.iter().find(|(processor, _)| *processor == env::consts::ARCH);
                let unknown = || {
                    Failure::Refused(format!(
                        "containers are built on x86_64 and aarch64, and this is {}: build it on such a machine",
                        env::consts::ARCH
                    ))
                };
                target.map(|(_, target)| *target).ok_or_else(unknown)
            }
        }
    }

    fn no_rust(self, target: &str) -> String {
        let install = format!("is not installed\n  https://rustup.rs installs Rust; then: rustup target add {target}");
        match self {
            Self::Module => format!("{install}\n{ON_DEBIAN}"),
            Self::Executable | Self::Program => install,
        }
    }

    fn no_target(self, target: &str) -> String {
        let install = format!("the Rust target {target} is not installed\n  with rustup: rustup target add {target}");
        match self {
            Self::Module => format!("{install}\n{ON_DEBIAN}{FROM_SOURCE}"),
            Self::Executable | Self::Program => install,
        }
    }

    /// How cargo is asked for it.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Module => &["build"],
            Self::Executable => &["rustc", "--lib", "--crate-type", "bin", "--features", CONTAINER],
            Self::Program => &["build", "--bins"],
        }
    }

    /// Whether it is what cargo calls an artifact of these types.
    fn is_among(self, crate_types: &[String]) -> bool {
        let kind = match self {
            Self::Module => "cdylib",
            Self::Executable | Self::Program => "bin",
        };
        crate_types.iter().any(|crate_type| crate_type == kind)
    }

    /// What to say to a crate that does not make it.
    fn none(self) -> &'static str {
        match self {
            Self::Module => "makes no WebAssembly module: put crate-type = [\"cdylib\"] below [lib]",
            Self::Executable | Self::Program => "makes no program: give it a src/main.rs",
        }
    }

    fn is_at(self, path: &Path) -> bool {
        match self {
            Self::Module => path.extension() == Some(OsStr::new("wasm")),
            Self::Executable | Self::Program => path.extension().is_none(),
        }
    }
}

/// What became of a compilation.
pub(crate) struct Compiled {
    /// The product; none if the crate has errors.
    pub(crate) product: Option<PathBuf>,
    /// Warnings and errors, as cargo shows them.
    pub(crate) said: String,
}

/// Compiles the crate of a manifest.
pub(crate) fn compile(manifest: &Path, product: Product, colour: bool) -> Result<Compiled, Failure> {
    let target = product.target()?;
    let manifest = fs::canonicalize(manifest)
        .map_err(|error| Failure::input(format!("cannot read {}: {}", manifest.display(), reason(&error))))?;
    let folder = manifest.parent().unwrap_or(Path::new("/"));
    let tools = Tools { folder, no_rust: product.no_rust(target) };
    let no_target = || Failure::Refused(product.no_target(target));
    let standard_library = StandardLibrary::find(&tools, target)?.ok_or_else(no_target)?;
    if product != Product::Module && standard_library == StandardLibrary::Source {
        return Err(no_target());
    }

    let mut build = tools.command("cargo");
    build.args(product.arguments()).args(["--release", "--all-features", "--quiet", "--target", target]);
    build.args(["--message-format", "json-render-diagnostics", "--color", if colour { "always" } else { "never" }]);
    build.arg("--manifest-path").arg(&manifest);
    if let StandardLibrary::Source = standard_library {
        build.args(["-Z", "build-std=std,panic_abort"]).env("RUSTC_BOOTSTRAP", "1");
    }
    if let Some(shared) = shared_target_folder(&manifest, &tools)? {
        build.arg("--target-dir").arg(shared);
    }
    let output = tools.run("cargo", build)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Ok(Compiled { product: None, said });
    }
    match product_of(&manifest, product, &output.stdout) {
        Some(path) => Ok(Compiled { product: Some(path), said }),
        None => Err(Failure::Refused(format!("{} {}", manifest.display(), product.none()))),
    }
}

/// The tools, as they are for one crate.
struct Tools<'a> {
    folder: &'a Path,
    /// What to say where they are missing.
    no_rust: String,
}

impl Tools<'_> {
    /// A tool that runs in the folder of the crate, where its settings are, and yet puts its output where
    /// the user, who is in another folder, said.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.current_dir(self.folder);
        if let Some(Ok(target)) = env::var_os("CARGO_TARGET_DIR").map(std::path::absolute) {
            command.env("CARGO_TARGET_DIR", target);
        }
        command
    }

    fn run(&self, name: &str, mut command: Command) -> Result<Output, Failure> {
        command.output().map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::Refused(format!("{name} {}", self.no_rust)),
            _ => Failure::Refused(format!("cannot run {name}: {}", reason(&error))),
        })
    }

    /// The output of a tool that has to succeed for anything else to make sense.
    fn answer(&self, name: &str, command: Command) -> Result<String, Failure> {
        let output = self.run(name, command)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::Refused(format!("{name} failed: {}", said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// How the standard library of the target is there.
#[derive(PartialEq, Eq)]
enum StandardLibrary {
    /// Compiled.
    Ready,
    /// As source.
    Source,
}

impl StandardLibrary {
    fn find(tools: &Tools<'_>, target: &str) -> Result<Option<Self>, Failure> {
        let mut rustc = tools.command("rustc");
        rustc.args(["--print", "sysroot"]);
        let sysroot = PathBuf::from(tools.answer("rustc", rustc)?.trim());
        let libraries = sysroot.join("lib/rustlib");
        if libraries.join(target).is_dir() {
            Ok(Some(Self::Ready))
        } else if libraries.join("src/rust/library/Cargo.lock").is_file() {
            Ok(Some(Self::Source))
        } else {
            Ok(None)
        }
    }
}

/// The folder beside that of the crate, unless the crate is in a workspace or the user chose another.
fn shared_target_folder(manifest: &Path, tools: &Tools<'_>) -> Result<Option<PathBuf>, Failure> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }

    let mut metadata = tools.command("cargo");
    metadata.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(manifest);
    let metadata: Metadata = serde_json::from_str(&tools.answer("cargo", metadata)?)
        .map_err(|error| Failure::Refused(format!("cannot understand cargo metadata: {error}")))?;
    let is_own = metadata.target_directory == tools.folder.join("target");
    Ok(tools.folder.parent().filter(|_| is_own).map(|parent| parent.join("target")))
}

/// The product among the messages of a build.
fn product_of(manifest: &Path, product: Product, messages: &[u8]) -> Option<PathBuf> {
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
        product.is_among(&artifact.target.crate_types)
            && fs::canonicalize(&artifact.manifest_path).is_ok_and(|path| path == manifest)
    };
    artifacts.filter(of_crate).find_map(|artifact| artifact.filenames.into_iter().find(|path| product.is_at(path)))
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
