//! A function on wasmtime alone: what a node could at best reach with it.
//!
//! The same calls across the border as a node makes, and nothing beside: no limits, no clock, no log, one
//! output.

use bytes::Bytes;
use edgeless_api::InstanceId;
use tokio::sync::mpsc;
use wasmtime::{
    Caller, Config, Engine, Instance, InstanceAllocationStrategy, InstancePre, Linker, Memory, Module,
    PoolingAllocationConfig, Result, Store, TypedFunc, bail,
};

use crate::node::Size;

/// An error as the other files have it.
pub(crate) fn error(error: wasmtime::Error) -> anyhow::Error {
    anyhow::Error::msg(format!("wasmtime alone: {error:#}"))
}

/// What a store holds.
pub(crate) struct Data {
    memory: Option<Memory>,
    out: mpsc::Sender<Bytes>,
}

/// An engine that does nothing but run guests.
pub(crate) fn plain_engine() -> Engine {
    Engine::default()
}

/// An engine that is configured as that of a node is.
pub(crate) fn node_engine(size: &Size) -> Result<Engine> {
    let instances = u32::try_from(size.instances)?;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_core_instances(instances)
        .total_memories(instances)
        .total_tables(instances)
        .total_stacks(instances)
        .max_memory_size(size.memory_mib << 20);
    let mut config = Config::new();
    config.epoch_interruption(true).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// Whether a guest can wait: for room where it casts to, as on a node, or for nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guests {
    /// It is entered on a stack of its own, which is left while it waits.
    CanWait,
    /// It is entered as a function is called.
    NeverWait,
}

/// A module that is ready to be instantiated.
pub(crate) fn prepare(engine: &Engine, code: &[u8], guests: Guests) -> Result<InstancePre<Data>> {
    let module = Module::from_binary(engine, code)?;
    let mut linker = Linker::new(engine);
    match guests {
        Guests::CanWait => {
            linker.func_wrap_async("env", "cast_asm", |caller, args| Box::new(cast_in_turn(caller, args)))?
        }
        Guests::NeverWait => linker.func_wrap("env", "cast_asm", cast)?,
    };
    // What these functions do not use.
    linker.define_unknown_imports_as_traps(&module)?;
    linker.instantiate_pre(&module)
}

fn cast(caller: Caller<'_, Data>, name: u32, name_len: u32, payload: u32, len: u32) -> Result<()> {
    let payload = said(&caller, (name, name_len, payload, len))?;
    Ok(caller.data().out.try_send(payload)?)
}

async fn cast_in_turn(caller: Caller<'_, Data>, args: (u32, u32, u32, u32)) -> Result<()> {
    let payload = said(&caller, args)?;
    Ok(caller.data().out.send(payload).await?)
}

fn said(caller: &Caller<'_, Data>, (name, name_len, payload, len): (u32, u32, u32, u32)) -> Result<Bytes> {
    let Some(memory) = caller.data().memory else { bail!("there is no memory") };
    let bytes = memory.data(caller);
    let read = |at: u32, len: u32| bytes.get(at as usize..at as usize + len as usize);
    let (Some(name), Some(payload)) = (read(name, name_len), read(payload, len)) else {
        bail!("a pointer is out of range")
    };
    if name != b"next" {
        bail!("there is one output");
    }
    Ok(Bytes::copy_from_slice(payload))
}

/// An instance in its store, with its exports at hand.
pub(crate) struct Guest {
    store: Store<Data>,
    memory: Memory,
    alloc: TypedFunc<u32, u32>,
    free: TypedFunc<(u32, u32), ()>,
    clear: TypedFunc<(), ()>,
    init: TypedFunc<(u32, u32, u32, u32), ()>,
    cast: TypedFunc<(u32, u32, u32, u32), ()>,
    _call: TypedFunc<(u32, u32, u32, u32, u32, u32), i32>,
    _stop: TypedFunc<(), ()>,
}

impl Guest {
    /// Instantiates a module and looks its exports up; what it casts goes to `out`.
    pub(crate) async fn new(module: &InstancePre<Data>, out: mpsc::Sender<Bytes>) -> Result<Self> {
        let mut store = Store::new(module.module().engine(), Data { memory: None, out });
        // Only an engine with epochs asks for it; nothing moves them on.
        store.set_epoch_deadline(1);
        let instance = module.instantiate_async(&mut store).await?;
        let Some(memory) = instance.get_memory(&mut store, "memory") else { bail!("there is no memory") };
        store.data_mut().memory = Some(memory);
        let (own, instance) = (&mut store, &instance);
        Ok(Self {
            memory,
            alloc: export(own, instance, "edgeless_mem_alloc")?,
            free: export(own, instance, "edgeless_mem_free")?,
            clear: export(own, instance, "edgeless_mem_clear")?,
            init: export(own, instance, "handle_init_asm")?,
            cast: export(own, instance, "handle_cast_asm")?,
            _call: export(own, instance, "handle_call_asm")?,
            _stop: export(own, instance, "handle_stop_asm")?,
            store,
        })
    }

    /// Initialises it without a payload and without a state.
    pub(crate) async fn init(&mut self) -> Result<()> {
        self.init.call_async(&mut self.store, (0, 0, 0, 0)).await
    }

    /// Has a guest that can wait handle a cast.
    pub(crate) async fn handle(&mut self, source: InstanceId, payload: &[u8]) -> Result<()> {
        self.clear.call_async(&mut self.store, ()).await?;
        let mut buffers = [(1, 0); 3];
        for (buffer, bytes) in buffers.iter_mut().zip(parts(&source, payload)) {
            let length = u32::try_from(bytes.len())?;
            if length > 0 {
                let pointer = self.alloc.call_async(&mut self.store, length).await?;
                self.memory.write(&mut self.store, pointer as usize, bytes)?;
                *buffer = (pointer, length);
            }
        }
        let [component, node, payload] = buffers;
        self.cast.call_async(&mut self.store, (node.0, component.0, payload.0, payload.1)).await?;
        for (pointer, length) in buffers.into_iter().filter(|(_, length)| *length > 0) {
            self.free.call_async(&mut self.store, (pointer, length)).await?;
        }
        Ok(())
    }

    /// Has a guest that never waits handle a cast.
    pub(crate) fn handle_at_once(&mut self, source: InstanceId, payload: &[u8]) -> Result<()> {
        self.clear.call(&mut self.store, ())?;
        let mut buffers = [(1, 0); 3];
        for (buffer, bytes) in buffers.iter_mut().zip(parts(&source, payload)) {
            let length = u32::try_from(bytes.len())?;
            if length > 0 {
                let pointer = self.alloc.call(&mut self.store, length)?;
                self.memory.write(&mut self.store, pointer as usize, bytes)?;
                *buffer = (pointer, length);
            }
        }
        let [component, node, payload] = buffers;
        self.cast.call(&mut self.store, (node.0, component.0, payload.0, payload.1))?;
        for (pointer, length) in buffers.into_iter().filter(|(_, length)| *length > 0) {
            self.free.call(&mut self.store, (pointer, length))?;
        }
        Ok(())
    }
}

/// What a guest is handed of an event.
fn parts<'a>(source: &'a InstanceId, payload: &'a [u8]) -> [&'a [u8]; 3] {
    [source.function.as_bytes(), source.node.0.as_bytes(), payload]
}

fn export<P: wasmtime::WasmParams, R: wasmtime::WasmResults>(
    store: &mut Store<Data>,
    instance: &Instance,
    name: &str,
) -> Result<TypedFunc<P, R>> {
    instance.get_typed_func(store, name)
}
