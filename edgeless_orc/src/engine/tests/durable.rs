//! What outlives the process, and what waits until it does.

use edgeless_api::node::{NodeKey, Proof, Running};

use super::*;

fn reporting(id: NodeId) -> Registration {
    Registration { reports: true, ..node(id) }
}

fn running(component: ComponentId, epoch: u64, instance: InstanceId) -> Running {
    let instance = instance.function;
    Running { component, replica: 0, epoch, instance, kind: FUNCTION, is_active: true }
}

fn with_code(code: &'static [u8]) -> ComponentSpec {
    let mut spec = function(&[]);
    if let ComponentSpec::Function(function) = &mut spec {
        function.class.binary = Bytes::from_static(code).into();
    }
    spec
}

fn full() -> Error {
    Error::unavailable("cannot write d/domain-1.redb: No space left on device")
}

impl World {
    /// One that keeps what must not be forgotten.
    pub(super) fn durable() -> Self {
        Self::new().restarted()
    }

    /// The orchestrator is killed and started again.
    pub(super) fn restarted(mut self) -> Self {
        let mut world = Self::new();
        world.engine = Engine::restore(world.engine.settings.clone(), self.disk.open()).unwrap();
        Self { disk: self.disk, tickets: self.tickets, instances: self.instances, saved: self.saved, ..world }
    }

    /// Ends the write that is under way.
    pub(super) fn write(&mut self, result: Result<(), Error>) {
        let (op, changes) = self.writes.pop().expect("a write");
        assert!(self.writes.is_empty(), "one at a time");
        if result.is_ok() {
            self.disk.apply(changes);
        }
        self.send(Event::Persisted(op, result));
    }

    pub(super) fn flush(&mut self) {
        while !self.writes.is_empty() {
            self.write(Ok(()));
        }
    }

    /// Writes all that there is to be written, and ends all calls well; returns those.
    pub(super) fn go_on(&mut self) -> Vec<(NodeId, Call)> {
        let mut obeyed = vec![];
        while !self.writes.is_empty() || !self.calls.is_empty() {
            self.flush();
            obeyed.extend(self.obey());
        }
        obeyed
    }

    /// A node comes and tells that it runs this.
    pub(super) fn comes_with(&mut self, about: &Registration, report: &[Running]) -> Vec<(NodeId, Call)> {
        self.register(about.clone()).unwrap();
        self.register(Registration { report: Some(report.to_vec()), ..about.clone() }).unwrap();
        self.go_on()
    }

    fn runs(&mut self, id: ComponentId) -> InstanceId {
        let ticket = self.wanted(id, 1, function(&[]));
        self.go_on();
        assert_eq!(self.answer(ticket), Ok(Reply::Started(id)));
        self.instance(id)
    }

    fn follow(&mut self, controller: u64, nonce: u64) -> Ticket {
        self.request(|ticket| Event::Follow { ticket, controller, nonce })
    }
}

fn creates(calls: &[(NodeId, Call)]) -> usize {
    calls.iter().filter(|(_, call)| matches!(call, Call::Create(_))).count()
}

#[test]
fn nothing_is_started_stopped_or_answered_before_it_is_on_the_disk() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    let start = world.wanted(ONE, 1, function(&[]));
    assert!(world.calls.is_empty() && world.is_open(start));
    world.write(Ok(()));
    assert_eq!((creates(&world.obey()), world.is_open(start)), (1, true));
    // Who asks again is told no earlier.
    let again = world.wanted(ONE, 1, function(&[]));
    assert!(world.is_open(start) && world.is_open(again));
    world.write(Ok(()));
    assert_eq!(world.answer(start), Ok(Reply::Started(ONE)));
    assert_eq!(world.answer(again), Ok(Reply::Started(ONE)));

    world.patch(ONE, &[("out", TWO)]);
    world.go_on();
    let stop = world.stop(ONE);
    assert!(world.calls.is_empty());
    world.write(Ok(()));
    assert!(matches!(world.obey().as_slice(), [(A, Call::Stop(..))]) && world.is_open(stop));
    world.write(Ok(()));
    assert_eq!(world.answer(stop), Ok(Reply::Done));
    assert!(world.disk.table(disk::COMPONENTS).is_empty());
}

/// A disk that is full keeps nobody waiting, and nothing that runs from running.
#[test]
fn what_cannot_be_written_is_refused_with_the_reason_and_later_there_is_room() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    let one = world.runs(ONE);
    let start = world.wanted(TWO, 1, function(&[]));
    world.write(Err(full()));
    let refusal = world.refusal(start);
    assert!(refusal.message.contains("cannot keep what it was asked for: cannot write d/domain-1.redb"), "{refusal}");
    assert_eq!(refusal.code, Code::Exhausted, "it is certain that nothing runs");
    assert!(world.engine.view(&[TWO]).is_empty() && creates(&world.obey()) == 0);

    // A node that comes is told so at once.
    assert!(world.register(reporting(B)).is_ok());
    let stop = world.stop(ONE);
    world.pass(Duration::from_millis(250));
    world.write(Err(full()));
    assert_eq!(world.refusal(stop).code, Code::Unavailable);
    assert!(world.obey().iter().all(|(_, call)| !matches!(call, Call::Stop(..))), "a restart would not know of it");
    assert!(world.writes.is_empty(), "it pauses");
    world.pass(Duration::from_secs(5));
    let calls = world.go_on();
    assert!(calls.iter().any(|(_, call)| *call == Call::Stop(FUNCTION, one)), "{calls:?}");
    assert!(world.engine.view(&[ONE]).is_empty() && world.disk.table(disk::COMPONENTS).is_empty());
    world.comes_with(&reporting(A), &[]);
    world.runs(TWO);
}

#[test]
fn a_restarted_orchestrator_goes_on_with_what_runs() {
    let mut world = World::durable();
    let (a, b) = (reporting(A), reporting(B));
    world.comes_with(&a, &[]);
    world.comes_with(&b, &[]);
    let (one, two) = (world.runs(ONE), world.runs(TWO));
    assert_ne!(one.node, two.node);
    world.patch(ONE, &[("out", TWO)]);
    world.activate(&[ONE, TWO]);
    world.go_on();
    let row = world.row(TWO);
    let nonce = world.engine.nonce();

    let mut world = world.restarted();
    assert_eq!((world.engine.nonce(), world.instance(ONE), world.instance(TWO)), (nonce, one, two));
    world.pass(Duration::from_secs(1));
    assert!(world.go_on().is_empty(), "nobody is there");
    let (at_one, at_two) = if one.node == A { (&a, &b) } else { (&b, &a) };
    let calls = world.comes_with(at_one, &[running(ONE, 1, one)]);
    assert_eq!(creates(&calls), 0, "the node of the other is waited for");
    let told = calls.iter().find_map(|(_, call)| match call {
        Call::SetOutputs(_, patch) => patch.outputs.get("out").cloned(),
        _ => None,
    });
    let Some(Target::Row(told)) = told else { panic!("{calls:?}") };
    assert_eq!((&told.instances, &told.addresses), (&row.instances, &row.addresses), "events flow on");
    assert!(told.epoch > row.epoch);
    let calls = world.comes_with(at_two, &[running(TWO, 1, two)]);
    assert_eq!(creates(&calls), 0);
    world.pass(Duration::from_secs(1));
    world.go_on();
    for (id, instance) in [(ONE, one), (TWO, two)] {
        let status = world.status(id);
        assert_eq!((status.instance, status.epoch, status.state), (Some(instance), 1, State::Running));
    }
    let stop = world.stop(ONE);
    let calls = world.go_on();
    assert!(calls.contains(&(one.node, Call::Stop(FUNCTION, one))));
    assert_eq!(world.answer(stop), Ok(Reply::Done));
    let again = world.wanted(TWO, 1, function(&[]));
    world.go_on();
    assert_eq!(world.answer(again), Ok(Reply::Started(TWO)), "whoever asked before the restart is answered");
}

#[test]
fn a_node_that_does_not_come_back_is_lost_after_a_while_and_not_before() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    world.runs(ONE);
    world.runs(TWO);
    let mut world = world.restarted();
    world.comes_with(&reporting(B), &[]);
    let stop = world.stop(TWO);
    world.live(Duration::from_secs(5), &[&reporting(B)]);
    world.go_on();
    assert!(world.instance(ONE).node == A && world.is_open(stop));
    world.live(Duration::from_secs(2), &[&reporting(B)]);
    world.go_on();
    assert_eq!((world.instance(ONE).node, world.status(ONE).epoch), (B, 2));
    assert_eq!(world.answer(stop), Ok(Reply::Done));
    // Should it come all the same, there are not two.
    let calls = world.comes_with(&reporting(A), &[running(ONE, 1, InstanceId::random(A))]);
    assert!(calls.iter().any(|(node, call)| *node == A && matches!(call, Call::Stop(..))), "{calls:?}");
    assert_eq!(world.instance(ONE).node, B);
}

#[test]
fn what_is_superseded_while_its_node_is_waited_for_is_not_mixed_up_with_what_it_was() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    let old = world.runs(ONE);
    let mut world = world.restarted();
    world.comes_with(&reporting(B), &[]);
    let start = world.wanted(ONE, 2, function(&[]));
    world.go_on();
    assert_eq!(world.answer(start), Ok(Reply::Started(ONE)));
    let calls = world.comes_with(&reporting(A), &[running(ONE, 1, old)]);
    assert!(calls.contains(&(A, Call::Stop(FUNCTION, old))), "{calls:?}");
    assert_eq!(world.instance(ONE).node, B);
}

/// The node may be starting it yet, or have an instance of which it could not tell any more.
#[test]
fn a_start_that_was_under_way_is_asked_for_again_where_it_was() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    world.wanted(ONE, 1, function(&[]));
    world.write(Ok(()));
    world.call(A);
    let mut world = world.restarted();
    world.comes_with(&reporting(B), &[]);
    let again = world.wanted(ONE, 1, function(&[]));
    world.go_on();
    assert!(world.is_open(again));
    let calls = world.comes_with(&reporting(A), &[]);
    assert!(matches!(calls.as_slice(), [(A, create), ..] if epoch(create) == 1), "{calls:?}");
    assert_eq!(world.answer(again), Ok(Reply::Started(ONE)));
}

#[test]
fn a_node_that_cannot_tell_what_it_runs_is_reset() {
    let mut world = World::durable();
    world.register(node(A)).unwrap();
    world.go_on();
    world.runs(ONE);
    let mut world = world.restarted();
    world.register(node(A)).unwrap();
    let calls = world.go_on();
    assert!(matches!(calls.as_slice(), [(A, Call::Reset), (A, create), ..] if epoch(create) == 2), "{calls:?}");
}

#[test]
fn keys_and_cordons_are_kept() {
    let with_key = |id, key| {
        let proof = Proof { key: NodeKey([key; 32]), signature: [0; 64] };
        Registration { proof: Some(proof), ..reporting(id) }
    };
    let mut world = World::durable();
    world.comes_with(&with_key(A, 1), &[]);
    world.comes_with(&with_key(B, 2), &[]);
    let cordon = world.request(|ticket| Event::Cordon { ticket, node: A, is_cordoned: true });
    assert!(world.is_open(cordon));
    world.go_on();
    assert_eq!(world.answer(cordon), Ok(Reply::Done));
    let mut world = world.restarted();
    let error = world.register(with_key(B, 1)).unwrap_err();
    assert!(error.message.contains("is bound to another key"), "{error}");
    world.comes_with(&with_key(A, 1), &[]);
    world.comes_with(&with_key(B, 2), &[]);
    assert_eq!(world.runs(ONE).node, B);
    let forget = world.request(|ticket| Event::Forget(ticket, B));
    assert!(world.refusal(forget).message.contains("is there"));
}

#[test]
fn the_controller_is_known_again_and_another_one_begins_with_nothing() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    let ticket = world.follow(7, 1);
    world.go_on();
    let Ok(Reply::Owned { nonce, changes_hands: false }) = world.answer(ticket) else { panic!() };
    let one = world.runs(ONE);
    let mut world = world.restarted();
    world.comes_with(&reporting(A), &[running(ONE, 1, one)]);
    let ticket = world.follow(7, 2);
    world.go_on();
    assert_eq!(world.answer(ticket), Ok(Reply::Owned { nonce, changes_hands: false }));
    // Whose domain it is and what follows from that are one write.
    let ticket = world.follow(8, 3);
    assert!(world.is_open(ticket));
    world.write(Ok(()));
    assert_eq!(world.answer(ticket), Ok(Reply::Owned { nonce: 3, changes_hands: true }));
    let mut world = world.restarted();
    assert_eq!(world.engine.nonce(), 3);
    let calls = world.comes_with(&reporting(A), &[running(ONE, 1, one)]);
    assert!(calls.contains(&(A, Call::Stop(FUNCTION, one))), "{calls:?}");
    assert!(world.engine.view(&[ONE]).is_empty());
}

/// Nobody else has the state by then.
#[test]
fn what_has_left_and_what_is_leaving_is_told_again() {
    let stateful = || {
        let mut spec = function(&[]);
        if let ComponentSpec::Function(function) = &mut spec {
            function.state.policy = edgeless_api::component::StatePolicy::NodeLocal;
        }
        spec
    };
    let release = |world: &mut World| world.request(|ticket| Event::Release(ticket, ONE, Duration::from_secs(1)));
    let mut world = World::durable();
    world.saved = Some(Bytes::from_static(b"42"));
    world.comes_with(&reporting(A), &[]);
    world.wanted(ONE, 1, stateful());
    world.go_on();
    release(&mut world);
    world.flush();
    world.call(A);
    // It has ended there, and nobody heard of it.
    let mut world = world.restarted();
    let calls = world.comes_with(&reporting(A), &[]);
    assert!(calls.iter().any(|(_, call)| matches!(call, Call::Release { .. })), "{calls:?}");
    assert!(world.engine.view(&[ONE]).is_empty(), "it goes on to leave");
    let mut world = world.restarted();
    let ticket = release(&mut world);
    world.go_on();
    assert_eq!(world.answer(ticket), Ok(Reply::Released(Some(Bytes::from_static(b"42")))));
}

/// What sends to a component that was stopped must not be told less than it knows already.
#[test]
fn rows_of_what_is_gone_and_of_other_domains_are_kept() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    world.runs(ONE);
    world.runs(TWO);
    let far = ComponentId(Uuid::from_u128(77));
    let far_row = row(far, 1, &[InstanceId::random(C)]);
    let outputs = [("gone", Target::Component(TWO)), ("far", Target::Row(far_row.clone()))];
    let outputs = outputs.into_iter().map(|(channel, target)| (channel.to_string(), target)).collect();
    world.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(ONE.0, outputs)));
    world.go_on();
    world.stop(TWO);
    world.go_on();
    let gone = world.row(TWO);
    assert!(gone.epoch > 1 << 32 && gone.instances.is_empty());
    let mut world = world.restarted();
    assert_eq!((world.row(TWO), world.row(far)), (gone, far_row));
    world.comes_with(&reporting(A), &[]);
    world.stop(ONE);
    world.go_on();
    world.live(Duration::from_secs(130), &[&reporting(A)]);
    world.go_on();
    for table in [disk::COMPONENTS, disk::GONE, disk::ROWS, disk::LEFT] {
        assert_eq!(world.disk.table(table), [], "{table}");
    }
}

#[test]
fn code_is_kept_once_and_as_long_as_a_component_is_made_of_it() {
    let mut world = World::durable();
    world.comes_with(&reporting(A), &[]);
    let code = |world: &World| world.disk.table(disk::CODE).into_iter().map(|(_, code)| code).collect::<Vec<_>>();
    world.wanted(ONE, 1, with_code(b"code"));
    world.wanted(TWO, 1, with_code(b"code"));
    world.go_on();
    assert_eq!(code(&world), ["code"]);
    assert!(
        world.disk.table(disk::COMPONENTS).iter().all(|(_, record)| !record.windows(4).any(|part| part == b"code"))
    );
    let mut world = world.restarted();
    world.stop(ONE);
    world.pass(Duration::from_secs(7));
    world.go_on();
    assert_eq!(code(&world), ["code"]);
    // Placed anew, and with its code.
    world.register(reporting(B)).unwrap();
    let calls = world.comes_with(&reporting(B), &[]);
    let create = calls.iter().find(|(_, call)| matches!(call, Call::Create(_))).map(|(_, call)| created(call));
    assert_eq!(create.map(|start| &start.spec), Some(&with_code(b"code")));
    world.stop(TWO);
    world.go_on();
    assert_eq!(code(&world), [] as [&str; 0]);
}
