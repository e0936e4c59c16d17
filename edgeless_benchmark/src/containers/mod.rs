//! `containers`: functions and services in containers, on the Docker engine of this machine.
//!
//! ```text
//!   probe --cast--> relay (in a container) --cast--> probe       round trips; alone, and 64 at a time
//!   start of a relay until its first event came back
//!   two hogs on one core; a web server behind a cap; a hog without end beside a relay
//! ```
//! The limit of events is unary gRPC calls to the same image, in a container without a node. The limits
//! of containers are what they should get: the measurement is how close they come.

mod bare;
mod docker;
mod limits;
mod probe;
pub(crate) mod program;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use edgeless_api::component::{CONTAINER, FunctionClass, SERVICE, Start};
use serde_json::json;

use crate::Bench;
use crate::modules::{archive, read};
use crate::node::{self, ContainerNode, Size};
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{micros, millis, quantile};
use crate::worker::on_worker;
use bare::Bare;
use docker::OwnImage;
use probe::{Loop, Probes, Trips};

/// Events at a time.
const IN_FLIGHT: usize = 64;
/// The longest body of a transfer.
const BODY: usize = 100_000_000;
/// How long processor time is measured, and how long a body is, for the usual length of a measurement.
const USUAL: Duration = Duration::from_secs(3);
const CPU_WINDOW: Duration = Duration::from_secs(20);
/// The memory of the one that takes all.
const MEMORY: &str = "64MiB";
/// How often it is killed. A few times more, and its node would give it up.
const ROUNDS: u64 = 3;

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    docker::check()?;
    let (relay_file, hog_file) = (archive(bench, "relay").await?, archive(bench, "hog").await?);
    let (relay, hog) = (read(&relay_file)?, read(&hog_file)?);
    let mut report = Report::new("containers");
    bench.progress.say("loading the images");
    let own = OwnImage::make().await?;
    let image = docker::load(&relay_file)?;
    let probes = Probes::default();
    let node = ContainerNode::start(&Size::default(), vec![Arc::new(probes.clone())]).await?;
    let mut bench = Containers { bench, node: &node, probes: &probes, lost: 0 };
    bench.events(&mut report, &relay, &image, &own.name).await?;
    bench.starts(&mut report, &relay).await?;
    bench.cpu(&mut report, &hog).await?;
    bench.bandwidth(&mut report, &own.name).await?;
    bench.memory(&mut report, &relay, &hog).await?;
    report.add(Row::new("events lost", Figure::count("events_lost", bench.lost)).aim("0"));
    node.stop().await;
    Ok(report)
}

struct Containers<'b> {
    bench: &'b Bench,
    node: &'b ContainerNode,
    probes: &'b Probes,
    lost: u64,
}

/// A component whose image is in an archive.
fn archived(name: &str, archive: &Bytes, annotations: &[(&str, &str)]) -> Start {
    let class = FunctionClass {
        function_type: CONTAINER.to_string(),
        code: format!("archive:{name}.tar"),
        binary: archive.clone().into(),
        ..node::class(name)
    };
    node::start_class(class, annotations)
}

/// A component of an image of this program.
fn own(name: &str, function_type: &str, image: &str, annotations: &[(&str, &str)]) -> Start {
    let class = FunctionClass {
        function_type: function_type.to_string(),
        code: format!("container:{image}"),
        ..node::class(name)
    };
    node::start_class(class, annotations)
}

/// The command of a container of this program.
fn command(name: &str) -> String {
    json!([name]).to_string()
}

impl Containers<'_> {
    /// Round trips to a relay on the node: one at a time, and many.
    async fn trips(&mut self, name: &str, start: Start) -> Result<[Trips; 2]> {
        let window = self.bench.seconds;
        let mut looped = Loop::open(&self.node.access, self.probes, name).await?;
        looped.relay(start).await?;
        let mut measured = [Trips::default(), Trips::default()];
        for (trips, tokens) in measured.iter_mut().zip([1, IN_FLIGHT]) {
            self.bench.progress.say(&format!("events to a container and back, {name}, at once: {tokens}"));
            *trips = looped.trips(tokens, window).await?;
            self.lost += trips.lost;
        }
        looped.stop().await?;
        Ok(measured)
    }

    async fn events(&mut self, report: &mut Report, relay: &Bytes, image: &str, own_image: &str) -> Result<()> {
        let [alone, many] = self.trips("relay", archived("relay", relay, &[])).await?;
        self.bench.progress.say("the limit: unary calls to a container without a node");
        let bare = Bare::start(image).await?;
        let window = self.bench.seconds;
        let (bare_alone, bare_many) =
            on_worker(async move { anyhow::Ok((bare.trips(1, window).await?, bare.trips(IN_FLIGHT, window).await?)) })
                .await?;
        let command = command(program::RELAY);
        let port = program::RELAY_PORT.to_string();
        let annotations = [("command", command.as_str()), ("port", port.as_str())];
        let [unary, unary_many] = self.trips("relay-1", own("relay-1", CONTAINER, own_image, &annotations)).await?;

        let us = |key: &str, trips: &Trips, q| Figure::new(key, micros(quantile(&trips.times, q)), Unit::Microseconds);
        let per_second = |key: &str, trips: &Trips| Figure::new(key, trips.per_second, Unit::PerSecond);
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            report.add(
                Row::new(format!("a cast to a container and one back, {name}"), us(&format!("us_{name}"), &alone, q))
                    .limit(us(&format!("limit_us_{name}"), &bare_alone, q), &format!("ratio_us_{name}"))
                    .aim(if name == "p50" { "≤ 250 µs" } else { "" }),
            );
        }
        report.add(
            Row::new(format!("the same, at once: {IN_FLIGHT}"), per_second("events_per_s", &many))
                .limit(per_second("limit_events_per_s", &bare_many), "ratio")
                .aim("ratio 0.5"),
        );
        let what = "the same to a guest of EDGELESS 1.x, by unary calls";
        report.add(Row::new(format!("{what}, p50"), us("unary_us_p50", &unary, 0.5)));
        report.add(Row::new(format!("{what}, waiting: {IN_FLIGHT}"), per_second("unary_events_per_s", &unary_many)));
        Ok(())
    }

    async fn starts(&self, report: &mut Report, relay: &Bytes) -> Result<()> {
        let looped = Loop::open(&self.node.access, self.probes, "start").await?;
        let ways = [
            (
                "start_ms",
                "≤ 1000 ms",
                "a container of a known image, from its start until its first event is back",
                vec![],
            ),
            ("start_alone_ms", "", "the same without a network (network=none)", vec![("network", "none")]),
        ];
        for (key, aim, what, annotations) in ways {
            self.bench.progress.say(what);
            let until = Instant::now() + 2 * self.bench.seconds;
            let mut times = Vec::new();
            while Instant::now() < until || times.is_empty() {
                times.push(looped.first_event(archived("relay", relay, &annotations)).await?);
            }
            let figure = Figure::new(key, millis(quantile(&times, 0.5)), Unit::Milliseconds);
            report.add(Row::new(format!("{what}, p50"), figure).aim(aim));
        }
        looped.stop().await
    }

    async fn cpu(&self, report: &mut Report, hog: &Bytes) -> Result<()> {
        self.bench.progress.say("two containers on one core");
        let access = &self.node.access;
        let core = limits::one_core()?;
        let start = async |name: &str, shares: &str| {
            let annotations = [("cpuset", core.as_str()), ("cpu_shares", shares), ("network", "none")];
            access.start(archived(name, hog, &annotations)).await
        };
        let hogs = [start("light", "512").await?, start("heavy", "1024").await?];
        let window = CPU_WINDOW.mul_f64(self.bench.seconds.as_secs_f64() / USUAL.as_secs_f64());
        for row in limits::cpu(access, hogs, window).await? {
            report.add(row);
        }
        // What computes for ever has to be cut off, which takes a while: both at the same time.
        let [light, heavy] = hogs;
        tokio::try_join!(access.stop(light), access.stop(heavy))?;
        Ok(())
    }

    async fn bandwidth(&self, report: &mut Report, image: &str) -> Result<()> {
        let access = &self.node.access;
        let command = command(program::WEB);
        let health = format!("tcp:{}", program::WEB_PORT);
        let annotations = [("command", command.as_str()), ("health", health.as_str())];
        let service = access.start(own("web", SERVICE, image, &annotations)).await?;
        let container = docker::of_node(self.node.id(), "web")?;
        let scale = (self.bench.seconds.as_secs_f64() / USUAL.as_secs_f64()).min(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most as long as usual")]
        let length = (BODY as f64 * scale) as usize;
        for row in limits::bandwidth(access, service, &container, length, |what| self.bench.progress.say(what)).await? {
            report.add(row);
        }
        access.stop(service).await
    }

    async fn memory(&mut self, report: &mut Report, relay: &Bytes, hog: &Bytes) -> Result<()> {
        let (access, window) = (&self.node.access, self.bench.seconds);
        let mut neighbour = Loop::open(access, self.probes, "neighbour").await?;
        neighbour.relay(archived("relay", relay, &[])).await?;
        let annotations = [("memory", MEMORY), ("network", "none"), ("init-payload", "mode=memory")];
        let hog = access.start(archived("hog", hog, &annotations)).await?;
        self.bench.progress.say("a container beside one that takes all memory");
        neighbour.begin(1).await?;
        neighbour.rate(window / 5).await;
        let (mut alone, mut beside, mut reason) = (0.0, 0.0, String::new());
        // In turn: what else the machine does meanwhile is in the way of both.
        for round in 1..=ROUNDS {
            alone += neighbour.rate(window).await / ROUNDS as f64;
            access.cast(hog, "go").await?;
            beside += neighbour.rate(window).await / ROUNDS as f64;
            let status = limits::killed(access, hog, round).await?;
            reason = status.reason.lines().next().context("no reason")?.to_string();
        }
        self.lost += neighbour.end().await;
        let per_second = |key: &str, rate| Figure::new(key, rate, Unit::PerSecond);
        report.add(
            Row::new(
                "events of a container beside one that is killed; limit: alone",
                per_second("neighbour_per_s", beside),
            )
            .limit(per_second("neighbour_alone_per_s", alone), "neighbour_ratio"),
        );
        let change = if alone > 0.0 { (beside / alone - 1.0).abs() } else { 1.0 };
        report.add(Row::new("how much they change", Figure::new("neighbour_change", change, Unit::Share)).aim("< 0.1"));
        report.add(Row::new(
            format!("the one that takes more than {MEMORY}"),
            Figure::other("killed", json!(reason), reason),
        ));
        access.stop(hog).await?;
        neighbour.stop().await
    }
}
