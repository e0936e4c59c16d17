//! Components that move, because an operator says so.
//!
//! ```text
//!  without state:  new replica -> wired -> takes over (rows) -> old one released -> new one activated
//!  with state:     row without it -> released, yields its state -> placed again with that -> row
//! ```
//! If the new place fails, the component goes on where it was, or runs wherever it can.

use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_daemon::engine::Ticket;

use super::component::Component;
use super::requests::ASKS;
use super::slot::{Fate, Place, Slot};
use super::{Answer, Engine, Note, Reply, Thing};
use crate::registry::Stage;

impl Engine {
    /// Lets nothing new be placed on a node, or lets it again. One that is gone is then cordoned when it comes back.
    pub(super) fn cordon(&mut self, node: NodeId, is_cordoned: bool) -> Answer {
        if !self.registry.knows(node) {
            return Err(unknown(node));
        }
        if self.registry.cordon(node, is_cordoned) {
            self.placer.nodes.set_cordoned(node, is_cordoned);
            self.is_outdated = true;
            self.note(Note::Cordoned { node, is_cordoned });
            if !is_cordoned {
                self.wake_homeless();
            }
        }
        Ok(Reply::Done)
    }

    /// Moves a component to a node; of several replicas one that is not there yet.
    pub(super) fn move_to(&mut self, ticket: Ticket, id: ComponentId, node: NodeId) {
        match self.movable(id).and_then(|()| self.is_open(node)).and_then(|()| self.mover_to(id, node)) {
            Ok(Some(replica)) => self.begin_move(ticket, id, replica, Some(node)),
            Ok(None) => self.reply(ticket, Ok(Reply::Done)),
            Err(error) => self.reply(ticket, Err(error)),
        }
    }

    /// Moves a replica away from a node, to wherever placement says.
    pub(super) fn evict(&mut self, ticket: Ticket, id: ComponentId, node: NodeId) {
        match self.mover_from(id, node) {
            Ok(Some(replica)) => match self.movable(id) {
                Ok(()) => self.begin_move(ticket, id, replica, None),
                Err(error) => self.reply(ticket, Err(error)),
            },
            Ok(None) => self.reply(ticket, Ok(Reply::Done)),
            Err(error) => self.reply(ticket, Err(error)),
        }
    }

    fn movable(&self, id: ComponentId) -> Result<(), Error> {
        let component = self.component(id).ok_or_else(|| super::requests::unknown(id))?;
        let name = &component.name;
        if component.is_leaving {
            return Err(Error::unavailable(format!("'{name}' is being stopped")));
        }
        if component.has_volumes() {
            return Err(Error::rejected(format!(
                "'{name}' has volumes, which stay on their node: stop the workflow and start it where it shall run"
            )));
        }
        Ok(())
    }

    /// Whether something can be moved to a node.
    fn is_open(&self, node: NodeId) -> Result<(), Error> {
        let known = self.registry.nodes.get(&node).ok_or_else(|| unknown(node))?;
        if self.registry.is_cordoned(node) {
            return Err(Error::rejected(format!("node {node} is cordoned: uncordon it first, or choose another")));
        }
        if known.stage != Stage::Ready {
            return Err(Error::unavailable(format!("node {node} is not ready yet: try again in a moment")));
        }
        Ok(())
    }

    /// The replica to be moved to a node; `None`: it is there.
    fn mover_to(&self, id: ComponentId, node: NodeId) -> Result<Option<u32>, Error> {
        let component = self.component(id).ok_or_else(|| super::requests::unknown(id))?;
        let is_there = |slot: &Slot| slot.home().is_some_and(|home| home.node == node);
        let mut under_way = component.slots.iter().filter(|(_, slot)| slot.pin == Some(node));
        if let Some((replica, _)) = under_way.next() {
            return Ok(Some(*replica));
        }
        let others = || component.slots.iter().filter(|(_, slot)| !is_there(slot));
        let free = others().find(|(replica, slot)| is_free(component, **replica, slot));
        match free {
            Some((replica, _)) => Ok(Some(*replica)),
            None if others().next().is_none() && !component.slots.is_empty() => Ok(None),
            None => Err(busy(component)),
        }
    }

    /// The replica to be moved away from a node; `None`: there is none.
    fn mover_from(&self, id: ComponentId, node: NodeId) -> Result<Option<u32>, Error> {
        let Some(component) = self.component(id) else { return Ok(None) };
        let is_there = |slot: &Slot| slot.home().is_some_and(|home| home.node == node);
        let there = || component.slots.iter().filter(|(_, slot)| is_there(slot));
        let free = there().find(|(replica, slot)| is_free(component, **replica, slot));
        let moving = || there().find(|(_, slot)| slot.instance().is_some() && slot.fate != Fate::Stay);
        let replaced = || there().find_map(|(replica, _)| component.successor(*replica));
        match free.or_else(moving).map(|(replica, _)| *replica).or_else(replaced) {
            Some(replica) => Ok(Some(replica)),
            None if there().next().is_none() => Ok(None),
            None => Err(busy(component)),
        }
    }

    fn begin_move(&mut self, ticket: Ticket, id: ComponentId, replica: u32, to: Option<NodeId>) {
        let Some(component) = self.component(id) else { return };
        let Some(slot) = component.slots.get(&replica) else { return };
        if !is_free(component, replica, slot) {
            // It is on its way already.
            match self.slot_mut(id, replica) {
                Some(slot) if slot.movers.len() < ASKS => slot.movers.push(ticket),
                _ => {
                    let reason = format!("{ASKS} requests to move component {id} wait already: try again later");
                    self.reply(ticket, Err(Error::exhausted(reason)));
                }
            }
            return;
        }
        // Before anything is done it is certain that there is a place.
        let heir = Slot { replaces: Some(replica), pin: to, movers: vec![ticket], ..Slot::new() };
        let may_overlap = component.may_overlap();
        let note =
            Note::Moving { component: id, name: component.name.clone(), from: slot.home().map(|home| home.node), to };
        if let Err(error) = self.has_place(id, component, &heir) {
            return self.reply(ticket, Err(error));
        }
        self.note(note);
        if may_overlap {
            self.add_slot(id, heir);
            return;
        }
        if let Some(slot) = self.slot_mut(id, replica) {
            slot.pin = to;
            slot.movers.push(ticket);
            slot.tried.extend(slot.home().filter(|_| to.is_none()));
        }
        self.let_go(id, replica, Fate::Move);
        self.refresh_row(id);
    }

    /// A replica is ready: events go to it from now on, and no longer to the one that it replaces.
    pub(super) fn take_over(&mut self, id: ComponentId, replica: u32, old: u32) {
        if let Some(slot) = self.slot_mut(id, replica) {
            slot.lane.recover();
        }
        self.let_go(id, old, Fate::Go);
        self.refresh_row(id);
        self.hurry(id);
    }

    /// A replica that should take the place of another cannot, or is lost: that one goes on, if it was not
    /// released yet.
    pub(super) fn give_way(&mut self, id: ComponentId, replica: u32, old: u32, error: Error) {
        let is_spared = self.spare(id, old);
        let Some(slot) = self.slot_mut(id, replica) else { return };
        if !is_spared {
            slot.replaces = None;
            slot.pin = None;
            slot.detour = Some(error);
            self.marked.insert(Thing::Slot(id, replica));
        } else if slot.instance().is_some() {
            let movers = std::mem::take(&mut slot.movers);
            slot.replaces = None;
            self.let_go(id, replica, Fate::Go);
            for ticket in movers {
                self.reply(ticket, Err(error.clone()));
            }
        } else {
            self.drop_slot(id, replica, &Err(error));
        }
        self.refresh_row(id);
    }

    /// Lets a replica stay that was about to go, and tells whether that was still possible.
    fn spare(&mut self, id: ComponentId, replica: u32) -> bool {
        let Some(slot) = self.slot_mut(id, replica) else { return false };
        if slot.instance().is_none_or(|instance| instance.releases > 0) {
            return false;
        }
        slot.fate = Fate::Stay;
        self.hurry(id);
        true
    }
}

/// Whether a replica runs, and nothing is about to happen to it.
fn is_free(component: &Component, replica: u32, slot: &Slot) -> bool {
    let is_on = matches!(slot.place, Place::On(_));
    let is_moving = slot.pin.is_some() || slot.replaces.is_some() || component.successor(replica).is_some();
    is_on && slot.fate == Fate::Stay && !is_moving
}

pub(super) fn unknown(node: NodeId) -> Error {
    Error::not_found(format!("node {node} is not known in this domain"))
}

fn busy(component: &Component) -> Error {
    let name = &component.name;
    match component.slots.len() {
        0 => {
            Error::rejected(format!("'{name}' does not run at present, and starts where its first event finds a place"))
        }
        _ => Error::unavailable(format!("'{name}' is being started or moved: try again in a moment")),
    }
}
