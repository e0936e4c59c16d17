//! A controller, or an orchestrator, that is killed and started again, while workflows run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use edgeless_api::WorkflowId;
use edgeless_api::status::{ComponentStatus, State};
use edgeless_inabox::{Cluster, Domain};

use super::cluster::{cast, status_of};
use super::programs::cli;
use super::support::{function, lines, relay_module, repository, resource, wait_until, workflow};
use super::world::World;

fn domain(id: &str) -> Domain {
    Domain::new(id).unwrap().labels(vec![vec![id.to_string()]])
}

/// A relay and a log, each in a domain; its log has a file of its own.
fn flow(first: &str, log: &str, file: &str) -> edgeless_api::workflow::Workflow {
    workflow(
        vec![function("first", &relay_module(), &[("out", "log")], &[("label_match_all", first)])],
        vec![resource("log", "file-log", &[], &[("filename", file), ("label_match_all", log)])],
    )
}

/// What must be the same before and after: where each component runs, as which instance, and how often it was placed.
async fn standing(cluster: &Cluster, workflow: WorkflowId) -> Vec<String> {
    let all = cluster.workflows().unwrap().status(workflow).await.unwrap_or_default();
    let line = |own: ComponentStatus| format!("{} {:?} {} {}", own.name, own.instance, own.epoch, own.restarts);
    all.into_iter().filter(|own| own.state == State::Running).map(line).collect()
}

async fn stand(cluster: &Cluster, ids: &[WorkflowId]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for id in ids {
        all.push(standing(cluster, *id).await);
    }
    all
}

/// One workflow in each of two domains and one across them: their events flow on while the controller is away and
/// when it is back, and it knows them as they were.
#[tokio::test(flavor = "multi_thread")]
async fn workflows_run_on_while_their_controller_is_killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(domain("right"));
    let mut cluster = cluster.start().await.unwrap();
    let (mut ids, mut firsts, mut logs) = (Vec::new(), Vec::new(), Vec::new());
    for (number, [first, log]) in [["left", "left"], ["right", "right"], ["left", "right"]].into_iter().enumerate() {
        let file = format!("log{number}");
        let started = cluster.workflows().unwrap().start(flow(first, log, &file), None).await.unwrap();
        firsts.push(status_of(&cluster, &started, "first").await.instance.unwrap());
        ids.push(started.workflow);
        logs.push(directory.path().join(file));
    }
    let before = stand(&cluster, &ids).await;
    assert!(before.iter().all(|all| all.len() == 2), "{before:?}");

    let mut sent = 0;
    for round in 0..3 {
        for _ in 0..100 {
            for first in &firsts {
                cast(&cluster, *first, &format!("event {sent}")).await;
            }
            sent += 1;
        }
        match round {
            0 => cluster.kill_controller().await,
            1 => {
                for log in &logs {
                    wait_until("events flow without a controller", || async { lines(log).len() == sent }).await;
                }
                cluster.restart_controller().await.unwrap();
            }
            _ => {}
        }
    }
    let mut known = cluster.workflows().unwrap().list().await.unwrap();
    known.sort();
    let mut expected = ids.clone();
    expected.sort();
    assert_eq!(known, expected);
    cluster.until_known().await.unwrap();
    wait_until("all is as it was", || async { stand(&cluster, &ids).await == before }).await;
    for log in &logs {
        wait_until("all events are logged", || async { lines(log).len() == sent }).await;
        assert_eq!(lines(log), (0..sent).map(|number| format!("event {number}")).collect::<Vec<_>>());
    }

    // They can be stopped, and nothing is left; and that is remembered, too.
    for id in &ids {
        cluster.workflows().unwrap().stop(*id).await.unwrap();
    }
    let is_empty = || async {
        let nodes = cluster.workflows().unwrap().nodes(None).await.unwrap_or_default();
        nodes.len() == 2 && nodes.iter().all(|node| node.components == 0)
    };
    wait_until("nothing runs any more", is_empty).await;
    cluster.restart_controller().await.unwrap();
    assert!(cluster.workflows().unwrap().list().await.unwrap().is_empty());
    cluster.stop().await;
}

/// Killed at any moment while users start and stop workflows: what was acknowledged is there, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_while_it_works_loses_nothing_that_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path()).start().await.unwrap();
    let mut acknowledged: Vec<WorkflowId> = Vec::new();
    let one = || workflow(vec![function("first", &relay_module(), &[], &[])], vec![]);
    for round in 0..5 {
        let workflows = cluster.workflows().unwrap();
        let (is_over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let user = tokio::spawn({
            let (is_over, count, mut own) = (is_over.clone(), count.clone(), acknowledged.clone());
            async move {
                while !is_over.load(Ordering::Relaxed) {
                    if let Ok(started) = workflows.start(one(), None).await {
                        own.push(started.workflow);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    // What was asked to end may be there or not.
                    if own.len() > 4 {
                        workflows.stop(own.remove(0)).await.ok();
                    }
                }
                own
            }
        });
        wait_until("some were acknowledged", || async { count.load(Ordering::Relaxed) > 3 + round }).await;
        cluster.kill_controller().await;
        is_over.store(true, Ordering::Relaxed);
        acknowledged = user.await.unwrap();
        cluster.restart_controller().await.unwrap();
        cluster.until_known().await.unwrap();
        let workflows = cluster.workflows().unwrap();
        let known = workflows.list().await.unwrap();
        assert!(acknowledged.iter().all(|id| known.contains(id)), "{acknowledged:?} are not all among {known:?}");
        // One may have been acknowledged to nobody, and one may have been asked to end.
        assert!(known.len() <= acknowledged.len() + 2, "{known:?}");
        wait_until("all that is known runs, and nothing else", || async {
            for id in &known {
                if standing(&cluster, *id).await.len() != 1 {
                    return false;
                }
            }
            let nodes = workflows.nodes(None).await.unwrap_or_default();
            nodes.iter().map(|node| node.components as usize).sum::<usize>() == known.len()
        })
        .await;
        for id in known.iter().filter(|id| !acknowledged.contains(id)) {
            workflows.stop(*id).await.unwrap();
        }
    }
    cluster.stop().await;
}

/// An orchestrator may be away as long as it likes: events flow, and when it is back it goes on with what runs. Nothing is
/// started again, no event is lost, and what is stopped then ends.
#[tokio::test(flavor = "multi_thread")]
async fn components_run_on_while_their_orchestrator_is_killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path()).nodes(2).start().await.unwrap();
    let (mut ids, mut firsts, mut logs) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..4 {
        let file = format!("log{number}");
        let flow = workflow(
            vec![function("first", &relay_module(), &[("out", "log")], &[])],
            vec![resource("log", "file-log", &[], &[("filename", &file)])],
        );
        let started = cluster.workflows().unwrap().start(flow, None).await.unwrap();
        firsts.push(status_of(&cluster, &started, "first").await.instance.unwrap());
        ids.push(started.workflow);
        logs.push(directory.path().join(file));
    }
    let before = stand(&cluster, &ids).await;
    assert!(before.iter().all(|all| all.len() == 2), "{before:?}");

    let mut sent = 0;
    for round in 0..4 {
        for _ in 0..100 {
            for first in &firsts {
                cast(&cluster, *first, &format!("event {sent}")).await;
            }
            sent += 1;
        }
        match round {
            0 => cluster.kill_orchestrator(0).await,
            1 => {
                for log in &logs {
                    wait_until("events flow without an orchestrator", || async { lines(log).len() == sent }).await;
                }
                cluster.restart_orchestrator(0).await.unwrap();
            }
            2 => {
                cluster.until_known().await.unwrap();
                wait_until("all is as it was", || async { stand(&cluster, &ids).await == before }).await;
                cluster.restart_orchestrator(0).await.unwrap();
            }
            _ => {}
        }
    }
    cluster.until_known().await.unwrap();
    wait_until("all is as it was", || async { stand(&cluster, &ids).await == before }).await;
    for log in &logs {
        wait_until("all events are logged", || async { lines(log).len() == sent }).await;
        assert_eq!(lines(log), (0..sent).map(|number| format!("event {number}")).collect::<Vec<_>>());
    }

    for id in &ids {
        cluster.workflows().unwrap().stop(*id).await.unwrap();
    }
    let is_empty = || async {
        let nodes = cluster.workflows().unwrap().nodes(None).await.unwrap_or_default();
        nodes.len() == 2 && nodes.iter().all(|node| node.components == 0)
    };
    wait_until("nothing runs any more", is_empty).await;
    cluster.stop().await;
}

/// Killed right after a start was acknowledged, again and again, and while others are being started and stopped: what
/// was acknowledged runs as the same instance, and nothing runs that nobody wants.
#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_killed_while_it_works_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path()).nodes(2).start().await.unwrap();
    let one = || workflow(vec![function("first", &relay_module(), &[], &[])], vec![]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        let started = cluster.workflows().unwrap().start(one(), None).await.unwrap();
        cluster.kill_orchestrator(0).await;
        // These are asked for while nobody is there, or just when somebody is again.
        let workflows = cluster.workflows().unwrap();
        let other = tokio::spawn(async move { workflows.start(one(), None).await });
        cluster.restart_orchestrator(0).await.unwrap();
        cluster.until_known().await.unwrap();
        ids.push(started.workflow);
        ids.extend(other.await.unwrap().ok().map(|started| started.workflow));
        let is_there = || async {
            let own = cluster.workflows().unwrap().status(started.workflow).await.unwrap_or_default();
            own.iter().any(|own| own.state == State::Running && own.epoch == 1 && own.restarts == 0)
        };
        wait_until("it runs, and was not started again", is_there).await;
    }
    let known = cluster.workflows().unwrap().list().await.unwrap();
    assert_eq!(known.len(), ids.len(), "{known:?} {ids:?}");
    let is_all = || async {
        let nodes = cluster.workflows().unwrap().nodes(None).await.unwrap_or_default();
        let components = nodes.iter().map(|node| node.components as usize).sum::<usize>();
        components == ids.len() && stand(&cluster, &ids).await.iter().all(|all| all.len() == 1)
    };
    wait_until("all runs that was acknowledged, and nothing else", is_all).await;
    for id in &ids {
        cluster.workflows().unwrap().stop(*id).await.unwrap();
        cluster.restart_orchestrator(0).await.unwrap();
    }
    let is_empty = || async {
        let nodes = cluster.workflows().unwrap().nodes(None).await.unwrap_or_default();
        nodes.len() == 2 && nodes.iter().all(|node| node.components == 0)
    };
    wait_until("nothing runs any more", is_empty).await;
    cluster.stop().await;
}

/// Controller, orchestrator and node end at once: they have kept what is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn a_platform_in_one_process_that_was_killed_runs_its_workflows_again() {
    let mut world = World::start();
    let noop = repository().join("functions/noop/function.json");
    cli(world.path(), &["function", "build", noop.to_str().unwrap()]);
    let example = repository().join("examples/noop/workflow.json");
    let uuid = cli(world.path(), &["workflow", "start", example.to_str().unwrap()]);
    world.kill();
    world.run();
    assert_eq!(cli(world.path(), &["workflow", "list"]), uuid);
    let shown = || cli(world.path(), &["workflow", "inspect", uuid.trim()]);
    wait_until("it runs again", || async { shown().contains("STATE noop -> running on") }).await;
    assert_eq!(world.interrupt(), Some(0));
}
