//! A book of notes, as two services of one program: a web server, and the store behind it.
//!
//! ```text
//!     notes web      HTTP at port 8080: GET shows all notes, POST adds one, /healthz says that the store answers
//!     notes store    keeps notes in /data, and takes commands at port 7000: ADD NOTE, ALL
//! ```
//! Nothing in it knows of the platform: where the store is, is told in the environment.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use std::{env, fs, thread};

/// Where the store keeps its notes, one a line.
const FILE: &str = "/data/notes";
/// How long who is connected may do nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a note, and of the head of a request.
const LONGEST: u64 = 8192;

fn main() -> io::Result<()> {
    match env::args().nth(1).as_deref() {
        Some("web") => serve(8080, answer_web),
        Some("store") => serve(7000, answer_store),
        _ => Err(io::Error::other("say what to be: web or store")),
    }
}

/// Answers each that connects, for ever.
fn serve(port: u16, answer: fn(TcpStream) -> io::Result<()>) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening at port {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                println!("a request was not answered: {error}");
            }
        });
    }
    Ok(())
}

fn answer_store(mut stream: TcpStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).take(LONGEST).read_line(&mut line)?;
    match line.trim_end().split_once(' ') {
        Some(("ADD", note)) => {
            let mut file = OpenOptions::new().create(true).append(true).open(FILE)?;
            file.write_all(format!("{note}\n").as_bytes())?;
            file.sync_all()?;
            stream.write_all(b"kept\n")
        }
        _ => match fs::read(FILE) {
            Ok(notes) => stream.write_all(&notes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        },
    }
}

/// What the store says to a command.
fn ask_store(command: &str) -> io::Result<String> {
    let store = env::var("STORE").map_err(|_| io::Error::other("the environment has no STORE"))?;
    let mut stream = TcpStream::connect(store)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn answer_web(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = reader.by_ref().take(LONGEST);
    let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
    head.read_line(&mut first)?;
    while head.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut body = Vec::new();
    reader.take(LONGEST.min(length)).read_to_end(&mut body)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let answered = match (method, path) {
        _ if length > LONGEST => Ok(("413 Too Large", "this note is too long\n".to_string())),
        ("GET", _) => ask_store("ALL").map(|notes| ("200 OK", if path == "/healthz" { String::new() } else { notes })),
        ("POST", _) => {
            let note = String::from_utf8_lossy(&body).replace(['\r', '\n'], " ");
            ask_store(&format!("ADD {note}")).map(|said| ("201 Created", said))
        }
        _ => Ok(("405 Method Not Allowed", "GET or POST\n".to_string())),
    };
    let (status, text) = answered.unwrap_or_else(|error| ("503 Service Unavailable", format!("the store: {error}\n")));
    let length = text.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n{text}").as_bytes())
}
