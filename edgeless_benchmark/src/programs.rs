//! The programs of the platform as child processes.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What every daemon says when it is ready.
const READY: &str = "(Ctrl-C stops";

/// The path of a program beside this one.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().context("this program is in no directory")?.join(name);
    if !path.is_file() {
        bail!("{} is not built: `cargo build --workspace --release`", path.display());
    }
    Ok(path)
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Writes the template of a daemon with other ports.
pub(crate) fn configure(program: &str, directory: &Path, file: &str, ports: &[(u16, u16)]) -> Result<()> {
    let written = Command::new(path(program)?).args(["-t", file]).current_dir(directory).status()?;
    if !written.success() {
        bail!("{program} -t {file} failed");
    }
    let file = directory.join(file);
    let mut text = std::fs::read_to_string(&file)?;
    for (from, to) in ports {
        text = text.replace(&format!("127.0.0.1:{from}\""), &format!("127.0.0.1:{to}\""));
    }
    std::fs::write(file, text)?;
    Ok(())
}

/// A daemon that runs, until this is dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts a daemon and waits until it says that it is ready; also how long that took.
    pub(crate) fn start(program: &str, directory: &Path) -> Result<(Self, Duration)> {
        let began = Instant::now();
        let mut child = Command::new(path(program)?)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("a child has a stderr")?;
        let daemon = Self(child);
        let mut lines = BufReader::new(stderr).lines();
        while let Some(line) = lines.next().transpose()? {
            if line.contains(READY) {
                let took = began.elapsed();
                // Whatever else it says is read, so that it never waits for a reader.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok((daemon, took));
            }
        }
        bail!("{program} ended before it was ready")
    }

    /// Its resident memory, KiB.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
