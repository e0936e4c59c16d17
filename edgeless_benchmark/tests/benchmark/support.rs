//! The program as a child process, and the modules that it deploys.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: waited until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The example functions.
pub fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("functions")
}

/// The module of an example function, compiled once for all tests.
pub fn module(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let target = functions().join("target");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--target", "wasm32-unknown-unknown"])
            .args(
                ["noop", "matrix_mul", "vector_mul", "bench_mapreduce", "bench_process"]
                    .map(|name| format!("-p{name}")),
            )
            .arg("--target-dir")
            .arg(&target)
            .current_dir(functions())
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        target.join("wasm32-unknown-unknown/release")
    });
    folder.join(format!("{name}.wasm"))
}

/// `edgeless_benchmark load` with these arguments.
pub fn load(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgeless_benchmark"));
    command.arg("load").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end, which must come, while the platform in this process goes on.
pub async fn output(mut command: Command) -> Output {
    ended(command.spawn().unwrap()).await
}

/// What a child has said when it has ended.
pub async fn ended(child: std::process::Child) -> Output {
    let pid = child.id().to_string();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    match tokio::time::timeout(PATIENCE, ended).await {
        Ok(output) => output.unwrap().unwrap(),
        Err(_) => {
            Command::new("kill").args(["-KILL", &pid]).status().ok();
            panic!("the program does not end");
        }
    }
}

/// What was said on stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
