//! `file-log`: appends events to a file, one line each.
//!
//! A workflow names the file, the node's configuration the directory that it lies in; no name leads
//! out of it. A line break within an event is written as `\n` or `\r`, so that nobody can forge a
//! line; all other bytes are written as they are. A line is written, and the handler through with its
//! event, before the next event is taken: the order of the events is that of the lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use edgeless_api::component::ResourceSpec;
use edgeless_api::{Error, InstanceId};
use humantime_serde::re::humantime::format_rfc3339_micros;

use super::{Class, Key, Surroundings, bad_value, check_configuration, required};
use crate::instance::{Context, Incoming, Instance, InstanceError, Payload, Provider};

/// The class.
pub(super) static CLASS: Class = Class {
    class_type: "file-log",
    version: "1.1",
    description: "Appends every event to a file of the node, as one line. A call is answered with nothing, once the \
                  line is written.",
    outputs: &[],
    configurations: &[
        Key {
            name: "filename",
            default: None,
            description: "the file, relative to the node's file_log_directory; required",
        },
        Key {
            name: "add-timestamp",
            default: None,
            description: "if present, whatever its value, each line begins with the time, as in RFC 3339",
        },
        Key {
            name: "add-source-id",
            default: None,
            description: "if present, whatever its value, each line names the instance that sent the event",
        },
    ],
    settings: &[
        Key { name: "file_log_provider", default: Some("file-log-1"), description: "the name of the provider" },
        Key {
            name: "file_log_directory",
            default: Some("."),
            description: "the directory of all files; made if it is missing; no workflow gets out of it",
        },
        Key {
            name: "file_log_max_size",
            default: Some("1GiB"),
            description: "the size at which a file takes no more lines",
        },
    ],
    // One at a time, for the order of the lines.
    max_in_flight: 1,
    provide: |surroundings| Box::pin(provide(surroundings)),
};

async fn provide(Surroundings { settings, .. }: Surroundings) -> Result<Arc<dyn Provider>, Error> {
    tracing::info!("Creating resource '{}'", settings.text("file_log_provider"));
    let directory = settings.path("file_log_directory");
    let cannot = |error| Error::rejected(format!("resources.file_log_directory: '{}': {error}", directory.display()));
    tokio::fs::create_dir_all(&directory).await.map_err(cannot)?;
    let directory = tokio::fs::canonicalize(&directory).await.map_err(cannot)?;
    let max_size = u64::try_from(settings.size("file_log_max_size")?).unwrap_or(u64::MAX);
    Ok(Arc::new(FileLogProvider { directory, max_size }))
}

struct FileLogProvider {
    /// Absolute and without links.
    directory: PathBuf,
    max_size: u64,
}

#[async_trait]
impl Provider for FileLogProvider {
    async fn open(&self, spec: &ResourceSpec, _context: Context) -> Result<Box<dyn Instance>, Error> {
        check_configuration(&CLASS, &spec.configuration)?;
        let filename = required(&CLASS, &spec.configuration, "filename")?.to_string();
        let format = Format {
            timestamp: spec.configuration.contains_key("add-timestamp"),
            source: spec.configuration.contains_key("add-source-id"),
        };
        let directory = self.directory.clone();
        let file =
            tokio::task::spawn_blocking(move || open_below(&directory, &filename)).await.map_err(Error::bug)??;
        Ok(Box::new(FileLog { file: Arc::new(file), max_size: self.max_size, format }))
    }
}

/// Opens a file for appending, and makes it and the directories on the way as needed, all of them
/// below `directory`.
fn open_below(directory: &Path, filename: &str) -> Result<File, Error> {
    let refused = |reason: &dyn std::fmt::Display| bad_value("filename", filename, reason);
    let outside = || refused(&"a file log stays in its directory: write a relative path without '..'");
    let cannot = |error: io::Error| refused(&error);

    let name = Path::new(filename);
    if name.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(outside());
    }
    let file_name = name.file_name().filter(|_| !filename.ends_with('/')).ok_or_else(|| refused(&"no file's name"))?;
    let mut path = directory.to_path_buf();
    for part in name.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(error)),
            _ => path = path.canonicalize().map_err(cannot)?,
        }
        if !path.starts_with(directory) {
            return Err(outside());
        }
    }
    path.push(file_name);
    // Looked at before it is opened: to open a pipe would wait for its reader.
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => {
            path = path.canonicalize().map_err(cannot)?;
            if !path.starts_with(directory) {
                return Err(outside());
            }
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    if path.exists() && !path.is_file() {
        return Err(refused(&"it is not a file"));
    }
    OpenOptions::new().append(true).create(true).open(&path).map_err(cannot)
}

/// What stands before the payload.
#[derive(Clone, Copy, Default)]
struct Format {
    timestamp: bool,
    source: bool,
}

impl Format {
    fn line(self, at: SystemTime, source: InstanceId, payload: &[u8]) -> Vec<u8> {
        let mut line = String::new();
        if self.timestamp {
            line += &format!("{} ", format_rfc3339_micros(at));
        }
        if self.source {
            line += &format!("{source} ");
        }
        let mut line = line.into_bytes();
        line.reserve(payload.len() + 1);
        for byte in payload {
            match byte {
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.push(b'\n');
        line
    }
}

struct FileLog {
    file: Arc<File>,
    max_size: u64,
    format: Format,
}

#[async_trait]
impl Instance for FileLog {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        let line = self.format.line(SystemTime::now(), event.source, &event.payload);
        let (file, max_size) = (self.file.clone(), self.max_size);
        let written = tokio::task::spawn_blocking(move || append(&file, &line, max_size)).await;
        match written {
            Ok(Ok(())) => Ok(Some(Payload::new())),
            Ok(Err(error)) => Err(InstanceError::Failed(format!("the line cannot be written: {error}"))),
            Err(error) => Err(InstanceError::Broken(error.to_string())),
        }
    }
}

/// Appends a line. Asks the file for its size, for others may write to it too; for the same reason the
/// part of a line that a full disk took is left where it is.
fn append(mut file: &File, line: &[u8], max_size: u64) -> io::Result<()> {
    let size = file.metadata()?.len().saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
    if size > max_size {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file would be larger than file_log_max_size, which is {max_size} bytes"),
        ));
    }
    file.write_all(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let line = |format: Format, payload: &[u8]| {
            String::from_utf8_lossy(&format.line(SystemTime::UNIX_EPOCH, InstanceId::NONE, payload)).into_owned()
        };
        assert_eq!(line(Format::default(), b"a\nb\r\nc\\n"), "a\\nb\\r\\nc\\n\n");
        assert_eq!(
            line(Format { timestamp: true, source: true }, b"x"),
            "1970-01-01T00:00:00.000000Z InstanceId(node_id: 00000000-0000-0000-0000-fffe00000000, \
             function_id: 00000000-0000-0000-0000-fffd00000000) x\n"
        );
        let bytes = Format::default().line(SystemTime::now(), InstanceId::NONE, b"\xff\x00");
        assert_eq!(bytes, b"\xff\x00\n", "what is no text is kept");
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().canonicalize().unwrap().join("logs");
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink("..", directory.join("up")).unwrap();
        std::os::unix::fs::symlink("../stolen", directory.join("link")).unwrap();
        std::fs::create_dir(directory.join("sub")).unwrap();
        for name in ["", "/etc/passwd", "../stolen", "sub/../../stolen", "up/stolen", "link", "sub", "sub/", "."] {
            assert!(open_below(&directory, name).is_err(), "{name:?}");
        }
        assert!(!outer.path().join("stolen").exists());
        for name in ["a.log", "./b.log", "..a", "sub/a.log", "new/deep/a.log"] {
            open_below(&directory, name).unwrap();
            assert!(directory.join(name).is_file(), "{name:?}");
        }
    }

    #[test]
    fn a_full_file_takes_no_part_of_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = open_below(&directory.path().canonicalize().unwrap(), "a").unwrap();
        append(&file, b"12345\n", 10).unwrap();
        assert!(append(&file, b"12345\n", 10).is_err());
        append(&file, b"123\n", 10).unwrap();
        assert_eq!(std::fs::read(directory.path().join("a")).unwrap(), b"12345\n123\n");
    }
}
