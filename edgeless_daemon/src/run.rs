//! What every `main` does with a daemon: read its configuration, start it, wait, stop it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use edgeless_api::error::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, Config};
use crate::tasks::{Failure, Stopped};
use crate::telemetry;

/// A daemon, before it is started.
pub trait Daemon {
    /// The name of its program.
    const NAME: &'static str;
    /// What it is configured by.
    type Config: Config + Send;
    /// What it is while it runs.
    type Handle: Handle;

    /// Binds every port and opens what is local: the one step that can fail.
    ///
    /// # Errors
    /// Something local is wrong: a port is taken, a file cannot be opened.
    fn start(config: Self::Config) -> impl Future<Output = Result<Self::Handle, Error>> + Send;
}

/// A daemon that runs.
pub trait Handle: Send {
    /// What it says when it is ready: its name and its main address.
    fn ready(&self) -> String;
    /// Resolves only if a vital task dies, and names it.
    fn failed(&self) -> impl Future<Output = Failure> + Send;
    /// Says goodbye, finishes what is in hand, ends.
    fn stop(self) -> impl Future<Output = Stopped> + Send;
}

/// The options that all daemons have.
#[derive(Args, Debug)]
pub struct Options {
    /// Configuration file to read.
    #[arg(short, long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Write a commented configuration template to FILE and exit.
    #[arg(short, long, value_name = "FILE")]
    pub template: Option<PathBuf>,
}

/// The exit code of wrong input: a configuration, a file.
pub const USAGE: u8 = 2;

/// Runs a daemon from its options until a signal or a failure ends it.
pub fn main<D: Daemon>(options: &Options) -> ExitCode {
    telemetry::init();
    if let Some(path) = &options.template {
        return match config::write_template(path, &D::Config::template()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(D::NAME, &error, 1),
        };
    }
    let path = options.config_file.clone().unwrap_or_else(|| PathBuf::from(D::Config::FILE));
    let config = match config::load::<D::Config>(&path) {
        Ok(config) => config,
        Err(error) => return fail(D::NAME, &error, USAGE),
    };
    in_runtime(D::NAME, async { run(D::NAME, D::start(config)).await })
}

/// Runs the future that is a whole program.
pub fn in_runtime(name: &str, program: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(program);
            // A task that is still busy by now was named; nobody waits for it.
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(name, &error, 1),
    }
}

/// Says on stderr why a program ends, and with which code.
pub fn fail(name: &str, reason: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("{name}: {reason}");
    ExitCode::from(code)
}

/// Starts a daemon, waits for a signal or a failure, and stops it. A signal during the start ends that;
/// a second one during the stop exits at once.
pub async fn run<H: Handle>(name: &str, start: impl Future<Output = Result<H, Error>>) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(name, &error, 1),
    };
    let handle = tokio::select! {
        started = start => match started {
            Ok(handle) => handle,
            Err(error) => return fail(name, &error, error.code.exit_code()),
        },
        code = signals.next() => return fail(name, &"stopped while it was starting", code),
    };
    eprintln!("{} (Ctrl-C stops, RUST_LOG=info says more)", handle.ready());
    let failure = tokio::select! {
        _ = signals.next() => None,
        failure = handle.failed() => Some(failure),
    };
    match &failure {
        Some(failure) => tracing::error!(%failure, "stopping"),
        None => tracing::info!("stopping"),
    }
    let stopped = tokio::select! {
        stopped = handle.stop() => stopped,
        code = signals.next() => return fail(name, &"stopped at once by a second signal", code),
    };
    if let Stopped::Forced { tasks } = &stopped {
        tracing::warn!(?tasks, "stopped before these tasks had ended");
    }
    match failure {
        Some(failure) => fail(name, &failure, 1),
        None => ExitCode::SUCCESS,
    }
}

/// The signals that end a daemon.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one, as the exit code of what it ends.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}
