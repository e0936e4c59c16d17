//! `http-egress`: sends the HTTP requests of functions and answers with the responses.
//!
//! All resources of a node share one client, and with it its connections. The client is made when
//! the first resource is opened, since a node that has none needs no certificates in its memory.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use edgeless_api::Error;
use edgeless_api::component::ResourceSpec;
use tokio::sync::OnceCell;

use super::http::{self, Protocol, Request};
use super::{Class, Key, Surroundings, check_configuration, http_json};
use crate::instance::{Context, EventKind, Incoming, Instance, InstanceError, Payload, Provider};

/// The class.
pub(super) static CLASS: Class = Class {
    class_type: "http-egress",
    version: "1.1",
    description: "Sends the HTTP request that it is called with and answers with the response. Redirections are \
                  followed. There is TLS where the request says HTTPS.",
    outputs: &[],
    configurations: &[],
    settings: &[
        Key { name: "http_egress_provider", default: Some("http-egress-1"), description: "the name of the provider" },
        Key {
            name: "http_egress_timeout",
            default: Some("10s"),
            description: "how long a request may take, from the connection to the last byte of the response",
        },
        Key {
            name: "http_egress_max_body",
            default: Some("4MiB"),
            description: "the largest body of a response; as the payload of an event it takes up to four times as much",
        },
    ],
    max_in_flight: 256,
    provide: |surroundings| Box::pin(provide(surroundings)),
};

async fn provide(Surroundings { settings, limits, .. }: Surroundings) -> Result<Arc<dyn Provider>, Error> {
    tracing::info!("Creating resource '{}'", settings.text("http_egress_provider"));
    let options = Options {
        timeout: settings.duration("http_egress_timeout")?,
        max_body: settings.size("http_egress_max_body")?,
        max_payload: limits.payload,
    };
    Ok(Arc::new(HttpEgressProvider { client: OnceCell::new(), options }))
}

#[derive(Clone, Copy)]
struct Options {
    timeout: Duration,
    max_body: usize,
    max_payload: usize,
}

struct HttpEgressProvider {
    client: OnceCell<reqwest::Client>,
    options: Options,
}

#[async_trait]
impl Provider for HttpEgressProvider {
    async fn open(&self, spec: &ResourceSpec, _context: Context) -> Result<Box<dyn Instance>, Error> {
        check_configuration(&CLASS, &spec.configuration)?;
        let client = self.client.get_or_try_init(|| async {
            // It reads the certificates of the system.
            let client = tokio::task::spawn_blocking(client).await.map_err(Error::bug)?;
            client.map_err(|error| Error::rejected(reasons(&error)))
        });
        Ok(Box::new(HttpEgress { client: client.await?.clone(), options: self.options }))
    }
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails if another thread was faster, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
    reqwest::Client::builder().build().or_else(|error| {
        tracing::warn!(reason = reasons(&error), "http-egress sends no HTTPS requests");
        reqwest::Client::builder().tls_certs_only([]).build()
    })
}

struct HttpEgress {
    client: reqwest::Client,
    options: Options,
}

#[async_trait]
impl Instance for HttpEgress {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        match event.kind {
            EventKind::Cast => Err(InstanceError::Failed("an http-egress takes calls only: use call, not cast".into())),
            EventKind::Call => {
                self.exchange(&event.payload, event.cause.deadline).await.map(Some).map_err(InstanceError::Failed)
            }
        }
    }
}

impl HttpEgress {
    async fn exchange(&self, payload: &[u8], deadline: Option<Instant>) -> Result<Payload, String> {
        let request = serde_json::from_slice(payload).map_err(|error| format!("not an HTTP request: {error}"))?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(self.options.timeout, |left| left.min(self.options.timeout));
        let request = self.prepare(request)?.timeout(timeout);
        let mut response = request.send().await.map_err(|error| reasons(&error.without_url()))?;
        let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
        let payload = http_json::response(status, &headers, &self.read(response).await?);
        match payload.len() > self.options.max_payload {
            true => Err("the response is larger than the payload of an event may be".into()),
            false => Ok(payload),
        }
    }

    fn prepare(&self, request: Request<'_>) -> Result<reqwest::RequestBuilder, String> {
        let url = url_of(&request)?;
        let headers = http::to_send(&request.headers)?;
        let prepared = self.client.request(request.method.into(), url).headers(headers);
        // An ingress makes every body an array, also that of a GET, where an empty body is unusual.
        Ok(match request.body.filter(|body| !body.is_empty()) {
            Some(body) => prepared.body(body),
            None => prepared,
        })
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, String> {
        let max = self.options.max_body;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| reasons(&error.without_url()))? {
            if body.len() + chunk.len() > max {
                return Err(format!(
                    "the body of the response is larger than http_egress_max_body, which is {max} bytes"
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn url_of(request: &Request<'_>) -> Result<reqwest::Url, String> {
    // Anything else would become a part of the host.
    if !request.path.is_empty() && !request.path.starts_with(['/', '?']) {
        return Err(format!("the path '{}' does not begin with '/'", request.path));
    }
    let scheme = if request.protocol == Protocol::Https { "https" } else { "http" };
    let url = format!("{scheme}://{}{}", request.host, request.path);
    url.parse().map_err(|error| format!("'{url}' is no URL: {error}"))
}

/// An error with all that caused it.
fn reasons(error: &dyn StdError) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", reasons(cause)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::http::Method;

    fn request(protocol: Protocol, host: &str, path: &str) -> Request<'static> {
        let (host, path) = (host.to_string(), path.to_string());
        Request { protocol, host, headers: http::Headers::new(), body: None, method: Method::Get, path }
    }

    #[test]
    fn only_https_is_sent_with_tls() {
        let url = |protocol| url_of(&request(protocol, "example.com:8080", "/a?b=c")).unwrap().to_string();
        assert_eq!(url(Protocol::Unknown), "http://example.com:8080/a?b=c");
        assert_eq!(url(Protocol::Http), "http://example.com:8080/a?b=c");
        assert_eq!(url(Protocol::Https), "https://example.com:8080/a?b=c");
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for (host, path) in
            [("", "/"), ("example.com", ".evil.org/"), ("example.com", ":81/"), ("a b", "/"), ("h:x", "/")]
        {
            assert!(url_of(&request(Protocol::Http, host, path)).is_err(), "{host}{path}");
        }
        assert!(url_of(&request(Protocol::Http, "example.com", "")).is_ok());
    }
}
