//! `orchestrate`: the engine of an orchestrator with model nodes, which do at once what they are told.
//!
//! The engine is pure, so that this needs neither network nor clock, and all that is measured is what it decides.
//! Half of the components need labels, a node for each instance and memory.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{read_to_string, write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, RUST_WASM,
    StartContext, StateSpec, Target,
};
use edgeless_api::id::{ComponentId, DomainId, InstanceId, NodeId, StateId, WorkflowId};
use edgeless_api::node::{Capabilities, Health, Registration};
use edgeless_daemon::engine::{Engine as _, Millis, Ticket};
use edgeless_orc::engine::{Call, Effect, Engine, Event, Op, Outcome, Settings, Wanted};
use edgeless_orc::placement::{STRATEGIES, Strategy};
use uuid::Uuid;

use crate::process::resident_kib;
use crate::progress::Progress;
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{micros, millis, quantile};

/// The sizes that are measured if none is asked for, in nodes.
const POINTS: [u32; 3] = [100, 1_000, 10_000];
/// Components for each node.
const COMPONENTS_PER_NODE: u32 = 10;
/// Components in a workflow: each but the last sends to the next.
const CHAIN: u32 = 10;
/// Labels of one kind, and of another: every pair of them is a label set that some component needs.
const RACKS: u32 = 10;
const ZONES: u32 = 5;
/// A node that is silent for this time is lost.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// When some nodes fall silent.
const LAST_WORD: Millis = Millis(9_000);
/// When they have been silent for too long, and the others have not.
const LOST: Millis = Millis(11_000);

/// How large the domain is.
#[derive(Args)]
pub(crate) struct Domain {
    /// Nodes; 100, 1,000 and 10,000 in turn if neither is given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    nodes: Option<u32>,
    /// Components; ten for each node if not given.
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    components: Option<u32>,
    /// How a node is chosen, as in the configuration of an orchestrator.
    #[arg(long, value_name = "NAME", default_value = "Random", value_parser = strategy)]
    strategy: &'static Strategy,
}

fn strategy(name: &str) -> Result<&'static Strategy, String> {
    let known = || STRATEGIES.map(|strategy| strategy.name).join(", ");
    let found = STRATEGIES.into_iter().find(|strategy| strategy.name == name);
    found.ok_or_else(|| format!("there is no such strategy; there are: {}", known()))
}

/// What was found out at one size.
struct Point {
    nodes: u32,
    components: u32,
    place: Vec<Duration>,
    recover: Duration,
    mib: f64,
}

pub(crate) async fn measure(domain: Domain) -> Result<Report> {
    let Domain { nodes, components, strategy } = domain;
    let points: Vec<(u32, u32)> = match (nodes, components) {
        (None, None) => POINTS.map(|nodes| (nodes, nodes * COMPONENTS_PER_NODE)).into(),
        (Some(nodes), components) => vec![(nodes, components.unwrap_or(nodes * COMPONENTS_PER_NODE))],
        (None, Some(components)) => vec![(components.div_ceil(COMPONENTS_PER_NODE).max(2), components)],
    };
    let points = tokio::task::spawn_blocking(move || {
        let progress = Progress::new();
        let all = points.into_iter().map(|(nodes, components)| point(&progress, nodes, components, strategy));
        all.collect::<Result<Vec<Point>>>()
    });
    let points = points.await.context("the measurement broke off")??;
    let mut report = Report::new("orchestrate");
    let is_alone = points.len() == 1;
    for point in points {
        let Point { nodes, components, place, recover, mib } = point;
        // Several points are told apart by their nodes, in an object each.
        let key = |name: &str| if is_alone { name.to_string() } else { format!("nodes_{nodes}.{name}") };
        let is_aimed_at = nodes == 10_000 && components == 100_000;
        let aim = |aim| if is_aimed_at { aim } else { "" };
        let size = format!("nodes: {nodes}, components: {components}");
        let us = |name, of| Figure::new(key(name), micros(quantile(&place, of)), Unit::Microseconds);
        report.add(Row::new(format!("to place a component, p50; {size}"), us("place_us_p50", 0.5)));
        report.add(Row::new("the same, p99", us("place_us_p99", 0.99)).aim(aim("≤ 200 µs")));
        report.add(
            Row::new(
                "processor time until 1 % of the nodes are replaced",
                Figure::new(key("recover_ms"), millis(recover), Unit::Milliseconds),
            )
            .aim(aim("≤ 2 s")),
        );
        report.add(Row::new("memory, at its peak", Figure::new(key("mib"), mib, Unit::Mib)).aim(aim("≤ 1 GiB")));
    }
    Ok(report)
}

fn point(progress: &Progress, nodes: u32, components: u32, strategy: &'static Strategy) -> Result<Point> {
    let before = resident_kib(std::process::id())?;
    // From here on the peak is counted anew. Where that is not allowed, it counts from the start of the program.
    write("/proc/self/clear_refs", "5").ok();
    let mut model = Model::new(nodes, components, strategy);
    progress.say(&format!("{nodes} nodes come"));
    (0..nodes).try_for_each(|n| model.register(n))?;
    progress.say(&format!("{components} components are placed on {nodes} nodes"));
    let place = (0..components).map(|n| model.start(n)).collect::<Result<Vec<_>>>()?;
    (0..components).try_for_each(|n| model.connect(n))?;
    progress.say(&format!("{nodes} nodes, some of which are lost"));
    let lost = (nodes / 100).max(1);
    let recover = model.lose(lost)?;
    let mib = peak_kib()?.saturating_sub(before) as f64 / 1024.0;
    Ok(Point { nodes, components, place, recover, mib })
}

fn peak_kib() -> Result<u64> {
    let status = read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    Ok(peak.trim().trim_end_matches("kB").trim().parse()?)
}

/// The processor time of this thread.
fn cpu_time() -> Result<Duration> {
    let text = read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split_whitespace().next().context("no time in /proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// An engine, and nodes that do at once what it says.
struct Model {
    engine: Engine,
    now: Millis,
    nodes: u32,
    /// Label sets. Each has at least two nodes, so that one can be lost.
    sets: u32,
    last_ticket: u64,
    last_instance: u128,
    calls: VecDeque<(Op, NodeId, Call)>,
    /// Where each component runs.
    homes: BTreeMap<ComponentId, NodeId>,
    refused: Option<edgeless_api::Error>,
}

impl Model {
    fn new(nodes: u32, components: u32, strategy: &'static Strategy) -> Self {
        let settings = Settings {
            domain: DomainId("domain-1".into()),
            keep_alive: KEEP_ALIVE,
            state_grace: Duration::from_secs(30),
            strategy,
            seed: 1,
            max_nodes: nodes as usize,
            max_components: components as usize,
        };
        Self {
            engine: Engine::new(settings),
            now: Millis(0),
            nodes,
            sets: (RACKS * ZONES).min(nodes / 2),
            last_ticket: 0,
            last_instance: 0,
            calls: VecDeque::new(),
            homes: BTreeMap::new(),
            refused: None,
        }
    }

    /// Gives the engine an event, and tells how long it took.
    fn send(&mut self, event: Event) -> Duration {
        let began = Instant::now();
        let effects = self.engine.on(self.now, event);
        let took = began.elapsed();
        for effect in effects {
            match effect {
                Effect::Call(op, peer, call) => self.calls.push_back((op, peer.node, call)),
                Effect::Reply(_, Err(error)) => self.refused = Some(error),
                _ => {}
            }
        }
        took
    }

    fn ask(&mut self, event: impl FnOnce(Ticket) -> Event) -> Duration {
        self.last_ticket += 1;
        self.send(event(Ticket(self.last_ticket)))
    }

    /// Does what the engine wants, until it wants nothing more.
    fn obey(&mut self) -> Result<()> {
        while let Some((op, node, call)) = self.calls.pop_front() {
            let answer = match call {
                Call::Create(start) => {
                    self.last_instance += 1;
                    let function = Uuid::from_u128(self.last_instance);
                    if let Some(context) = start.context {
                        self.homes.insert(context.component, node);
                    }
                    Outcome::Started(ComponentRef::Instance(InstanceId { node, function }))
                }
                Call::Release { .. } => Outcome::Released(None),
                _ => Outcome::Done,
            };
            self.send(Event::Done(op, Ok(answer)));
        }
        match self.refused.take() {
            Some(error) => bail!("the engine refused what it should do: {error}"),
            None => Ok(()),
        }
    }

    fn register(&mut self, n: u32) -> Result<()> {
        let about = Box::new(node(n, self.sets)?);
        self.ask(|ticket| Event::Register(ticket, about));
        self.obey()
    }

    /// Starts a component, and tells how long it took to place it.
    fn start(&mut self, n: u32) -> Result<Duration> {
        let context = StartContext::new(component(n), 1, format!("f{}", n % CHAIN));
        let wanted = Box::new(Wanted { spec: function(n, self.sets), context, is_held: true });
        let took = self.ask(|ticket| Event::Start(ticket, wanted));
        self.obey()?;
        Ok(took)
    }

    /// Lets a component send to the next one of its workflow, and emit.
    fn connect(&mut self, n: u32) -> Result<()> {
        let next = n + 1;
        let id = component(n);
        if !next.is_multiple_of(CHAIN) && self.homes.contains_key(&component(next)) {
            let outputs = BTreeMap::from([("out".to_string(), Target::Component(component(next)))]);
            self.ask(|ticket| {
                Event::Patch(ticket, ComponentKind::Function, Patch { id: id.0, outputs, exported: false })
            });
        }
        self.ask(|ticket| Event::Activate(ticket, vec![id]));
        self.obey()
    }

    /// Loses nodes, and tells the processor time until every component runs elsewhere.
    fn lose(&mut self, lost: u32) -> Result<Duration> {
        self.now = LAST_WORD;
        (lost..self.nodes).try_for_each(|n| self.register(n))?;
        self.now = LOST;
        let is_lost = |node: &NodeId| *node < node_id(lost);
        let homeless: Vec<ComponentId> =
            self.homes.iter().filter(|(_, node)| is_lost(node)).map(|(id, _)| *id).collect();
        for id in &homeless {
            self.homes.remove(id);
        }
        let before = cpu_time()?;
        self.send(Event::Tick);
        self.obey()?;
        let took = cpu_time()? - before;
        if let Some(id) = homeless.iter().find(|id| !self.homes.contains_key(id)) {
            bail!("component {id} has no new place");
        }
        Ok(took)
    }
}

fn node_id(n: u32) -> NodeId {
    NodeId(Uuid::from_u128(0x1_0000_0000 + u128::from(n)))
}

fn component(n: u32) -> ComponentId {
    ComponentId(Uuid::from_u128(0x2_0000_0000 + u128::from(n)))
}

fn node(n: u32, sets: u32) -> Result<Registration> {
    let set = n % sets;
    let (rack, zone) = (set % RACKS, set / RACKS);
    let url = |port| format!("http://10.{}.{}.{}:{port}", n >> 16, n >> 8 & 255, n & 255).parse();
    let labels = [format!("hostname=node-{n}"), format!("rack-{rack}"), format!("zone-{zone}")];
    Ok(Registration {
        node: node_id(n),
        agent_url: url(7021)?,
        invocation_url: url(7002)?,
        providers: vec![],
        capabilities: Capabilities {
            num_cpus: 8,
            num_cores: 1,
            clock_freq_cpu: 4000.0,
            mem_size: 16 << 10,
            labels: labels.into(),
            runtimes: vec![RUST_WASM.into()],
            ..Capabilities::default()
        },
        nonce: 1,
        lifetime: None,
        interval: None,
        health: Health { load_avg: Some([i32::try_from(n % 400)?, 0, 0]), ..Health::default() },
        native: true,
        leaving: false,
        proof: None,
        performance: edgeless_api::node::Performance::default(),
        loads: vec![],
        reports: false,
        report: None,
    })
}

fn function(n: u32, sets: u32) -> ComponentSpec {
    let mut annotations = Annotations::from([("state".to_string(), "transient".to_string())]);
    if n % 2 == 1 {
        let set = n / 2 % sets;
        let labels = format!("rack-{},zone-{}", set % RACKS, set / RACKS);
        let needs = [("label_match_all", labels.as_str()), ("spread", "node"), ("memory", "64MiB")];
        annotations.extend(needs.map(|(key, value)| (key.to_string(), value.to_string())));
    }
    let class = FunctionClass {
        id: "noop".into(),
        function_type: RUST_WASM.into(),
        version: "1.0".into(),
        outputs: vec!["out".into()],
        ..FunctionClass::default()
    };
    ComponentSpec::Function(FunctionSpec {
        class,
        annotations,
        state: StateSpec { id: StateId(Uuid::nil()), policy: Default::default() },
        workflow: WorkflowId(Uuid::from_u128(u128::from(n / CHAIN) << 96 | 1)),
    })
}
