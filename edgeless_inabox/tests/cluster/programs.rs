//! The real programs as child processes, ended when the test ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::support::PATIENCE;

/// The path of one of our programs: beside the directory of the test binary.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// A port that was free a moment ago: one that no outgoing connection is given by itself, and no other
/// test of this process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 1000).unwrap() * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A program that runs, with what it says.
pub struct Program {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    name: String,
}

impl Program {
    /// Starts one of our programs in a directory and waits until it is ready.
    pub fn start(name: &str, directory: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program(name))
            .args(arguments)
            .current_dir(directory)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (child.stderr.take().unwrap(), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let program = Self { child, said, name: name.to_string() };
        program.says("(Ctrl-C stops");
        program
    }

    /// Waits until it says something; returns the line.
    pub fn says(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said.lock().unwrap();
            if let Some(line) = said.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "{} never said '{part}', but:\n{}", self.name, said.join("\n"));
            drop(said);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGINT, as Ctrl-C sends it, and its exit code.
    pub fn interrupt(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs one of our programs to its end. One that goes on running fails the test.
pub fn run(name: &str, directory: &Path, arguments: &[&str]) -> Output {
    let child = Command::new(program(name))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match ended.recv_timeout(PATIENCE * 4) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            Command::new("kill").args(["-KILL", &pid]).status().ok();
            panic!("{name} {arguments:?} does not end");
        }
    }
}

/// Runs the command line; its whole stdout if it succeeds.
pub fn cli(directory: &Path, arguments: &[&str]) -> String {
    let output = run("edgeless_cli", directory, arguments);
    assert!(output.status.success(), "edgeless_cli {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a template and gives its addresses other ports.
pub fn template(program: &str, directory: &Path, file: &str, ports: &[(u16, u16)]) {
    let output = run(program, directory, &["-t", file]);
    assert!(output.status.success(), "{program} -t: {}", String::from_utf8_lossy(&output.stderr));
    let path = directory.join(file);
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (from, to) in ports {
        text = text.replace(&format!("127.0.0.1:{from}\""), &format!("127.0.0.1:{to}\""));
    }
    std::fs::write(path, text).unwrap();
}
