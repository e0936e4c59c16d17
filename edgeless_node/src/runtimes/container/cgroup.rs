//! What the kernel has for a container and what the container uses, read from its control groups.
//!
//! Versions 1 and 2 of control groups are read alike, also beside each other: a machine may have some
//! controllers in the one and some in the other. What a container was *asked* to have is of no interest here; a
//! limit counts when the kernel names it.
//!
//! Decoding is pure and the reading around it thin. Version 1 is tested on containers, version 2 on files as the kernel
//! documents them and not live, because the controllers of a machine are in one version at a time and those of ours
//! are in version 1.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The control groups of a container, found once: they keep their places for as long as it runs, whatever becomes of
/// the process they were found by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cgroup {
    cpu: Option<Controller>,
    cpuacct: Option<Controller>,
    cpuset: Option<Controller>,
    memory: Option<Controller>,
    pids: Option<Controller>,
}

/// The folder in which one controller has its files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Controller {
    V1(PathBuf),
    V2(PathBuf),
}

/// The limits that the kernel has. `None` is no limit, or a controller that this machine does without.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kernel {
    /// The most CPU time per time, in cores.
    pub(super) cpu: Option<f64>,
    /// Its part of the CPU when there is not enough for all: 1024 is that of one nobody has said anything about.
    pub(super) cpu_shares: Option<u64>,
    /// The most memory, in bytes.
    pub(super) memory: Option<u64>,
    /// The most swap beside the memory, in bytes.
    pub(super) swap: Option<u64>,
    /// The most processes and threads.
    pub(super) pids: Option<u64>,
    /// The CPUs it may run on, as a list such as `0-2,7`.
    pub(super) cpuset: Option<String>,
}

/// What a container has used, or uses. `None`: a controller that this machine does without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// CPU time since its start.
    pub(super) cpu: Option<Duration>,
    /// Memory now, in bytes, without the part of the file cache that nobody has asked for lately: the number
    /// that `docker stats` shows.
    pub(super) memory: Option<u64>,
    /// Processes and threads now: what [`Kernel::pids`] limits.
    pub(super) pids: Option<u64>,
    /// How often the kernel has killed a process of it because its memory was full.
    pub(super) oom_kills: Option<u64>,
}

impl Cgroup {
    /// Finds the control groups of the container of this process.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let found = find(&groups, &mounts);
        if found == Self::default() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup of the container is mounted here"));
        }
        Ok(found)
    }

    /// The limits that the kernel has now.
    pub(super) fn kernel(&self) -> io::Result<Kernel> {
        let (memory, swap) = self.memory_limits()?;
        let pids = match &self.pids {
            Some(pids) => read(pids.path(), "pids.max")?.as_deref().and_then(limit),
            None => None,
        };
        let cpuset = match &self.cpuset {
            // Empty, in version 2: those of its parent.
            Some(cpuset) => read(cpuset.path(), "cpuset.cpus")?.filter(|cpus| !cpus.is_empty()),
            None => None,
        };
        Ok(Kernel { cpu: self.cpu_limit()?, cpu_shares: self.shares()?, memory, swap, pids, cpuset })
    }

    fn cpu_limit(&self) -> io::Result<Option<f64>> {
        Ok(match &self.cpu {
            Some(Controller::V1(path)) => {
                let (quota, period) = (read(path, "cpu.cfs_quota_us")?, read(path, "cpu.cfs_period_us")?);
                quota.zip(period).and_then(|(quota, period)| cores(&quota, &period))
            }
            Some(Controller::V2(path)) => {
                let max = read(path, "cpu.max")?;
                max.as_deref().and_then(|max| max.split_once(' ')).and_then(|(quota, period)| cores(quota, period))
            }
            None => None,
        })
    }

    fn shares(&self) -> io::Result<Option<u64>> {
        Ok(match &self.cpu {
            Some(Controller::V1(path)) => read(path, "cpu.shares")?.as_deref().and_then(limit),
            Some(Controller::V2(path)) => read(path, "cpu.weight")?.as_deref().and_then(limit).map(shares),
            None => None,
        })
    }

    fn memory_limits(&self) -> io::Result<(Option<u64>, Option<u64>)> {
        Ok(match &self.memory {
            Some(Controller::V1(path)) => {
                let memory = read(path, "memory.limit_in_bytes")?.as_deref().and_then(limit);
                // Of both together. The file is there if the kernel counts swap.
                let both = read(path, "memory.memsw.limit_in_bytes")?.as_deref().and_then(limit);
                (memory, both.zip(memory).map(|(both, memory)| both.saturating_sub(memory)))
            }
            Some(Controller::V2(path)) => {
                let memory = read(path, "memory.max")?.as_deref().and_then(limit);
                (memory, read(path, "memory.swap.max")?.as_deref().and_then(limit))
            }
            None => (None, None),
        })
    }

    /// Gives the container its part of the CPU, and returns what the kernel then has: in version 2 the nearest
    /// that its coarser scale has.
    ///
    /// The kernel is told by us and not by the container runtime, because runtimes translate to version 2 in ways that do
    /// not keep what a weight means: see [`weight`]. A later update through the engine undoes it.
    pub(super) fn set_shares(&self, wanted: u64) -> io::Result<u64> {
        match &self.cpu {
            Some(Controller::V1(path)) => std::fs::write(path.join("cpu.shares"), wanted.to_string())?,
            Some(Controller::V2(path)) => std::fs::write(path.join("cpu.weight"), weight(wanted).to_string())?,
            None => return Err(io::Error::new(io::ErrorKind::Unsupported, "the container has no cgroup for the CPU")),
        }
        self.shares()?.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel names no CPU weight"))
    }

    /// What it has used and uses.
    pub(super) fn usage(&self) -> io::Result<Usage> {
        let cpu = match &self.cpuacct {
            Some(Controller::V1(path)) => {
                read(path, "cpuacct.usage")?.and_then(|time| time.parse().ok()).map(Duration::from_nanos)
            }
            Some(Controller::V2(path)) => {
                read(path, "cpu.stat")?.and_then(|stat| field(&stat, "usage_usec")).map(Duration::from_micros)
            }
            None => None,
        };
        let (files, memory) = match &self.memory {
            Some(Controller::V1(path)) => {
                (Some(("memory.usage_in_bytes", "total_inactive_file", "memory.oom_control")), Some(path))
            }
            Some(Controller::V2(path)) => (Some(("memory.current", "inactive_file", "memory.events")), Some(path)),
            None => (None, None),
        };
        let mut usage = Usage { cpu, ..Usage::default() };
        if let Some(((used, inactive, events), path)) = files.zip(memory) {
            let inactive = read(path, "memory.stat")?.and_then(|stat| field(&stat, inactive)).unwrap_or(0);
            let used = read(path, used)?.and_then(|used| used.parse::<u64>().ok());
            usage.memory = used.map(|used| used.saturating_sub(inactive));
            usage.oom_kills = read(path, events)?.and_then(|events| field(&events, "oom_kill"));
        }
        if let Some(pids) = &self.pids {
            usage.pids = read(pids.path(), "pids.current")?.and_then(|pids| pids.parse().ok());
        }
        Ok(usage)
    }
}

impl Controller {
    fn path(&self) -> &Path {
        match self {
            Self::V1(path) | Self::V2(path) => path,
        }
    }
}

/// A file of a control group. `None`: this kernel, or this group, has none of that name.
fn read(folder: &Path, name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(folder.join(name)) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        // The folder itself is gone with the container, and that is another matter.
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Version 1 writes "no limit" as the largest number of whole pages, and -1 elsewhere; version 2 as `max`.
fn limit(text: &str) -> Option<u64> {
    const UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;
    text.parse().ok().filter(|limit| *limit < UNLIMITED)
}

fn cores(quota: &str, period: &str) -> Option<f64> {
    // In microseconds, and never more than 32 bits.
    let (quota, period) = (quota.parse::<u32>().ok()?, period.parse::<u32>().ok()?);
    (period > 0).then(|| f64::from(quota) / f64::from(period))
}

/// A number in a file of lines `name value`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(found, _)| *found == name);
    line.and_then(|(_, value)| value.trim().parse().ok())
}

/// What somebody has whom nobody has given a weight, in version 1 and in version 2.
const NORMAL: (u64, u64) = (1024, 100);

/// The weight of version 2 (1 to 10000) for shares of version 1 (2 to 262144), in proportion.
///
/// 512 beside 1024 is a third beside two thirds, and 1024 is as much as somebody has who has no weight. Neither
/// is so after the translation of a container runtime:
///
/// | shares | here | runc to 1.3.1, crun to 1.22 | runc from 1.3.2, crun from 1.23 |
/// |---|---|---|---|
/// | 512 | 50 | 20 | 59 |
/// | 1024 | 100 | 39 | 100 |
/// | 512 beside 1024 | 33.3 % | 33.9 % | 37.1 % |
/// | 1024 beside somebody without a weight | 50 % | 28.1 % | 50 % |
///
/// What lies beyond the scale of version 2, above 102400 and below 11, is at its end.
pub(super) fn weight(shares: u64) -> u64 {
    let (normal_shares, normal_weight) = NORMAL;
    let scaled = shares.saturating_mul(normal_weight).saturating_add(normal_shares / 2) / normal_shares;
    scaled.clamp(1, 10_000)
}

/// The shares of version 1 for a weight of version 2.
pub(super) fn shares(weight: u64) -> u64 {
    let (normal_shares, normal_weight) = NORMAL;
    let scaled = weight.saturating_mul(normal_shares).saturating_add(normal_weight / 2) / normal_weight;
    scaled.clamp(2, 262_144)
}

/// Where the controllers of a process have their files, from its `/proc/PID/cgroup` and the reader's
/// `/proc/self/mountinfo`.
fn find(groups: &str, mounts: &str) -> Cgroup {
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let mut unified = None;
    let mut found = Cgroup::default();
    // ID:CONTROLLERS:PATH, and 0::PATH for version 2.
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            unified = mounts.iter().filter(|mount| mount.controllers.is_none()).find_map(|mount| mount.folder(path));
            continue;
        }
        for name in controllers.split(',') {
            let place = match name {
                "cpu" => &mut found.cpu,
                "cpuacct" => &mut found.cpuacct,
                "cpuset" => &mut found.cpuset,
                "memory" => &mut found.memory,
                "pids" => &mut found.pids,
                _ => continue,
            };
            let has = |mount: &&Mount| mount.controllers.is_some_and(|all| all.split(',').any(|other| other == name));
            *place = mounts.iter().filter(has).find_map(|mount| mount.folder(path)).map(Controller::V1);
        }
    }
    // What is not in version 1 is in version 2, if anywhere; a file that is not there says so later.
    if let Some(folder) = unified {
        let places = [&mut found.cpu, &mut found.cpuacct, &mut found.cpuset, &mut found.memory, &mut found.pids];
        for place in places.into_iter().filter(|place| place.is_none()) {
            *place = Some(Controller::V2(folder.clone()));
        }
    }
    found
}

/// A mount of control groups.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    /// The group that is seen at the mount point: not `/` inside a container.
    root: &'a str,
    point: String,
    /// `None` for version 2. Version 1 names them among the options.
    controllers: Option<&'a str>,
}

impl<'a> Mount<'a> {
    /// Reads a line of `mountinfo`: `ID PARENT DEVICE ROOT POINT OPTIONS [TAGS…] - TYPE SOURCE OPTIONS`.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let (mut mount, mut file_system) = (mount.split(' ').skip(3), file_system.split(' '));
        let (root, point) = (mount.next()?, mount.next()?);
        let (kind, _source) = (file_system.next()?, file_system.next()?);
        let controllers = match kind {
            "cgroup" => Some(file_system.next()?),
            "cgroup2" => None,
            _ => return None,
        };
        // The kernel writes a space in a path like this; other escapes do not occur in what systems call a mount point.
        Some(Self { root, point: point.replace("\\040", " "), controllers })
    }

    /// Where a group has its files below this mount, if it is seen there at all.
    fn folder(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(self.root).ok()?;
        // Outside of the reader's namespace: it begins with "/..", and the files are out of reach.
        let inside = !below.components().any(|component| component == std::path::Component::ParentDir);
        inside.then(|| Path::new(&self.point).join(below))
    }
}

#[cfg(test)]
mod tests {
    use super::super::live::{Engine, wait_for};
    use super::*;

    /// A weight must mean what it says, which is why it is not left to the container runtime.
    #[test]
    fn half_the_shares_are_half_the_weight() {
        // (l² + 125 l) / 612 - 7/34 with l = log2(shares), the exponent of ten: runc 1.3.2 and crun 1.23.
        let by_new_runtimes = |shares: u64| {
            let l = (shares as f64).log2();
            10_f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        };
        let by_old_runtimes = |shares: u64| 1 + ((shares - 2) * 9999) / 262_142;
        let table = [
            // shares, ours, old runtimes, new runtimes
            (2, 1, 1, 1),
            (102, 10, 4, 17),
            (256, 25, 10, 35),
            (512, 50, 20, 59),
            (1024, 100, 39, 100),
            (2000, 195, 77, 170),
            (2048, 200, 79, 174),
            (10_240, 1000, 391, 639),
            (262_144, 10_000, 10_000, 10_000),
        ];
        for (shares, ours, old, new) in table {
            let all = (shares, weight(shares), by_old_runtimes(shares), by_new_runtimes(shares));
            assert_eq!(all, (shares, ours, old, new));
        }
        let per_mille = |a: u64, b: u64| (a * 1000 + (a + b) / 2) / (a + b);
        assert_eq!(per_mille(weight(512), weight(1024)), 333, "a third beside two thirds");
        assert_eq!(per_mille(by_new_runtimes(512), by_new_runtimes(1024)), 371);
        // The old ones keep that ratio, but not the one to those who have no weight and thus 100.
        assert_eq!(per_mille(by_old_runtimes(512), by_old_runtimes(1024)), 339);
        assert_eq!(per_mille(weight(1024), 100), 500, "1024 is normal");
        assert_eq!(per_mille(by_old_runtimes(1024), 100), 281);
    }

    #[test]
    fn shares_survive_the_way_to_a_weight_and_back() {
        for (asked, read_back) in [(2, 10), (10, 10), (512, 512), (1000, 1004), (1024, 1024), (4096, 4096)] {
            assert_eq!(shares(weight(asked)), read_back, "of {asked}");
        }
        assert_eq!(shares(weight(u64::MAX)), 102_400);
        assert_eq!(shares(u64::MAX), 262_144);
        assert_eq!(weight(0), 1);
    }

    #[test]
    fn limits_are_none_when_there_is_none() {
        let table = [
            ("max", None),
            ("-1", None),
            ("9223372036854771712", None),
            ("9223372036854775807", None),
            ("", None),
            ("67108864", Some(67_108_864)),
            ("0", Some(0)),
        ];
        for (text, expected) in table {
            assert_eq!(limit(text), expected, "{text:?}");
        }
        let table = [
            ("-1", "100000", None),
            ("max", "100000", None),
            ("50000", "100000", Some(0.5)),
            ("250000", "100000", Some(2.5)),
            ("50000", "0", None),
        ];
        for (quota, period, expected) in table {
            assert_eq!(cores(quota, period), expected, "{quota} of {period}");
        }
    }

    const V1_MOUNTS: &str = "\
22 26 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
31 22 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:11 - cgroup cgroup rw,cpuset,clone_children
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";
    const V1_GROUPS: &str = "\
9:name=systemd:/docker/0a6d
8:pids:/docker/0a6d
4:memory:/docker/0a6d
3:cpuset:/docker/0a6d
1:cpu,cpuacct:/docker/0a6d
0::/docker/0a6d
";

    fn v1(path: &str) -> Option<Controller> {
        Some(Controller::V1(PathBuf::from(path)))
    }

    fn v2(path: &str) -> Option<Controller> {
        Some(Controller::V2(PathBuf::from(path)))
    }

    #[test]
    fn version_1_has_a_folder_for_each_controller() {
        let expected = Cgroup {
            cpu: v1("/sys/fs/cgroup/cpu,cpuacct/docker/0a6d"),
            cpuacct: v1("/sys/fs/cgroup/cpu,cpuacct/docker/0a6d"),
            cpuset: v1("/sys/fs/cgroup/cpuset/docker/0a6d"),
            memory: v1("/sys/fs/cgroup/memory/docker/0a6d"),
            pids: v1("/sys/fs/cgroup/pids/docker/0a6d"),
        };
        assert_eq!(find(V1_GROUPS, V1_MOUNTS), expected);
    }

    #[test]
    fn version_2_has_one_folder() {
        let mounts =
            "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
        let folder = v2("/sys/fs/cgroup/system.slice/docker-0a6d.scope");
        let expected = Cgroup {
            cpu: folder.clone(),
            cpuacct: folder.clone(),
            cpuset: folder.clone(),
            memory: folder.clone(),
            pids: folder,
        };
        assert_eq!(find("0::/system.slice/docker-0a6d.scope\n", mounts), expected);
    }

    #[test]
    fn a_machine_may_have_both_versions() {
        let groups = "4:memory:/docker/0a6d\n0::/docker/0a6d\n";
        let found = find(groups, V1_MOUNTS);
        assert_eq!(found.memory, v1("/sys/fs/cgroup/memory/docker/0a6d"));
        assert_eq!(found.pids, v2("/sys/fs/cgroup/unified/docker/0a6d"));
    }

    /// A node in a container sees its own group as the root of the mount, or of everything.
    #[test]
    fn a_group_is_looked_for_below_what_is_mounted() {
        let mount = |root| Mount { root, point: "/sys/fs/cgroup".to_string(), controllers: None };
        let table = [
            ("/", "/docker/a", Some("/sys/fs/cgroup/docker/a")),
            ("/", "/", Some("/sys/fs/cgroup/")),
            ("/docker/node", "/docker/node/a", Some("/sys/fs/cgroup/a")),
            ("/docker/node", "/docker/a", None),
            ("/docker/no", "/docker/node", None),
            ("/", "/../a", None),
        ];
        for (root, group, expected) in table {
            assert_eq!(mount(root).folder(group), expected.map(PathBuf::from), "{group} in {root}");
        }
    }

    #[test]
    fn what_is_not_a_mount_of_control_groups_is_passed_over() {
        for line in ["", "22", "22 26 0:20 / /sys rw - sysfs sysfs rw", "22 26 0:20 / /a rw - cgroup", "no dash at all"]
        {
            assert_eq!(Mount::parse(line), None, "{line:?}");
        }
        let spaced = Mount::parse("1 2 0:3 / /a\\040b rw - cgroup2 none rw");
        assert_eq!(spaced.map(|mount| mount.point).as_deref(), Some("/a b"));
        assert_eq!(find("nonsense\n\n7\n1:cpu\n", V1_MOUNTS), Cgroup::default());
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn cgroup(controller: impl Fn(PathBuf) -> Controller, folder: &tempfile::TempDir) -> Cgroup {
        let all = Some(controller(folder.path().to_path_buf()));
        Cgroup { cpu: all.clone(), cpuacct: all.clone(), cpuset: all.clone(), memory: all.clone(), pids: all }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn version_1_is_read() {
        let folder = folder(&[
            ("cpu.cfs_quota_us", "150000\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.shares", "512\n"),
            ("memory.limit_in_bytes", "67108864\n"),
            ("memory.memsw.limit_in_bytes", "100663296\n"),
            ("pids.max", "64\n"),
            ("cpuset.cpus", "0-1\n"),
            ("cpuacct.usage", "1500000000\n"),
            ("memory.usage_in_bytes", "10485760\n"),
            ("memory.stat", "cache 3145728\ninactive_file 1\ntotal_inactive_file 2097152\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("pids.current", "5\n"),
        ]);
        let cgroup = cgroup(Controller::V1, &folder);
        let expected = Kernel {
            cpu: Some(1.5),
            cpu_shares: Some(512),
            memory: Some(64 * MIB),
            swap: Some(32 * MIB),
            pids: Some(64),
            cpuset: Some("0-1".to_string()),
        };
        assert_eq!(cgroup.kernel().unwrap(), expected);
        let expected =
            Usage { cpu: Some(Duration::from_millis(1500)), memory: Some(8 * MIB), pids: Some(5), oom_kills: Some(3) };
        assert_eq!(cgroup.usage().unwrap(), expected);
        assert_eq!(cgroup.set_shares(2048).unwrap(), 2048);
    }

    #[test]
    fn version_2_is_read() {
        let folder = folder(&[
            ("cpu.max", "150000 100000\n"),
            ("cpu.weight", "50\n"),
            ("cpu.stat", "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n"),
            ("memory.max", "67108864\n"),
            ("memory.swap.max", "33554432\n"),
            ("memory.current", "10485760\n"),
            ("memory.stat", "anon 1\ninactive_file 2097152\n"),
            ("memory.events", "low 0\nhigh 0\nmax 12\noom 4\noom_kill 3\noom_group_kill 0\n"),
            ("pids.max", "64\n"),
            ("pids.current", "5\n"),
            ("cpuset.cpus", "0-1\n"),
        ]);
        let cgroup = cgroup(Controller::V2, &folder);
        let expected = Kernel {
            cpu: Some(1.5),
            cpu_shares: Some(512),
            memory: Some(64 * MIB),
            swap: Some(32 * MIB),
            pids: Some(64),
            cpuset: Some("0-1".to_string()),
        };
        assert_eq!(cgroup.kernel().unwrap(), expected);
        let expected =
            Usage { cpu: Some(Duration::from_millis(1500)), memory: Some(8 * MIB), pids: Some(5), oom_kills: Some(3) };
        assert_eq!(cgroup.usage().unwrap(), expected);
        assert_eq!(cgroup.set_shares(2048).unwrap(), 2048);
        assert_eq!(std::fs::read_to_string(folder.path().join("cpu.weight")).unwrap(), "200");
    }

    #[test]
    fn nothing_is_limited_where_nothing_is_said() {
        let folder = folder(&[
            ("cpu.max", "max 100000\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "max\n"),
            ("pids.max", "max\n"),
            ("cpuset.cpus", "\n"),
        ]);
        assert_eq!(cgroup(Controller::V2, &folder).kernel().unwrap(), Kernel::default());
        assert_eq!(cgroup(Controller::V1, &folder).kernel().unwrap(), Kernel::default());
        assert_eq!(cgroup(Controller::V2, &folder).usage().unwrap(), Usage::default());
    }

    /// No file in a folder is "this kernel does without"; no folder is a container that has ended.
    #[test]
    fn a_container_that_has_ended_is_an_error() {
        let folder = folder(&[]);
        let cgroup = cgroup(Controller::V2, &folder);
        folder.close().unwrap();
        assert_eq!(cgroup.kernel().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(cgroup.usage().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(Cgroup::of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_container_has_what_it_was_given() {
        let Some(engine) = Engine::find() else { return };
        let options = [
            ["--cpus", "0.5"],
            ["--cpu-shares", "512"],
            ["--memory", "64m"],
            ["--memory-swap", "96m"],
            ["--pids-limit", "32"],
            ["--cpuset-cpus", "0"],
        ];
        let container = engine.run(options.as_flattened(), &["sleep", "1000"]);
        let cgroup = Cgroup::of(container.pid()).unwrap();
        assert_eq!(cgroup.set_shares(256).unwrap(), 256);
        let kernel = cgroup.kernel().unwrap();
        let expected = Kernel {
            cpu: Some(0.5),
            cpu_shares: Some(256),
            memory: Some(64 * MIB),
            // Not where the kernel counts no swap, or the engine thinks so.
            swap: kernel.swap.map(|_| 32 * MIB),
            pids: Some(32),
            cpuset: Some("0".to_string()),
        };
        assert_eq!(kernel, expected);
        let usage = cgroup.usage().unwrap();
        assert!(usage.cpu.is_some_and(|time| time > Duration::ZERO), "{usage:?}");
        assert!(usage.memory.is_some_and(|memory| (1..64 * MIB).contains(&memory)), "{usage:?}");
        assert_eq!((usage.pids, usage.oom_kills), (Some(1), Some(0)));
        drop(container);
        assert!(cgroup.kernel().is_err());
    }

    #[test]
    fn a_process_that_is_killed_for_its_memory_is_counted() {
        let Some(engine) = Engine::find() else { return };
        // The last line of an endless line does not end.
        let greedy = "/busybox tail /dev/zero; /busybox sleep 1000";
        let container = engine.run(&["--memory", "16m", "--memory-swap", "16m"], &["sh", "-c", greedy]);
        let cgroup = Cgroup::of(container.pid()).unwrap();
        wait_for("the kernel kills it", || cgroup.usage().unwrap().oom_kills.filter(|kills| *kills == 1));
    }
}
