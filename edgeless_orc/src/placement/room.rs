//! What is left of one node, and how busy it is.

use edgeless_api::amount::{Bytes, Cpu};
use edgeless_api::node::Registration;
use edgeless_api::requirements::Requirements;

/// So much load, in hundredths of a processor, is taken for the same.
const STEP: u32 = 25;
/// What a component is taken to load a node with, in hundredths of a processor, until the node says how busy it
/// is. Without it, all that is started between two announcements would land on the node that was idle at the first.
const GUESS: u32 = 25;
/// More is as good as this.
const MOST: u32 = 1_000_000;
/// Memory in use is counted in so many parts.
const PARTS: u64 = 8;

/// What a component keeps of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) cpu: u64,
    pub(super) memory: u64,
}

impl Share {
    pub(super) fn of(requirements: &Requirements) -> Self {
        Self {
            cpu: requirements.cpu.map(|cpu| cpu.nanos).unwrap_or_default(),
            memory: requirements.memory.map(|memory| memory.0).unwrap_or_default(),
        }
    }
}

/// One node's.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    /// Billionths of a core.
    cpu: u64,
    /// Bytes; `None`: it does not say, and is not limited.
    memory: Option<u64>,
    reserved: Share,
    components: u32,
    processors: u32,
    /// As it last said, in hundredths of a processor.
    load: u32,
    /// As it last said, in eighths.
    memory_used: u32,
    /// Components that were placed there since.
    recent: u32,
}

/// What makes a node worse than another; the first difference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    busy: u32,
    memory_used: u32,
    components: u32,
    cpu: u64,
    memory: u64,
}

impl Room {
    /// Takes over what a node announces.
    pub(super) fn update(&mut self, about: &Registration) {
        let own = &about.capabilities;
        self.cpu = u64::from(own.num_cpus).saturating_mul(own.num_cores.into()).saturating_mul(Cpu::cores(1.0).nanos);
        self.memory = (own.mem_size > 0).then(|| u64::from(own.mem_size) << 20);
        self.processors = own.num_cpus.max(1);
        self.load = about.health.load_avg.and_then(|[minute, ..]| u32::try_from(minute).ok()).unwrap_or_default();
        self.memory_used = match (about.health.mem_available.map(u64::try_from), self.memory) {
            (Some(Ok(available)), Some(all)) => {
                let free = available.saturating_mul(1024).saturating_mul(PARTS) / all.max(1);
                u32::try_from(PARTS.saturating_sub(free)).unwrap_or_default()
            }
            _ => 0,
        };
        self.recent = 0;
    }

    pub(super) fn take(&mut self, share: Share) {
        self.reserved.cpu = self.reserved.cpu.saturating_add(share.cpu);
        self.reserved.memory = self.reserved.memory.saturating_add(share.memory);
        self.components += 1;
        self.recent += 1;
    }

    pub(super) fn give_back(&mut self, share: Share) {
        self.reserved.cpu = self.reserved.cpu.saturating_sub(share.cpu);
        self.reserved.memory = self.reserved.memory.saturating_sub(share.memory);
        self.components = self.components.saturating_sub(1);
        self.recent = self.recent.saturating_sub(1);
    }

    pub(super) fn has_cpu(&self, cpu: Cpu) -> bool {
        self.cpu.saturating_sub(self.reserved.cpu) >= cpu.nanos
    }

    pub(super) fn has_memory(&self, memory: Bytes) -> bool {
        self.memory.is_none_or(|all| all.saturating_sub(self.reserved.memory) >= memory.0)
    }

    pub(super) fn components(&self) -> u32 {
        self.components
    }

    fn busy(&self) -> u32 {
        self.load.saturating_add(self.recent.saturating_mul(GUESS)).min(MOST) / self.processors
    }

    pub(super) fn rank(&self) -> Rank {
        Rank {
            busy: self.busy() / STEP,
            memory_used: self.memory_used,
            components: self.components,
            cpu: self.reserved.cpu,
            memory: self.reserved.memory,
        }
    }

    /// What the rank was made from.
    pub(super) fn score(&self) -> String {
        format!(
            "{} % busy, {} of {PARTS} parts of its memory in use, {} components, {} cores and {} reserved",
            self.busy(),
            self.memory_used,
            self.components,
            Cpu { nanos: self.reserved.cpu },
            Bytes(self.reserved.memory),
        )
    }

    /// Why it has not so much processor.
    pub(super) fn lack_of_cpu(&self) -> String {
        let left = Cpu { nanos: self.cpu.saturating_sub(self.reserved.cpu) };
        format!("has {left} of {} cores left", Cpu { nanos: self.cpu })
    }

    /// Why it has not so much memory.
    pub(super) fn lack_of_memory(&self) -> String {
        let all = self.memory.unwrap_or_default();
        format!("has {} of {} of memory left", Bytes(all.saturating_sub(self.reserved.memory)), Bytes(all))
    }
}
