//! `function`: compiles functions, and sends events to their instances.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use edgeless_api::client::{Connection, Invocation, Options};
use edgeless_api::component::RUST_WASM;
use edgeless_api::event::{Event, Kind, Trace};
use edgeless_api::{Error, InstanceId};
use serde::Deserialize;

use crate::cargo::{self, Product};
use crate::failure::{Failure, reason};
use crate::image::{self, ImageName, Runs};
use crate::json;
use crate::opts::Cast;
use crate::output::{Console, Progress};
use crate::workflow_file::{CONTAINER, SERVICE, WASM_MAGIC};

/// How long a node may take to accept an event.
const CAST_DEADLINE: Duration = Duration::from_secs(10);

/// The file beside the source of a function.
#[derive(Deserialize)]
struct ClassFile {
    id: String,
    function_type: String,
    version: String,
    #[serde(rename = "outputs")]
    _outputs: Vec<String>,
    #[serde(rename = "code")]
    _code: Option<String>,
    #[serde(rename = "binary")]
    _binary: Option<Vec<u8>>,
    /// The manifest, relative to this file.
    build: Option<PathBuf>,
}

/// What is made from what.
struct Function {
    id: String,
    class_file: PathBuf,
    manifest: PathBuf,
    product: Product,
    /// Of the container.
    image: ImageName,
    /// The module, or the archive of the image.
    made: PathBuf,
}

/// Compiles a function, unless what is made of it is newer than all that it is made from.
pub(crate) fn build(file: &Path, container: bool, force: bool, console: &Console) -> Result<(), Failure> {
    let function = Function::read(file, container, console)?;
    if !force && function.is_up_to_date() {
        console.note(format!("{} is up to date", function.id));
    } else {
        compile(&function, console)?;
    }
    console.line(function.made.display())
}

impl Function {
    fn read(file: &Path, container: bool, console: &Console) -> Result<Self, Failure> {
        let class_file = if file.is_dir() { file.join("function.json") } else { file.to_path_buf() };
        let shown = class_file.display();
        let text = fs::read(&class_file)
            .map_err(|error| Failure::input(format!("cannot read {shown}: {}", reason(&error))))?;
        let parsed = json::parse::<ClassFile>(&text).map_err(|error| Failure::input(format!("{shown}:{error}")))?;
        for place in parsed.unknown {
            console.warn(format!("{shown}: {place}: this key has no meaning"));
        }
        let ClassFile { id, function_type, version, build, .. } = parsed.value;
        let product = match function_type.as_str() {
            RUST_WASM if !container => Product::Module,
            RUST_WASM | CONTAINER => Product::Executable,
            SERVICE => Product::Program,
            _ => {
                let reason = format!("{function_type} cannot be built: {RUST_WASM}, {CONTAINER} and {SERVICE} can");
                return Err(Failure::Refused(format!("{shown}: function_type: {reason}")));
            }
        };
        // It becomes the name of a file.
        if id.is_empty() || id.starts_with('.') || id.contains(['/', '\\']) {
            return Err(Failure::input(format!("{shown}: id: '{id}' cannot be the name of a file")));
        }
        let manifest = class_file.with_file_name(build.unwrap_or_else(|| "Cargo.toml".into()));
        if !manifest.is_file() {
            return Err(Failure::input(format!("{shown}: build: there is no file {}", manifest.display())));
        }
        let ending = match product {
            Product::Module => "wasm",
            Product::Executable | Product::Program => "tar",
        };
        let made = class_file.with_file_name(format!("{id}.{ending}"));
        Ok(Self { image: ImageName::new(&id, &version), id, class_file, manifest, product, made })
    }

    fn is_up_to_date(&self) -> bool {
        let Ok(made) = fs::metadata(&self.made).and_then(|made| made.modified()) else { return false };
        let Ok(manifest) = fs::canonicalize(&self.manifest) else { return false };
        // The lock file of a workspace lies further up.
        let lock = manifest.ancestors().map(|folder| folder.join("Cargo.lock")).find(|lock| lock.is_file());
        let sources = [self.class_file.clone(), manifest.with_file_name("src"), manifest];
        sources.iter().chain(&lock).all(|source| is_older(source, made))
    }
}

/// Whether all that is at `path` is older than `made`. What is not there is; what cannot be read is not.
fn is_older(path: &Path, made: SystemTime) -> bool {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return error.kind() == ErrorKind::NotFound,
    };
    // The time of a folder tells of files that were removed.
    let own = metadata.modified().is_ok_and(|modified| modified < made);
    if !metadata.is_dir() {
        return own;
    }
    let older = |entry: std::io::Result<fs::DirEntry>| entry.is_ok_and(|entry| is_older(&entry.path(), made));
    own && fs::read_dir(path).is_ok_and(|mut entries| entries.all(older))
}

fn compile(function: &Function, console: &Console) -> Result<(), Failure> {
    let begun = Instant::now();
    let progress = Progress::begin(format!("building {}", function.id), console);
    let compiled = cargo::compile(&function.manifest, function.product, console.err.colour);
    drop(progress);
    let compiled = compiled?;
    console.quote(&compiled.said);
    let Some(built) = compiled.product else {
        return Err(Failure::Refused(format!("cannot build {}: cargo says why above", function.id)));
    };
    let size = put_in_place(&built, function, console)
        .map_err(|error| Failure::Refused(format!("cannot write {}: {}", function.made.display(), reason(&error))))?;
    let what = match function.product {
        Product::Module => function.id.clone(),
        Product::Executable | Product::Program => format!("the image {}", function.image),
    };
    console.note(format!("built {what} in {:.1} s: {} KiB", begun.elapsed().as_secs_f64(), size.div_ceil(1024)));
    Ok(())
}

/// Writes what is made of a function whole or not at all; returns its size.
fn put_in_place(built: &Path, function: &Function, console: &Console) -> std::io::Result<u64> {
    let (bytes, made) = (fs::read(built)?, &function.made);
    let unfinished = made.with_extension(format!("unfinished.{}", std::process::id()));
    let image = |runs| image::archive(&bytes, &function.image, runs).and_then(|image| write(&unfinished, &image));
    let written = match function.product {
        Product::Module => write_module(built, &bytes, &unfinished, made, console),
        Product::Executable => image(Runs::Function),
        Product::Program => image(Runs::Service),
    };
    let placed = written.and_then(|()| fs::rename(&unfinished, made));
    if placed.is_err() {
        drop(fs::remove_file(&unfinished));
    }
    placed.and_then(|()| Ok(fs::metadata(made)?.len()))
}

/// Writes a module, as small as this machine can make it.
fn write_module(built: &Path, bytes: &[u8], to: &Path, made: &Path, console: &Console) -> std::io::Result<()> {
    if !bytes.starts_with(WASM_MAGIC) {
        return Err(std::io::Error::other(format!("{} is not a WebAssembly module", built.display())));
    }
    write(to, bytes)?;
    if let Err(why) = cargo::optimise(built, to) {
        console.warn(format!("{} is not optimised: {why}", made.display()));
        fs::write(to, bytes)?;
    }
    Ok(())
}

fn write(to: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::File::create(to)?.write_all(bytes)
}

/// Sends an event to an instance.
pub(crate) async fn cast(cast: Cast, console: &Console) -> Result<(), Failure> {
    let event = Event {
        source: InstanceId::NONE,
        target: InstanceId { node: cast.node_id, function: cast.function_id },
        kind: Kind::Cast(Bytes::from(cast.payload)),
        created: SystemTime::now(),
        trace: Trace::default(),
        id: None,
    };
    let options = Options { deadline: CAST_DEADLINE, ..Options::default() };
    let sent: Result<(), Error> = Invocation::new(Connection::lazy(&cast.url, options)?).handle(event).await;
    let hint = "is edgeless_node_d running? its invocation_url is needed here";
    sent.map_err(|error| Failure::from(error).with_hint(hint))?;
    console.line("event casted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_stale_when_anything_below_its_source_is_newer() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, seconds: u64| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::create(&path).unwrap().set_modified(at).unwrap();
            path
        };
        let function = Function {
            id: "f".into(),
            class_file: file("function.json", 1),
            manifest: file("Cargo.toml", 1),
            product: Product::Module,
            image: ImageName::new("f", "1"),
            made: dir.path().join("f.wasm"),
        };
        assert!(!function.is_up_to_date(), "there is no module");
        file("f.wasm", 10);
        assert!(function.is_up_to_date());
        file("Cargo.lock", 11);
        assert!(!function.is_up_to_date(), "the lock file is newer");
        file("Cargo.lock", 1);
        file("src/deep/code.rs", 11);
        assert!(!function.is_up_to_date(), "a source is newer");
    }
}
