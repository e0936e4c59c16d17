//! Modules that are hostile, on a node: whatever they do, the node goes on and gets rid of them.
//!
//! The bytes of an input are a program. Each handler of the module is a list of steps: calls of the host with pointers
//! and lengths that mean nothing, loops, memory that grows, traps.

use std::fmt::Write as _;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use edgeless_api::client::{Components, Connection, Invocation, Options};
use edgeless_api::component::{
    ComponentKind, ComponentRef, Patch, Start, StartContext, StatePolicy, StateSpec, Target as Output,
};
use edgeless_api::event::{Kind, Trace};
use edgeless_api::{
    Code, ComponentId, ComponentSpec, Event, FunctionClass, FunctionSpec, InstanceId, NodeId, StateId, WorkflowId,
};
use edgeless_daemon::Daemon as _;
use edgeless_daemon::config::parse;
use edgeless_node::{Config, Node};
use tokio::runtime::{Builder, Runtime};

use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "guest", make, run };

/// Longer than whatever a node does for a function may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a function may import, with the types of its parameters and whether it has a result.
const IMPORTS: [(&str, &str, bool); 9] = [
    ("cast_asm", "iiii", false),
    ("cast_raw_asm", "iiii", false),
    ("call_asm", "iiiiii", true),
    ("call_raw_asm", "iiiiii", true),
    ("sync_asm", "ii", false),
    ("telemetry_log_asm", "iiiii", false),
    ("slf_asm", "ii", false),
    ("delayed_cast_asm", "Iiiii", false),
    // Twice, so that an output that exists is used as often as what does not exist.
    ("cast_asm", "iiii", false),
];

/// A node, and the connections to it.
struct World {
    runtime: Runtime,
    _node: Node,
    components: Components,
    invocation: Invocation,
    _directory: tempfile::TempDir,
}

/// What the threads of the node are called.
const THREADS: &str = "node";

/// Panics that no one else would notice: of the node's tasks.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() == Some(THREADS) {
            PANICS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(panic.to_string());
        }
        before(panic);
    }));
    let runtime = Builder::new_multi_thread().thread_name(THREADS).enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let (state, cache) = (directory.path().join("state"), directory.path().join("cache"));
    let text = format!(
        r#"[general]
node_id = "{}"
agent_url = "http://127.0.0.1:0"
invocation_url = "http://127.0.0.1:0"
# Nobody is there: the fuzzer plays the orchestrator.
orchestrator_url = "http://127.0.0.1:1"
state_directory = "{}"
[wasm_runtime]
max_instances = 8
memory_limit = "1MiB"
cpu_limit = "20ms"
cache_directory = "{}"
[limits]
call_timeout = "100ms"
emit_wait = "10ms"
payload = "64KiB"
mailbox = 16
components = 8
grace = "100ms"
"#,
        NodeId::random(),
        state.display(),
        cache.display()
    );
    let config: Config = parse(&text, std::iter::empty()).expect("a configuration");
    let node = runtime.block_on(Node::start(config)).expect("a node");
    let (components, invocation) = runtime.block_on(async {
        let connect = |url| Connection::lazy(url, Options::default()).expect("a connection");
        (Components::new(connect(node.addr())), Invocation::new(connect(node.invocation_url())))
    });
    World { runtime, _node: node, components, invocation, _directory: directory }
});

fn run(input: &[u8]) {
    let world = &*WORLD;
    let text = module(input);
    let module = wat::parse_str(&text).expect("a module");
    let ended = world.runtime.block_on(async { tokio::time::timeout(PATIENCE, live(world, module)).await });
    assert!(ended.is_ok(), "the node hangs after:\n{text}");
    let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    assert!(panics.is_empty(), "{panics:?} after:\n{text}");
}

/// The life of a function: it starts, gets events, and is stopped.
async fn live(world: &World, module: Vec<u8>) {
    let class = FunctionClass {
        id: "hostile".into(),
        function_type: "RUST_WASM".into(),
        binary: bytes::Bytes::from(module).into(),
        ..FunctionClass::default()
    };
    let spec = ComponentSpec::Function(FunctionSpec {
        class,
        annotations: Default::default(),
        state: StateSpec { id: StateId::random(), policy: StatePolicy::NodeLocal },
        workflow: WorkflowId::random(),
    });
    let context = Some(StartContext::new(ComponentId::random(), 1, "hostile"));
    // One that does not come up is refused, and nothing is left of it.
    let id = match world.components.start(Start { spec, context }).await {
        Ok(ComponentRef::Instance(id)) => id,
        Ok(other) => panic!("a node answers with {other:?}"),
        // There is room for a few: none may keep its place for ever.
        Err(error) => return assert_ne!(error.code, Code::Exhausted, "{error}"),
    };
    let outputs = [("out".to_string(), Output::Instance(id))].into();
    world.components.patch(ComponentKind::Function, Patch::new(id.function, outputs)).await.expect("an output");
    world.components.activate(&[id.function]).await.expect("it is active");
    let payload = bytes::Bytes::from_static(b"{\"key\": 1}");
    for kind in [
        Kind::Cast(payload.clone()),
        Kind::Call { payload: payload.clone(), stream: 1, remaining: None },
        Kind::Cast(payload),
    ] {
        let source = InstanceId::random(NodeId::random());
        let event = Event { source, target: id, kind, created: SystemTime::now(), trace: Trace::default(), id: None };
        world.invocation.handle(event).await.ok();
    }
    let status = world.components.status(&[id.function]).await.expect("a status");
    assert_eq!(status.len(), 1, "it is there until it is stopped");
    let stopped = world.components.stop(ComponentKind::Function, ComponentRef::Instance(id)).await;
    stopped.expect("it is stopped");
}

fn make(random: &mut Random) -> Vec<u8> {
    random.bytes(120)
}

/// The bytes of an input, one after the other; zeros after the last.
struct Program<'a>(std::slice::Iter<'a, u8>);

impl Program<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or_default()
    }

    /// A value of 32 bits, mostly one at which something is or ends.
    fn value(&mut self) -> i32 {
        const VALUES: [i32; 13] = [0, 1, 3, 8, 16, 64, 1024, 65_535, 65_536, 1_048_576, i32::MAX, i32::MIN, -1];
        let chosen = self.next();
        VALUES.get(usize::from(chosen) % 16).copied().unwrap_or_else(|| i32::from(self.next()) << (chosen % 24))
    }

    /// What a handler with so many parameters does.
    fn steps(&mut self, params: usize) -> String {
        let mut text = String::new();
        for _ in 0..self.next() % 5 {
            let step = self.next();
            match step % 16 {
                // An endless loop is long compared to the others, and so is rare.
                0 if self.next() < 24 => text.push_str("(loop $for_ever (br $for_ever))\n"),
                1 if self.next() < 64 => text.push_str("(unreachable)\n"),
                2 => writeln!(text, "(drop (memory.grow (i32.const {})))", self.value()).expect("room"),
                3 => writeln!(text, "(i32.store (i32.const {}) (i32.const {}))", self.value(), self.value())
                    .expect("room"),
                4 if self.next() < 64 => text.push_str("(call $deep)\n"),
                5 => writeln!(text, "(call $cast_good (i32.const {}))", self.value()).expect("room"),
                _ => {
                    let at = usize::from(self.next()) % IMPORTS.len();
                    let Some((_, types, has_result)) = IMPORTS.get(at) else { continue };
                    let mut call = format!("(call $host{at}");
                    for kind in types.chars() {
                        let argument = match (kind, usize::from(self.next()) % 4) {
                            ('I', _) => format!(" (i64.const {})", i64::from(self.value())),
                            (_, 0) if params > 0 => format!(" (local.get {})", usize::from(self.next()) % params),
                            _ => format!(" (i32.const {})", self.value()),
                        };
                        call.push_str(&argument);
                    }
                    call.push(')');
                    text.push_str(&if *has_result { format!("(drop {call})\n") } else { format!("{call}\n") });
                }
            }
        }
        text
    }
}

/// The text of the module that an input is.
fn module(input: &[u8]) -> String {
    let mut program = Program(input.iter());
    let mut imports = String::new();
    for (at, (name, types, has_result)) in IMPORTS.iter().enumerate() {
        let params: Vec<&str> = types.chars().map(|kind| if kind == 'I' { "i64" } else { "i32" }).collect();
        let result = if *has_result { "(result i32)" } else { "" };
        let params = params.join(" ");
        writeln!(imports, r#"(import "env" "{name}" (func $host{at} (param {params}) {result}))"#).expect("room");
    }
    // Most modules hand out memory that they have: with a hostile allocator no handler ever runs.
    let alloc = match program.next() {
        byte @ 0..32 => format!("{} (i32.const {})", program.steps(1), i32::from(byte) * 4096),
        32..48 => format!("(i32.const {})", program.value()),
        _ => "(i32.const 2048)".to_string(),
    };
    let (memory, start) = (program.next() % 3, program.next());
    let start = if start < 16 { "(start $start)" } else { "" };
    let [init, cast, call, stop, clear] = [4, 4, 6, 0, 0].map(|params| program.steps(params));
    let free = if program.next() < 24 { program.steps(2) } else { String::new() };
    let reply = program.value();
    let result = program.value();
    format!(
        r#"(module
{imports}
(memory (export "memory") {memory})
(data $out "out")
(func $start {stop})
{start}
(func $deep (call $deep))
(func $cast_good (param $len i32)
  (memory.init $out (i32.const 0) (i32.const 0) (i32.const 3))
  (call $host0 (i32.const 0) (i32.const 3) (i32.const 0) (local.get $len)))
(func (export "edgeless_mem_alloc") (param i32) (result i32) {alloc})
(func (export "edgeless_mem_free") (param i32 i32) {free})
(func (export "edgeless_mem_clear") {clear})
(func (export "handle_init_asm") (param i32 i32 i32 i32) {init})
(func (export "handle_cast_asm") (param i32 i32 i32 i32) {cast})
(func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) {call}
  (i32.store (local.get 4) (i32.const {reply})) (i32.store (local.get 5) (i32.const {reply})) (i32.const {result}))
(func (export "handle_stop_asm") {stop}))"#
    )
}
