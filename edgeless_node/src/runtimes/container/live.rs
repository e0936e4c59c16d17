//! Real containers for the tests of this folder. Whatever is made here goes when its owner does.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A Docker engine, and an image whose only file is a static busybox.
pub(super) struct Engine {
    image: String,
}

impl Engine {
    /// `None`: this machine lacks something, which is said, or a failure if Docker is required.
    pub(super) fn find() -> Option<Self> {
        match Self::try_find() {
            Ok(engine) => Some(engine),
            Err(reason) => {
                let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|name| name == "docker"), "docker is required: {reason}");
                let test = std::thread::current().name().unwrap_or_default().to_string();
                // Not by a macro, whose output would be captured, and at once, so that it stays one line.
                let line = format!("skipped: docker: {test}: {reason}\n");
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    fn try_find() -> Result<Self, String> {
        let user = std::fs::metadata("/proc/self").map_err(|error| error.to_string())?.uid();
        if user != 0 {
            return Err("needs root".to_string());
        }
        try_run(Command::new("docker").arg("version"), &[])?;
        try_run(Command::new("iptables").arg("--version"), &[])?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
        let busybox = busybox.ok_or("busybox-static is not installed")?;
        let parent = Path::new(busybox).parent().unwrap();
        let archive = Command::new("tar").arg("-C").arg(parent).args(["-c", "busybox"]).output();
        let archive = archive.map_err(|error| format!("tar: {error}"))?.stdout;
        let image = try_run(Command::new("docker").args(["import", "-"]), &archive)?;
        let engine = Self { image };
        // One that is linked dynamically does not run alone.
        try_run(
            Command::new("docker").args(["run", "--rm", "--network", "none", &engine.image, "/busybox", "true"]),
            &[],
        )?;
        Ok(engine)
    }

    /// A container that runs a command of busybox.
    pub(super) fn run(&self, options: &[&str], command: &[&str]) -> Container<'_> {
        let mut run = Command::new("docker");
        run.args(["run", "-d"]).args(options).args([&self.image, "/busybox"]).args(command);
        Container { id: docker(&mut run), _engine: self }
    }

    pub(super) fn network(&self, options: &[&str]) -> Network<'_> {
        // One of a kind: the process, and which of its networks.
        static NETWORKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("edgeless-test-{}-{number}", std::process::id());
        let mut create = Command::new("docker");
        Network { id: docker(create.args(["network", "create"]).args(options).arg(name)), _engine: self }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        try_run(Command::new("docker").args(["rmi", "-f", &self.image]), &[]).ok();
    }
}

pub(super) struct Container<'a> {
    id: String,
    _engine: &'a Engine,
}

impl Container<'_> {
    pub(super) fn pid(&self) -> u32 {
        self.inspect("{{.State.Pid}}").parse().unwrap()
    }

    pub(super) fn address(&self) -> String {
        self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    }

    /// What a command of busybox prints in it, whether it fails or not.
    pub(super) fn busybox(&self, command: &[&str]) -> String {
        let output = Command::new("docker").args(["exec", &self.id, "/busybox"]).args(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn inspect(&self, format: &str) -> String {
        docker(Command::new("docker").args(["inspect", "-f", format, &self.id]))
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        try_run(Command::new("docker").args(["rm", "-f", &self.id]), &[]).ok();
    }
}

pub(super) struct Network<'a> {
    pub(super) id: String,
    _engine: &'a Engine,
}

impl Network<'_> {
    /// The host's device.
    pub(super) fn bridge(&self) -> String {
        format!("br-{}", &self.id[..12])
    }

    /// The host's address in it.
    pub(super) fn gateway(&self) -> String {
        let format = "{{(index .IPAM.Config 0).Gateway}}";
        docker(Command::new("docker").args(["network", "inspect", "-f", format, &self.id]))
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        try_run(Command::new("docker").args(["network", "rm", &self.id]), &[]).ok();
    }
}

fn docker(command: &mut Command) -> String {
    try_run(command, &[]).unwrap()
}

fn try_run(command: &mut Command, input: &[u8]) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    child.stdin.take().unwrap().write_all(input).ok();
    let output = child.wait_with_output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

pub(super) fn wait_for<T>(what: &str, attempt: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
