//! Workflow files: JSON that names the functions and resources of a workflow, and the files of their code.
//!
//! A file is read to the end before anything is sent, and every mistake is reported with file and
//! place. What makes a workflow valid is decided by [`Workflow::new`], as in the controller; here is
//! only what concerns files.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use edgeless_api::component::RUST_WASM;
use edgeless_api::workflow::{Function, InvalidWorkflow, Problem, Resource, Workflow};
use edgeless_api::{Binary, FunctionClass, Limits};
use serde::Deserialize;

use crate::failure::{Failure, reason};
use crate::image;
use crate::json::{self, Parsed, Texts};

/// What every WebAssembly module begins with.
pub(crate) const WASM_MAGIC: &[u8] = b"\0asm";

/// A function in a container, and a server that a container is: what code such a component has.
pub(crate) const CONTAINER: &str = "CONTAINER";
pub(crate) const SERVICE: &str = "SERVICE";

/// Where the code of a container is.
const ARCHIVE: &str = "archive:";
const IMAGE: &str = "container:";
const RUNNING: &str = "grpc:";

/// The part of a message that is left for what is not code, bytes.
const HEADROOM: u64 = 64 << 10;

/// A workflow that can be sent.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) workflow: Workflow,
    /// What is allowed and yet probably a mistake, each with file and place.
    pub(crate) warnings: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    functions: Vec<FunctionEntry>,
    resources: Vec<ResourceEntry>,
    annotations: Texts,
}

#[derive(Deserialize)]
struct FunctionEntry {
    name: String,
    class_specification: ClassEntry,
    output_mapping: Texts,
    annotations: Texts,
}

#[derive(Deserialize)]
struct ClassEntry {
    id: String,
    function_type: String,
    version: String,
    code: Option<String>,
    binary: Option<Vec<u8>>,
    outputs: Vec<String>,
}

#[derive(Deserialize)]
struct ResourceEntry {
    name: String,
    class_type: String,
    output_mapping: Texts,
    configurations: Texts,
}

/// Reads a workflow file and the files of code that it names.
pub(crate) fn load(path: &Path) -> Result<Loaded, Failure> {
    let shown = path.display();
    let text = fs::read(path).map_err(|error| Failure::input(format!("cannot read {shown}: {}", reason(&error))))?;
    let Parsed { value: file, unknown } =
        json::parse::<File>(&text).map_err(|error| Failure::input(format!("{shown}:{error}")))?;

    let mut code = CodeReader { folder: path.parent().unwrap_or(Path::new("")), total: 0, problems: Vec::new() };
    let functions: Vec<_> =
        file.functions.into_iter().enumerate().map(|(index, entry)| code.function(index, entry)).collect();
    let resources = file.resources.into_iter().map(resource).collect();
    let mut problems = code.problems;
    let checked = Workflow::new(functions, resources, file.annotations.0);
    if let Err(InvalidWorkflow(more)) = &checked {
        problems.extend_from_slice(more);
    }
    match checked {
        Ok(workflow) if problems.is_empty() => {
            let unknown = unknown.into_iter().map(|place| Problem { place, reason: "this key has no meaning".into() });
            let warnings = unknown.chain(workflow.warnings()).map(|problem| format!("{shown}: {problem}")).collect();
            Ok(Loaded { workflow, warnings })
        }
        _ => Err(Failure::Input(problems.iter().map(|problem| format!("{shown}: {problem}")).collect())),
    }
}

fn resource(entry: ResourceEntry) -> Resource {
    Resource {
        name: entry.name,
        class_type: entry.class_type,
        outputs: entry.output_mapping.0,
        configuration: entry.configurations.0,
    }
}

/// Finds the code of functions and collects what is wrong with it.
struct CodeReader<'a> {
    /// What paths are relative to.
    folder: &'a Path,
    /// Bytes so far: all code of a workflow travels in one message.
    total: u64,
    problems: Vec<Problem>,
}

impl CodeReader<'_> {
    fn function(&mut self, index: usize, entry: FunctionEntry) -> Function {
        let class = entry.class_specification;
        let place = format!("functions[{index}].class_specification");
        let code = class.code.unwrap_or_default();
        let binary = self.binary(&place, &class.function_type, &code, class.binary.unwrap_or_default());
        Function {
            name: entry.name,
            class: FunctionClass {
                id: class.id,
                function_type: class.function_type,
                version: class.version,
                binary: binary.unwrap_or_else(|problem| {
                    self.problems.push(problem);
                    Binary::default()
                }),
                code,
                outputs: class.outputs,
            },
            outputs: entry.output_mapping.0,
            annotations: entry.annotations.0,
        }
    }

    fn binary(&mut self, place: &str, function_type: &str, code: &str, binary: Vec<u8>) -> Result<Binary, Problem> {
        let problem = |key: &str, reason: String| Problem { place: format!("{place}{key}"), reason };
        let (key, module) = match (function_type, code.is_empty(), binary.is_empty()) {
            (RUST_WASM, _, false) => (".binary", is_module(binary)),
            (RUST_WASM, false, true) => (".code", self.read(code, "").and_then(is_module)),
            (RUST_WASM, true, true) => {
                ("", Err("there is neither 'code', the path of a wasm file, nor 'binary'".into()))
            }
            (CONTAINER | SERVICE, _, false) => (".binary", is_image(binary)),
            (CONTAINER | SERVICE, true, true) => ("", Err(format!("there is no 'code': {}", forms(function_type)))),
            (CONTAINER | SERVICE, false, true) => (".code", self.container(function_type, code)),
            (_, true, true) => ("", Err("there is no 'code'".into())),
            // What others run is theirs to know.
            _ => return Ok(binary.into()),
        };
        let module = module.map_err(|reason| problem(key, reason))?;
        let hint = if function_type == RUST_WASM { "" } else { TOO_LARGE };
        self.check_room("it", module.len() as u64, hint).map_err(|reason| problem(key, reason))?;
        self.total += module.len() as u64;
        Ok(module.into())
    }

    /// The archive of an image, or nothing where the node knows what `code` names.
    fn container(&self, function_type: &str, code: &str) -> Result<Vec<u8>, String> {
        if let Some(path) = code.strip_prefix(ARCHIVE) {
            return self.read(path, TOO_LARGE).and_then(is_image);
        }
        let names_image = code.strip_prefix(IMAGE).is_some_and(|image| !image.is_empty());
        let names_server = code.strip_prefix(RUNNING).is_some_and(|url| url.starts_with("http://"));
        match names_image || (names_server && function_type == CONTAINER) {
            true => Ok(Vec::new()),
            false => Err(format!("'{code}' is no code of a {function_type}: {}", forms(function_type))),
        }
    }

    fn read(&self, code: &str, hint: &str) -> Result<Vec<u8>, String> {
        let path = self.folder.join(code);
        let cannot_read = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => format!("there is no file '{code}'{}", how_to_make(&path)),
            _ => format!("cannot read '{code}': {}", reason(&error)),
        };
        let size = fs::metadata(&path).map_err(cannot_read)?.len();
        self.check_room(&format!("'{code}'"), size, hint)?;
        fs::read(&path).map_err(cannot_read)
    }

    /// Whether so much more code can be sent.
    fn check_room(&self, module: &str, size: u64, hint: &str) -> Result<(), String> {
        let limit = (Limits::default().message as u64).saturating_sub(HEADROOM);
        if self.total.saturating_add(size) <= limit {
            return Ok(());
        }
        let before = if self.total > 0 { format!(", and {} are before it", self.total) } else { String::new() };
        Err(format!("{module} has {size} bytes{before}: {limit} are the limit for all code of a workflow{hint}"))
    }
}

/// What to do with an image that is too large to be sent.
const TOO_LARGE: &str = "; push the image to a registry, or `docker load` it on the node, and say container:IMAGE:TAG";

/// What the code of a container may be.
fn forms(function_type: &str) -> String {
    let or_running = match function_type {
        CONTAINER => ", or grpc:http://HOST:PORT, a container that runs already",
        _ => "",
    };
    format!(
        "it is container:IMAGE or container:IMAGE:TAG, an image that the node has or can pull, or archive:PATH, the file \
         of an image{or_running}"
    )
}

fn is_module(module: Vec<u8>) -> Result<Vec<u8>, String> {
    match module.starts_with(WASM_MAGIC) {
        true => Ok(module),
        false => Err("this is not a WebAssembly module: it does not begin with \\0asm".into()),
    }
}

fn is_image(archive: Vec<u8>) -> Result<Vec<u8>, String> {
    image::check(&archive).map(|()| archive)
}

/// The command that makes a missing file, if its function is beside it.
fn how_to_make(file: &Path) -> String {
    let source = file.parent().and_then(|folder| folder.canonicalize().ok()).map(|folder| folder.join("function.json"));
    match source {
        Some(source) if source.is_file() => {
            let here = std::env::current_dir().and_then(|folder| folder.canonicalize()).unwrap_or_default();
            let source = source.strip_prefix(here).map(PathBuf::from).unwrap_or(source);
            let container = if file.extension() == Some(OsStr::new("tar")) { "--container " } else { "" };
            format!(": `edgeless_cli function build {container}{}` makes it", source.display())
        }
        _ => ": the path is relative to the folder of the workflow file".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: &str = r#"{"name": "a", "class_specification": {"id": "a", "function_type": "TYPE", "version": "1",
        CODE "outputs": []}, "output_mapping": {}, "annotations": {}}"#;

    fn load_with(function_type: &str, code: &str, files: &[(&str, &[u8])]) -> Result<Loaded, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let function = FUNCTION.replace("TYPE", function_type).replace("CODE", code);
        let path = dir.path().join("workflow.json");
        fs::write(&path, format!(r#"{{"functions": [{function}], "resources": [], "annotations": {{}}}}"#)).unwrap();
        load(&path).map_err(|failure| {
            assert_eq!(failure.exit_code(), 2);
            failure.lines().join("\n")
        })
    }

    #[test]
    fn wasm_is_read_from_beside_the_file_and_its_path_is_kept() {
        let loaded = load_with("RUST_WASM", r#""code": "a.wasm","#, &[("a.wasm", b"\0asm1")]).unwrap();
        let class = &loaded.workflow.functions()[0].class;
        assert_eq!((&class.binary, class.code.as_str()), (&b"\0asm1".to_vec().into(), "a.wasm"));
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn all_code_of_a_workflow_must_fit_into_one_message() {
        let dir = tempfile::tempdir().unwrap();
        let module = |name: &str, size: u64| {
            fs::write(dir.path().join(name), WASM_MAGIC).unwrap();
            fs::OpenOptions::new().write(true).open(dir.path().join(name)).unwrap().set_len(size).unwrap();
        };
        let load = |second: u64| {
            module("a.wasm", 1 << 20);
            module("b.wasm", second);
            let named = |name: &str| {
                let code = format!(r#""code": "{name}.wasm","#);
                FUNCTION
                    .replace("TYPE", "RUST_WASM")
                    .replace("CODE", &code)
                    .replace("\"name\": \"a\"", &format!("\"name\": \"{name}\""))
            };
            let path = dir.path().join("workflow.json");
            let (a, b) = (named("a"), named("b"));
            fs::write(&path, format!(r#"{{"functions": [{a}, {b}], "resources": [], "annotations": {{}}}}"#)).unwrap();
            super::load(&path).map_err(|failure| failure.lines().join("\n"))
        };
        let rest = (63 << 20) - HEADROOM;
        assert!(load(rest).is_ok());
        let error = load(rest + 1).unwrap_err();
        let expected = "functions[1].class_specification.code: 'b.wasm' has 65994753 bytes, and 1048576 are before it: \
                        67043328 are the limit for all code of a workflow";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn wasm_may_be_in_the_file() {
        let loaded = load_with("RUST_WASM", r#""binary": [0, 97, 115, 109],"#, &[]).unwrap();
        assert_eq!(loaded.workflow.functions()[0].class.binary, WASM_MAGIC.to_vec().into());
    }

    #[test]
    fn the_code_of_a_container_passes_through() {
        for (function_type, code) in [
            ("CONTAINER", "container:hello:1"),
            ("CONTAINER", "grpc:http://127.0.0.1:7101"),
            ("SERVICE", "container:registry:5000/hello"),
            ("OTHER", "anything"),
        ] {
            let loaded = load_with(function_type, &format!(r#""code": "{code}","#), &[]).unwrap();
            let class = &loaded.workflow.functions()[0].class;
            assert_eq!((class.binary.is_empty(), class.code.as_str()), (true, code));
        }
    }

    #[test]
    fn an_image_is_read_from_beside_the_file_and_its_path_is_kept() {
        let archive = image::archive(b"\x7fELF", &image::ImageName::new("a", "1"), image::Runs::Function).unwrap();
        for function_type in ["CONTAINER", "SERVICE"] {
            let loaded = load_with(function_type, r#""code": "archive:a.tar","#, &[("a.tar", &archive)]).unwrap();
            let class = &loaded.workflow.functions()[0].class;
            assert_eq!((&class.binary, class.code.as_str()), (&archive.clone().into(), "archive:a.tar"));
        }
    }

    #[test]
    fn code_that_cannot_be_sent_is_refused_with_its_place() {
        for (function_type, code, expected) in [
            ("RUST_WASM", "", "functions[0].class_specification: there is neither 'code'"),
            ("RUST_WASM", r#""code": "a.wasm","#, "functions[0].class_specification.code: there is no file 'a.wasm'"),
            (
                "RUST_WASM",
                r#""code": "text","#,
                "functions[0].class_specification.code: this is not a WebAssembly module",
            ),
            ("RUST_WASM", r#""code": ".","#, "functions[0].class_specification.code: cannot read '.': is a directory"),
            ("RUST_WASM", r#""binary": [1],"#, "functions[0].class_specification.binary: this is not a WebAssembly"),
            ("CONTAINER", "", "functions[0].class_specification: there is no 'code': it is container:IMAGE or"),
            ("OTHER", "", "functions[0].class_specification: there is no 'code'"),
            (
                "CONTAINER",
                r#""code": "archive:a.tar","#,
                "functions[0].class_specification.code: there is no file 'a.tar': the path is relative to",
            ),
            (
                "SERVICE",
                r#""code": "archive:text","#,
                "functions[0].class_specification.code: this is not the archive of an image, as `edgeless_cli function \
                 build --container` and `docker save` make it",
            ),
            (
                "CONTAINER",
                r#""binary": [1],"#,
                "functions[0].class_specification.binary: this is not the archive of an",
            ),
            (
                "CONTAINER",
                r#""code": "a.tar","#,
                "functions[0].class_specification.code: 'a.tar' is no code of a CONTAINER: it is container:IMAGE or \
                 container:IMAGE:TAG, an image that the node has or can pull, or archive:PATH, the file of an image, or \
                 grpc:http://HOST:PORT, a container that runs already",
            ),
            (
                "SERVICE",
                r#""code": "grpc:http://127.0.0.1:7101","#,
                "functions[0].class_specification.code: 'grpc:http://127.0.0.1:7101' is no code of a SERVICE: it is \
                 container:IMAGE or container:IMAGE:TAG, an image that the node has or can pull, or archive:PATH, the \
                 file of an image",
            ),
        ] {
            let error = load_with(function_type, code, &[("text", b"hello")]).unwrap_err();
            assert!(error.contains(&format!("workflow.json: {expected}")), "{error}");
        }
    }

    /// What is refused for its size must not be a dead end.
    #[test]
    fn an_image_that_is_too_large_has_another_way() {
        let dir = tempfile::tempdir().unwrap();
        let archive = fs::File::create(dir.path().join("large.tar")).unwrap();
        archive.set_len(64 << 20).unwrap();
        let function = FUNCTION.replace("TYPE", "CONTAINER").replace("CODE", r#""code": "archive:large.tar","#);
        let path = dir.path().join("workflow.json");
        fs::write(&path, format!(r#"{{"functions": [{function}], "resources": [], "annotations": {{}}}}"#)).unwrap();
        let error = load(&path).map_err(|failure| failure.lines().join("\n")).unwrap_err();
        let expected = "functions[0].class_specification.code: 'large.tar' has 67108864 bytes: 67043328 are the limit for \
                        all code of a workflow; push the image to a registry, or `docker load` it on the node, and say \
                        container:IMAGE:TAG";
        assert!(error.ends_with(expected), "{error}");
    }
}
