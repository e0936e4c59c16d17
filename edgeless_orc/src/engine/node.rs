//! Nodes: how they come, are made part of the domain, and go.
//!
//! A new node may still run what someone before us started: it is asked what that is, which is then taken over or
//! stopped, or it is reset if it cannot tell. Only then is anything placed on it. Our nodes learn of each other from rows; where one of two
//! nodes speaks only EDGELESS 1.2, each is told about the other first, at its own pace.

use std::collections::BTreeSet;

use edgeless_api::component::{ComponentKind, ComponentRef};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::node::{PeerUpdate, Registered, Registration};

use super::lane::Gate;
use super::{Answer, Call, Effect, Engine, Job, Management, Note, Op, Outcome, Reply, Thing};
use crate::registry::{Arrival, Home, Refusal, Stage, Stray};

const RESTARTED: &str = "it was restarted";
pub(super) const SAID_GOODBYE: &str = "it said goodbye";

/// Whether the call may have had its effect for all we know.
pub(super) fn is_unknown(error: &Error) -> bool {
    matches!(error.code, Code::Timeout | Code::Unavailable)
}

impl Engine {
    /// What a node says that was admitted before with the very same claim is taken. Anything else is to be checked
    /// first, unless that would be in vain.
    pub(super) fn announce(&mut self, about: Registration) -> Answer {
        if self.registry.is_repeat(&about) {
            return self.register(about);
        }
        match self.registry.judge(&about) {
            Ok(_) => Ok(Reply::ToBeChecked(Box::new(about))),
            Err(refusal) => Err(self.turn_away(about.node, refusal)),
        }
    }

    pub(super) fn register(&mut self, mut about: Registration) -> Answer {
        let id = about.node;
        let report = about.report.take();
        let arrival = match self.registry.judge(&about) {
            Ok(arrival) => arrival,
            Err(refusal) => return Err(self.turn_away(id, refusal)),
        };
        match arrival {
            Arrival::New => {
                let reports = about.native && about.reports;
                let residents = self.awaited.remove(&id).unwrap_or_default();
                self.add_node(about);
                if reports {
                    self.expect(id, residents);
                } else {
                    self.lose_all(residents, id, "it does not tell what it runs");
                }
            }
            Arrival::Restarted => self.restart_node(about),
            Arrival::Refreshed => {
                self.refresh_node(about);
                if let Some(report) = report {
                    self.take_report(id, report);
                }
            }
            Arrival::Leaving => self.lose_node(id, SAID_GOODBYE),
            Arrival::Stale => {}
        }
        let is_there = !matches!(arrival, Arrival::Leaving | Arrival::Stale);
        let wants_report = is_there && self.ask_for_report(id);
        Ok(Reply::Registered(Registered {
            wants_report,
            offers_link: true,
            ..Registered::new(Some(self.settings.keep_alive))
        }))
    }

    fn turn_away(&mut self, node: NodeId, (fault, error): Refusal) -> Error {
        self.note(Note::NodeRefused { node, fault, error: error.clone() });
        error
    }

    /// Forgets what is known of a node that is gone.
    pub(super) fn forget_node(&mut self, node: NodeId) -> Answer {
        if self.registry.nodes.contains_key(&node) {
            return Err(Error::rejected(format!(
                "node {node} is there: stop it first, and wait until the domain has lost it"
            )));
        }
        if !self.registry.forget(node) {
            return Err(super::moves::unknown(node));
        }
        self.note(Note::Forgotten { node });
        Ok(Reply::Done)
    }

    fn add_node(&mut self, about: Registration) {
        for provider in &about.providers {
            self.effects.push(Effect::Note(Note::Provider(about.node, provider.clone())));
        }
        self.note(Note::NodeAdded {
            node: about.node,
            agent_url: about.agent_url.clone(),
            invocation_url: about.invocation_url.clone(),
            capabilities: about.capabilities.clone(),
        });
        let id = about.node;
        self.placer.nodes.upsert(&about);
        let others = self.registry.add(self.now, about);
        self.placer.nodes.set_cordoned(id, self.registry.is_cordoned(id));
        self.marked.insert(Thing::Node(id));
        self.mark_nodes(others);
    }

    fn refresh_node(&mut self, mut about: Registration) {
        let id = about.node;
        self.acquit(id);
        let loads = std::mem::take(&mut about.loads);
        let Some((before, others)) = self.registry.refresh(self.now, about) else { return };
        let Some(node) = self.registry.nodes.get(&id) else { return };
        let now = &node.about;
        self.placer.nodes.upsert(now);
        let advertised = now.providers.iter().filter(|provider| !before.providers.contains(provider));
        self.effects.extend(advertised.map(|provider| Effect::Note(Note::Provider(id, provider.clone()))));
        let has_changed = now.providers != before.providers || now.capabilities != before.capabilities;
        if now.invocation_url != before.invocation_url {
            // The rows of what runs there say where that is.
            let residents: BTreeSet<ComponentId> = node.residents.iter().map(|(id, _)| *id).collect();
            residents.into_iter().for_each(|id| self.renew_row(id));
            self.mark_nodes(others);
        }
        if has_changed {
            self.is_outdated = true;
            self.wake_homeless();
        }
        self.take_loads(id, &loads);
    }

    /// Another process of a node has come: what the one before ran is lost, unless this one tells that it runs it.
    fn restart_node(&mut self, about: Registration) {
        let (id, reports) = (about.node, about.native && about.reports);
        let residents = self.remove_node(id, RESTARTED);
        if reports {
            self.add_node(about);
            self.expect(id, residents);
        } else {
            self.lose_all(residents, id, RESTARTED);
            self.add_node(about);
        }
    }

    pub(super) fn lose_node(&mut self, id: NodeId, reason: &'static str) {
        let residents = self.remove_node(id, reason);
        self.lose_all(residents, id, reason);
    }

    pub(super) fn lose_all(&mut self, residents: BTreeSet<(ComponentId, u32)>, node: NodeId, reason: &'static str) {
        for (component, replica) in residents {
            self.lose_instance(component, replica, Error::unavailable(format!("node {node} was lost: {reason}")));
        }
    }

    /// A node is not there any more; returns what ran there.
    fn remove_node(&mut self, id: NodeId, reason: &'static str) -> BTreeSet<(ComponentId, u32)> {
        let Some((node, others)) = self.registry.remove(id) else { return BTreeSet::new() };
        self.placer.nodes.remove(id);
        self.note(Note::NodeLost { node: id, reason, components: node.residents.len() });
        if let Some(op) = node.management.under_way() {
            self.farewells.insert(id, op);
        }
        self.effects.push(Effect::Forget(id));
        self.forgive(id, &node.owed | &node.telling_rows);
        self.is_outdated = true;
        self.mark_nodes(others);
        node.residents
    }

    /// Each of these nodes may have to be told something.
    fn mark_nodes(&mut self, nodes: BTreeSet<NodeId>) {
        self.marked.extend(nodes.into_iter().map(Thing::Node));
    }

    pub(super) fn step_node(&mut self, id: NodeId) {
        self.manage(id);
        self.clean(id);
        self.route(id);
        self.investigate(id);
    }

    fn manage(&mut self, id: NodeId) {
        if self.farewells.contains_key(&id) {
            return;
        }
        let Some(node) = self.registry.nodes.get_mut(&id) else { return };
        match node.management.gate(self.now) {
            Gate::Busy => return,
            Gate::Until(at) => {
                self.timers.insert((at, Thing::Node(id)));
                return;
            }
            Gate::Free => {}
        }
        if node.stage == Stage::Reporting {
            return;
        }
        let is_to_be_reset =
            node.is_doubtful && !node.reports() && node.residents.is_empty() && node.stage == Stage::Ready;
        if node.stage == Stage::Resetting || is_to_be_reset {
            self.reset(id);
        } else if let Some(other) = node.strangers.pop_first() {
            node.telling = Some(other);
            self.tell(id, other);
        } else if node.stage == Stage::Meeting && !(node.reports() && node.has_strays()) {
            node.stage = Stage::Ready;
            self.placer.nodes.set_ready(id, true);
            self.is_outdated = true;
            self.wake_homeless();
        }
    }

    fn reset(&mut self, id: NodeId) {
        // What was not ready was part of nothing that was told.
        self.is_outdated |= self.registry.nodes.get(&id).is_some_and(|node| node.stage == Stage::Ready);
        self.registry.renew(id);
        self.placer.nodes.set_ready(id, false);
        if let Some(node) = self.registry.nodes.get_mut(&id) {
            // It knows no row afterwards, and needs none.
            let owed = &std::mem::take(&mut node.owed) | &std::mem::take(&mut node.telling_rows);
            node.routing.clear();
            self.forgive(id, owed);
        }
        let op = self.call(id, Job::Manage(id, Management::Reset), Call::Reset);
        if let Some(node) = self.registry.nodes.get_mut(&id) {
            node.management.begin(op);
        }
    }

    /// Tells a node what is the case with another one now, whatever it was told before.
    fn tell(&mut self, id: NodeId, other: NodeId) {
        let update = match self.registry.nodes.get(&other) {
            Some(other) => PeerUpdate::Add(other.about.node, other.about.invocation_url.clone()),
            None => PeerUpdate::Remove(other),
        };
        let op = self.call(id, Job::Manage(id, Management::Tell(other)), Call::UpdatePeers(update));
        if let Some(node) = self.registry.nodes.get_mut(&id) {
            node.management.begin(op);
        }
    }

    pub(super) fn managed(&mut self, op: Op, id: NodeId, management: Management, result: Result<(), Error>) {
        self.marked.insert(Thing::Node(id));
        if self.farewells.get(&id) == Some(&op) {
            self.farewells.remove(&id);
        }
        let Some(node) = self.registry.nodes.get_mut(&id) else { return };
        if !node.management.end(op) {
            return;
        }
        node.telling = None;
        let failed = match (management, result) {
            (Management::Reset, Ok(())) => {
                node.management.recover();
                self.registry.meet(id);
                return;
            }
            (Management::Tell(_), Ok(())) => {
                node.management.recover();
                // Instances there may have waited to be wired to the other node.
                self.marked.extend(node.residents.iter().map(|(id, replica)| Thing::Slot(*id, *replica)));
                return;
            }
            (Management::Reset, Err(error)) => ("reset", error),
            (Management::Tell(other), Err(error)) => {
                // What it refuses once it refuses again.
                if !error.code.is_refusal() {
                    node.strangers.insert(other);
                }
                ("tell of other nodes", error)
            }
        };
        if node.management.back_off(self.now) == 1 {
            let (attempt, error) = failed;
            self.note(Note::NodeFailing { node: id, attempt, error });
        }
    }

    /// Removes what a node runs and nobody wants.
    fn clean(&mut self, id: NodeId) {
        let Some(node) = self.registry.nodes.get(&id) else { return };
        if node.stage == Stage::Reporting {
            return;
        }
        let (kind, call) = match node.first_stray() {
            None => return,
            Some(Stray::Known(kind, instance)) => (*kind, Call::Stop(*kind, *instance)),
            Some(Stray::Unknown(start)) => (start.spec.kind(), Call::Create(start.clone())),
        };
        match node.cleaning.gate(self.now) {
            Gate::Busy => {}
            Gate::Until(at) => {
                self.timers.insert((at, Thing::Node(id)));
            }
            Gate::Free => {
                let op = self.call(id, Job::Clean(node.home(), kind), call);
                if let Some(node) = self.registry.nodes.get_mut(&id) {
                    node.cleaning.begin(op);
                }
            }
        }
    }

    pub(super) fn cleaned(&mut self, op: Op, home: Home, kind: ComponentKind, result: Result<Outcome, Error>) {
        let Some(node) = self.registry.nodes.get_mut(&home.node) else { return };
        self.marked.insert(Thing::Node(home.node));
        let removed = if node.cleaning.end(op) { node.take_stray() } else { None };
        match (removed, result) {
            // The repeated start tells what to stop, even if it was meant for a former process.
            (_, Ok(Outcome::Started(ComponentRef::Instance(instance)))) => {
                node.add_stray(Stray::Known(kind, instance));
                node.cleaning.recover();
            }
            (Some(stray), Err(error)) if is_unknown(&error) => {
                node.add_stray(stray);
                node.cleaning.back_off(self.now);
            }
            (None, Err(error)) if is_unknown(&error) => node.doubt(),
            _ => node.cleaning.recover(),
        }
    }

    /// Something unwanted may run on a node.
    pub(super) fn add_stray(&mut self, id: NodeId, stray: Stray) {
        if let Some(node) = self.registry.nodes.get_mut(&id) {
            node.add_stray(stray);
            self.marked.insert(Thing::Node(id));
        }
    }
}
