//! Images: found, pulled, or loaded from an archive that came with the request.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as DockerError;
use bollard::models::{ImageConfig, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptions, RemoveImageOptions};
use bytes::Bytes;
use docker_credential::DockerCredential;
use edgeless_api::Error;
use futures_util::{StreamExt, stream};

use super::engine::Engine;

/// The label of images that are made with our SDK.
const SDK: &str = "org.edgeless.sdk";
/// How often the progress of a pull is logged.
const PROGRESS: Duration = Duration::from_secs(2);

/// What there is to know about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Names its content.
    pub(super) id: String,
    /// What users know it by.
    pub(super) name: String,
    /// The ports that its processes listen on, the lowest first.
    pub(super) ports: Vec<u16>,
    /// Who its processes run as; may be empty.
    pub(super) user: String,
    /// It is made with our SDK: its function finds its node at a socket.
    pub(super) is_sdk: bool,
    /// How it says that its health is found out.
    pub(super) check: Option<ImageCheck>,
}

/// The check that an image brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageCheck {
    /// What is run in the container.
    pub(super) command: Vec<String>,
    /// How often; `None`: the image does not say.
    pub(super) interval: Option<Duration>,
    /// How long it may take; likewise.
    pub(super) timeout: Option<Duration>,
}

impl ImageCheck {
    fn of(config: &ImageConfig) -> Option<Self> {
        let check = config.healthcheck.as_ref()?;
        let test = check.test.as_deref()?;
        let (kind, rest) = test.split_first()?;
        let command = match kind.as_str() {
            "CMD" => rest.to_vec(),
            "CMD-SHELL" => {
                let shell = config.shell.clone().filter(|shell| !shell.is_empty());
                let shell = shell.unwrap_or_else(|| ["/bin/sh", "-c"].map(ToString::to_string).to_vec());
                [&shell, rest].concat()
            }
            _ => return None,
        };
        let time = |nanos: Option<i64>| {
            nanos.and_then(|nanos| u64::try_from(nanos).ok()).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
        };
        (!command.is_empty()).then(|| Self { command, interval: time(check.interval), timeout: time(check.timeout) })
    }
}

/// The image of this name, which is pulled if it is not there.
///
/// `logins` is the Docker configuration with the credentials of registries, if that is not the user's own.
pub(super) async fn named(engine: &Engine, name: &str, logins: Option<&Path>) -> Result<Image, Error> {
    let docker = engine.docker().await?;
    let found = match docker.inspect_image(name).await {
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {
            pull(engine, &docker, name, logins).await?;
            docker.inspect_image(name).await
        }
        found => found,
    };
    let found = found.map_err(|error| engine.error(error).context(format!("the image {name}")))?;
    known(&docker, engine, name, found).await
}

/// An archive whose image has no name: the names in it could be those of images that others use.
fn without_names(archive: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut plain = tar::Builder::new(Vec::with_capacity(archive.len()));
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let mut header = entry.header().clone();
        let mut text = Vec::new();
        match path.as_slice() {
            // What older engines are told by.
            b"repositories" => continue,
            b"manifest.json" | b"index.json" => {
                entry.read_to_end(&mut text)?;
                let mut value: serde_json::Value = serde_json::from_slice(&text)?;
                forget_names(&mut value);
                text = serde_json::to_vec(&value)?;
                header.set_size(u64::try_from(text.len()).unwrap_or_default());
                header.set_cksum();
                plain.append(&header, text.as_slice())?;
            }
            // A path that does not fit into its header comes in an entry of its own.
            _ if path.len() > 100 => {
                let path = entry.path()?.into_owned();
                plain.append_data(&mut header, path, &mut entry)?;
            }
            _ => plain.append(&header, &mut entry)?,
        }
    }
    plain.into_inner()
}

/// Takes the names out of a description of images, of Docker's or of the OCI's kind.
fn forget_names(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(items) => items.iter_mut().for_each(forget_names),
        serde_json::Value::Object(fields) => {
            fields.retain(|key, _| {
                !matches!(key.as_str(), "RepoTags" | "io.containerd.image.name" | "org.opencontainers.image.ref.name")
            });
            fields.values_mut().for_each(forget_names);
        }
        _ => {}
    }
}

/// Removes an image that nobody needs any more; one that a container still has stays.
pub(super) async fn remove(engine: &Engine, image: &Image) {
    if let Ok(docker) = engine.docker().await
        && let Err(error) = docker.remove_image(&image.id, None::<RemoveImageOptions>, None).await
    {
        tracing::debug!(image = image.id, %error, "an image stays for now");
    }
}

/// The image in an archive.
pub(super) async fn archived(engine: &Engine, archive: Bytes) -> Result<Image, Error> {
    let docker = engine.docker().await?;
    let plain = tokio::task::spawn_blocking(move || without_names(&archive)).await.map_err(Error::bug)?;
    let archive = Bytes::from(plain.map_err(|error| Error::rejected(format!("the archive cannot be read: {error}")))?);
    let parts = stream::once(async { Ok::<_, std::io::Error>(archive) });
    let mut lines = Box::pin(docker.import_image_stream(ImportImageOptions::default(), parts, None));
    let mut loaded = None;
    while let Some(line) = lines.next().await {
        let line = line.map_err(|error| engine.error(error).context("cannot load the image of the archive"))?;
        let said = line.stream.unwrap_or_default();
        let name = said.strip_prefix("Loaded image ID: ").or_else(|| said.strip_prefix("Loaded image: "));
        loaded = name.map(|name| name.trim().to_string()).or(loaded);
    }
    let name = loaded.ok_or_else(|| {
        Error::rejected(
            "the archive has no image: make one with `docker save` or `edgeless_cli function build --container`",
        )
    })?;
    let found = docker.inspect_image(&name).await;
    let found = found.map_err(|error| engine.error(error).context(format!("the image {name}")))?;
    known(&docker, engine, &name, found).await
}

async fn pull(engine: &Engine, docker: &Docker, name: &str, logins: Option<&Path>) -> Result<(), Error> {
    let (server, logins) = (registry(name).to_string(), logins.map(Path::to_path_buf));
    // A helper of the Docker configuration is a program.
    let credentials = tokio::task::spawn_blocking(move || match logins {
        None => docker_credential::get_credential(&server).ok(),
        Some(file) => {
            let file = std::fs::File::open(&file).inspect_err(|error| {
                tracing::warn!(file = %file.display(), %error, "container_runtime.docker_config cannot be read");
            });
            docker_credential::get_credential_from_reader(file.ok()?, &server).ok()
        }
    });
    let credentials = credentials.await.ok().flatten().map(|credential| match credential {
        DockerCredential::UsernamePassword(username, password) => {
            DockerCredentials { username: Some(username), password: Some(password), ..DockerCredentials::default() }
        }
        DockerCredential::IdentityToken(token) => {
            DockerCredentials { identitytoken: Some(token), ..DockerCredentials::default() }
        }
    });
    tracing::info!(image = name, "pulling an image");
    let began = Instant::now();
    let mut said = Instant::now();
    let options = CreateImageOptionsBuilder::new().from_image(name).build();
    let mut steps = Box::pin(docker.create_image(Some(options), None, credentials));
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| {
            let error = engine.error(error);
            let advice = "`docker load` or push it, or name an archive of it";
            let message = format!("the image {name} is not there and cannot be pulled: {}: {advice}", error.message);
            Error { code: edgeless_api::Code::Rejected, message }
        })?;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            let layer = step.id.unwrap_or_default();
            let status = step.status.unwrap_or_default();
            let progress = step.progress_detail.unwrap_or_default();
            let (current, total) = (progress.current.unwrap_or_default(), progress.total.unwrap_or_default());
            tracing::info!(image = name, layer, status, current, total, "pulling an image");
        }
    }
    tracing::info!(image = name, seconds = began.elapsed().as_secs_f32(), "pulled an image");
    Ok(())
}

/// The registry of an image, as the Docker configuration names it.
fn registry(name: &str) -> &str {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "https://index.docker.io/v1/",
    }
}

async fn known(docker: &Docker, engine: &Engine, name: &str, found: ImageInspect) -> Result<Image, Error> {
    let machine = docker.version().await.map_err(|error| engine.error(error))?;
    let (os, arch) = (machine.os.unwrap_or_default(), machine.arch.unwrap_or_default());
    let (image_os, image_arch) = (found.os.unwrap_or_default(), found.architecture.unwrap_or_default());
    // An image may say nothing.
    let differs = |image: &str, machine: &str| !image.is_empty() && !machine.is_empty() && image != machine;
    if differs(&image_os, &os) || differs(&image_arch, &arch) {
        return Err(Error::rejected(format!(
            "the image {name} is for {image_os}/{image_arch}, this node is {os}/{arch}: use an image for it"
        )));
    }
    let config = found.config.unwrap_or_default();
    let port = |text: &String| text.split('/').next().and_then(|port| port.parse().ok());
    let mut ports: Vec<u16> = config.exposed_ports.iter().flatten().filter_map(port).collect();
    ports.sort_unstable();
    Ok(Image {
        id: found.id.unwrap_or_default(),
        name: name.to_string(),
        ports,
        check: ImageCheck::of(&config),
        user: config.user.unwrap_or_default(),
        is_sdk: config.labels.is_some_and(|labels| labels.contains_key(SDK)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_brings_no_names_along() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut put = |name: &str, text: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, text.as_bytes()).unwrap();
        };
        let long = "l".repeat(150);
        put("manifest.json", r#"[{"Config":"c.json","RepoTags":["postgres:16"],"Layers":["layer.tar"]}]"#);
        put("repositories", r#"{"postgres":{"16":"c"}}"#);
        put("index.json", r#"{"manifests":[{"annotations":{"io.containerd.image.name":"postgres:16","a":"b"}}]}"#);
        put(&long, "content");
        let plain = without_names(&archive.into_inner().unwrap()).unwrap();
        let mut plain = tar::Archive::new(plain.as_slice());
        let found: Vec<(String, String)> = plain
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let expected = [
            ("manifest.json", r#"[{"Config":"c.json","Layers":["layer.tar"]}]"#),
            ("index.json", r#"{"manifests":[{"annotations":{"a":"b"}}]}"#),
            (&long, "content"),
        ];
        assert_eq!(found, expected.map(|(name, text)| (name.to_string(), text.to_string())));
        assert!(without_names(b"no archive").is_err());
    }

    #[test]
    fn the_registry_of_an_image() {
        for (name, expected) in [
            ("hello:1", "https://index.docker.io/v1/"),
            ("edgeless/hello", "https://index.docker.io/v1/"),
            ("ghcr.io/edgeless/hello:1", "ghcr.io"),
            ("localhost:5000/hello", "localhost:5000"),
            ("localhost/hello", "localhost"),
        ] {
            assert_eq!(registry(name), expected);
        }
    }
}
