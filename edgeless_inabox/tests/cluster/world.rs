//! The whole platform as one real program, as a user runs it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::programs::{Program, free_port, run};
use super::support::{musl, skip};

/// A platform of its own, with the ingress on a free port.
pub struct World {
    directory: tempfile::TempDir,
    inabox: Option<Program>,
    pub ingress: String,
}

impl World {
    pub fn start() -> Self {
        Self::start_with(|text| text)
    }

    /// One whose node runs containers, with these lines in the section about them; `None`: there is no Docker
    /// engine, which is said, or a failure if one is required.
    pub fn with_containers(test: &str, lines: &str) -> Option<Self> {
        let engine = Command::new("docker").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !engine.is_ok_and(|status| status.success()) {
            skip("docker", test, "no Docker engine answers");
            return None;
        }
        Some(Self::start_with(|text| {
            let section = "[container_runtime]\n";
            let at = text.find(section).expect("the template has a section for containers");
            let (before, after) = text.split_at(at);
            let enabled = format!("enabled = true\nsocket_directory = \"sockets\"\n{lines}");
            format!("{before}{}", after.replacen("enabled = false", &enabled, 1))
        }))
    }

    /// The same, for images that are made of functions here.
    pub fn with_containers_of_ours(test: &str, lines: &str) -> Option<Self> {
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap().stdout;
        let sysroot = String::from_utf8(sysroot).unwrap();
        if !Path::new(sysroot.trim()).join("lib/rustlib").join(musl()).is_dir() {
            skip("musl", test, &format!("the target {} is not installed", musl()));
            return None;
        }
        Self::with_containers(test, lines)
    }

    fn start_with(change_node: impl Fn(String) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(run("edgeless_inabox", path, &["-t", "--initial-port", "22000"]).status.success());
        let ports: Vec<(u16, u16)> = (22001..=22008).map(|port| (port, free_port())).collect();
        let mut ingress = String::new();
        for name in ["controller.toml", "orchestrator.toml", "node.toml", "cli.toml"] {
            let mut text = std::fs::read_to_string(path.join(name)).unwrap();
            for (from, to) in &ports {
                text = text.replace(&format!(":{from}\""), &format!(":{to}\""));
            }
            if name == "node.toml" {
                text = change_node(text);
            }
            if let Some(line) = text.lines().find(|line| line.starts_with("http_ingress_url")) {
                ingress = line.split('"').nth(1).unwrap().to_string();
            }
            std::fs::write(path.join(name), text).unwrap();
        }
        let mut world = Self { directory, inabox: None, ingress };
        world.run();
        world
    }

    /// Starts it again where it was.
    pub fn run(&mut self) {
        let inabox = Program::start("edgeless_inabox", self.directory.path(), &[]);
        inabox.says("ready");
        self.inabox = Some(inabox);
    }

    /// Waits until the platform says something.
    pub fn says(&self, part: &str) -> String {
        self.inabox.as_ref().unwrap().says(part)
    }

    /// SIGKILL: as a power cut.
    pub fn kill(&mut self) {
        self.inabox.take().unwrap().kill();
    }

    /// Ctrl-C; its exit code.
    pub fn interrupt(&mut self) -> Option<i32> {
        self.inabox.take().unwrap().interrupt()
    }

    /// Where it runs.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A process that is ended with the test.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
