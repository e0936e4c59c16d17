//! The whole with model domains, seeded: joins, losses, delays, answers that get lost, messages that come twice, a disk
//! that is full at times, and a controller that crashes at any event and starts again from what is on its disk.
//!
//! After quiet every workflow runs that was acknowledged and not asked to end, every component of every workflow is
//! active in exactly the domain that the controller names, senders are wired to where their targets are, nothing else
//! runs anywhere, and the disk knows just that.

use std::collections::VecDeque;

use edgeless_api::component::Row;
use edgeless_api::record;

use super::*;

/// What a domain knows of a component.
#[derive(Clone, Debug)]
struct Held {
    epoch: u64,
    /// Of its rows.
    row: u64,
    name: String,
    outputs: BTreeMap<String, Target>,
    is_exported: bool,
    is_active: bool,
}

/// A domain as its orchestrator is modelled.
#[derive(Debug)]
struct Model {
    name: &'static str,
    capabilities: DomainCapabilities,
    nonce: u64,
    /// The controller reaches it.
    is_near: bool,
    /// Its processes run.
    is_alive: bool,
    components: BTreeMap<ComponentId, Held>,
    /// What late messages must not bring back.
    ended: BTreeMap<ComponentId, u64>,
    rows_are_followed: bool,
}

struct Simulation {
    world: World,
    rng: StdRng,
    domains: Vec<Model>,
    /// Effects on their way to domains, each with the time when it arrives.
    effects: VecDeque<(Millis, Effect)>,
    /// Events on their way to the controller.
    events: VecDeque<(Millis, Event)>,
    quiet: bool,
    workflows: Vec<WorkflowId>,
    crashes: bool,
    /// When the controller started last.
    booted: Millis,
    /// The records of workflows.
    disk: BTreeMap<WorkflowId, Bytes>,
    /// Those of which a user was told that they run, and whose end nobody has asked for.
    acknowledged: BTreeSet<WorkflowId>,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn settings() -> Settings {
    Settings {
        orchestrators: NAMES.iter().map(|name| (DomainId(name.to_string()), url(name))).collect(),
        max_workflows: 100,
        max_domains: 4,
        domain_grace: Duration::from_secs(3),
    }
}

impl Simulation {
    fn new(seed: u64, crashes: bool) -> Self {
        let mut world = World::new(&NAMES);
        world.engine = Engine::new(settings(), seed);
        let model = |(name, capabilities)| Model {
            name,
            capabilities,
            nonce: 1,
            is_near: true,
            is_alive: true,
            components: BTreeMap::new(),
            ended: BTreeMap::new(),
            rows_are_followed: false,
        };
        let has = [everything(), only_functions(), only_logs(), everything()];
        let domains = NAMES.into_iter().zip(has).map(model).collect();
        let rng = StdRng::seed_from_u64(seed);
        let (effects, events) = (VecDeque::new(), VecDeque::new());
        let (disk, acknowledged) = (BTreeMap::new(), BTreeSet::new());
        let (workflows, booted) = (Vec::new(), Millis(0));
        Self { world, rng, domains, effects, events, quiet: false, workflows, crashes, booted, disk, acknowledged }
    }

    fn soon(&mut self) -> Millis {
        let delay = if self.quiet { 5 } else { self.rng.random_range(0..1500) };
        self.world.now + Duration::from_millis(delay)
    }

    fn tell(&mut self, event: Event) {
        if self.crashes && !self.quiet && self.rng.random_bool(0.01) {
            return self.crash();
        }
        if let Event::Stop { workflow, .. } = &event {
            self.acknowledged.remove(workflow);
        }
        let now = Millis(self.world.now.0 - self.booted.0);
        for effect in self.world.engine.on(now, event) {
            let at = self.soon();
            match effect {
                Effect::Reply { ticket, reply } => {
                    if let Ok(Answer::Started(status)) = &reply {
                        self.acknowledged.insert(status.workflow);
                    }
                    self.world.replies.push((ticket, reply));
                }
                effect => self.effects.push_back((at, effect)),
            }
        }
    }

    /// The controller ends, and starts again: of what was under way some has arrived, and no answer comes back.
    fn crash(&mut self) {
        for (_, effect) in std::mem::take(&mut self.effects) {
            if self.rng.random_bool(0.5) {
                self.arrive(&effect);
            }
        }
        self.events.clear();
        for model in &mut self.domains {
            model.rows_are_followed = false;
        }
        self.booted = self.world.now;
        let records = self.disk.values().map(|record| record::Workflow::decode(record.clone()).unwrap()).collect();
        self.world.engine = Engine::restore(settings(), self.rng.random(), records).unwrap();
    }

    fn write(&mut self, effect: &Effect) -> Option<Event> {
        let Effect::Persist { workflow, record, .. } = effect else { return None };
        if !self.quiet && self.rng.random_bool(0.1) {
            return written(effect, Err(Error::unavailable("no space left on device")));
        }
        match record {
            Some(record) => self.disk.insert(*workflow, record.clone()),
            None => self.disk.remove(workflow),
        };
        written(effect, Ok(()))
    }

    fn model(&mut self, domain: &DomainId) -> &mut Model {
        self.domains.iter_mut().find(|model| model.name == domain.0).unwrap()
    }

    /// An effect arrives. What comes back, if anything does.
    fn arrive(&mut self, effect: &Effect) -> Option<Event> {
        let unreachable = || fail(effect, Error::unavailable("connection refused"));
        if let Effect::Persist { .. } = effect {
            return self.write(effect);
        }
        if let Effect::Probe { domain, .. } = effect {
            let model = self.model(domain);
            let pulse = match (model.is_alive, model.is_near) {
                (false, _) => Pulse { gone: 2, ..Pulse::default() },
                (true, false) => Pulse { silent: 1, ..Pulse::default() },
                (true, true) => Pulse { alive: 1, ..Pulse::default() },
            };
            return Some(Event::Probed { domain: domain.clone(), pulse });
        }
        let domain = match effect {
            Effect::Follow(peer) => {
                self.model(&peer.domain).rows_are_followed = true;
                self.all_rows(&peer.domain.clone());
                return None;
            }
            Effect::Nodes(peer) => peer.domain.clone(),
            _ => DomainId(super::split::domain_of(effect)?.to_string()),
        };
        let is_lossy = !self.quiet;
        let (loses_request, loses_answer) = (self.rng.random_bool(0.05), self.rng.random_bool(0.05));
        let model = self.model(&domain);
        if !model.is_near || !model.is_alive || (is_lossy && loses_request) {
            return unreachable();
        }
        let answer = model.act(effect);
        if self.model(&domain).rows_are_followed {
            self.all_rows(&domain);
        }
        if is_lossy && loses_answer { fail(effect, Error::timeout("lost")) } else { answer }
    }

    fn all_rows(&mut self, domain: &DomainId) {
        let model = self.model(domain);
        if !model.is_near || !model.is_alive {
            return;
        }
        let n = u128::from(model.name.as_bytes()[0]);
        let row = |(id, held): (&ComponentId, &Held)| Row::new(*id, held.row, vec![super::split::instance(n)]);
        let rows = model.components.iter().filter(|(_, held)| held.is_exported).map(row).collect();
        // One stream: what was said first arrives first.
        let last = self.events.iter().filter(|(_, event)| matches!(event, Event::Rows { .. })).map(|(at, _)| *at).max();
        let at = self.soon().max(last.unwrap_or_default());
        self.events.push_back((at, Event::Rows { domain: domain.clone(), rows }));
    }

    /// Lets a quarter of a second pass.
    fn step(&mut self) {
        self.world.now = self.world.now + Duration::from_millis(250);
        let now = self.world.now;
        for index in 0..self.domains.len() {
            let model = &self.domains[index];
            if model.is_near && model.is_alive {
                let state = DomainState {
                    domain: DomainId(model.name.into()),
                    nonce: model.nonce,
                    capabilities: model.capabilities.clone(),
                    lifetime: LIFETIME,
                };
                let domain = state.domain.clone();
                self.tell(Event::DomainUp(state));
                if self.domains[index].rows_are_followed {
                    self.all_rows(&domain);
                }
            }
        }
        self.tell(Event::Tick);
        // In rounds, so that answers to answers come in the same quarter when all is quiet.
        for _ in 0..40 {
            let due: Vec<_> = self.effects.iter().filter(|(at, _)| *at <= now).map(|(_, own)| own.clone()).collect();
            self.effects.retain(|(at, _)| *at > now);
            for effect in due {
                if let Some(event) = self.arrive(&effect) {
                    let at = self.soon();
                    self.events.push_back((at, event));
                }
            }
            let (due, later) =
                std::mem::take(&mut self.events).into_iter().partition::<Vec<_>, _>(|(at, _)| *at <= now);
            self.events = later.into();
            if due.is_empty() {
                break;
            }
            for (_, event) in due {
                self.tell(event);
            }
        }
    }

    /// Something happens.
    fn disturb(&mut self) {
        let index = self.rng.random_range(0..self.domains.len());
        let domain = DomainId(self.domains[index].name.into());
        match self.rng.random_range(0..12) {
            0 => {
                let model = &mut self.domains[index];
                model.is_near = false;
                self.tell(Event::DomainLost { domain, reason: Error::unavailable("connection refused") });
            }
            1..=3 => self.domains[index].is_near = true,
            // Killed as a whole, or only started again.
            4 => {
                let model = &mut self.domains[index];
                model.is_alive = false;
                model.nonce += 1;
                model.components.clear();
                self.tell(Event::DomainLost { domain, reason: Error::unavailable("connection refused") });
            }
            5..=6 => self.domains[index].is_alive = true,
            7 => {
                let model = &mut self.domains[index];
                model.nonce += 1;
                model.components.clear();
            }
            8 => {
                let ticket = self.world.ticket();
                let stop = self.rng.random_range(0..10);
                if let Some(workflow) = self.workflows.get(stop).copied() {
                    self.tell(Event::Stop { ticket, workflow });
                }
            }
            9..=10 => {
                let workflows = self.world.engine.list();
                if workflows.is_empty() {
                    return;
                }
                let workflow = workflows[self.rng.random_range(0..workflows.len())];
                let component =
                    [None, Some("f".to_string()), Some("l".to_string())][self.rng.random_range(0..3)].clone();
                let ticket = self.world.ticket();
                self.tell(Event::Migrate { ticket, workflow, domain, component });
            }
            _ => self.start(),
        }
    }

    fn start(&mut self) {
        let ticket = self.world.ticket();
        let transient = [("state", "transient")];
        let annotations: &[(&str, &str)] = if self.rng.random_bool(0.5) { &transient } else { &[] };
        let functions =
            vec![function("s", &[("out", "f")], annotations), function("f", &[("out", "l"), ("back", "s")], &[])];
        let relocate: &[(&str, &str)] = if self.rng.random_bool(0.3) { &[("relocate", "after:4s")] } else { &[] };
        let relocate = relocate.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let workflow = Workflow::new(functions, pair().resources().to_vec(), relocate).unwrap();
        self.tell(Event::Start { ticket, workflow, request: None });
        self.workflows = self.world.engine.list();
    }

    fn run(seed: u64, crashes: bool) {
        let mut own = Self::new(seed, crashes);
        own.step();
        for _ in 0..4 {
            own.start();
        }
        for _ in 0..200 {
            own.step();
            if own.rng.random_bool(0.25) {
                own.disturb();
            }
            // Some messages come twice.
            if own.rng.random_bool(0.1)
                && let Some((_, effect)) = own.effects.front().cloned()
                && matches!(effect, Effect::Create { .. } | Effect::Patch { .. } | Effect::Activate { .. })
            {
                own.arrive(&effect);
            }
        }
        own.quiet = true;
        for model in &mut own.domains {
            (model.is_near, model.is_alive) = (true, true);
        }
        for _ in 0..400 {
            own.step();
        }
        own.check(seed);
    }

    fn check(&self, seed: u64) {
        let engine = &self.world.engine;
        let mut expected: BTreeMap<ComponentId, String> = BTreeMap::new();
        for run in engine.runs.values() {
            assert!(run.leftovers.is_empty() && run.change.is_none(), "seed {seed}: {run:?}");
            let (_, status) = engine.inspect(run.id).unwrap_or_else(|_| panic!("seed {seed}: {run:?}"));
            expected.extend(status.mapping.into_iter().map(|own| (own.component, own.domain.0)));
        }
        let running: BTreeSet<WorkflowId> = engine.list().into_iter().collect();
        let lost: Vec<_> = self.acknowledged.difference(&running).collect();
        assert!(lost.is_empty(), "seed {seed}: {lost:?} of {:?}", self.acknowledged);
        assert!(self.disk.keys().eq(engine.runs.keys()), "seed {seed}: {:?}", self.disk.keys());
        let mut actual = BTreeMap::new();
        for model in &self.domains {
            for (id, held) in &model.components {
                assert!(held.is_active, "seed {seed}: {} {held:?}\n{:?}", model.name, engine.runs);
                let before = actual.insert(*id, model.name.to_string());
                assert_eq!(before, None, "seed {seed}: '{}' runs twice", held.name);
                for target in held.outputs.values() {
                    self.check_target(seed, model, held, target);
                }
            }
        }
        assert_eq!(actual, expected, "seed {seed}");
    }

    fn check_target(&self, seed: u64, model: &Model, sender: &Held, target: &Target) {
        match target {
            Target::Component(id) => {
                assert!(model.components.contains_key(id), "seed {seed}: {} {sender:?}", model.name);
            }
            Target::Row(row) => {
                let home = self.domains.iter().find(|own| own.components.contains_key(&row.component)).unwrap();
                assert_ne!(home.name, model.name, "seed {seed}: {sender:?}");
                let held = &home.components[&row.component];
                let there = vec![super::split::instance(u128::from(home.name.as_bytes()[0]))];
                assert!(held.is_exported && row.instances == there, "seed {seed}: {row:?} {held:?}");
                assert!(row.epoch >= held.row && row.epoch >> 32 == held.row >> 32, "seed {seed}: {row:?} {held:?}");
            }
            Target::Instance(id) => panic!("{id:?}"),
        }
    }
}

impl Model {
    /// Does what it is told, as an orchestrator does.
    fn act(&mut self, effect: &Effect) -> Option<Event> {
        match effect {
            Effect::Create { start, part, .. } => {
                let context = start.context.clone().unwrap();
                let (id, epoch) = (context.component, context.epoch);
                let known = self.components.get(&id).map(|held| held.epoch);
                let ended = self.ended.get(&id).copied().unwrap_or_default();
                if known.is_some_and(|known| epoch < known) {
                    return fail(effect, Error::rejected("it was started with a newer epoch"));
                }
                if known != Some(epoch) {
                    let row = (ended + 1).max(epoch << 32);
                    self.ended.insert(id, row);
                    let (name, outputs) = (context.name, BTreeMap::new());
                    let held = Held { epoch, row, name, outputs, is_exported: false, is_active: false };
                    self.components.insert(id, held);
                }
                Some(Event::Created { part: *part, result: Ok(ComponentRef::Component(id)) })
            }
            Effect::Patch { patch, .. } => match self.components.get_mut(&ComponentId(patch.id)) {
                Some(held) => {
                    held.outputs = patch.outputs.clone();
                    held.is_exported = patch.exported;
                    obey(effect)
                }
                None => fail(effect, Error::not_found("not known in this domain")),
            },
            Effect::Activate { ids, .. } => {
                if ids.iter().any(|id| !self.components.contains_key(&ComponentId(*id))) {
                    return fail(effect, Error::not_found("not known in this domain"));
                }
                for id in ids {
                    self.components.get_mut(&ComponentId(*id)).unwrap().is_active = true;
                }
                obey(effect)
            }
            Effect::Stop { id, .. } => {
                self.components.remove(id);
                obey(effect)
            }
            Effect::Release { id, .. } => match self.components.remove(id) {
                Some(_) => obey(effect),
                None => fail(effect, Error::not_found("not known in this domain")),
            },
            Effect::Nodes(peer) => Some(Event::Nodes { domain: peer.domain.clone(), result: Ok(Vec::new()) }),
            _ => obey(effect),
        }
    }
}

#[test]
fn after_quiet_every_component_is_in_one_domain_and_nothing_else_is_anywhere() {
    for seed in 0..200 {
        Simulation::run(seed, false);
    }
}

#[test]
fn the_same_is_true_of_a_controller_that_crashes_at_any_event() {
    for seed in 0..300 {
        Simulation::run(seed, true);
    }
}
