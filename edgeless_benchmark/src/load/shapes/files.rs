//! Workflows that are not drawn: none at all, one function, a workflow file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use edgeless_api::FunctionClass;
use edgeless_api::component::RUST_WASM;
use edgeless_api::workflow::{Function, Resource, Workflow};
use rand::rngs::StdRng;
use serde::Deserialize;

use super::{Shape, parameters};

/// Stands for the number of the workflow in a workflow file.
const NUMBER: &str = "@WF_ID";

/// Deploys nothing.
pub(super) struct Nothing;

impl Shape for Nothing {
    fn draw(&mut self, _random: &mut StdRng, _number: u64) -> Result<Option<Workflow>> {
        Ok(None)
    }
}

/// The same workflow again and again.
struct Same(Workflow);

impl Shape for Same {
    fn draw(&mut self, _random: &mut StdRng, _number: u64) -> Result<Option<Workflow>> {
        Ok(Some(self.0.clone()))
    }
}

/// What is read of a class, be it in a `function.json` or in a workflow file.
#[derive(Deserialize)]
struct Class {
    id: String,
    function_type: String,
    version: String,
    outputs: Vec<String>,
    #[serde(default)]
    code: String,
    #[serde(default)]
    binary: Vec<u8>,
}

/// `single;FUNCTION_JSON;WASM`
pub(super) fn single(files: &[PathBuf]) -> Result<Box<dyn Shape>> {
    let [class_file, wasm] = files else { bail!("expected a function.json and a module") };
    let wrong = || format!("{} is not a function.json", class_file.display());
    let class: Class = serde_json::from_str(&parameters::text(class_file)?).with_context(wrong)?;
    let binary = parameters::module(wasm)?;
    let class = FunctionClass {
        id: class.id,
        function_type: class.function_type,
        version: class.version,
        binary: binary.into(),
        code: wasm.display().to_string(),
        outputs: class.outputs,
    };
    let function = Function { name: class.id.clone(), class, outputs: [].into(), annotations: [].into() };
    Ok(Box::new(Same(Workflow::new(vec![function], Vec::new(), [].into()).with_context(wrong)?)))
}

/// A workflow file, in so far as it is needed to start it. Whether it is a good one is for
/// `edgeless_cli workflow start --strict` to say.
#[derive(Deserialize)]
struct WorkflowFile {
    functions: Vec<FunctionEntry>,
    resources: Vec<ResourceEntry>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct FunctionEntry {
    name: String,
    class_specification: Class,
    output_mapping: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ResourceEntry {
    name: String,
    class_type: String,
    output_mapping: BTreeMap<String, String>,
    configurations: BTreeMap<String, String>,
}

/// A workflow file with the number of the workflow put in.
struct Spec {
    text: String,
    /// What paths in it are relative to.
    folder: PathBuf,
    /// By path, what was read already.
    modules: HashMap<PathBuf, Bytes>,
}

/// `json-spec;FILE`
pub(super) fn json_spec(files: &[PathBuf]) -> Result<Box<dyn Shape>> {
    let [file] = files else { bail!("expected a workflow file") };
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut spec = Spec { text: parameters::text(file)?, folder, modules: HashMap::new() };
    // What is wrong is said before anything begins.
    spec.workflow(0).with_context(|| format!("{} is not a workflow", file.display()))?;
    Ok(Box::new(spec))
}

impl Shape for Spec {
    fn draw(&mut self, _random: &mut StdRng, number: u64) -> Result<Option<Workflow>> {
        self.workflow(number).map(Some)
    }
}

impl Spec {
    fn workflow(&mut self, number: u64) -> Result<Workflow> {
        let file: WorkflowFile = serde_json::from_str(&self.text.replace(NUMBER, &number.to_string()))?;
        let functions = file.functions.into_iter().map(|entry| {
            let class = self.class(entry.class_specification)?;
            Ok(Function { name: entry.name, class, outputs: entry.output_mapping, annotations: entry.annotations })
        });
        let functions = functions.collect::<Result<_>>()?;
        let resource = |entry: ResourceEntry| Resource {
            name: entry.name,
            class_type: entry.class_type,
            outputs: entry.output_mapping,
            configuration: entry.configurations,
        };
        let resources = file.resources.into_iter().map(resource).collect();
        Ok(Workflow::new(functions, resources, file.annotations)?)
    }

    fn class(&mut self, class: Class) -> Result<FunctionClass> {
        let binary = match class.function_type == RUST_WASM && class.binary.is_empty() {
            true => self.module(&class.code)?,
            false => class.binary.into(),
        };
        Ok(FunctionClass {
            id: class.id,
            function_type: class.function_type,
            version: class.version,
            binary: binary.into(),
            code: class.code,
            outputs: class.outputs,
        })
    }

    fn module(&mut self, code: &str) -> Result<Bytes> {
        let path = self.folder.join(code);
        if let Some(module) = self.modules.get(&path) {
            return Ok(module.clone());
        }
        let module = parameters::module(&path)?;
        self.modules.insert(path, module.clone());
        Ok(module)
    }
}

/// A workflow file to begin with.
pub(super) fn template() -> Result<String> {
    let workflow = serde_json::json!({
        "functions": [{
            "name": "noop",
            "class_specification": {
                "id": "noop",
                "function_type": RUST_WASM,
                "version": "0.1",
                "code": "functions/noop/noop.wasm",
                "outputs": [],
            },
            "output_mapping": {},
            "annotations": { "init-payload": format!("workflow {NUMBER}") },
        }],
        "resources": [],
        "annotations": {},
    });
    Ok(serde_json::to_string_pretty(&workflow)?)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn draw(shape: &mut dyn Shape, number: u64) -> Workflow {
        shape.draw(&mut StdRng::seed_from_u64(1), number).unwrap().unwrap()
    }

    /// A folder with a module where the template expects it.
    fn folder() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("functions/noop")).unwrap();
        std::fs::write(directory.path().join("functions/noop/noop.wasm"), b"\0asm1").unwrap();
        directory
    }

    #[test]
    fn a_workflow_file_gets_its_number_and_its_modules() {
        let directory = folder();
        let file = directory.path().join("workflow.json");
        std::fs::write(&file, template().unwrap()).unwrap();
        let mut shape = json_spec(&[file]).unwrap();
        // What was read once is not read again while the experiment runs.
        drop(directory);
        for number in [0, 7] {
            let workflow = draw(shape.as_mut(), number);
            assert_eq!(workflow.functions()[0].annotations["init-payload"], format!("workflow {number}"));
            assert_eq!(workflow.functions()[0].class.binary.bytes().unwrap().as_ref(), b"\0asm1");
        }
    }

    #[test]
    fn a_single_function_is_what_its_files_say() {
        let directory = folder();
        let (class, wasm) = (directory.path().join("function.json"), directory.path().join("functions/noop/noop.wasm"));
        let text = r#"{"id": "noop", "function_type": "RUST_WASM", "version": "0.1", "outputs": ["a"], "build": "./Cargo.toml"}"#;
        std::fs::write(&class, text).unwrap();
        let workflow = draw(single(&[class.clone(), wasm.clone()]).unwrap().as_mut(), 0);
        let function = &workflow.functions()[0];
        assert_eq!((function.name.as_str(), function.class.outputs.as_slice()), ("noop", ["a".to_string()].as_slice()));
        assert_eq!(function.class.binary.bytes().unwrap().as_ref(), b"\0asm1");
        for (files, expected) in [
            ([&wasm, &wasm], "is not a function.json"),
            ([&class, &class], "is not a WebAssembly module"),
            ([&directory.path().join("no.json"), &wasm], "cannot read"),
        ] {
            let error = format!("{:#}", single(&files.map(Clone::clone)).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_wrong_workflow_file_is_refused_before_anything_begins() {
        let directory = folder();
        let file = directory.path().join("workflow.json");
        for (from, to, expected) in [
            ("\"functions\"", "\"function\"", "missing field `functions`"),
            ("noop.wasm", "gone.wasm", "cannot read the module"),
            ("\"output_mapping\": {}", "\"output_mapping\": {\"a\": \"b\"}", "'b' is not a component"),
        ] {
            std::fs::write(&file, template().unwrap().replacen(from, to, 1)).unwrap();
            let error = format!("{:#}", json_spec(std::slice::from_ref(&file)).err().unwrap());
            assert!(error.contains("workflow.json is not a workflow") && error.contains(expected), "{error}");
        }
        assert!(format!("{:#}", json_spec(&["/no/file".into()]).err().unwrap()).contains("cannot read /no/file"));
    }
}
