//! What the tests of containers share: the Docker engine of this machine, and an image for it.
//!
//! The image is made on the spot: the program `examples/guest.rs` and the libraries that it needs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use bytes::Bytes;
use edgeless_api::component::{ComponentSpec, FunctionSpec};
use edgeless_api::event::Reply;
use edgeless_api::{Error, InstanceId};

use crate::support::{TestNode, context, function};

/// Whether there is a Docker engine to test with; said aloud where there is none.
pub(crate) fn has_docker(test: &str) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let is_there = || docker(&["version", "--format", "{{.Server.Version}}"]).is_ok();
    if *FOUND.get_or_init(is_there) {
        return true;
    }
    skip(test, "no Docker engine answers");
    false
}

/// Says that a test is skipped, which is a failure if Docker is required.
pub(crate) fn skip(test: &str, why: &str) {
    let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "docker"), "{why}, and EDGELESS_REQUIRE has docker");
    // Not by a macro, whose output would be captured.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: docker: {test}: {why}").unwrap();
}

/// What a command of the engine's own command line says.
pub(crate) fn docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The image of the program `guest`, made when it is first needed.
pub(crate) fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let program = std::env::current_exe().unwrap();
        let program = program.parent().unwrap().parent().unwrap().join("examples/guest");
        let made = std::fs::metadata(&program).expect("cargo builds the examples with the tests").modified().unwrap();
        let stamp = made.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let name = format!("edgeless-test-guest:{stamp}");
        if docker(&["image", "inspect", &name]).is_err() {
            make_image(&program, &name);
        }
        name
    })
}

fn make_image(program: &Path, name: &str) {
    let root = tempfile::tempdir().unwrap();
    let put = |from: &Path, to: &Path| {
        let to = root.path().join(to.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    put(program, Path::new("/guest"));
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from) {
        put(&library, &library);
    }
    std::fs::create_dir_all(root.path().join("data")).unwrap();
    let mut tar = Command::new("tar")
        .args(["-C", root.path().to_str().unwrap(), "-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let imported = Command::new("docker")
        .args(["import", "-c", "ENTRYPOINT [\"/guest\"]", "-c", "CMD [\"function\"]", "-c", "EXPOSE 7101", "-", name])
        .stdin(tar.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(tar.wait().unwrap().success() && imported.status.success(), "{imported:?}");
}

/// The containers of a node, by a format of the engine's.
pub(crate) fn containers_of(node: &TestNode, format: &str) -> Vec<String> {
    let filter = format!("label=org.edgeless.node={}", node.id());
    let listed = docker(&["ps", "-a", "--no-trunc", "--filter", &filter, "--format", format]).unwrap();
    listed.lines().map(ToString::to_string).collect()
}

pub(crate) fn networks_of(node: &TestNode) -> Vec<String> {
    let filter = format!("label=org.edgeless.node={}", node.id());
    let listed = docker(&["network", "ls", "--filter", &filter, "--format", "{{.Name}}"]).unwrap();
    listed.lines().map(ToString::to_string).collect()
}

/// A component of the guest's image.
pub(crate) fn contained(function_type: &str, annotations: &[(&str, &str)]) -> FunctionSpec {
    let ComponentSpec::Function(mut spec) = function(b"", annotations) else { panic!("a function is none") };
    spec.class.function_type = function_type.into();
    spec.class.code = format!("container:{}", image());
    spec
}

/// Starts it, and lets it emit.
pub(crate) async fn start_spec(node: &TestNode, name: &str, spec: FunctionSpec) -> Result<InstanceId, Error> {
    let id = node.create(ComponentSpec::Function(spec), context(name)).await?;
    node.components.activate(&[id.function]).await.unwrap();
    Ok(id)
}

/// Starts a function of the guest's image.
pub(crate) async fn start(node: &TestNode, annotations: &[(&str, &str)]) -> Result<InstanceId, Error> {
    start_spec(node, "guest", contained("CONTAINER", annotations)).await
}

/// What the guest answers to a command.
pub(crate) async fn ask(node: &TestNode, guest: InstanceId, command: &str) -> String {
    match node.call(guest, Bytes::copy_from_slice(command.as_bytes())).await {
        Reply::Message(payload) => String::from_utf8(payload.to_vec()).unwrap(),
        Reply::Empty => "(empty)".into(),
        Reply::Error => "(error)".into(),
    }
}
