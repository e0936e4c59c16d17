//! The programs of the platform as child processes. None outlives the value that stands for it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::oneshot;

/// What every daemon says when it is ready.
pub(crate) const READY: &str = "(Ctrl-C stops";

/// The path of a program beside this one.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().context("this program is in no directory")?.join(name);
    if !path.is_file() {
        bail!("{} is not built: `cargo build --workspace --release`", path.display());
    }
    Ok(path)
}

/// A port that was free a moment ago: one that no outgoing connection is given by itself.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that look at the same time begin at different ports.
    let first = 10_000 + (std::process::id() % 1000) as u16 * 20;
    for _ in 0..2000 {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("none of the ports from {first} on is free")
}

/// Writes the template of a daemon with other ports.
pub(crate) async fn configure(program: &str, directory: &Path, file: &str, ports: &[(u16, u16)]) -> Result<()> {
    run(Command::new(path(program)?).args(["-t", file]).current_dir(directory)).await?;
    let file = directory.join(file);
    let mut text = std::fs::read_to_string(&file)?;
    for (from, to) in ports {
        text = text.replace(&format!("127.0.0.1:{from}\""), &format!("127.0.0.1:{to}\""));
    }
    std::fs::write(file, text)?;
    Ok(())
}

/// Runs a program to its end. One that fails is an error with what it said last.
pub(crate) async fn run(command: &mut Command) -> Result<()> {
    let (mut child, stderr) = Kept::spawn(command.stdout(Stdio::null()))?;
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let said: Vec<_> = stderr.lines().map_while(Result::ok).collect();
        end.send(said).ok();
    });
    // Its end closes its stderr.
    let said = ended.await?;
    if !child.wait()?.success() {
        bail!("{} failed:\n{}", command.get_program().display(), said.join("\n"));
    }
    Ok(())
}

/// A child process that is killed when this is dropped.
struct Kept(Child);

impl Kept {
    fn spawn(command: &mut Command) -> Result<(Self, BufReader<std::process::ChildStderr>)> {
        let spawned = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("a child has a stderr")?;
        Ok((Self(child), BufReader::new(stderr)))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A daemon that runs, until this is dropped.
pub(crate) struct Daemon {
    child: Kept,
    ready: String,
    took: Duration,
}

impl Daemon {
    /// Starts one of our daemons in the directory of its configuration and waits until it is ready.
    pub(crate) async fn start(program: &str, directory: &Path) -> Result<Self> {
        Self::of(Command::new(path(program)?).current_dir(directory)).await
    }

    /// Starts anything that says what a daemon says when it is ready.
    pub(crate) async fn of(command: &mut Command) -> Result<Self> {
        let began = Instant::now();
        let (child, stderr) = Kept::spawn(command.stdout(Stdio::null()))?;
        let (say, said) = oneshot::channel();
        // Whatever else it says is read, so that it never waits for a reader.
        std::thread::spawn(move || {
            let mut say = Some(say);
            let mut before = Vec::new();
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains(READY) {
                    if let Some(say) = say.take() {
                        say.send(Ok((line, began.elapsed()))).ok();
                    }
                } else if say.is_some() {
                    before.push(line);
                }
            }
            if let Some(say) = say {
                say.send(Err(before.join("\n"))).ok();
            }
        });
        match said.await? {
            Ok((ready, took)) => Ok(Self { child, ready, took }),
            Err(said) => bail!("{} ended before it was ready: {said}", command.get_program().display()),
        }
    }

    /// What it said when it was ready.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    /// How long it took until it was ready.
    pub(crate) fn took(&self) -> Duration {
        self.took
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }
}
