//! Nodes that stay away: killed and left dead, or stopped without an end and continued later.
//!
//! ```text
//!  the node with the most instances -> SIGKILL ------------------> all run elsewhere -> started again
//!                                   -> SIGSTOP -> all run elsewhere, later SIGCONT --> what it ran has ended
//! ```
//! The nodes themselves say what they run: the one that is away is not asked.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{NODES, PATIENCE, World, get, until};
use crate::programs::run;
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{millis, quantile};

/// How long a node that hangs stays away once all runs elsewhere.
const AWAY: Duration = Duration::from_secs(2);
/// The place of the first node among the daemons.
const FIRST: usize = 2;

/// What the outages took.
#[derive(Default)]
pub(super) struct Outages {
    /// From the end of a process until all runs elsewhere.
    killed: Vec<Duration>,
    /// From the moment in which a process stops answering until all runs elsewhere.
    silent: Vec<Duration>,
    /// From the moment in which it goes on until nothing is there twice.
    reconciled: Vec<Duration>,
}

impl Outages {
    /// Has `count` nodes killed and as many hang, one after the other, while nobody starts or stops workflows.
    pub(super) async fn of(world: &mut World, count: u32, say: impl Fn(&str)) -> Result<Self> {
        let mut outages = Self::default();
        for number in 1..=count {
            say(&format!("outage {number} of {count}: a node is killed"));
            let (began, place) = outages.kill(world).await.with_context(|| format!("outage {number}, killed"))?;
            outages.killed.push(began);
            world.places.get_mut(place).context("a node")?.start().await?;
            world.is_quiet().await.context("a node does not come back")?;
            say(&format!("outage {number} of {count}: a node hangs"));
            outages.hang(world).await.with_context(|| format!("outage {number}, silent"))?;
            world.is_quiet().await.context("a node does not come back")?;
        }
        Ok(outages)
    }

    async fn kill(&mut self, world: &mut World) -> Result<(Duration, usize)> {
        let wanted = world.wanted_now().await?;
        let node = world.fullest().await?;
        let began = Instant::now();
        world.places.get_mut(FIRST + node).context("a node")?.kill();
        let elsewhere = async || world.instances_without(Some(node)).await.is_ok_and(|count| count >= wanted);
        until(PATIENCE, elsewhere).await.context("not all runs elsewhere")?;
        Ok((began.elapsed(), FIRST + node))
    }

    async fn hang(&mut self, world: &mut World) -> Result<()> {
        let wanted = world.wanted_now().await?;
        let node = world.fullest().await?;
        let daemon = world.places.get(FIRST + node).and_then(|place| place.daemon.as_ref());
        let pid = daemon.context("a node that runs")?.pid();
        let began = Instant::now();
        signal("STOP", pid).await?;
        let elsewhere = async || world.instances_without(Some(node)).await.is_ok_and(|count| count >= wanted);
        let moved = until(PATIENCE, elsewhere).await.context("not all runs elsewhere");
        self.silent.push(began.elapsed());
        tokio::time::sleep(AWAY).await;
        // Whatever came of it, it is not left behind like this.
        signal("CONT", pid).await?;
        moved?;
        let began = Instant::now();
        let once = async || world.instances_without(None).await.is_ok_and(|count| count == wanted);
        until(PATIENCE, once).await.context("something is there twice")?;
        self.reconciled.push(began.elapsed());
        Ok(())
    }

    /// Adds what was measured.
    pub(super) fn report(&self, report: &mut Report) {
        if self.killed.is_empty() {
            return;
        }
        for (times, key, what, aim) in [
            (&self.killed, "recover_ms", "node_killed", "≤ 2 s"),
            (&self.silent, "recover_ms", "node_silent", "≤ keep-alive + 1 s"),
            (&self.reconciled, "reconcile_ms", "node_silent", "≤ 1 s"),
        ] {
            let said = match (key, what) {
                ("reconcile_ms", _) => "node that hung goes on, until nothing runs twice",
                (_, "node_killed") => "node killed and left dead, until all components run elsewhere",
                _ => "node hangs, until all components run elsewhere",
            };
            for (label, share) in [("p50", 0.5), ("p99", 0.99)] {
                let time = millis(quantile(times, share));
                let row = Row::new(
                    format!("{said}, {label}"),
                    Figure::new(format!("{key}_{label}.{what}"), time, Unit::Milliseconds),
                );
                report.add(if label == "p99" { row.aim(aim) } else { row });
            }
        }
    }
}

impl World {
    /// How many instances there should be.
    async fn wanted_now(&self) -> Result<u64> {
        Ok(self.wanted(self.workflows.list().await?.len()))
    }

    /// The number of the node that runs most.
    async fn fullest(&self) -> Result<usize> {
        let mut fullest = (0, 0);
        for node in 0..NODES {
            let url = self.metrics.get(node).context("a node")?;
            fullest = fullest.max((instances(&get(url, "/metrics").await?)?, node));
        }
        match fullest {
            (0, _) => bail!("no node runs anything"),
            (_, node) => Ok(node),
        }
    }

    /// How many instances the nodes say that they run, but for one that is not asked.
    async fn instances_without(&self, away: Option<usize>) -> Result<u64> {
        let mut sum = 0;
        for (node, url) in self.metrics.iter().enumerate() {
            if Some(node) != away {
                sum += instances(&get(url, "/metrics").await?)?;
            }
        }
        Ok(sum)
    }

    /// Returns when all nodes are part of the domain, and everything runs once.
    async fn is_quiet(&self) -> Result<()> {
        self.has_nodes().await?;
        let wanted = self.wanted_now().await?;
        until(PATIENCE, async || self.instances_without(None).await.is_ok_and(|count| count == wanted)).await
    }
}

/// How many instances run, by the metrics of a node.
pub(super) fn instances(text: &str) -> Result<u64> {
    let mut sum = 0;
    for line in text.lines().filter(|line| line.starts_with("function_count{")) {
        let value = line.rsplit_once(' ').context("a series without a value")?.1;
        sum += value.parse::<f64>()? as u64;
    }
    Ok(sum)
}

async fn signal(name: &str, pid: u32) -> Result<()> {
    run(Command::new("kill").args([&format!("-{name}"), &pid.to_string()])).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_counted_over_all_types() {
        let text = "function_count{a=\"1\"} 3\nother{} 7\nfunction_count{a=\"2\"} 4\n";
        assert_eq!(instances(text).unwrap(), 7);
        assert_eq!(instances("# nothing\n").unwrap(), 0);
        assert!(instances("function_count{a=\"1\"} x\n").is_err());
    }
}
