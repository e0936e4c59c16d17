//! The Docker engine of this machine, by its command line. Whatever is made here goes when its owner does.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use edgeless_api::NodeId;

use crate::programs;

/// Where an image has this program.
const PROGRAM: &str = "/program";

/// What a command of the engine's command line says.
fn docker(args: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output().context("cannot run docker")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("docker {}: {}", args.first().unwrap_or(&""), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// There is no use in going on without an engine.
pub(super) fn check() -> Result<()> {
    match docker(&["version", "--format", "{{.Server.Version}}"]) {
        Ok(_) => Ok(()),
        Err(error) => bail!("there is no Docker engine to run containers on: start it, and try again ({error:#})"),
    }
}

/// Loads the image of an archive; returns its name.
pub(super) fn load(archive: &Path) -> Result<String> {
    let said = docker(&["load", "-q", "-i", &archive.display().to_string()])?;
    let name = said.rsplit(": ").next().map(str::trim).filter(|name| !name.is_empty());
    Ok(name.with_context(|| format!("{}: docker loads it and names no image: {said}", archive.display()))?.to_string())
}

/// The container of a component.
pub(super) fn of_node(node: NodeId, component: &str) -> Result<String> {
    let (node, name) = (format!("label=org.edgeless.node={node}"), format!("label=org.edgeless.name={component}"));
    let found = docker(&["ps", "-q", "--filter", &node, "--filter", &name])?;
    if found.is_empty() {
        bail!("there is no container of {component}");
    }
    Ok(found)
}

/// The address of a container in its network.
pub(super) fn address(container: &str) -> Result<IpAddr> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let said = docker(&["inspect", "-f", format, container])?;
    said.parse().with_context(|| format!("the container {container} has no address"))
}

/// A container that runs beside those of the node, in a network of its own as they do.
pub(super) struct Container {
    pub(super) id: String,
    _network: Network,
}

struct Network(String);

impl Container {
    pub(super) fn run(image: &str) -> Result<Self> {
        let name = format!("edgeless-benchmark-{}", std::process::id());
        let network = Network(docker(&["network", "create", &name])?);
        let id = docker(&["create", "--network", &name, image])?;
        // From here on it is removed, whether it runs or not.
        let container = Self { id, _network: network };
        docker(&["start", &container.id])?;
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Somebody may have removed it. Its network goes after it.
        docker(&["rm", "-f", &self.id]).ok();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.0]).ok();
    }
}

/// An image of this program, with the libraries that it needs and nothing else.
pub(super) struct OwnImage {
    pub(super) name: String,
}

impl OwnImage {
    pub(super) async fn make() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Not the directory itself, which only its owner may read.
        let root = directory.path().join("root");
        std::fs::create_dir(&root)?;
        let program = std::env::current_exe()?;
        put(&program, &root, Path::new(PROGRAM))?;
        for library in libraries(&program)? {
            put(&library, &root, &library)?;
        }
        let archive = directory.path().join("root.tar");
        let mut tar = Command::new("tar");
        programs::run(tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".")).await?;
        let name = format!("edgeless-benchmark:{}", std::process::id());
        let entry = format!("ENTRYPOINT [\"{PROGRAM}\"]");
        docker(&["import", "-c", &entry, &archive.display().to_string(), &name])?;
        Ok(Self { name })
    }
}

impl Drop for OwnImage {
    fn drop(&mut self) {
        // Somebody may have removed it.
        docker(&["rmi", "-f", &self.name]).ok();
    }
}

fn put(from: &Path, root: &Path, to: &Path) -> Result<()> {
    let to = root.join(to.strip_prefix("/")?);
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// What a program is linked with; nothing if it stands alone.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
