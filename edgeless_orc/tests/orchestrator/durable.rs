//! The file that keeps the domain.

use std::path::Path;

use super::*;

fn kept_in(directory: &Path, domain: &str) -> Config {
    let mut config = config();
    config.general.domain_id = domain.into();
    config.general.state_directory = directory.join("state");
    config
}

async fn nonce(orchestrator: &Orchestrator) -> u64 {
    let domain = Controller::of(orchestrator).domain;
    let mut states = domain.watch(1).await.unwrap();
    states.next().await.unwrap().unwrap().nonce
}

#[tokio::test]
async fn a_domain_has_a_file_of_its_own_and_is_the_same_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (kept_in(directory.path(), "here"), kept_in(directory.path(), "there"));
    let one = Orchestrator::start(here.clone()).await.unwrap();
    let other = Orchestrator::start(there).await.unwrap();
    let (first, second) = (nonce(&one).await, nonce(&other).await);
    assert_ne!(first, second);
    let error = Orchestrator::start(here.clone()).await.unwrap_err();
    assert!(error.message.contains("here.redb: another process uses it"), "{error}");
    assert_eq!(one.stop().await, Stopped::Clean);
    let one = Orchestrator::start(here.clone()).await.unwrap();
    assert_eq!(nonce(&one).await, first);
    one.kill().await;
    let one = Orchestrator::start(here.clone()).await.unwrap();
    assert_eq!(nonce(&one).await, first);
    one.kill().await;
    std::fs::remove_file(directory.path().join("state/here.redb")).unwrap();
    assert_ne!(nonce(&Orchestrator::start(here).await.unwrap()).await, first, "it knows nothing of what it was");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let own = kept_in(directory.path(), "here");
    std::fs::create_dir(directory.path().join("state")).unwrap();
    std::fs::write(directory.path().join("state/here.redb"), "never a store").unwrap();
    let error = Orchestrator::start(own.clone()).await.unwrap_err();
    assert!(error.message.contains("here.redb is damaged") && error.message.contains("move the file away"), "{error}");
    assert_eq!(std::fs::read(directory.path().join("state/here.redb")).unwrap(), b"never a store");
    std::fs::remove_dir_all(directory.path().join("state")).unwrap();
    std::fs::write(directory.path().join("state"), "a file").unwrap();
    let error = Orchestrator::start(own).await.unwrap_err();
    assert!(error.message.contains("cannot make the directory of"), "{error}");
}

/// A disk that is full, as the limit of a file's size: what does not fit is refused with the reason, nothing is done for
/// it, and what fits is taken.
#[tokio::test]
async fn a_component_that_does_not_fit_on_the_disk_is_refused_and_the_next_one_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[general]\norchestrator_url = \"http://127.0.0.1:{port}\"\n[baseline]\nkeep_alive_interval_secs = 5\n"
    );
    std::fs::write(directory.path().join("orchestrator.toml"), text).unwrap();
    let limited = "trap '' XFSZ; ulimit -f 16384; exec \"$0\"";
    let mut child = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_edgeless_orc_d")])
        .current_dir(directory.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let url: Url = format!("http://127.0.0.1:{port}").parse().unwrap();
    wait_until("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    let node = Node::join(&url).await;
    let connection = connection(&url);
    let controller =
        Controller { components: client::Components::new(connection.clone()), domain: client::Domain::new(connection) };
    controller.until_nodes(1).await;
    let mut large = function("large", &[]);
    if let ComponentSpec::Function(function) = &mut large {
        let code: Vec<u8> = (0..20_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        function.class.binary = Bytes::from(code).into();
    }
    let error = controller.start(ComponentId::random(), large).await.unwrap_err();
    assert_eq!(error.code, Code::Exhausted);
    assert!(error.message.contains("edgeless_orc_state/domain-1.redb"), "{error}");
    assert_eq!(node.see(|asked| asked.started.len()), 0, "nothing was done for it");
    let one = ComponentId::random();
    assert_eq!(controller.start(one, function("f", &[])).await, Ok(ComponentRef::Component(one)));
    child.kill().unwrap();
    child.wait().unwrap();
}
