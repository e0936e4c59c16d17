//! Services: containers that take no events, such as a web server or a database.
//!
//! A service is reachable by name from the containers of its workflow on this node, at the ports that it
//! publishes, and behind the node's HTTP ingress. It counts as started when its check is passed, and is
//! replaced when it fails the check again and again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::Error;
use futures_util::FutureExt;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::container::{Container, Found};
use super::function::Component;
use super::options::Check;
use crate::backends::{Backend, Guard};
use crate::instance::{Context, Controls, Incoming, Instance, InstanceError, Payload, Program};

/// Looks in a row that may fail.
const FAILURES: u32 = 3;
/// The wait before a service is looked at again that does not work yet; it doubles up to the longest.
const STARTING: Duration = Duration::from_millis(50);
const LONGEST_STARTING: Duration = Duration::from_secs(1);
/// However often an image wants to be looked at.
const SHORTEST: Duration = Duration::from_millis(100);
/// How often a service is looked at, and how long a look may take, where nobody says.
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);

/// A service in a container of its own.
pub(super) struct Contained(pub(super) Arc<Component>);

#[async_trait]
impl Program for Contained {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        let serve = |found| self.serve(&context, found).boxed();
        Ok(Box::new(self.0.adopt_or_start(&context, serve).await?))
    }

    fn controls(&self) -> Option<Arc<dyn Controls>> {
        Some(self.0.clone())
    }
}

impl Contained {
    /// Starts it, or takes over the container that was found, and waits until it works.
    async fn serve(&self, context: &Context, found: Option<Found>) -> Result<Serving, Error> {
        let component = &self.0;
        let options = &component.options.service;
        let container = component.start(context, found, |_| Ok(())).await?;
        component.began(&container).await?;
        let mut serving = Serving {
            component: component.clone(),
            container: container.clone(),
            look: Look::of(component),
            backend: Mutex::default(),
            unhealthy: watch::channel(None).1,
            cancel: context.cancel.clone(),
        };
        serving.until_it_works().await?;
        if let Some(ingress) = &options.ingress {
            let address =
                container.address.ok_or_else(|| Error::rejected("the engine gave the container no address"))?;
            let backend = Backend {
                name: context.name.clone(),
                host: ingress.host.clone(),
                path: ingress.path.clone(),
                to: SocketAddr::new(address, ingress.port),
            };
            serving.backend = Mutex::new(Some(component.shared.backends.add(backend)?));
        }
        container.keep_volumes();
        serving.watch_health();
        Ok(serving)
    }
}

/// A service that runs.
struct Serving {
    component: Arc<Component>,
    container: Arc<Container>,
    look: Look,
    /// Held as long as requests are to come.
    backend: Mutex<Option<Guard>>,
    /// Why it is to be replaced.
    unhealthy: watch::Receiver<Option<String>>,
    cancel: CancellationToken,
}

impl Serving {
    /// Resolves when its check is passed for the first time.
    async fn until_it_works(&self) -> Result<(), Error> {
        let (mut wait, mut last) = (STARTING, "nobody looked yet".to_string());
        let working = async {
            while let Err(why) = self.look.at(&self.container).await {
                last = why;
                tokio::time::sleep(wait).await;
                wait = LONGEST_STARTING.min(wait * 2);
            }
        };
        let limit = self.component.shared.settings.start_timeout;
        let worked = tokio::select! {
            biased;
            exit = self.container.ended() => {
                return Err(Error::rejected(self.container.with_last_words(&exit.to_string()).await));
            }
            worked = tokio::time::timeout(limit, working) => worked,
        };
        match worked {
            Ok(()) => Ok(()),
            Err(_) => {
                let limit = humantime_serde::re::humantime::format_duration(limit);
                Err(self.container.failure(&format!("it did not pass its check within {limit}: {last}")).await)
            }
        }
    }

    fn watch_health(&mut self) {
        let (unhealthy, receiver) = watch::channel(None);
        self.unhealthy = receiver;
        let (container, component) = (Arc::downgrade(&self.container), self.component.clone());
        let look = self.look.clone();
        tokio::spawn(self.cancel.clone().run_until_cancelled_owned(async move {
            let mut failures = 0;
            loop {
                tokio::time::sleep(look.interval).await;
                let Some(container) = container.upgrade() else { return };
                match look.at(&container).await {
                    Ok(()) => failures = 0,
                    // Nobody can say how it is while the engine is away.
                    Err(_) if !component.shared.engine.is_up() => {}
                    Err(why) => {
                        failures += 1;
                        if failures >= FAILURES {
                            unhealthy.send_replace(Some(format!("it failed its check {FAILURES} times: {why}")));
                            return;
                        }
                    }
                }
            }
        }));
    }
}

/// How a service is looked at.
#[derive(Clone, Debug)]
struct Look {
    check: Check,
    interval: Duration,
    timeout: Duration,
}

impl Look {
    /// A service that says nothing is looked at as its image says or, behind the ingress, is at least to be
    /// there.
    fn of(component: &Component) -> Self {
        let options = &component.options.service;
        let images = component.image.check.as_ref().filter(|_| options.check == Check::Image);
        let check = match (&options.check, images, &options.ingress) {
            (Check::Image, Some(images), _) => Check::Command(images.command.clone()),
            (Check::Image, None, Some(ingress)) => Check::Tcp(ingress.port),
            (check, ..) => check.clone(),
        };
        let interval = options.interval.or_else(|| images?.interval);
        let timeout = options.timeout.or_else(|| images?.timeout);
        Self { check, interval: interval.unwrap_or(INTERVAL).max(SHORTEST), timeout: timeout.unwrap_or(TIMEOUT) }
    }

    /// Looks once.
    async fn at(&self, container: &Container) -> Result<(), String> {
        let looking = async {
            match &self.check {
                Check::Image => Ok(()),
                // The node runs it, also an image's own: an engine would wait for a whole interval first.
                Check::Command(command) => container.run(command).await,
                Check::Tcp(port) => connect(container, *port).await.map(|_| ()),
                Check::Http(port, path) => get(connect(container, *port).await?, path).await,
            }
        };
        let in_time = tokio::time::timeout(self.timeout, looking).await;
        in_time.unwrap_or_else(|_| Err("it did not answer in time".to_string()))
    }
}

async fn connect(container: &Container, port: u16) -> Result<TcpStream, String> {
    let address = container.address.ok_or("it has no address")?;
    TcpStream::connect((address, port)).await.map_err(|error| format!("port {port}: {error}"))
}

async fn get(stream: TcpStream, path: &str) -> Result<(), String> {
    let text = |error: hyper::Error| format!("GET {path}: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request = hyper::Request::get(path).header("host", "localhost").body(Empty::<bytes::Bytes>::new());
    let request = request.map_err(|error| format!("GET {path}: {error}"))?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status();
        // What it says does not matter, and may have no end.
        match status.is_success() || status.is_redirection() {
            true => Ok(()),
            false => Err(format!("GET {path}: {status}")),
        }
    };
    tokio::select! {
        answer = asked => answer,
        Err(error) = connection => Err(text(error)),
    }
}

#[async_trait]
impl Instance for Serving {
    async fn handle(&self, _: Incoming) -> Result<Option<Payload>, InstanceError> {
        Err(InstanceError::Failed("a service takes no events: lead the output to a function".to_string()))
    }

    async fn broken(&self) -> String {
        let mut unhealthy = self.unhealthy.clone();
        let failing = async {
            let reason = unhealthy.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            exit = self.container.ended() => exit.to_string(),
            reason = failing => reason,
        };
        self.container.with_last_words(&reason).await
    }

    async fn stop(&self) {
        // No more requests are to come; those in hand go on as long as the container does.
        drop(self.backend.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.container.remove().await;
        self.component.ended(&self.container);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.component.ended(&self.container);
    }
}
