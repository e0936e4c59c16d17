//! An engine as it was when its process ended: what is desired, and who may run it.
//!
//! No node is known at first. A node that ran something is waited for: it tells what it still runs, which is taken
//! over. One that has not come after a while is lost like any that is silent.

use std::collections::BTreeSet;
use std::time::Duration;

use edgeless_api::Binary;
use edgeless_api::component::{ComponentSpec, Row};
use edgeless_api::domain_record as record;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::requirements::Requirements;
use edgeless_daemon::engine::Millis;

use super::component::{Component, Link};
use super::disk::{Disk, GONE, ROWS};
use super::leaving::Leaving;
use super::replicas::MEMORY;
use super::requests::{OPENS_AFTER, scale};
use super::scaling::Trend;
use super::slot::{Attempt, Fate, Instance, Place, Slot, Slots};
use super::{Engine, Settings, Thing};
use crate::registry::Home;

/// A node that finds no orchestrator tries again after this time at the latest. So much longer than for a silent node
/// is waited for one that was there before.
const RETURN: Duration = Duration::from_secs(4);
/// The rows of a process are newer than those of the one before: so many changes of a row are left to each.
const ROWS_EACH: u32 = 16;
/// A row may have changed this often since the record of its component was written.
const ROWS_SINCE: u64 = 1 << 10;

/// What was kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The domain itself.
    pub domain: record::Domain,
    /// The components, with their code.
    pub components: Vec<record::Component>,
    /// What has left for other domains.
    pub left: Vec<(ComponentId, record::Left)>,
    /// What is gone.
    pub gone: Vec<(ComponentId, record::Gone)>,
    /// The nodes that the domain has seen.
    pub nodes: Vec<(NodeId, record::Node)>,
    /// Where components of other domains run.
    pub rows: Vec<Row>,
}

/// The code that a component is made of.
pub(crate) fn code(spec: &ComponentSpec) -> Option<&Binary> {
    match spec {
        ComponentSpec::Function(function) => Some(&function.class.binary).filter(|binary| !binary.is_empty()),
        ComponentSpec::Resource(_) => None,
    }
}

impl Engine {
    /// An engine that goes on from what was kept, and has kept whatever must not be forgotten.
    ///
    /// # Errors
    /// What was kept contradicts itself.
    pub fn restore(settings: Settings, kept: Kept) -> Result<Self, Error> {
        let mut engine = Self::new(settings);
        engine.domain = kept.domain;
        engine.disk = Some(Box::new(Disk::new(kept.domain)));
        engine.settles_at = Millis::default() + engine.settings.keep_alive + RETURN;
        for (id, node) in kept.nodes {
            engine.registry.restore(id, node);
        }
        for (id, left) in kept.left {
            engine.left.restore(id, left);
        }
        for row in kept.rows {
            engine.disk.iter_mut().for_each(|disk| disk.has_link(ROWS, row.component));
            engine.foreign.insert(row.component, row);
        }
        for (id, gone) in kept.gone {
            engine.restore_gone(id, gone);
        }
        for component in kept.components {
            let id = component.context.component;
            engine.restore_component(component).map_err(|error| error.context(format!("component {id}")))?;
        }
        Ok(engine)
    }

    /// What rows of a component begin with, whose controller has named this epoch.
    pub(super) fn rows_from(&self, wanted_epoch: u64) -> u64 {
        wanted_epoch.saturating_mul(1 << 32).saturating_add(self.domain.restarts << ROWS_EACH)
    }

    fn restore_gone(&mut self, id: ComponentId, gone: record::Gone) {
        if let Some(disk) = &mut self.disk {
            disk.has_link(GONE, id);
        }
        let kept_until = Millis::default() + MEMORY;
        let link = Link { last_epoch: gone.epoch, last_row: gone.row_epoch, kept_until, ..Link::default() };
        self.links.insert(id, link);
        self.timers.insert((kept_until, Thing::Component(id)));
    }

    fn restore_component(&mut self, record: record::Component) -> Result<(), Error> {
        let (id, name, wanted_epoch) = (record.context.component, record.context.name, record.context.epoch);
        if let Some(disk) = &mut self.disk {
            disk.has(id, code(&record.spec).map(Binary::digest));
        }
        let mut slots = Slots::default();
        for replica in record.replicas {
            if let Some((node, _)) = replica.place {
                self.awaited.entry(node).or_default().insert((id, replica.replica));
            }
            slots.insert(replica.replica, restored(replica));
        }
        let loss = record.loss.map(Error::not_found);
        let leaving = record.leaving_grace.filter(|_| record.is_leaving);
        let leaving = leaving.map(|grace| Leaving { grace, state: None, loss: loss.clone() });
        // It was to emit after a time that is over.
        let opens = record.is_born && !record.is_held && !record.is_wanted_active;
        let row_epoch = record.row_epoch.saturating_add(ROWS_SINCE).max(self.rows_from(wanted_epoch));
        let component = Component {
            requirements: Requirements::parse(record.spec.annotations()).map_err(Error::rejected)?,
            scale: scale(&name, &record.spec)?,
            spec: record.spec,
            name,
            wanted: record.wanted,
            wanted_epoch,
            outputs: Default::default(),
            is_wanted_active: record.is_wanted_active,
            is_held: record.is_held,
            opens_at: opens.then(|| Millis::default() + OPENS_AFTER),
            is_leaving: record.is_leaving,
            loss: loss.filter(|_| leaving.is_none()),
            leaving,
            state: record.context.state,
            slots,
            epoch: record.epoch,
            first_epoch: record.first_epoch,
            listed: Vec::new(),
            is_moving: false,
            row_epoch,
            row_since: Millis::default(),
            is_born: record.is_born,
            refusal: None,
            saved: record.saved,
            doubted: BTreeSet::new(),
            trend: Trend::default(),
            asks: Vec::new(),
        };
        self.components.insert(id, component);
        self.await_keeper(id);
        self.set_outputs(id, record.outputs);
        if record.is_exported {
            self.exported.insert(id);
        }
        self.marked.insert(Thing::Component(id));
        self.mark_slots(id);
        self.refresh_row(id);
        Ok(())
    }

    /// Whether a replica ran on a node that has not come yet.
    pub(super) fn is_awaited(&self, home: Home) -> bool {
        self.awaited.contains_key(&home.node) && self.registry.at(home).is_none()
    }

    /// Nodes that have not come since the restart are lost.
    pub(super) fn end_wait(&mut self) {
        if self.now < self.settles_at {
            return;
        }
        for (node, residents) in std::mem::take(&mut self.awaited) {
            self.lose_all(residents, node, "it has not come back since the orchestrator was restarted");
        }
    }
}

/// A replica whose node is not known yet.
fn restored(record: record::Replica) -> Slot {
    let place = match record.place {
        None => Place::Nowhere,
        Some((node, instance)) => {
            let home = Home { node, incarnation: 0 };
            // It may have been started, or is being started yet.
            let attempt = Attempt { home, provider: record.provider, unanswered: 1 };
            instance.map_or(Place::Trying(attempt), |function| {
                Place::On(Instance::new(home, InstanceId { node, function }, None, false))
            })
        }
    };
    Slot {
        fate: match record.fate {
            record::Fate::Stay => Fate::Stay,
            record::Fate::Move => Fate::Move,
            record::Fate::Go => Fate::Go,
        },
        replaces: record.replaces,
        saved: record.saved,
        place,
        epoch: record.epoch,
        outdated: record.outdated,
        ..Slot::new()
    }
}
