//! The JSON schemas say what the program does: what they require it requires, what they know it knows.

use serde_json::{Value, json};

use super::fixture::{Controller, Folder, Served};

fn schema(name: &str) -> Value {
    let path = format!("{}/../schemas/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect()
}

/// Each part of a workflow file: where the schema describes it, and where it is in [`whole`].
const PARTS: [(&str, &str); 4] = [
    ("", ""),
    ("/$defs/function", "/functions/0"),
    ("/$defs/class_specification", "/functions/0/class_specification"),
    ("/$defs/resource", "/resources/0"),
];

/// A workflow with every key that the program knows, but `binary`, which stands for `code`.
fn whole() -> Value {
    json!({
        "functions": [{
            "name": "count",
            "class_specification": {
                "id": "count", "function_type": "RUST_WASM", "version": "0.1", "code": "count.wasm", "outputs": ["out"]
            },
            "output_mapping": {"out": "log"},
            "annotations": {"init-payload": "x"}
        }],
        "resources": [{
            "name": "log", "class_type": "file-log", "output_mapping": {}, "configurations": {"filename": "log"}
        }],
        "annotations": {}
    })
}

#[test]
fn what_the_schema_requires_the_program_requires() {
    let controller = Controller::new();
    let served = Served::controller(&controller);
    let folder = Folder::for_controller(&served);
    let schema = schema("workflow_schema.json");
    let start = |workflow: &Value| {
        folder.write("flow.json", workflow.to_string());
        folder.program(["workflow", "start", "--strict", "flow.json"]).output().unwrap()
    };
    let output = start(&whole());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (described, part) in PARTS {
        let described = schema.pointer(described).unwrap();
        let known = described["properties"].as_object().unwrap();
        let mut whole = whole();
        let keys: Vec<_> = whole.pointer(part).unwrap().as_object().unwrap().keys().cloned().collect();
        assert!(keys.iter().all(|key| known.contains_key(key)), "{part}: the schema lacks one of {keys:?}");
        let required = texts(&described["required"]);
        for key in keys {
            let object = whole.pointer_mut(part).unwrap().as_object_mut().unwrap();
            let value = object.remove(&key).unwrap();
            let output = start(&whole);
            let stderr = String::from_utf8(output.stderr).unwrap();
            if required.contains(&key) {
                assert_eq!(output.status.code(), Some(2), "{part}/{key}: {stderr}");
                assert!(stderr.contains(&key), "{part}/{key}: {stderr}");
            } else {
                assert!(!stderr.contains("missing field"), "{part}/{key}: {stderr}");
            }
            whole.pointer_mut(part).unwrap().as_object_mut().unwrap().insert(key, value);
        }
    }
}

#[test]
fn what_the_schema_requires_of_a_function_the_functions_have() {
    let schema = schema("function_class_schema.json");
    let known = schema["properties"].as_object().unwrap();
    let functions = format!("{}/../functions", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for folder in std::fs::read_dir(functions).unwrap() {
        let file = folder.unwrap().path().join("function.json");
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let class: Value = serde_json::from_str(&text).unwrap();
        let class = class.as_object().unwrap();
        for key in texts(&schema["required"]) {
            assert!(class.contains_key(&key), "{}: {key}", file.display());
        }
        assert!(class.keys().all(|key| known.contains_key(key)), "{}", file.display());
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} functions were found");
}
