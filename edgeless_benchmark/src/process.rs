//! What the system says of a process.

use std::fs::read_to_string;
use std::time::Duration;

use anyhow::{Context, Result};

/// What Linux counts the time of processes in, on every machine.
const TICKS_PER_SECOND: u32 = 100;

/// Its resident memory, KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    status(pid, "VmRSS:")
}

/// Its threads.
pub(crate) fn threads(pid: u32) -> Result<u64> {
    status(pid, "Threads:")
}

/// The areas of its memory.
pub(crate) fn maps(pid: u32) -> Result<u64> {
    Ok(read_to_string(format!("/proc/{pid}/maps"))?.lines().count() as u64)
}

/// The processor time that it took so far, for itself and in the system.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program stands in parentheses, and may have blanks in it.
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/<pid>/stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks =
        || fields.next().context("no times in /proc/<pid>/stat")?.parse::<u32>().map_err(anyhow::Error::from);
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
}

fn status(pid: u32, key: &str) -> Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    let value = value.with_context(|| format!("no {key} in /proc/{pid}/status"))?;
    Ok(value.trim().trim_end_matches("kB").trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_time() {
        let own = std::process::id();
        assert!(resident_kib(own).unwrap() > 100 && threads(own).unwrap() >= 1 && maps(own).unwrap() > 10);
        while cpu(own).unwrap().is_zero() {
            std::hint::spin_loop();
        }
    }
}
