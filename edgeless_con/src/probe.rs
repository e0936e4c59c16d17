//! Finds out how much is left of a domain that is out of reach, by connecting to its addresses.

use std::io::ErrorKind;
use std::time::Duration;

use edgeless_api::Url;
use futures_util::StreamExt;
use tokio::net::TcpStream;

use crate::engine::Pulse;

/// The time that a connection may take. A refusal comes at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most connections at a time.
const AT_ONCE: usize = 64;

/// Connects to each of these, until one is known not to be gone.
pub(crate) async fn probe(urls: Vec<Url>) -> Pulse {
    let mut attempts = futures_util::stream::iter(urls).map(attempt).buffer_unordered(AT_ONCE);
    let mut pulse = Pulse::default();
    while let Some(one) = attempts.next().await {
        pulse.alive += one.alive;
        pulse.gone += one.gone;
        pulse.silent += one.silent;
        if pulse.alive + pulse.silent > 0 {
            break;
        }
    }
    pulse
}

async fn attempt(url: Url) -> Pulse {
    let address = (url.host().trim_matches(['[', ']']).to_string(), url.port());
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Pulse { alive: 1, ..Pulse::default() },
        Ok(Err(error)) if is_gone(error.kind()) => Pulse { gone: 1, ..Pulse::default() },
        Ok(Err(_)) | Err(_) => Pulse { silent: 1, ..Pulse::default() },
    }
}

/// Whether nothing listens there. A network that cannot be reached as a whole may be away because this machine is.
fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_listens_is_told_from_what_does_not() {
        let (listener, alive) = edgeless_daemon::listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (other, gone) = edgeless_daemon::listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
        drop(other);
        assert_eq!(probe(vec![gone.clone(), gone.clone()]).await, Pulse { gone: 2, ..Pulse::default() });
        assert_eq!(probe(vec![alive]).await, Pulse { alive: 1, ..Pulse::default() });
        let nowhere = "http://no-such-host.invalid:1".parse().unwrap();
        assert_eq!(probe(vec![nowhere]).await, Pulse { silent: 1, ..Pulse::default() });
        drop(listener);
    }
}
