//! A container's program without any SDK: what an EDGELESS function image of another language does, in Rust
//! and in one file. The tests of containers run it, so it does what it is told, also what is bad.
//!
//!     guest function [PORT]     serves the guest API; events are commands (see `Guest::obey`)
//!     guest web [PORT]          serves HTTP: /, /bytes/N, /reach/HOST/PORT, /env/NAME, /write/PATH, /read/PATH,
//!                               /health, which is bad if there is a file /tmp/sick; after DELAY milliseconds
//!     guest check               ends with exit code 1 if there is a file /tmp/sick
//!     guest fail TEXT           says TEXT and ends with exit code 3
//!     guest alloc MIB           takes that much memory and keeps it
//!     guest spin                computes for ever
//!     guest sleep               does nothing for ever
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a program that tests run")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::event::Reply;
use edgeless_api::guest::{Ask, Boot, Goal, Tell};
use edgeless_api::server::{GuestFunction, Server};
use edgeless_api::status::Level;
use edgeless_api::{Error, InstanceId, Limits};
use tokio_util::sync::CancellationToken;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let port = |default: u16| args.get(1).and_then(|port| port.parse().ok()).unwrap_or(default);
    match args.first().copied() {
        Some("function") => function(port(7101)),
        Some("web") => {
            let delay = std::env::var("DELAY").ok().and_then(|delay| delay.parse().ok()).unwrap_or_default();
            std::thread::sleep(Duration::from_millis(delay));
            web(port(8080));
        }
        Some("check") => {
            if is_sick() {
                println!("I am sick");
                std::process::exit(1);
            }
        }
        Some("fail") => {
            println!("{}", args[1]);
            std::process::exit(3);
        }
        Some("alloc") => {
            let _kept = allocate(args[1].parse().unwrap());
            sleep_for_ever();
        }
        Some("spin") => spin(Duration::MAX),
        Some("sleep") => sleep_for_ever(),
        _ => {
            eprintln!("guest function|web|check|fail|alloc|spin|sleep");
            std::process::exit(2);
        }
    }
}

fn sleep_for_ever() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn spin(time: Duration) {
    let began = Instant::now();
    let mut rounds = 0_u64;
    while began.elapsed() < time {
        rounds = std::hint::black_box(rounds.wrapping_add(1));
    }
}

fn allocate(mib: usize) -> Vec<u8> {
    let mut memory = vec![0; mib << 20];
    // Each page is touched, or it is none.
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}

#[tokio::main(flavor = "current_thread")]
async fn function(port: u16) {
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await.unwrap();
    println!("listening on port {}", listener.local_addr().unwrap().port());
    let cancel = CancellationToken::new();
    let guest = Arc::new(Guest { node: OnceLock::new(), host: OnceLock::new(), end: cancel.clone() });
    Server::new(Limits::default(), cancel).guest_function(guest).serve(listener).await.unwrap();
}

struct Guest {
    node: OnceLock<(client::GuestHost, InstanceId)>,
    /// Where it was told that its node is.
    host: OnceLock<String>,
    end: CancellationToken,
}

fn not_booted() -> Error {
    Error::rejected("not booted")
}

#[async_trait]
impl GuestFunction for Guest {
    async fn boot(&self, boot: Boot) -> Result<bool, Error> {
        if std::env::var("REFUSE").as_deref() == Ok("boot") {
            return Err(Error::rejected("I refuse to boot"));
        }
        let url = boot.host.parse()?;
        self.host.set(boot.host).ok();
        let node = client::GuestHost::new(Connection::lazy(&url, Options::default())?, "")?;
        match self.node.set((node, boot.id)) {
            Ok(()) => Ok(false),
            // As the sample guests of EDGELESS 1.2 do.
            Err(_) => Err(Error::rejected("booted already")),
        }
    }

    async fn init(&self, payload: String, state: Bytes) -> Result<(), Error> {
        let (node, me) = self.node.get().ok_or_else(not_booted)?;
        let state = String::from_utf8_lossy(&state).into_owned();
        node.tell(*me, Tell::Log(Level::Info, "guest".into(), format!("init '{payload}' '{state}'"))).await?;
        match payload.as_str() {
            "fail" => Err(Error::rejected("I refuse to be initialised")),
            _ => Ok(()),
        }
    }

    async fn cast(&self, source: InstanceId, payload: Bytes) -> Result<(), Error> {
        self.obey(source, &payload).await.map(|_| ())
    }

    async fn call(&self, source: InstanceId, payload: Bytes) -> Result<Reply, Error> {
        self.obey(source, &payload).await
    }

    async fn stop(&self) -> Result<(), Error> {
        self.end.cancel();
        Ok(())
    }
}

impl Guest {
    /// A command, its argument after a blank.
    async fn obey(&self, source: InstanceId, command: &[u8]) -> Result<Reply, Error> {
        let (node, me) = self.node.get().ok_or_else(not_booted)?;
        let text = String::from_utf8_lossy(command).into_owned();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let rest_bytes = Bytes::copy_from_slice(rest.as_bytes());
        let say = |text: String| Ok(Reply::Message(text.into()));
        let number = || rest.parse::<u64>().map_err(Error::rejected);
        match word {
            "echo" => Ok(Reply::Message(rest_bytes)),
            "nothing" => Ok(Reply::Empty),
            "wrong" => Ok(Reply::Error),
            "refuse" => Err(Error::rejected(rest)),
            "cast" => node.tell(*me, Tell::Cast(Goal::Output("out".into()), rest_bytes)).await.map(|()| Reply::Empty),
            "back" => node.tell(*me, Tell::Cast(Goal::Instance(source), rest_bytes)).await.map(|()| Reply::Empty),
            "later" => {
                let later = Tell::DelayedCast(Duration::from_millis(50), "out".into(), rest_bytes);
                node.tell(*me, later).await.map(|()| Reply::Empty)
            }
            "call" => node.ask(*me, Ask::Call(Goal::Output("out".into()), rest_bytes)).await,
            "sync" => node.ask(*me, Ask::Sync(rest_bytes)).await,
            "log" => node.tell(*me, Tell::Log(Level::Warn, "guest".into(), rest.into())).await.map(|()| Reply::Empty),
            "host" => say(self.host.get().cloned().unwrap_or_default()),
            "slf" => say(format!("{}", node.slf().await?.function)),
            // As somebody else.
            "forge" => {
                let other = InstanceId { function: rest.parse().map_err(Error::rejected)?, ..*me };
                match node.tell(other, Tell::Cast(Goal::Output("out".into()), "forged".into())).await {
                    Ok(()) => say("taken".into()),
                    Err(error) => say(format!("refused: {error}")),
                }
            }
            "exit" => std::process::exit(rest.parse().unwrap_or(1)),
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(number()?)).await;
                Ok(Reply::Empty)
            }
            "spin" => {
                spin(Duration::from_millis(number()?));
                Ok(Reply::Empty)
            }
            "alloc" => {
                std::mem::forget(allocate(usize::try_from(number()?).unwrap_or_default()));
                Ok(Reply::Empty)
            }
            "flood" => {
                let lines = number()?;
                std::thread::spawn(move || (0..lines).for_each(|line| println!("line {line} of a flood")));
                Ok(Reply::Empty)
            }
            "threads" => {
                let wanted = number()?;
                let started = (0..wanted)
                    .take_while(|_| std::thread::Builder::new().stack_size(64 << 10).spawn(sleep_for_ever).is_ok());
                say(started.count().to_string())
            }
            "connect" => {
                let found = rest.to_string();
                say(tokio::task::spawn_blocking(move || connect(&found)).await.unwrap())
            }
            "read" => say(std::fs::read_to_string(rest).unwrap_or_else(|error| error.to_string())),
            "write" => say(std::fs::write(rest, "x").map_or_else(|error| error.to_string(), |()| "written".into())),
            other => Err(Error::rejected(format!("'{other}' is no command"))),
        }
    }
}

/// What comes of a connection to `host:port`.
fn connect(to: &str) -> String {
    use std::net::ToSocketAddrs;
    let Some(address) = to.to_socket_addrs().ok().and_then(|mut found| found.next()) else {
        return "unknown".into();
    };
    match TcpStream::connect_timeout(&address, Duration::from_millis(700)) {
        Ok(_) => "connected".into(),
        Err(error) => error.to_string(),
    }
}

fn is_sick() -> bool {
    Path::new("/tmp/sick").exists()
}

fn web(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    println!("serving at port {}", listener.local_addr().unwrap().port());
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream).ok());
    }
}

/// Answers one request, and hangs up.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (mut length, mut header) = (0_u64, String::new());
    while reader.read_line(&mut header)? > 2 {
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or_default();
        }
        header.clear();
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    let path = line.split(' ').nth(1).unwrap_or("/").to_string();
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(3, '/').collect();
    let head = |length: u64| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let text = match parts[..] {
        ["bytes", count] => {
            let count: u64 = count.parse().unwrap_or_default();
            stream.write_all(head(count).as_bytes())?;
            std::io::copy(&mut std::io::repeat(b'x').take(count), &mut stream)?;
            return Ok(());
        }
        ["reach", host, port] => connect(&format!("{host}:{port}")),
        ["env", name] => std::env::var(name).unwrap_or_default(),
        ["write", ..] => std::fs::write(&path["/write".len()..], "kept")
            .map_or_else(|error| error.to_string(), |()| "written".into()),
        ["read", ..] => std::fs::read_to_string(&path["/read".len()..]).unwrap_or_else(|error| error.to_string()),
        ["exit", ..] => std::process::exit(4),
        ["health"] if is_sick() => {
            return stream.write_all(b"HTTP/1.1 503 I am sick\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
        _ => format!("hello from {}, {length} bytes taken\n", path),
    };
    stream.write_all(head(text.len() as u64).as_bytes())?;
    stream.write_all(text.as_bytes())
}
