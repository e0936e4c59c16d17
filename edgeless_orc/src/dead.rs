//! Asks the nodes of components for their dead letters, and has them sent again or dropped.
//!
//! All nodes are asked at once. One that does not answer is named in the answer: what the others say is worth more than an
//! error about it. One that speaks only EDGELESS 1.2 has no dead letters.

use std::time::Duration;

use edgeless_api::dead::{DeadLetters, Letters, Resolved, Treatment};
use edgeless_api::error::{Code, Error};
use futures_util::future::join_all;
use uuid::Uuid;

use crate::engine::Peer;
use crate::service::{ASK, late};
use crate::shell::Links;

/// The time that a node has to send dead letters again, or to drop them.
const RESOLVE: Duration = Duration::from_secs(8);

/// The newest dead letters of these instances, at most so many.
pub(crate) async fn letters(links: &Links, places: Vec<(Peer, Vec<Uuid>)>, most: usize) -> DeadLetters {
    let parts = join_all(places.into_iter().map(|(peer, instances)| async move {
        let listed = async {
            let listing = links.to(&peer)?.components;
            tokio::time::timeout(ASK, listing.dead_letters(&instances, most)).await.unwrap_or_else(|_| Err(late(&peer)))
        };
        listed
            .await
            .unwrap_or_else(|error| trouble(&peer, &error).map_or_else(DeadLetters::default, DeadLetters::trouble))
    }))
    .await;
    DeadLetters::together(parts, most)
}

/// Has dead letters of these instances sent again, or dropped.
pub(crate) async fn resolve(
    links: &Links,
    places: Vec<(Peer, Vec<Uuid>)>,
    letters: &Letters,
    treatment: Treatment,
) -> Resolved {
    let parts = join_all(places.into_iter().map(|(peer, instances)| async move {
        let resolved = async {
            let resolving = links.to(&peer)?.components;
            let late = || Error::timeout(format!("{} did not answer in {} seconds", peer.agent_url, RESOLVE.as_secs()));
            let resolving = resolving.resolve_dead(&instances, letters.clone(), treatment);
            tokio::time::timeout(RESOLVE, resolving).await.unwrap_or_else(|_| Err(late()))
        };
        resolved.await.unwrap_or_else(|error| trouble(&peer, &error).map_or_else(Resolved::default, Resolved::trouble))
    }))
    .await;
    Resolved::together(parts)
}

/// What is said of a node that has failed, if it could have dead letters.
fn trouble(peer: &Peer, error: &Error) -> Option<String> {
    (error.code != Code::Unimplemented).then(|| format!("node {}: {error}", peer.node))
}
