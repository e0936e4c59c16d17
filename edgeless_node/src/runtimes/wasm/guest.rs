//! The interface between host and guest, as EDGELESS function modules know it.
//!
//! The guest imports functions from `env` to emit, log and save; the host calls its handlers and
//! passes bytes through memory that the guest allocates. Ids are 16 bytes in the order of RFC 4122,
//! pointers and lengths 32 bits, little endian. Nothing that a guest passes is trusted: a pointer
//! out of range, a name that is not text, a failed allocation are traps.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::status::Level;
use edgeless_api::{Error, EventId, InstanceId, NodeId};
use uuid::Uuid;
use wasmtime::{
    AsContextMut, Caller, Engine, ExternType, Instance, InstancePre, Linker, Memory, PoolConcurrencyLimitError,
    ResourceLimiter, Result, Store, TypedFunc, UpdateDeadline, ValType, format_err,
};

use super::background::{on_behalf, steps_on_behalf};
use super::places::Place;
use super::ticker::Clock;
use super::{Limits, slices};
use crate::instance::{Cause, Context, EventKind, Incoming, InstanceError, Payload};
use crate::outputs::{CallError, Dropped, RAW};

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
    memory: Option<Memory>,
    alloc: Option<TypedFunc<u32, u32>>,
    /// The event that is to be placed in the memory of the guest.
    event: Option<Incoming>,
    /// What a repeat of the event in hand is known by.
    id: Option<Box<EventId>>,
    /// What the guest answered to it.
    reply: Option<std::result::Result<Payload, InstanceError>>,
    /// What everything that the guest emits now follows from.
    cause: Cause,
    slices_left: u64,
    limit: MemoryLimit,
    max_payload: usize,
    /// Whether the initialisation is over: before, there is nobody to call.
    initialised: bool,
    /// It is asked for a buffer in the middle of a handler, which takes a stack more: what it does must
    /// end there.
    is_lending: bool,
}

impl Data {
    fn memory(&self) -> Result<Memory> {
        // A start section runs before the memory is known.
        self.memory.ok_or_else(|| format_err!("a start section cannot call the host"))
    }
}

/// What is called from the host directly: seldom.
struct Exports {
    memory: Memory,
    alloc: TypedFunc<u32, u32>,
    free: TypedFunc<(u32, u32), ()>,
    init: TypedFunc<(u32, u32, u32, u32), ()>,
}

impl Exports {
    fn of(instance: &Instance, store: &mut Store<Data>) -> Result<Self> {
        let memory = instance.get_memory(&mut *store, "memory").ok_or_else(|| format_err!("there is no memory"))?;
        Ok(Self {
            memory,
            alloc: instance.get_typed_func(&mut *store, "edgeless_mem_alloc")?,
            free: instance.get_typed_func(&mut *store, "edgeless_mem_free")?,
            init: instance.get_typed_func(&mut *store, "handle_init_asm")?,
        })
    }

    /// Frees what [`put`] allocated.
    async fn drop_buffer(&self, store: impl AsContextMut<Data = Data>, (pointer, length): (u32, u32)) -> Result<()> {
        if length > 0 { self.free.call_async(store, (pointer, length)).await } else { Ok(()) }
    }
}

/// Has the guest allocate a buffer and fills it. For no bytes nothing is allocated: some guests cannot,
/// and the pointer is never read.
async fn put(
    mut store: impl AsContextMut<Data = Data>,
    memory: Memory,
    alloc: &TypedFunc<u32, u32>,
    bytes: &[u8],
) -> Result<(u32, u32)> {
    let length = u32::try_from(bytes.len()).map_err(|_| format_err!("{} bytes are too many", bytes.len()))?;
    if length == 0 {
        return Ok((1, 0));
    }
    let pointer = alloc.call_async(&mut store, length).await?;
    if pointer == 0 {
        return Err(no_memory(length as usize));
    }
    slice_mut(memory.data_mut(&mut store), pointer, bytes.len())?.copy_from_slice(bytes);
    Ok((pointer, length))
}

fn no_memory(length: usize) -> wasmtime::Error {
    format_err!("the guest has no memory left for {length} bytes")
}

fn slice(memory: &[u8], pointer: u32, length: usize) -> Result<&[u8]> {
    range(pointer, length).and_then(|range| memory.get(range)).ok_or_else(|| out_of_range(pointer, length))
}

fn slice_mut(memory: &mut [u8], pointer: u32, length: usize) -> Result<&mut [u8]> {
    range(pointer, length).and_then(|range| memory.get_mut(range)).ok_or_else(|| out_of_range(pointer, length))
}

fn read_u32(memory: &[u8], pointer: u32) -> Result<u32> {
    Ok(u32::from_le_bytes(slice(memory, pointer, 4)?.try_into()?))
}

/// The module that stands between the host and every guest: see `entry.wat`.
pub(super) struct Entry {
    module: wasmtime::Module,
    linker: Linker<Data>,
}

/// The way into one guest.
struct Handlers {
    cast: TypedFunc<u32, ()>,
    call: TypedFunc<u32, i32>,
    stop: TypedFunc<(), ()>,
}

impl Entry {
    /// Its code.
    pub(super) const CODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/entry.wasm"));

    /// The same, compiled.
    pub(super) fn new(module: wasmtime::Module) -> Result<Self> {
        let mut linker = Linker::new(module.engine());
        linker.func_wrap("host", "place", place)?;
        linker.func_wrap("host", "take", take)?;
        Ok(Self { module, linker })
    }

    async fn open(&self, store: &mut Store<Data>, guest: &Instance) -> Result<Handlers> {
        let mut imports = Vec::with_capacity(self.module.imports().len());
        for import in self.module.imports() {
            let found = match import.module() {
                "host" => self.linker.get_by_import(&mut *store, &import),
                _ => guest.get_export(&mut *store, import.name()),
            };
            imports.push(found.ok_or_else(|| format_err!("there is no {}", import.name()))?);
        }
        let entry = Instance::new_async(&mut *store, &self.module, &imports).await?;
        Ok(Handlers {
            cast: entry.get_typed_func(&mut *store, "cast")?,
            call: entry.get_typed_func(&mut *store, "call")?,
            stop: entry.get_typed_func(&mut *store, "stop")?,
        })
    }
}

/// Bytes of a buffer before the payload: two ids, and for a call two cells for the reply.
const CAST_HEAD: usize = 32;
const CALL_HEAD: usize = 40;

fn place(mut caller: Caller<'_, Data>, buffer: u32) -> Result<()> {
    let (memory, data) = caller.data().memory()?.data_and_store_mut(&mut caller);
    let event = data.event.take().ok_or_else(|| format_err!("there is no event to place"))?;
    let head = match event.kind {
        EventKind::Cast => CAST_HEAD,
        EventKind::Call => CALL_HEAD,
    };
    let size = head + event.payload.len();
    if buffer == 0 {
        return Err(no_memory(size));
    }
    let (head, payload) = slice_mut(memory, buffer, size)?.split_at_mut(head);
    let (ids, cells) = head.split_at_mut(CAST_HEAD);
    let (component, node) = ids.split_at_mut(16);
    component.copy_from_slice(event.source.function.as_bytes());
    node.copy_from_slice(event.source.node.0.as_bytes());
    cells.fill(0);
    payload.copy_from_slice(&event.payload);
    Ok(())
}

fn take(mut caller: Caller<'_, Data>, cells: u32) -> Result<()> {
    let (memory, data) = caller.data().memory()?.data_and_store_mut(&mut caller);
    let pointer = read_u32(memory, cells)?;
    let length = read_u32(memory, cells.wrapping_add(4))?;
    data.reply = Some(if length as usize > data.max_payload {
        let most = data.max_payload;
        Err(InstanceError::Failed(format!("its reply of {length} bytes is over the limit of {most}")))
    } else {
        Ok(Bytes::copy_from_slice(slice(memory, pointer, length as usize)?))
    });
    Ok(())
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
    handlers: Handlers,
    slices: u64,
    /// Given back together with what it is the place of.
    _place: Place,
}

impl Guest {
    /// What guests import.
    pub(super) fn linker(engine: &Engine) -> Result<Linker<Data>> {
        let mut linker = Linker::new(engine);
        linker.func_wrap_async("env", "cast_asm", |caller, args| Box::new(steps_on_behalf(cast(caller, args))))?;
        linker
            .func_wrap_async("env", "cast_raw_asm", |caller, args| Box::new(steps_on_behalf(cast_raw(caller, args))))?;
        linker.func_wrap_async("env", "call_asm", |caller, args| Box::new(steps_on_behalf(call(caller, args))))?;
        linker
            .func_wrap_async("env", "call_raw_asm", |caller, args| Box::new(steps_on_behalf(call_raw(caller, args))))?;
        linker.func_wrap_async("env", "sync_asm", |caller, args| Box::new(steps_on_behalf(sync(caller, args))))?;
        linker.func_wrap("env", "telemetry_log_asm", telemetry_log)?;
        linker.func_wrap("env", "slf_asm", slf)?;
        linker.func_wrap("env", "delayed_cast_asm", delayed_cast)?;
        // Ours: what EDGELESS 1.x nodes do not have.
        linker.func_wrap("edgeless", "event_id_asm", event_id)?;
        Ok(linker)
    }

    /// Makes an instance of a module; no code of the guest but its start section runs.
    pub(super) async fn instantiate(
        module: &Module,
        entry: &Entry,
        context: Context,
        limits: Limits,
        clock: Clock,
        place: Place,
    ) -> std::result::Result<Self, Error> {
        let limit = MemoryLimit { bytes: limits.memory, refused: false };
        let data = Data {
            context,
            memory: None,
            alloc: None,
            event: None,
            id: None,
            reply: None,
            cause: Cause::default(),
            slices_left: slices(limits.time),
            limit,
            max_payload: limits.payload,
            initialised: false,
            is_lending: false,
        };
        let mut store = Store::new(module.module().engine(), data);
        store.limiter(|data| &mut data.limit);
        store.epoch_deadline_callback(move |mut store| {
            let data = store.data_mut();
            if !clock.charge() {
                // Time passed, but not while it ran.
                return Ok(UpdateDeadline::Continue(1));
            }
            data.slices_left = data.slices_left.saturating_sub(1);
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
        let handlers = entry.open(&mut store, &instance).await.map_err(refused)?;
        let data = store.data_mut();
        data.memory = Some(exports.memory);
        data.alloc = Some(exports.alloc.clone());
        Ok(Self { store, exports, handlers, slices: slices(limits.time), _place: place })
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
                *buffer = put(&mut *store, exports.memory, &exports.alloc, bytes).await?;
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
        let (kind, size) = (event.kind, event.payload.len());
        let data = self.store.data_mut();
        data.id.clone_from(&event.id);
        data.event = Some(event);
        let handled = self.enter(kind, size).await;
        let data = self.store.data_mut();
        data.event = None;
        data.id = None;
        let reply = data.reply.take();
        match handled {
            Err(error) => Err(self.broken(&error)),
            Ok(NO_REPLY) => Ok(None),
            Ok(REPLY) => reply.transpose(),
            Ok(_) => Err(InstanceError::Failed("it answered a call with an error".to_string())),
        }
    }

    async fn enter(&mut self, kind: EventKind, size: usize) -> Result<i32> {
        let size = u32::try_from(size).map_err(|_| format_err!("{size} bytes are too many"))?;
        match kind {
            EventKind::Cast => self.handlers.cast.call_async(&mut self.store, size).await.map(|()| NO_REPLY),
            EventKind::Call => self.handlers.call.call_async(&mut self.store, size).await,
        }
    }

    /// The memory of the guest, bytes.
    pub(super) fn size(&self) -> usize {
        self.exports.memory.data_size(&self.store)
    }

    /// Runs the stop handler; a trap in it is logged.
    pub(super) async fn stop(&mut self) {
        self.begin(Cause::default());
        let stopped = self.handlers.stop.call_async(&mut self.store, ()).await;
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
        let limit = &self.store.data().limit;
        if limit.refused {
            text = format!("the guest wanted more than {} bytes (wasm_runtime.memory_limit): {text}", limit.bytes);
        }
        InstanceError::Broken(text)
    }
}

/// The arguments that a guest passed, read and checked.
struct Args<'c> {
    memory: &'c [u8],
    data: &'c Data,
}

impl<'c> Args<'c> {
    fn new(caller: &'c Caller<'_, Data>) -> Result<Self> {
        let data = caller.data();
        if data.is_lending {
            return Err(format_err!("an allocation cannot call the host"));
        }
        Ok(Self { memory: data.memory()?.data(caller), data })
    }

    fn bytes(&self, pointer: u32, length: u32) -> Result<&'c [u8]> {
        slice(self.memory, pointer, length as usize)
    }

    fn text(&self, pointer: u32, length: u32, what: &str) -> Result<&'c str> {
        let bytes = self.bytes(pointer, length)?;
        std::str::from_utf8(bytes).map_err(|_| format_err!("string error: {what} is not UTF-8"))
    }

    /// At most so many bytes of a text. Cut anywhere, it may end within a character.
    fn start_of_text(&self, pointer: u32, length: u32, most: u32, what: &str) -> Result<Cow<'c, str>> {
        if length <= most {
            return Ok(Cow::Borrowed(self.text(pointer, length, what)?));
        }
        Ok(String::from_utf8_lossy(self.bytes(pointer, most)?))
    }

    fn name(&self, pointer: u32, length: u32, what: &str) -> Result<&'c str> {
        if length > MAX_NAME {
            return Err(format_err!("{what} is {length} bytes long: {MAX_NAME} is the limit"));
        }
        self.text(pointer, length, what)
    }

    /// `None`: it is larger than the limit, which was logged.
    fn payload(&self, output: &str, pointer: u32, length: u32) -> Result<Option<Bytes>> {
        let bytes = self.bytes(pointer, length)?;
        if bytes.len() > self.data.max_payload {
            let text = format!("a payload of {length} bytes was dropped: {} is the limit", self.data.max_payload);
            self.data.context.log.push(Level::Warn, "edgeless", text);
            self.data.context.outputs.lost_on(output, Dropped::TooLarge);
            return Ok(None);
        }
        Ok(Some(Bytes::copy_from_slice(bytes)))
    }

    fn instance(&self, node: u32, component: u32) -> Result<InstanceId> {
        let uuid = |pointer| -> Result<Uuid> { Ok(Uuid::from_slice(self.bytes(pointer, 16)?)?) };
        Ok(InstanceId { node: NodeId(uuid(node)?), function: uuid(component)? })
    }
}

async fn cast(caller: Caller<'_, Data>, (target, target_len, payload, len): (u32, u32, u32, u32)) -> Result<()> {
    let args = Args::new(&caller)?;
    let output = args.name(target, target_len, "the name of an output")?;
    if let Some(payload) = args.payload(output, payload, len)? {
        let data = args.data;
        // What gets lost is counted; a cast tells the guest nothing.
        data.context.outputs.cast(output, payload, data.cause).await.ok();
    }
    Ok(())
}

async fn cast_raw(caller: Caller<'_, Data>, (node, component, payload, len): (u32, u32, u32, u32)) -> Result<()> {
    let args = Args::new(&caller)?;
    let target = args.instance(node, component)?;
    if let Some(payload) = args.payload(RAW, payload, len)? {
        let data = args.data;
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
    let data = args.data;
    let reply = match args.payload(output, payload, len)? {
        Some(_) if !data.initialised => Err(not_wired()),
        Some(payload) => match data.context.outputs.call(output, payload, data.cause).await {
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
    let data = args.data;
    let reply = match args.payload(RAW, payload, len)? {
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
            let (memory, alloc) = (caller.data().memory()?, caller.data().alloc.clone());
            let alloc = alloc.ok_or_else(|| format_err!("the guest is not complete yet"))?;
            caller.data_mut().is_lending = true;
            let lent = put(&mut caller, memory, &alloc, &payload).await;
            caller.data_mut().is_lending = false;
            let (pointer, length) = lent?;
            let memory = memory.data_mut(&mut caller);
            slice_mut(memory, out_pointer, 4)?.copy_from_slice(&pointer.to_le_bytes());
            slice_mut(memory, out_length, 4)?.copy_from_slice(&length.to_le_bytes());
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
    let state = Bytes::copy_from_slice(args.bytes(pointer, length)?);
    args.data.context.save(state).await.map_err(|error| format_err!("{error}"))
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
    let log = &args.data.context.log;
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
    on_behalf(|| log.push(level, &target, message));
    Ok(())
}

fn slf(mut caller: Caller<'_, Data>, node: u32, component: u32) -> Result<()> {
    let (memory, data) = caller.data().memory()?.data_and_store_mut(&mut caller);
    let id = data.context.id;
    slice_mut(memory, node, 16)?.copy_from_slice(id.node.0.as_bytes());
    slice_mut(memory, component, 16)?.copy_from_slice(id.function.as_bytes());
    Ok(())
}

/// Whether a repeat of the event in hand is known by an id, and which: an outbox, and a number in it.
fn event_id(mut caller: Caller<'_, Data>, outbox: u32, number: u32) -> Result<i32> {
    let (memory, data) = caller.data().memory()?.data_and_store_mut(&mut caller);
    let Some(id) = data.id.as_deref() else { return Ok(0) };
    slice_mut(memory, outbox, 16)?.copy_from_slice(id.outbox.as_bytes());
    slice_mut(memory, number, 8)?.copy_from_slice(&id.number.to_le_bytes());
    Ok(1)
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
    let data = args.data;
    // Before the outputs are known, a name cannot be told from a wrong one.
    if data.initialised && !data.context.outputs.is_mapped(output) {
        return Err(format_err!("the output '{output}' leads nowhere: map it in the workflow"));
    }
    if let Some(payload) = args.payload(output, payload, len)? {
        // What gets lost is counted; a cast tells the guest nothing.
        let delay = Duration::from_millis(delay_ms);
        on_behalf(|| data.context.outputs.delayed_cast(delay, output, payload, data.cause)).ok();
    }
    Ok(())
}
