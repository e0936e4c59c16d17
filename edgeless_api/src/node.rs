//! Nodes as they announce themselves, and as others see them.

use std::fmt;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::component::ComponentKind;
use crate::id::{ComponentId, DomainId, NodeId};
use crate::url::Url;

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capabilities {
    /// Processors as the operating system counts them.
    pub num_cpus: u32,
    /// As the processor names itself.
    pub model_name_cpu: String,
    /// BogoMIPS.
    pub clock_freq_cpu: f32,
    /// Cores that each of these processors stands for; 1 unless an operator says otherwise.
    pub num_cores: u32,
    /// MiB.
    pub mem_size: u32,
    /// What operators call it, and `hostname=<host name>`.
    pub labels: Vec<String>,
    /// It runs in a trusted execution environment.
    pub is_tee_running: bool,
    /// It has a trusted platform module.
    pub has_tpm: bool,
    /// The function types that it runs.
    pub runtimes: Vec<String>,
    /// MiB.
    pub disk_tot_space: u32,
    /// Graphics processors.
    pub num_gpus: u32,
    /// As the graphics processor names itself.
    pub model_name_gpu: String,
    /// MiB.
    pub mem_size_gpu: u32,
    /// It reaches what keeps the state of functions outside the nodes. No EDGELESS 1.x node does.
    pub has_global_state: bool,
}

impl Capabilities {
    /// The host name that the node put into its labels; empty if it put none.
    pub fn hostname(&self) -> &str {
        self.labels.iter().find_map(|label| label.strip_prefix("hostname=")).unwrap_or_default()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} CPU(s) at {} BogoMIPS, {} core(s), {} MB memory",
            self.num_cpus, self.model_name_cpu, self.clock_freq_cpu, self.num_cores, self.mem_size
        )
    }
}

/// Something on a node that opens resources of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderSpec {
    /// Its name; unique on its node.
    pub id: String,
    /// The class of its resources.
    pub class_type: String,
    /// The outputs of its resources.
    pub outputs: Vec<String>,
}

/// The load of a node. `None`: not measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// kB.
    pub mem_free: Option<i32>,
    /// kB.
    pub mem_used: Option<i32>,
    /// kB.
    pub mem_available: Option<i32>,
    /// Of this process, percent.
    pub proc_cpu_usage: Option<i32>,
    /// Of this process, kB resident.
    pub proc_memory: Option<i32>,
    /// Of this process, kB mapped.
    pub proc_vmemory: Option<i32>,
    /// Over 1, 5 and 15 minutes, times 100.
    pub load_avg: Option<[i32; 3]>,
    /// Over the network since the machine started.
    pub rx_bytes: Option<i64>,
    /// Over the network since the machine started.
    pub rx_packets: Option<i64>,
    /// Over the network since the machine started.
    pub rx_errors: Option<i64>,
    /// Over the network since the machine started.
    pub tx_bytes: Option<i64>,
    /// Over the network since the machine started.
    pub tx_packets: Option<i64>,
    /// Over the network since the machine started.
    pub tx_errors: Option<i64>,
    /// MiB.
    pub disk_free_space: Option<i64>,
    /// Bytes.
    pub disk_reads: Option<i64>,
    /// Bytes.
    pub disk_writes: Option<i64>,
    /// Percent.
    pub gpu_load: Option<i32>,
    /// Thousandths of a degree Celsius.
    pub gpu_temperature: Option<i32>,
    /// mW.
    pub active_power: Option<i32>,
}

/// What a sample is the duration of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// An instance was made.
    Instantiate,
    /// It initialised itself.
    Init,
    /// It handled an event.
    Execution,
    /// It ran its stop handler.
    Stop,
    /// An event was on its way to it.
    Transfer,
}

impl Phase {
    /// All of them, in the order of their numbers in the protocol.
    pub const ALL: [Self; 5] = [Self::Instantiate, Self::Init, Self::Execution, Self::Stop, Self::Transfer];

    /// What other programs call its samples.
    pub fn name(self) -> &'static str {
        match self {
            Self::Instantiate => "function_instantiate_time",
            Self::Init => "function_init_time",
            Self::Execution => "function_execution_time",
            Self::Stop => "function_stop_time",
            Self::Transfer => "function_transfer_time",
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The instance, on the node that measured.
    pub instance: Uuid,
    /// What was measured.
    pub phase: Phase,
    /// When, by the clock of the node.
    pub at: SystemTime,
    /// The duration; finite, and not negative.
    pub seconds: f64,
}

/// A line that an instance logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The instance, on the node that has the log.
    pub instance: Uuid,
    /// When, by the clock of the node.
    pub at: SystemTime,
    /// The log target that the instance named.
    pub target: String,
    /// The line.
    pub message: String,
}

impl LogEntry {
    /// The bytes of its texts.
    pub fn text(&self) -> usize {
        self.target.len() + self.message.len()
    }
}

/// What a node measured of its instances since it was last heard, and what they logged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Performance {
    /// What was measured.
    pub samples: Vec<Sample>,
    /// What was logged.
    pub entries: Vec<LogEntry>,
    /// Samples and lines that are missing: there were too many, or they were unfit.
    pub left_out: u64,
}

impl Performance {
    /// The most samples and lines in one announcement of a node.
    pub const MOST: usize = 10_000;
    /// The most bytes of text in all of its lines.
    pub const MOST_TEXT: usize = 1 << 20;
    /// The longest line, bytes.
    pub const LINE: usize = 8 << 10;
    /// The longest log target, bytes.
    pub const TARGET: usize = 256;

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.entries.is_empty() && self.left_out == 0
    }
}

/// An Ed25519 public key. It stays the same from one process of a node to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey(pub [u8; 32]);

/// What shows that an announcement is by the node that has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The key.
    pub key: NodeKey,
    /// Made with it, of [`Registration::claim`].
    pub signature: [u8; 64],
}

/// What a node says first over its link: which process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who it is.
    pub node: NodeId,
    /// That of its registration.
    pub nonce: u64,
    /// Made with the key of its registration, of [`Hello::claim`]. `None`: it has no key.
    pub signature: Option<[u8; 64]>,
}

impl Hello {
    /// What is signed of it.
    pub fn claim(&self) -> Vec<u8> {
        let mut claim = b"edgeless node link 1\0".to_vec();
        claim.extend(self.node.0.as_bytes());
        claim.extend(self.nonce.to_be_bytes());
        claim
    }
}

/// The process that takes commands at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whose it is.
    pub node: NodeId,
    /// That of its registration.
    pub nonce: u64,
}

/// What a node tells its orchestrator, again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// Who it is.
    pub node: NodeId,
    /// Where it takes commands.
    pub agent_url: Url,
    /// Where it takes events.
    pub invocation_url: Url,
    /// What opens resources there.
    pub providers: Vec<ProviderSpec>,
    /// What it has.
    pub capabilities: Capabilities,
    /// Random for each process: a change is a restart.
    pub nonce: u64,
    /// How long this holds; `None`: as long as the orchestrator's own interval.
    pub lifetime: Option<Duration>,
    /// How often the node announces itself to an orchestrator that has no interval of its own: an
    /// EDGELESS 1.2 one, which is told a deadline of twice that. Not known of other nodes.
    pub interval: Option<Duration>,
    /// Its load.
    pub health: Health,
    /// What it measured of its instances.
    pub performance: Performance,
    /// It speaks our fields and services, not only EDGELESS 1.2.
    pub native: bool,
    /// It says goodbye.
    pub leaving: bool,
    /// What the instances have to do whose starts asked for it.
    pub loads: Vec<InstanceLoad>,
    /// It can tell what it runs, and does so when it is asked to.
    pub reports: bool,
    /// All that runs on it, as it was asked for; `None`: it says nothing of that.
    pub report: Option<Vec<Running>>,
    /// That it is the node that it says it is. `None`: it is known by its agent URL.
    pub proof: Option<Proof>,
}

impl Registration {
    /// What is signed of it: who it is, where, which process, and whether it leaves. What it has and how it is
    /// changes all the time.
    pub fn claim(&self) -> Vec<u8> {
        let mut claim = b"edgeless node registration 1\0".to_vec();
        claim.extend(self.node.0.as_bytes());
        for url in [&self.agent_url, &self.invocation_url] {
            let url = url.to_string();
            claim.extend(u32::try_from(url.len()).unwrap_or(u32::MAX).to_be_bytes());
            claim.extend(url.as_bytes());
        }
        claim.extend(self.nonce.to_be_bytes());
        claim.push(u8::from(self.leaving));
        claim
    }

    /// The key that it shows, if it has one.
    pub fn key(&self) -> Option<NodeKey> {
        self.proof.map(|proof| proof.key)
    }

    /// Whether it claims the same as another one, and shows the same for it.
    pub fn repeats(&self, other: &Self) -> bool {
        let claims = |one: &Self| (one.node, one.nonce, one.leaving, one.proof);
        claims(self) == claims(other)
            && (&self.agent_url, &self.invocation_url) == (&other.agent_url, &other.invocation_url)
    }
}

/// An instance that runs on a node, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its component.
    pub component: ComponentId,
    /// Which of the instances of that.
    pub replica: u32,
    /// The epoch in which it was placed on the node.
    pub epoch: u64,
    /// What the node calls it.
    pub instance: Uuid,
    /// What it is.
    pub kind: ComponentKind,
    /// It may emit.
    pub is_active: bool,
}

/// What one instance has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceLoad {
    /// The instance on the node that reports it.
    pub instance: Uuid,
    /// Events that wait for it.
    pub queued: u32,
    /// Events that its handlers took since it was started.
    pub handled: u64,
}

/// An orchestrator's answer to a registration that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// A node that is silent for this time is lost. `None` from an EDGELESS 1.2 orchestrator.
    pub keep_alive: Option<Duration>,
    /// The node is to announce itself again at once, and to tell what it runs.
    pub wants_report: bool,
    /// The orchestrator takes a [`Hello`]: the node is to keep a link to it.
    pub offers_link: bool,
}

impl Registered {
    /// To a node that is to announce itself within this time, and to tell nothing more.
    pub fn new(keep_alive: Option<Duration>) -> Self {
        Self { keep_alive, wants_report: false, offers_link: false }
    }
}

/// A change of the nodes that a node may send events to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerUpdate {
    /// A node and where it takes events.
    Add(NodeId, Url),
    /// A node that is gone.
    Remove(NodeId),
    /// All nodes are gone.
    Clear,
}

/// A node as its orchestrator sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeInfo {
    /// Who it is.
    pub node: NodeId,
    /// Its domain.
    pub domain: DomainId,
    /// Where it takes commands.
    pub agent_url: Url,
    /// Where it takes events.
    pub invocation_url: Url,
    /// What it has.
    pub capabilities: Capabilities,
    /// What opens resources there.
    pub providers: Vec<ProviderSpec>,
    /// How many components run there.
    pub components: u32,
    /// It speaks our fields and services, not only EDGELESS 1.2.
    pub native: bool,
    /// Nothing new is placed on it.
    pub cordoned: bool,
    /// Its link has ended, and it is being found out whether it is gone.
    pub suspected: bool,
}
