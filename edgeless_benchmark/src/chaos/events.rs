//! Numbered events through workflows that deliver at least once, while daemons are killed.
//!
//! ```text
//!  client: POST number, again until it is acknowledged -> http-ingress -> relay -> relay -> relay -> file-log
//!                      the ledger: numbers acknowledged               against       the lines of the file
//! ```
//! The ingress is on one node and the log on the next, so that events cross nodes. What is counted is outside the
//! platform: the client's ledger, and the files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use edgeless_api::FunctionClass;
use edgeless_api::workflow::{Function, Resource, Workflow};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::http_client::exchange;
use crate::node::class;

/// Requests that one client has on their way.
const AT_ONCE: u64 = 8;
/// How long an answer may take before its request is made again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Where numbered events come in and go out.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Tells the lines apart.
    pub(super) name: String,
    /// The node that takes requests: its id, and where.
    pub(super) from: (String, SocketAddr),
    /// The node that writes the file, and the file.
    pub(super) to: (String, PathBuf),
}

/// What came of one line.
#[derive(Debug, Default)]
pub(super) struct Sent {
    acknowledged: BTreeSet<u64>,
}

/// What there is in the end.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) acknowledged: u64,
    /// Acknowledged, and not in the file.
    pub(super) lost: u64,
    /// Lines that are there already.
    pub(super) repeated: u64,
}

impl Line {
    /// Of one workflow: the ingress and the log.
    pub(super) const RESOURCES: usize = 2;

    /// The workflow of a line, with so many functions in a row.
    pub(super) fn workflow(&self, relay: &Bytes, functions: usize) -> Result<Workflow> {
        let name = |number: usize| format!("relay-{number}");
        let sure = ("delivery".to_string(), "at-least-once".to_string());
        let on = |node: &str| ("node_id_match_any".to_string(), node.to_string());
        let to = |output: &str, target: String| BTreeMap::from([(output.to_string(), target)]);
        let function = |number: usize| {
            let class =
                FunctionClass { binary: relay.clone().into(), outputs: vec!["next".to_string()], ..class("relay") };
            let next = if number + 1 < functions { name(number + 1) } else { "log".to_string() };
            Function { name: name(number), class, outputs: to("next", next), annotations: [sure.clone()].into() }
        };
        let ingress = Resource {
            name: "ingress".to_string(),
            class_type: "http-ingress".to_string(),
            outputs: to("new_request", name(0)),
            configuration: [
                sure.clone(),
                on(&self.from.0),
                ("host".to_string(), self.name.clone()),
                ("methods".to_string(), "POST".to_string()),
                ("async".to_string(), "true".to_string()),
            ]
            .into(),
        };
        let file = self.to.1.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = Resource {
            name: "log".to_string(),
            class_type: "file-log".to_string(),
            outputs: BTreeMap::new(),
            configuration: [on(&self.to.0), ("filename".to_string(), file)].into(),
        };
        Ok(Workflow::new((0..functions).map(function).collect(), vec![ingress, log], [].into())?)
    }

    /// Sends numbers, so many each second, until it is told to end; each until it is acknowledged.
    pub(super) async fn send(&self, per_second: f64, end: &CancellationToken) -> Sent {
        let senders = (0..AT_ONCE).map(|first| self.send_some(first, per_second / AT_ONCE as f64, end));
        let parts = futures_util::future::join_all(senders).await;
        Sent { acknowledged: parts.into_iter().flatten().collect() }
    }

    async fn send_some(&self, first: u64, per_second: f64, end: &CancellationToken) -> Vec<u64> {
        let (mut stream, mut response) = (None, Vec::new());
        let (mut acknowledged, began) = (Vec::new(), Instant::now());
        for turn in 0_u64.. {
            let due = began + Duration::from_secs_f64(turn as f64 / per_second);
            if end.run_until_cancelled(tokio::time::sleep_until(due.into())).await.is_none() {
                break;
            }
            let number = first + turn * AT_ONCE;
            let body = number.to_string();
            let request =
                format!("POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}", self.name, body.len());
            // What is not acknowledged by the end may be there or not: nobody counts on it.
            while !end.is_cancelled() {
                let posted = tokio::time::timeout(PATIENCE, self.post(&mut stream, &request, &mut response)).await;
                if matches!(posted, Ok(Ok(()))) {
                    acknowledged.push(number);
                    break;
                }
                stream = None;
                tokio::time::sleep(PAUSE).await;
            }
        }
        acknowledged
    }

    async fn post(&self, stream: &mut Option<TcpStream>, request: &str, response: &mut Vec<u8>) -> Result<()> {
        let stream = match stream {
            Some(stream) => stream,
            None => {
                let opened = TcpStream::connect(self.from.1).await?;
                opened.set_nodelay(true)?;
                stream.insert(opened)
            }
        };
        exchange(stream, request.as_bytes(), response).await
    }

    /// Compares what was acknowledged with what is in the file.
    pub(super) async fn count(&self, sent: &Sent) -> Count {
        let text = tokio::fs::read(&self.to.1).await.unwrap_or_default();
        let (mut lines, mut repeated) = (BTreeSet::new(), 0);
        for line in String::from_utf8_lossy(&text).lines() {
            repeated += u64::from(!lines.insert(line.parse::<u64>().unwrap_or(u64::MAX)));
        }
        let lost = sent.acknowledged.difference(&lines).count() as u64;
        Count { acknowledged: sent.acknowledged.len() as u64, lost, repeated }
    }
}
