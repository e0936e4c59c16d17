//! What the machine has, found out by looking, and how loaded it is.

use edgeless_api::node::{Capabilities, Health};
use serde::Deserialize;
use sysinfo::{Disks, MemoryRefreshKind, NetworkData, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Traffic of a machine with itself says nothing of its network.
const LOOPBACK: &str = "lo";

/// What an operator says of the machine. 0 and "" mean: found out by looking.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// Processors.
    pub num_cpus: u32,
    /// Model of the processors.
    pub model_name_cpu: String,
    /// BogoMIPS.
    pub clock_freq_cpu: f32,
    /// Cores that each processor stands for.
    pub num_cores: u32,
    /// MiB.
    pub mem_size: u32,
    /// Labels beside `hostname=<host name>`.
    pub labels: Vec<String>,
    /// The node runs in a trusted execution environment.
    pub is_tee_running: bool,
    /// The node has a trusted platform module.
    pub has_tpm: bool,
    /// MiB.
    pub disk_tot_space: u32,
    /// Graphics processors.
    pub num_gpus: u32,
    /// Model of the graphics processors.
    pub model_name_gpu: String,
    /// MiB.
    pub mem_size_gpu: u32,
}

/// What the machine has.
pub fn detect() -> Capabilities {
    let memory = System::new().map(|mut system| {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        system.total_memory()
    });
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let disk = Disks::new_with_refreshed_list().map(|disks| disks.iter().map(|disk| disk.total_space()).max());
    Capabilities {
        num_cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        model_name_cpu: field(&cpuinfo, "model name").to_string(),
        clock_freq_cpu: field(&cpuinfo, "bogomips").parse().unwrap_or_default(),
        num_cores: 1,
        mem_size: mib(memory.unwrap_or_default()),
        labels: System::host_name().ok().map(|name| format!("hostname={name}")).into_iter().collect(),
        disk_tot_space: mib(disk.ok().flatten().unwrap_or_default()),
        ..Capabilities::default()
    }
}

/// What the node tells of itself: what was found, unless the operator says otherwise.
pub fn capabilities(found: Capabilities, said: &Overrides, runtimes: Vec<String>) -> Capabilities {
    let number = |said: u32, found: u32| if said == 0 { found } else { said };
    let text = |said: &String, found: String| if said.is_empty() { found } else { said.clone() };
    let mut labels = found.labels;
    labels.extend(said.labels.iter().cloned());
    Capabilities {
        num_cpus: number(said.num_cpus, found.num_cpus),
        model_name_cpu: text(&said.model_name_cpu, found.model_name_cpu),
        clock_freq_cpu: if said.clock_freq_cpu == 0.0 { found.clock_freq_cpu } else { said.clock_freq_cpu },
        num_cores: number(said.num_cores, found.num_cores),
        mem_size: number(said.mem_size, found.mem_size),
        labels,
        is_tee_running: said.is_tee_running,
        has_tpm: said.has_tpm,
        runtimes,
        disk_tot_space: number(said.disk_tot_space, found.disk_tot_space),
        num_gpus: number(said.num_gpus, found.num_gpus),
        model_name_gpu: text(&said.model_name_gpu, found.model_name_gpu),
        mem_size_gpu: number(said.mem_size_gpu, found.mem_size_gpu),
        has_global_state: false,
    }
}

/// The value of the first line `key : value`.
fn field<'t>(cpuinfo: &'t str, key: &str) -> &'t str {
    let line = cpuinfo.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key));
    line.map(|(_, value)| value.trim()).unwrap_or_default()
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

/// Measures the load of the machine and of this process, as far as the machine tells.
#[derive(Debug)]
pub struct HealthMeter {
    system: Option<System>,
    disks: Option<Disks>,
    networks: Option<Networks>,
}

impl Default for HealthMeter {
    fn default() -> Self {
        Self {
            system: System::new().ok(),
            disks: Disks::new_with_refreshed_list().ok(),
            networks: Networks::new_with_refreshed_list().ok(),
        }
    }
}

impl HealthMeter {
    /// The load now; the use of the processor since the last look.
    pub fn measure(&mut self) -> Health {
        let load = System::load_average().ok();
        let mut health = Health {
            load_avg: load.map(|load| [hundredths(load.one), hundredths(load.five), hundredths(load.fifteen)]),
            ..Health::default()
        };
        self.measure_disk(&mut health);
        self.measure_networks(&mut health);
        self.measure_process(&mut health);
        health
    }

    /// The largest disk is the one whose size the node announces.
    fn measure_disk(&mut self, health: &mut Health) {
        let Some(disks) = &mut self.disks else { return };
        disks.refresh(false);
        let Some(disk) = disks.iter().max_by_key(|disk| disk.total_space()) else { return };
        let usage = disk.usage();
        health.disk_free_space = i64::try_from(disk.available_space() >> 20).ok();
        health.disk_reads = i64::try_from(usage.total_read_bytes).ok();
        health.disk_writes = i64::try_from(usage.total_written_bytes).ok();
    }

    /// All interfaces but the loopback.
    fn measure_networks(&mut self, health: &mut Health) {
        let Some(networks) = &mut self.networks else { return };
        networks.refresh(true);
        let sum = |of: fn(&NetworkData) -> u64| {
            let real = networks.iter().filter(|(name, _)| *name != LOOPBACK);
            i64::try_from(real.map(|(_, data)| of(data)).fold(0, u64::saturating_add)).ok()
        };
        health.rx_bytes = sum(NetworkData::total_received);
        health.rx_packets = sum(NetworkData::total_packets_received);
        health.rx_errors = sum(NetworkData::total_errors_on_received);
        health.tx_bytes = sum(NetworkData::total_transmitted);
        health.tx_packets = sum(NetworkData::total_packets_transmitted);
        health.tx_errors = sum(NetworkData::total_errors_on_transmitted);
    }

    fn measure_process(&mut self, health: &mut Health) {
        let Some(system) = &mut self.system else { return };
        let kb = |bytes: u64| i32::try_from(bytes >> 10).ok();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        health.mem_free = kb(system.free_memory());
        health.mem_used = kb(system.used_memory());
        health.mem_available = kb(system.available_memory());
        let own = Pid::from_u32(std::process::id());
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
        let Some(process) = system.process(own) else { return };
        health.proc_cpu_usage = Some(hundredths(f64::from(process.cpu_usage()) / 100.0));
        health.proc_memory = kb(process.memory());
        health.proc_vmemory = kb(process.virtual_memory());
    }
}

/// A measure times 100, as a whole number; what is absurdly large is cut.
fn hundredths(value: f64) -> i32 {
    #[allow(clippy::cast_possible_truncation, reason = "a cast from float to integer saturates")]
    let whole = (value * 100.0).round() as i32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_nothing_mean_look() {
        let found = Capabilities { num_cpus: 4, mem_size: 100, model_name_cpu: "x".into(), ..Capabilities::default() };
        let said = Overrides { num_cpus: 40, labels: vec!["gpu".into()], ..Overrides::default() };
        let told = capabilities(found, &said, vec!["RUST_WASM".into()]);
        assert_eq!((told.num_cpus, told.mem_size, told.model_name_cpu.as_str()), (40, 100, "x"));
        assert_eq!(told.labels, ["gpu"]);
    }

    #[test]
    fn this_machine_has_something() {
        let found = detect();
        assert!(found.num_cpus > 0 && found.mem_size > 0, "{found:?}");
        let health = HealthMeter::default().measure();
        assert!(health.mem_available.is_some_and(|kb| kb > 0));
        assert!(health.rx_bytes.is_some() && health.tx_errors.is_some(), "{health:?}");
        // A container may show no disk at all.
        assert_eq!(health.disk_free_space.is_some(), health.disk_writes.is_some(), "{health:?}");
    }
}
