//! Where images come from: a registry, with the credentials of the Docker configuration, or an archive that
//! comes along.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use edgeless_api::{Binary, Code};
use serde_json::json;

use crate::docker::{ask, contained, docker, has_docker, image, start_spec};
use crate::support::TestNode;

/// A registry with one image, for one user: enough of the distribution protocol for a pull.
struct Registry {
    port: u16,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", edgeless_api::Digest::of(bytes))
}

impl Registry {
    fn start(user: &str) -> Self {
        let container = docker(&["create", image()]).unwrap();
        let layer = Command::new("docker").args(["export", &container]).stdin(Stdio::null()).output().unwrap().stdout;
        docker(&["rm", &container]).unwrap();
        let machine = docker(&["version", "--format", "{{.Server.Arch}}"]).unwrap();
        let config = json!({
            "architecture": machine, "os": "linux",
            "config": { "Entrypoint": ["/guest"], "Cmd": ["function"], "ExposedPorts": { "7101/tcp": {} } },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{}],
        });
        let config = config.to_string().into_bytes();
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config.len(), "digest": digest(&config),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": layer.len(), "digest": digest(&layer),
            }],
        });
        let manifest = manifest.to_string().into_bytes();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let login = format!("basic {}", base64::engine::general_purpose::STANDARD.encode(user)).to_lowercase();
        let blobs = Arc::new(vec![(manifest, kind), (config, "application/json"), (layer, "application/octet-stream")]);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (blobs, login) = (blobs.clone(), login.clone());
                std::thread::spawn(move || answer(stream, &blobs, &login).ok());
            }
        });
        Self { port }
    }
}

fn answer(mut stream: TcpStream, blobs: &[(Vec<u8>, &str)], login: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let (mut is_known, mut header) = (false, String::new());
    while reader.read_line(&mut header)? > 2 {
        is_known |= header.to_lowercase().trim() == format!("authorization: {login}");
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let found = match path {
        "/v2/" => Some((b"{}".as_slice(), "application/json")),
        path if path.contains("/manifests/") => Some((blobs[0].0.as_slice(), blobs[0].1)),
        path => blobs
            .iter()
            .find(|(bytes, _)| path.ends_with(&digest(bytes)))
            .map(|(bytes, kind)| (bytes.as_slice(), *kind)),
    };
    let (status, (body, kind)) = match found {
        _ if !is_known => ("401 Unauthorized", (b"{}".as_slice(), "application/json")),
        Some(found) => ("200 OK", found),
        None => ("404 Not Found", (b"{}".as_slice(), "application/json")),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nWWW-Authenticate: Basic realm=\"test\"\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(body)
    )?;
    if request.starts_with("HEAD") { Ok(()) } else { stream.write_all(body) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_missing_is_pulled_with_the_credentials_of_the_docker_configuration() {
    if !has_docker("an_image_that_is_missing_is_pulled_with_the_credentials_of_the_docker_configuration") {
        return;
    }
    let registry = Registry::start("ada:secret");
    let name = format!("127.0.0.1:{}/guest:1", registry.port);
    let mut spec = contained("CONTAINER", &[]);
    spec.class.code = format!("container:{name}");

    let logins = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&logins, "{}").unwrap();
    let node = TestNode::with_containers(&format!("docker_config = {:?}", logins.path())).await;
    let error = start_spec(&node, "guest", spec.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::Rejected, "{error}");
    assert!(error.message.starts_with(&format!("the image {name} is not there and cannot be pulled: ")), "{error}");

    let login = base64::engine::general_purpose::STANDARD.encode("ada:secret");
    let config = json!({ "auths": { format!("127.0.0.1:{}", registry.port): { "auth": login } } });
    std::fs::write(&logins, config.to_string()).unwrap();
    let guest = start_spec(&node, "guest", spec).await.unwrap();
    assert_eq!(ask(&node, guest, "echo pulled").await, "pulled");
    node.stop_node().await;
    docker(&["image", "rm", "-f", &name]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_comes_along_once() {
    if !has_docker("an_archive_comes_along_once") {
        return;
    }
    let archive = Command::new("docker").args(["save", image()]).stdin(Stdio::null()).output().unwrap().stdout;
    let node = TestNode::with_containers("").await;
    let mut spec = contained("CONTAINER", &[]);
    spec.class.code = "archive:guest.tar".into();
    let binary = Binary::from(bytes::Bytes::from(archive));
    spec.class.binary = binary.without_bytes();
    let error = start_spec(&node, "guest", spec.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::NeedsCode, "{error}");
    spec.class.binary = binary.clone();
    let guest = start_spec(&node, "guest", spec.clone()).await.unwrap();
    assert_eq!(ask(&node, guest, "echo loaded").await, "loaded");
    spec.class.binary = binary.without_bytes();
    assert!(start_spec(&node, "again", spec.clone()).await.is_ok(), "it is known by its digest");

    spec.class.binary = Binary::from(bytes::Bytes::from_static(b"no archive"));
    let error = start_spec(&node, "guest", spec).await.unwrap_err();
    assert!(error.message.contains("archive"), "{error}");
    node.stop_node().await;
}
