//! The image of a container: an archive that `docker load` understands, made from one executable.
//!
//! The image holds the executable and nothing else, so that neither a base image nor Docker is needed to
//! make it. The same executable and name give the same bytes.
//!
//! ```text
//!   manifest.json     which of the others are what
//!   <digest>.json     how the image is run
//!   layer.tar         its files: /function, or /service
//! ```

use std::env::consts::ARCH;
use std::fmt::{self, Display};
use std::io::{self, Read};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};

/// What every executable for Linux begins with.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// What a compressed archive begins with.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// The file of an archive that says what the others are.
const MANIFEST: &str = "manifest.json";

/// Who the function is in its container: nobody in particular.
const USER: &str = "65532:65532";

/// The port on which a guest of an EDGELESS 1.x node serves.
const PORT: &str = "7101/tcp";

/// The longest tag that Docker takes.
const LONGEST_TAG: usize = 128;

/// The name and the tag of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName(String);

impl ImageName {
    /// The name that is closest to those of a class of functions, which may have characters that images may not.
    pub(crate) fn new(id: &str, version: &str) -> Self {
        let is_of_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let mut name = String::new();
        for letter in id.to_ascii_lowercase().chars() {
            // One sign between two words is what no rule of names forbids.
            match letter {
                letter if is_of_name(letter) => name.push(letter),
                _ if name.is_empty() || name.ends_with(['.', '_', '-']) => {}
                sign @ ('.' | '_') => name.push(sign),
                _ => name.push('-'),
            }
        }
        let name = match name.trim_end_matches(['.', '_', '-']) {
            "" => "function",
            name => name,
        };
        let is_of_tag = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        let tag: String = version.chars().map(|letter| if is_of_tag(letter) { letter } else { '-' }).collect();
        let tag: String = tag.trim_start_matches(['.', '-']).chars().take(LONGEST_TAG).collect();
        let tag = if tag.is_empty() { "latest" } else { &tag };
        Self(format!("{name}:{tag}"))
    }
}

impl Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an image runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// A function that is made with the SDK.
    Function,
    /// Any other program.
    Service,
}

/// Makes the archive of an image that runs `executable`.
pub(crate) fn archive(executable: &[u8], name: &ImageName, runs: Runs) -> io::Result<Vec<u8>> {
    if !executable.starts_with(ELF_MAGIC) {
        return Err(io::Error::other("cargo has made no executable for Linux"));
    }
    let mut layer = Builder::new(Vec::new());
    let file = match runs {
        Runs::Function => "function",
        Runs::Service => "service",
    };
    add(&mut layer, file, 0o755, executable)?;
    let layer = layer.into_inner()?;
    let mut run = json!({ "Entrypoint": [format!("/{file}")], "User": USER });
    if let (Runs::Function, Some(run)) = (runs, run.as_object_mut()) {
        run.insert("ExposedPorts".into(), json!({ (PORT): {} }));
        run.insert("Labels".into(), json!({ "org.edgeless.sdk": "2" }));
    }

    let config = json!({
        "architecture": match ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "edgeless_cli function build" }],
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", digest(&config));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name.0], "Layers": ["layer.tar"] }]).to_string();

    let mut archive = Builder::new(Vec::new());
    add(&mut archive, MANIFEST, 0o644, manifest.as_bytes())?;
    add(&mut archive, &config_name, 0o644, &config)?;
    add(&mut archive, "layer.tar", 0o644, &layer)?;
    archive.into_inner()
}

fn add(archive: &mut Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says what is wrong with an archive that should be an image.
pub(crate) fn check(archive: &[u8]) -> Result<(), String> {
    if archive.starts_with(GZIP_MAGIC) {
        return Err("this archive is compressed: unpack it with gunzip".into());
    }
    let what = "this is not the archive of an image, as `edgeless_cli function build --container` and `docker save` \
                make it";
    let mut archive = Archive::new(archive);
    let entries = archive.entries().map_err(|error| format!("{what}: {error}"))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| format!("{what}: {error}"))?;
        let is_manifest = entry.path().is_ok_and(|path| path.strip_prefix(".").unwrap_or(&path) == MANIFEST);
        if is_manifest {
            let mut text = Vec::new();
            let read = entry.read_to_end(&mut text).map_err(|error| error.to_string());
            let parsed = read.and_then(|_| {
                serde_json::from_slice::<Vec<serde_json::Value>>(&text).map_err(|error| error.to_string())
            });
            return match parsed.map_err(|error| format!("{what}: {MANIFEST}: {error}"))?.len() {
                1 => Ok(()),
                images => Err(format!("this archive has {images} images: save one alone")),
            };
        }
    }
    Err(format!("{what}: there is no {MANIFEST} in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXECUTABLE: &[u8] = b"\x7fELF and so on";

    fn files(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = Archive::new(archive);
        let files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        files.collect()
    }

    /// Docker finds the layer by its digest, and does not say much when it does not.
    #[test]
    fn an_image_says_truly_what_is_in_it() {
        let image = archive(EXECUTABLE, &ImageName::new("tiny", "0.1"), Runs::Function).unwrap();
        assert_eq!(check(&image), Ok(()));
        let parts = files(&image);
        let [(manifest_name, manifest), (config_name, config), (layer_name, layer)] = parts.as_slice() else {
            panic!("{} files", parts.len())
        };
        assert_eq!((manifest_name.as_str(), layer_name.as_str()), ("manifest.json", "layer.tar"));
        assert_eq!(config_name, &format!("{}.json", digest(config)));
        let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        assert_eq!(manifest, json!([{"Config": config_name, "RepoTags": ["tiny:0.1"], "Layers": ["layer.tar"]}]));
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", digest(layer))]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/function"]));
        assert_eq!(files(layer), [("function".to_string(), EXECUTABLE.to_vec())]);
    }

    /// The node speaks to whatever has the label of the SDK.
    #[test]
    fn a_service_is_not_taken_for_a_function() {
        let image = archive(EXECUTABLE, &ImageName::new("tiny", "0.1"), Runs::Service).unwrap();
        let parts = files(&image);
        let config: serde_json::Value = serde_json::from_slice(&parts[1].1).unwrap();
        assert_eq!(config["config"], json!({"Entrypoint": ["/service"], "User": USER}));
        assert_eq!(files(&parts[2].1), [("service".to_string(), EXECUTABLE.to_vec())]);
    }

    /// A node keeps an image by its digest: one that was built again must not be another one.
    #[test]
    fn the_same_executable_gives_the_same_bytes() {
        let made = || archive(EXECUTABLE, &ImageName::new("tiny", "0.1"), Runs::Function).unwrap();
        assert_eq!(made(), made());
        assert!(archive(b"#!/bin/sh", &ImageName::new("tiny", "0.1"), Runs::Function).is_err());
    }

    #[test]
    fn an_image_has_a_name_that_docker_takes() {
        for (id, version, expected) in [
            ("http_hello", "0.1", "http_hello:0.1"),
            ("Resize", "1.0-RC1", "resize:1.0-RC1"),
            ("a b", "1+2 3", "a-b:1-2-3"),
            ("__a--b..c_", ".x", "a-b.c:x"),
            ("ä", "", "function:latest"),
            ("a", "…", "a:latest"),
        ] {
            assert_eq!(ImageName::new(id, version).to_string(), expected);
        }
        assert_eq!(ImageName::new("a", &"1".repeat(200)).to_string().len(), "a:".len() + LONGEST_TAG);
    }

    #[test]
    fn what_is_no_image_is_told_from_one() {
        let with = |name: &str, content: &str| {
            let mut archive = Builder::new(Vec::new());
            add(&mut archive, "other", 0o644, b"x").unwrap();
            add(&mut archive, name, 0o644, content.as_bytes()).unwrap();
            archive.into_inner().unwrap()
        };
        assert_eq!(check(&with("./manifest.json", "[{}]")), Ok(()));
        for (archive, expected) in [
            (with("index.json", "[{}]"), "there is no manifest.json in it"),
            (with("manifest.json", "[{"), "manifest.json: EOF"),
            (with("manifest.json", "[{}, {}]"), "this archive has 2 images"),
            (vec![0x1f, 0x8b, 8, 0], "this archive is compressed: unpack it with gunzip"),
            (b"text".repeat(200), "this is not the archive of an image, as"),
            (Vec::new(), "there is no manifest.json in it"),
        ] {
            let error = check(&archive).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
