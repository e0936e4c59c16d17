//! An instance on the node that sends events and takes what comes of them.
//!
//! It runs in this process, without any guest: what it measures is the way there and back.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::{FunctionClass, FunctionSpec, Start};
use edgeless_api::{Error, InstanceId};
use edgeless_node::instance::{Context, Incoming, Instance, InstanceError, Payload, Program, Runtime};
use tokio::sync::Notify;

use crate::node::{self, Access};
use crate::ring::TOKEN;
use crate::stats::warm_up;

/// The type of functions that are probes.
const PROBE: &str = "PROBE";
/// Its output.
const OUT: &str = "out";
/// Round trips that are remembered at the most.
const TRIPS: usize = 4 << 20;
/// How long events that are on their way are waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// The runtime of probes; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Probes(Arc<Mutex<HashMap<String, Arc<Tokens>>>>);

impl Probes {
    /// What a probe of this name counts.
    fn tokens(&self, name: &str) -> Arc<Tokens> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_string()).or_default().clone()
    }
}

#[async_trait]
impl Runtime for Probes {
    fn kind(&self) -> &'static str {
        PROBE
    }

    async fn load(&self, spec: FunctionSpec) -> Result<Arc<dyn Program>, Error> {
        Ok(Arc::new(Loaded(self.tokens(&spec.class.id))))
    }
}

struct Loaded(Arc<Tokens>);

#[async_trait]
impl Program for Loaded {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        Ok(Box::new(Probe { tokens: self.0.clone(), context }))
    }
}

/// What went out and what came back.
#[derive(Default)]
struct Tokens {
    /// What comes back goes out again.
    is_on: AtomicBool,
    is_measured: AtomicBool,
    sent: AtomicU64,
    arrived: AtomicU64,
    /// When each that is on its way was sent: they come back in the same order.
    on_the_way: Mutex<VecDeque<Instant>>,
    trips: Mutex<Vec<Duration>>,
    /// Something came back that does not go out again.
    home: Notify,
}

struct Probe {
    tokens: Arc<Tokens>,
    context: Context,
}

#[async_trait]
impl Instance for Probe {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        let now = Instant::now();
        let tokens = &self.tokens;
        // Nobody: whoever measures wants one more to go out.
        if event.source != InstanceId::NONE && !tokens.take(now) {
            tokens.home.notify_one();
            return Ok(None);
        }
        tokens.sent.fetch_add(1, Ordering::Relaxed);
        tokens.on_the_way.lock().unwrap_or_else(PoisonError::into_inner).push_back(Instant::now());
        let sent = self.context.outputs.cast(OUT, Bytes::from_static(TOKEN.as_bytes()), event.cause).await;
        sent.map(|()| None).map_err(|lost| InstanceError::Failed(format!("{lost:?}")))
    }
}

impl Tokens {
    /// Takes one that came back; whether it goes out again.
    fn take(&self, now: Instant) -> bool {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let sent = self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(sent) = sent.filter(|_| self.is_measured.load(Ordering::Relaxed)) {
            let mut trips = self.trips.lock().unwrap_or_else(PoisonError::into_inner);
            if trips.len() < TRIPS {
                trips.push(now - sent);
            }
        }
        self.is_on.load(Ordering::Relaxed)
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// What was measured of round trips.
#[derive(Debug, Default)]
pub(super) struct Trips {
    pub(super) per_second: f64,
    pub(super) times: Vec<Duration>,
    /// Events that never came back.
    pub(super) lost: u64,
}

/// A probe and what it sends events to, which sends them back.
pub(super) struct Loop {
    access: Access,
    pub(super) probe: InstanceId,
    tokens: Arc<Tokens>,
    target: Option<InstanceId>,
}

impl Loop {
    /// A probe without anything to send to.
    pub(super) async fn open(access: &Access, probes: &Probes, name: &str) -> Result<Self> {
        let class = FunctionClass { function_type: PROBE.to_string(), ..node::class(name) };
        let probe = access.start(node::start_class(class, &[])).await?;
        access.wire(Function, probe, &[]).await?;
        Ok(Self { access: access.clone(), probe, tokens: probes.tokens(name), target: None })
    }

    /// Starts a relay, which casts what it gets on its output `next`, and wires both to each other.
    pub(super) async fn relay(&mut self, start: Start) -> Result<()> {
        let target = self.access.start(start).await?;
        self.target = Some(target);
        self.access.wire(Function, target, &[("next", self.probe)]).await?;
        self.access.wire(Function, self.probe, &[(OUT, target)]).await
    }

    /// Starts a relay and has it handle one event: how long that took. It is stopped again.
    pub(super) async fn first_event(&self, start: Start) -> Result<Duration> {
        let began = Instant::now();
        let target = self.access.start(start).await?;
        self.access.wire(Function, target, &[("next", self.probe)]).await?;
        self.access.cast(target, TOKEN).await?;
        tokio::time::timeout(PATIENCE, self.tokens.home.notified()).await?;
        let took = began.elapsed();
        self.access.stop(target).await?;
        Ok(took)
    }

    /// Sends out tokens, each of which goes out again when it comes back, until [`Loop::end`].
    pub(super) async fn begin(&self, tokens: usize) -> Result<()> {
        self.tokens.is_on.store(true, Ordering::Relaxed);
        for _ in 0..tokens {
            self.access.cast(self.probe, "go").await?;
        }
        Ok(())
    }

    /// How many a second come back.
    pub(super) async fn rate(&self, window: Duration) -> f64 {
        let (before, began) = (self.tokens.arrived(), Instant::now());
        tokio::time::sleep(window).await;
        (self.tokens.arrived() - before) as f64 / began.elapsed().as_secs_f64()
    }

    /// Lets all come back; how many never did.
    pub(super) async fn end(&self) -> u64 {
        self.tokens.is_on.store(false, Ordering::Relaxed);
        let missing = || self.tokens.sent.load(Ordering::Relaxed).saturating_sub(self.tokens.arrived());
        let until = Instant::now() + PATIENCE;
        while missing() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        missing()
    }

    /// Measures round trips, so many at a time.
    pub(super) async fn trips(&self, tokens: usize, window: Duration) -> Result<Trips> {
        let taken = || std::mem::take(&mut *self.tokens.trips.lock().unwrap_or_else(PoisonError::into_inner));
        taken();
        self.begin(tokens).await?;
        tokio::time::sleep(warm_up(window)).await;
        self.tokens.is_measured.store(true, Ordering::Relaxed);
        let per_second = self.rate(window).await;
        self.tokens.is_measured.store(false, Ordering::Relaxed);
        let lost = self.end().await;
        Ok(Trips { per_second, times: taken(), lost })
    }

    /// Stops both.
    pub(super) async fn stop(self) -> Result<()> {
        if let Some(target) = self.target {
            self.access.stop(target).await?;
        }
        self.access.stop(self.probe).await
    }
}
