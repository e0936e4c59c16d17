//! Runs the program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The same for a command as a whole, which may have to build functions first: in a clean clone all that they need.
const PATIENCE_WITH_BUILD: Duration = Duration::from_secs(900);

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The program with these arguments, in the repository.
pub fn benchmark(arguments: &[&str]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_edgeless_benchmark"));
    for other in ["edgeless_cli", "edgeless_node_d", "edgeless_orc_d", "edgeless_con_d"] {
        let path = program.with_file_name(other);
        assert!(path.is_file(), "{} is not built: run `cargo build --workspace` first", path.display());
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(repository()).stdin(Stdio::null());
    command
}

/// Runs it to its end. One that goes on running fails the test.
pub fn run(arguments: &[&str]) -> Output {
    let child = benchmark(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match ended.recv_timeout(PATIENCE_WITH_BUILD) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            signal(pid, "-KILL");
            panic!("edgeless_benchmark {arguments:?} does not end");
        }
    }
}

/// What a command measures in a short time.
pub fn measure(command: &[&str]) -> Value {
    let output = run(&[command, &["--seconds", "0.2", "--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    assert_eq!(said, "", "{command:?} has nothing to say beside its figures where nobody looks on");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Waits until there is something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A child that is killed if the test fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
