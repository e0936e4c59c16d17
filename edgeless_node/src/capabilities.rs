//! What the machine has, found out by looking, and how loaded it is.

use edgeless_api::node::{Capabilities, Health};
use serde::Deserialize;
use sysinfo::{Disks, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

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
}

impl Default for HealthMeter {
    fn default() -> Self {
        Self { system: System::new().ok(), disks: Disks::new_with_refreshed_list().ok() }
    }
}

impl HealthMeter {
    /// The load now; the use of the processor since the last look.
    pub fn measure(&mut self) -> Health {
        let load = System::load_average().ok();
        let load_avg = load.map(|load| [hundredths(load.one), hundredths(load.five), hundredths(load.fifteen)]);
        let free = self.disks.as_mut().and_then(|disks| {
            disks.refresh(false);
            // The largest is the one whose size the node announces.
            disks.iter().max_by_key(|disk| disk.total_space()).map(|disk| disk.available_space())
        });
        let disk_free_space = free.and_then(|bytes| i64::try_from(bytes >> 20).ok());
        let Some(system) = &mut self.system else { return Health { load_avg, disk_free_space, ..Health::default() } };
        let kb = |bytes: u64| i32::try_from(bytes >> 10).ok();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let own = Pid::from_u32(std::process::id());
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
        let process = system.process(own);
        Health {
            mem_free: kb(system.free_memory()),
            mem_used: kb(system.used_memory()),
            mem_available: kb(system.available_memory()),
            proc_cpu_usage: process.map(|process| hundredths(f64::from(process.cpu_usage()) / 100.0)),
            proc_memory: process.and_then(|process| kb(process.memory())),
            proc_vmemory: process.and_then(|process| kb(process.virtual_memory())),
            load_avg,
            disk_free_space,
            ..Health::default()
        }
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
        assert!(HealthMeter::default().measure().mem_available.is_some_and(|kb| kb > 0));
    }
}
