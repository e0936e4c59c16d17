//! The interface between host and guest, as EDGELESS function modules know it.
//!
//! The guest imports functions from `env` to emit, log and save; the host calls its handlers and
//! passes bytes through memory that the guest allocates. Ids are 16 bytes in the order of RFC 4122,
//! pointers and lengths 32 bits, little endian. Nothing that a guest passes is trusted: a pointer
//! out of range, a name that is not text, a failed allocation are traps.

use std::time::Duration;

use bytes::Bytes;
use edgeless_api::status::Level;
use edgeless_api::{Error, InstanceId, NodeId};
use uuid::Uuid;
use wasmtime::{
    AsContext, AsContextMut, Caller, Engine, ExternType, Instance, InstancePre, Linker, Memory,
    PoolConcurrencyLimitError, ResourceLimiter, Result, Store, TypedFunc, UpdateDeadline, ValType, format_err,
};

use super::ticker::Clock;
use super::{Limits, slices};
use crate::instance::{Cause, Context, EventKind, Incoming, InstanceError, Payload};
use crate::outputs::{CallError, Dropped};

/// What handlers and the functions of the linker return for a call.
const NO_REPLY: i32 = 0;
const REPLY: i32 = 1;
const ERROR: i32 = 2;

/// The longest name of an output, and the longest log target that is read, bytes.
const MAX_NAME: u32 = 256;
/// The longest log message that is read, bytes.
const MAX_MESSAGE: u32 = 64 << 10;

type IsRight = fn(&ExternType) -> bool;

/// What a module must export, and of which type.
pub(super) const EXPORTS: [(&str, IsRight); 8] = [
    ("memory", |export| matches!(export, ExternType::Memory(memory) if !memory.is_64() && !memory.is_shared())),
    ("edgeless_mem_alloc", |export| is_func(export, 1, 1)),
    ("edgeless_mem_free", |export| is_func(export, 2, 0)),
    ("edgeless_mem_clear", |export| is_func(export, 0, 0)),
    ("handle_init_asm", |export| is_func(export, 4, 0)),
    ("handle_cast_asm", |export| is_func(export, 4, 0)),
    ("handle_call_asm", |export| is_func(export, 6, 1)),
    ("handle_stop_asm", |export| is_func(export, 0, 0)),
];

/// Whether it is a function with so many parameters and results, all of them i32.
fn is_func(export: &ExternType, params: usize, results: usize) -> bool {
    let ExternType::Func(func) = export else { return false };
    let is_i32 = |kind: ValType| matches!(kind, ValType::I32);
    func.params().len() == params && func.results().len() == results && func.params().chain(func.results()).all(is_i32)
}

/// A module that can be instantiated.
pub(super) type Module = InstancePre<Data>;

/// What a store holds for its guest.
pub(super) struct Data {
    context: Context,
    /// Known once the module is instantiated.
    exports: Option<Exports>,
    /// What everything that the guest emits now follows from.
    cause: Cause,
    slices_left: u64,
    memory: MemoryLimit,
    max_payload: usize,
    /// Whether the initialisation is over: before, there is nobody to call.
    initialised: bool,
}

#[derive(Clone)]
struct Exports {
    memory: Memory,
    alloc: TypedFunc<u32, u32>,
    free: TypedFunc<(u32, u32), ()>,
    clear: TypedFunc<(), ()>,
    init: TypedFunc<(u32, u32, u32, u32), ()>,
    cast: TypedFunc<(u32, u32, u32, u32), ()>,
    call: TypedFunc<(u32, u32, u32, u32, u32, u32), i32>,
    stop: TypedFunc<(), ()>,
}

impl Exports {
    fn of(instance: &Instance, store: &mut Store<Data>) -> Result<Self> {
        let memory = instance.get_memory(&mut *store, "memory").ok_or_else(|| format_err!("there is no memory"))?;
        Ok(Self {
            memory,
            alloc: instance.get_typed_func(&mut *store, "edgeless_mem_alloc")?,
            free: instance.get_typed_func(&mut *store, "edgeless_mem_free")?,
            clear: instance.get_typed_func(&mut *store, "edgeless_mem_clear")?,
            init: instance.get_typed_func(&mut *store, "handle_init_asm")?,
            cast: instance.get_typed_func(&mut *store, "handle_cast_asm")?,
            call: instance.get_typed_func(&mut *store, "handle_call_asm")?,
            stop: instance.get_typed_func(&mut *store, "handle_stop_asm")?,
        })
    }

    /// Has the guest allocate a buffer and fills it. For no bytes nothing is allocated: some guests
    /// cannot, and the pointer is never read.
    async fn put(&self, mut store: impl AsContextMut<Data = Data>, bytes: &[u8]) -> Result<(u32, u32)> {
        let length = u32::try_from(bytes.len()).map_err(|_| format_err!("{} bytes are too many", bytes.len()))?;
        if length == 0 {
            return Ok((1, 0));
        }
        let pointer = self.alloc.call_async(&mut store, length).await?;
        if pointer == 0 {
            return Err(format_err!("the guest has no memory left for {length} bytes"));
        }
        self.write(&mut store, pointer, bytes)?;
        Ok((pointer, length))
    }

    fn write(&self, mut store: impl AsContextMut<Data = Data>, pointer: u32, bytes: &[u8]) -> Result<()> {
        let range = range(pointer, bytes.len());
        let memory = self.memory.data_mut(&mut store);
        let target = range.and_then(|range| memory.get_mut(range)).ok_or_else(|| out_of_range(pointer, bytes.len()))?;
        target.copy_from_slice(bytes);
        Ok(())
    }

    fn read<'s>(&self, store: &'s wasmtime::StoreContext<'_, Data>, pointer: u32, length: u32) -> Result<&'s [u8]> {
        let length = length as usize;
        range(pointer, length)
            .and_then(|range| self.memory.data(store).get(range))
            .ok_or_else(|| out_of_range(pointer, length))
    }

    /// Frees what [`Self::put`] allocated.
    async fn drop_buffer(&self, store: impl AsContextMut<Data = Data>, (pointer, length): (u32, u32)) -> Result<()> {
        if length > 0 { self.free.call_async(store, (pointer, length)).await } else { Ok(()) }
    }
}

fn range(pointer: u32, length: usize) -> Option<std::ops::Range<usize>> {
    let start = pointer as usize;
    Some(start..start.checked_add(length)?)
}

fn out_of_range(pointer: u32, length: usize) -> wasmtime::Error {
    format_err!("the guest passed a pointer out of its memory: {length} bytes at {pointer:#x}")
}

/// Keeps the memory of a guest within its limit, and remembers that it wanted more.
struct MemoryLimit {
    bytes: usize,
    refused: bool,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let fits = desired <= self.bytes;
        self.refused |= !fits;
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        // What the pool has room for.
        Ok(desired <= 20_000)
    }
}

/// A guest in its store.
pub(super) struct Guest {
    store: Store<Data>,
    exports: Exports,
    slices: u64,
}

impl Guest {
    /// What guests import.
    pub(super) fn linker(engine: &Engine) -> Result<Linker<Data>> {
        let mut linker = Linker::new(engine);
        linker.func_wrap_async("env", "cast_asm", |caller, args| Box::new(cast(caller, args)))?;
        linker.func_wrap_async("env", "cast_raw_asm", |caller, args| Box::new(cast_raw(caller, args)))?;
        linker.func_wrap_async("env", "call_asm", |caller, args| Box::new(call(caller, args)))?;
        linker.func_wrap_async("env", "call_raw_asm", |caller, args| Box::new(call_raw(caller, args)))?;
        linker.func_wrap_async("env", "sync_asm", |caller, args| Box::new(sync(caller, args)))?;
        linker.func_wrap("env", "telemetry_log_asm", telemetry_log)?;
        linker.func_wrap("env", "slf_asm", slf)?;
        linker.func_wrap("env", "delayed_cast_asm", delayed_cast)?;
        Ok(linker)
    }

    /// Makes an instance of a module; no code of the guest but its start section runs.
    pub(super) async fn instantiate(
        module: &Module,
        context: Context,
        limits: Limits,
        clock: Clock,
    ) -> std::result::Result<Self, Error> {
        let memory = MemoryLimit { bytes: limits.memory, refused: false };
        let data = Data {
            context,
            exports: None,
            cause: Cause::default(),
            slices_left: slices(limits.time),
            memory,
            max_payload: limits.payload,
            initialised: false,
        };
        let mut store = Store::new(module.module().engine(), data);
        store.limiter(|data| &mut data.memory);
        store.epoch_deadline_callback(move |mut store| {
            let data = store.data_mut();
            let slices = clock.charge();
            if slices == 0 {
                // Time passed, but not while it ran.
                return Ok(UpdateDeadline::Continue(1));
            }
            data.slices_left = data.slices_left.saturating_sub(slices);
            if data.slices_left == 0 {
                return Err(format_err!(
                    "the guest used up the processor time of one handler (wasm_runtime.cpu_limit)"
                ));
            }
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
        });
        store.set_epoch_deadline(1);
        let refused = |error: wasmtime::Error| match error.downcast_ref::<PoolConcurrencyLimitError>() {
            Some(_) => Error::exhausted(format!(
                "the node runs {} WebAssembly instances already (wasm_runtime.max_instances)",
                limits.instances
            )),
            None => Error::rejected(format!("the code cannot be instantiated: {error:?}")),
        };
        let instance = module.instantiate_async(&mut store).await.map_err(refused)?;
        let exports = Exports::of(&instance, &mut store).map_err(refused)?;
        store.data_mut().exports = Some(exports.clone());
        Ok(Self { store, exports, slices: slices(limits.time) })
    }

    /// Runs the init handler.
    ///
    /// # Errors
    /// The guest trapped.
    pub(super) async fn init(
        &mut self,
        payload: Option<&[u8]>,
        state: Option<&[u8]>,
    ) -> std::result::Result<(), InstanceError> {
        self.begin(Cause::default());
        let result = self.run_init(payload, state).await;
        self.store.data_mut().initialised = true;
        result.map_err(|error| self.broken(&error))
    }

    async fn run_init(&mut self, payload: Option<&[u8]>, state: Option<&[u8]>) -> Result<()> {
        let (store, exports) = (&mut self.store, &self.exports);
        // Absent is pointer 0, length 0.
        let mut buffers = [(0, 0), (0, 0)];
        for (buffer, bytes) in buffers.iter_mut().zip([payload, state]) {
            if let Some(bytes) = bytes {
                *buffer = exports.put(&mut *store, bytes).await?;
            }
        }
        let [payload, state] = buffers;
        exports.init.call_async(&mut *store, (payload.0, payload.1, state.0, state.1)).await?;
        exports.drop_buffer(&mut *store, payload).await?;
        exports.drop_buffer(&mut *store, state).await
    }

    /// Handles one event.
    ///
    /// # Errors
    /// The guest trapped, or answers the call with an error.
    pub(super) async fn handle(&mut self, event: Incoming) -> std::result::Result<Option<Payload>, InstanceError> {
        self.begin(event.cause);
        let handled = match event.kind {
            EventKind::Cast => self.cast(&event).await.map(|()| Ok(None)),
            EventKind::Call => self.call(&event).await,
        };
        match handled {
            Ok(answer) => answer,
            Err(error) => Err(self.broken(&error)),
        }
    }

    async fn cast(&mut self, event: &Incoming) -> Result<()> {
        let (store, exports) = (&mut self.store, &self.exports);
        exports.clear.call_async(&mut *store, ()).await?;
        let component = exports.put(&mut *store, event.source.function.as_bytes()).await?;
        let node = exports.put(&mut *store, event.source.node.0.as_bytes()).await?;
        let payload = exports.put(&mut *store, &event.payload).await?;
        exports.cast.call_async(&mut *store, (node.0, component.0, payload.0, payload.1)).await?;
        for buffer in [component, node, payload] {
            exports.drop_buffer(&mut *store, buffer).await?;
        }
        Ok(())
    }

    async fn call(&mut self, event: &Incoming) -> Result<std::result::Result<Option<Payload>, InstanceError>> {
        let max_payload = self.store.data().max_payload;
        let (store, exports) = (&mut self.store, &self.exports);
        exports.clear.call_async(&mut *store, ()).await?;
        let component = exports.put(&mut *store, event.source.function.as_bytes()).await?;
        let node = exports.put(&mut *store, event.source.node.0.as_bytes()).await?;
        let payload = exports.put(&mut *store, &event.payload).await?;
        let out_pointer = exports.put(&mut *store, &[0; 4]).await?;
        let out_length = exports.put(&mut *store, &[0; 4]).await?;
        let arguments = (node.0, component.0, payload.0, payload.1, out_pointer.0, out_length.0);
        let result = exports.call.call_async(&mut *store, arguments).await?;
        let answer = match result {
            NO_REPLY => Ok(None),
            REPLY => {
                // The guest has let go of the reply already: it is gone with the next call into it.
                let memory = store.as_context();
                let pointer = read_u32(exports, &memory, out_pointer.0)?;
                let length = read_u32(exports, &memory, out_length.0)?;
                if length as usize > max_payload {
                    Err(InstanceError::Failed(format!(
                        "its reply of {length} bytes is over the limit of {max_payload}"
                    )))
                } else {
                    Ok(Some(Bytes::copy_from_slice(exports.read(&memory, pointer, length)?)))
                }
            }
            _ => Err(InstanceError::Failed("it answered a call with an error".to_string())),
        };
        for buffer in [component, node, out_pointer, out_length, payload] {
            exports.drop_buffer(&mut *store, buffer).await?;
        }
        Ok(answer)
    }

    /// Runs the stop handler; a trap in it is logged.
    pub(super) async fn stop(&mut self) {
        self.begin(Cause::default());
        let (store, exports) = (&mut self.store, &self.exports);
        let stopped = match exports.clear.call_async(&mut *store, ()).await {
            Ok(()) => exports.stop.call_async(&mut *store, ()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            let reason = self.broken(&error);
            self.store.data().context.log.push(Level::Error, "edgeless", format!("the stop handler failed: {reason}"));
        }
    }

    /// A handler begins: with a new budget, and for this cause.
    fn begin(&mut self, cause: Cause) {
        let slices = self.slices;
        let data = self.store.data_mut();
        data.cause = cause;
        data.slices_left = slices;
        self.store.set_epoch_deadline(1);
    }

    /// What a trap looks like to users: on the first line the reason, then the guest's functions.
    fn broken(&mut self, error: &wasmtime::Error) -> InstanceError {
        let mut text = format!("{}\n{}", error.root_cause(), format!("{error:?}").trim_end());
        let memory = &mut self.store.data_mut().memory;
        if memory.refused {
            text = format!("the guest wanted more than {} bytes (wasm_runtime.memory_limit): {text}", memory.bytes);
        }
        InstanceError::Broken(text)
    }
}

fn read_u32(exports: &Exports, store: &wasmtime::StoreContext<'_, Data>, pointer: u32) -> Result<u32> {
    let bytes = exports.read(store, pointer, 4)?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

/// The arguments that a guest passed, read and checked.
struct Args<'c, 'a> {
    caller: &'c Caller<'a, Data>,
    exports: Exports,
}

impl<'c, 'a> Args<'c, 'a> {
    fn new(caller: &'c Caller<'a, Data>) -> Result<Self> {
        let exports = caller.data().exports.clone();
        // A start section runs before the exports are known.
        let exports = exports.ok_or_else(|| format_err!("a start section cannot call the host"))?;
        Ok(Self { caller, exports })
    }

    fn text(&self, pointer: u32, length: u32, what: &str) -> Result<String> {
        let store = self.caller.as_context();
        let bytes = self.exports.read(&store, pointer, length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format_err!("string error: {what} is not UTF-8"))
    }

    /// At most so many bytes of a text. Cut anywhere, it may end within a character.
    fn start_of_text(&self, pointer: u32, length: u32, most: u32, what: &str) -> Result<String> {
        if length <= most {
            return self.text(pointer, length, what);
        }
        let store = self.caller.as_context();
        Ok(String::from_utf8_lossy(self.exports.read(&store, pointer, most)?).into_owned())
    }

    fn name(&self, pointer: u32, length: u32, what: &str) -> Result<String> {
        if length > MAX_NAME {
            return Err(format_err!("{what} is {length} bytes long: {MAX_NAME} is the limit"));
        }
        self.text(pointer, length, what)
    }

    /// `None`: it is larger than the limit, which was logged.
    fn payload(&self, pointer: u32, length: u32) -> Result<Option<Bytes>> {
        let data = self.caller.data();
        let store = self.caller.as_context();
        let bytes = self.exports.read(&store, pointer, length)?;
        if bytes.len() > data.max_payload {
            let text = format!("a payload of {length} bytes was dropped: {} is the limit", data.max_payload);
            data.context.log.push(Level::Warn, "edgeless", text);
            data.context.outputs.lost(Dropped::TooLarge);
            return Ok(None);
        }
        Ok(Some(Bytes::copy_from_slice(bytes)))
    }

    fn instance(&self, node: u32, component: u32) -> Result<InstanceId> {
        let store = self.caller.as_context();
        let uuid = |pointer| -> Result<Uuid> { Ok(Uuid::from_slice(self.exports.read(&store, pointer, 16)?)?) };
        Ok(InstanceId { node: NodeId(uuid(node)?), function: uuid(component)? })
    }
}

async fn cast(caller: Caller<'_, Data>, (target, target_len, payload, len): (u32, u32, u32, u32)) -> Result<()> {
    let args = Args::new(&caller)?;
    let output = args.name(target, target_len, "the name of an output")?;
    if let Some(payload) = args.payload(payload, len)? {
        let data = caller.data();
        // What gets lost is counted; a cast tells the guest nothing.
        data.context.outputs.cast(&output, payload, data.cause).await.ok();
    }
    Ok(())
}

async fn cast_raw(caller: Caller<'_, Data>, (node, component, payload, len): (u32, u32, u32, u32)) -> Result<()> {
    let args = Args::new(&caller)?;
    let target = args.instance(node, component)?;
    if let Some(payload) = args.payload(payload, len)? {
        let data = caller.data();
        // What gets lost is counted; a cast tells the guest nothing.
        data.context.outputs.cast_raw(target, payload, data.cause).await.ok();
    }
    Ok(())
}

async fn call(
    caller: Caller<'_, Data>,
    (target, target_len, payload, len, out_pointer, out_length): (u32, u32, u32, u32, u32, u32),
) -> Result<i32> {
    let args = Args::new(&caller)?;
    let output = args.name(target, target_len, "the name of an output")?;
    let data = caller.data();
    let reply = match args.payload(payload, len)? {
        Some(_) if !data.initialised => Err(not_wired()),
        Some(payload) => match data.context.outputs.call(&output, payload, data.cause).await {
            Err(CallError::Unmapped(output)) => {
                return Err(format_err!("the output '{output}' leads nowhere: map it in the workflow"));
            }
            Err(error) => Err(error.to_string()),
            Ok(reply) => Ok(reply),
        },
        None => Err("the payload is over the limit".to_string()),
    };
    answer(caller, reply, out_pointer, out_length).await
}

async fn call_raw(
    caller: Caller<'_, Data>,
    (node, component, payload, len, out_pointer, out_length): (u32, u32, u32, u32, u32, u32),
) -> Result<i32> {
    let args = Args::new(&caller)?;
    let target = args.instance(node, component)?;
    let data = caller.data();
    let reply = match args.payload(payload, len)? {
        Some(_) if !data.initialised => Err(not_wired()),
        Some(payload) => {
            data.context.outputs.call_raw(target, payload, data.cause).await.map_err(|error| error.to_string())
        }
        None => Err("the payload is over the limit".to_string()),
    };
    answer(caller, reply, out_pointer, out_length).await
}

fn not_wired() -> String {
    "there is nobody to call while a function is being initialised: send an event to self and call then".to_string()
}

/// Hands a reply to the guest, in a buffer that it owns from then on.
async fn answer(
    mut caller: Caller<'_, Data>,
    reply: std::result::Result<Option<Payload>, String>,
    out_pointer: u32,
    out_length: u32,
) -> Result<i32> {
    match reply {
        Ok(None) => Ok(NO_REPLY),
        Ok(Some(payload)) => {
            let exports = Args::new(&caller)?.exports;
            let (pointer, length) = exports.put(&mut caller, &payload).await?;
            exports.write(&mut caller, out_pointer, &pointer.to_le_bytes())?;
            exports.write(&mut caller, out_length, &length.to_le_bytes())?;
            Ok(REPLY)
        }
        Err(reason) => {
            caller.data().context.log.push(Level::Warn, "edgeless", format!("a call brought no reply: {reason}"));
            Ok(ERROR)
        }
    }
}

async fn sync(caller: Caller<'_, Data>, (pointer, length): (u32, u32)) -> Result<()> {
    let args = Args::new(&caller)?;
    let store = caller.as_context();
    let state = Bytes::copy_from_slice(args.exports.read(&store, pointer, length)?);
    caller.data().context.state.save(state).await.map_err(|error| format_err!("{error}"))
}

fn telemetry_log(
    caller: Caller<'_, Data>,
    level: u32,
    target: u32,
    target_len: u32,
    message: u32,
    message_len: u32,
) -> Result<()> {
    let args = Args::new(&caller)?;
    let target = args.start_of_text(target, target_len, MAX_NAME, "a log target")?;
    let message = args.start_of_text(message, message_len, MAX_MESSAGE, "a log message")?;
    let log = &caller.data().context.log;
    let level = match level {
        1 => Level::Error,
        2 => Level::Warn,
        3 => Level::Info,
        4 => Level::Debug,
        5 => Level::Trace,
        other => {
            log.push(Level::Warn, "edgeless", format!("{other} is not a log level: taken for an error"));
            Level::Error
        }
    };
    log.push(level, &target, message);
    Ok(())
}

fn slf(mut caller: Caller<'_, Data>, node: u32, component: u32) -> Result<()> {
    let exports = Args::new(&caller)?.exports;
    let id = caller.data().context.id;
    exports.write(&mut caller, node, id.node.0.as_bytes())?;
    exports.write(&mut caller, component, id.function.as_bytes())
}

fn delayed_cast(
    caller: Caller<'_, Data>,
    delay_ms: u64,
    target: u32,
    target_len: u32,
    payload: u32,
    len: u32,
) -> Result<()> {
    let args = Args::new(&caller)?;
    let output = args.name(target, target_len, "the name of an output")?;
    let data = caller.data();
    // Before the outputs are known, a name cannot be told from a wrong one.
    if data.initialised && !data.context.outputs.is_mapped(&output) {
        return Err(format_err!("the output '{output}' leads nowhere: map it in the workflow"));
    }
    if let Some(payload) = args.payload(payload, len)? {
        // What gets lost is counted; a cast tells the guest nothing.
        let delay = Duration::from_millis(delay_ms);
        data.context.outputs.delayed_cast(delay, &output, payload, data.cause).ok();
    }
    Ok(())
}
