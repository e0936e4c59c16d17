//! Compiled modules: each content is compiled once, also when several ask for it at the same time,
//! and kept for the next that asks, the least recently used ones making room: in memory here, and on
//! disk by `cache`.
//!
//! ```text
//!  digest -> in memory -> on disk -> code, if it came along -> compiled
//!                                    else: whoever starts the function is asked for it
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use edgeless_api::{Digest, Error, FunctionClass};
use tokio::sync::OnceCell;
use wasmtime::{Engine, ExternType, Linker, Module};

use super::cache::Cache;
use super::guest::{self, Entry, Guest};
use crate::starts::{StartTimes, Step};

/// Modules that are kept for the next use. Those in use live as long as their functions anyway.
const KEPT: usize = 128;
/// The size of the modules that are kept, bytes of compiled code and data.
const KEPT_BYTES: usize = 256 << 20;

type Slot = Arc<OnceCell<Ready>>;

#[derive(Clone)]
struct Ready {
    module: guest::Module,
    bytes: usize,
}

struct Kept {
    code: Digest,
    slot: Slot,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.slot.get().map_or(0, |ready| ready.bytes)
    }
}

/// The modules of one engine.
pub(super) struct Modules {
    engine: Engine,
    linker: Linker<guest::Data>,
    /// Made for the first function.
    entry: OnceCell<Arc<Entry>>,
    /// The least recently used first.
    kept: Mutex<VecDeque<Kept>>,
    cache: Option<Arc<Cache>>,
    starts: StartTimes,
}

impl Modules {
    pub(super) fn new(engine: Engine, cache: Option<Cache>, starts: StartTimes) -> Result<Self, Error> {
        let linker = Guest::linker(&engine).map_err(Error::bug)?;
        Ok(Self { engine, linker, entry: OnceCell::new(), kept: Mutex::default(), cache: cache.map(Arc::new), starts })
    }

    /// What stands between the host and every guest.
    ///
    /// # Errors
    /// Never in practice: its code is ours.
    pub(super) async fn entry(&self) -> Result<Arc<Entry>, Error> {
        let make = || async {
            let code = Digest::of(Entry::CODE);
            let module = match self.load(code).await? {
                Some(module) => module,
                None => {
                    let module = self.compile(Bytes::from_static(Entry::CODE)).await?;
                    self.store(&module, code);
                    module
                }
            };
            Entry::new(module).map(Arc::new).map_err(Error::bug)
        };
        self.entry.get_or_try_init(make).await.cloned()
    }

    /// The module of this class, ready to be instantiated.
    ///
    /// # Errors
    /// The code is no module, imports what no host has or lacks what every function has; or it did not
    /// come along and is not known here.
    pub(super) async fn get(&self, class: &FunctionClass) -> Result<guest::Module, Error> {
        let slot = self.slot(class.binary.digest());
        let ready = slot.get_or_try_init(|| self.make(class)).await?;
        Ok(ready.module.clone())
    }

    fn slot(&self, code: Digest) -> Slot {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|known| known.code == code).and_then(|index| kept.remove(index));
        let used = found.unwrap_or_else(|| Kept { code, slot: Slot::default() });
        let slot = used.slot.clone();
        kept.push_back(used);
        while kept.len() > KEPT || (kept.len() > 1 && kept.iter().map(Kept::bytes).sum::<usize>() > KEPT_BYTES) {
            kept.pop_front();
        }
        slot
    }

    async fn make(&self, class: &FunctionClass) -> Result<Ready, Error> {
        let (code, begin) = (class.binary.digest(), Instant::now());
        if let Some(module) = self.load(code).await? {
            self.starts.observe(&class.id, Step::Load, begin.elapsed());
            return self.link(&module);
        }
        let bytes = class.binary.bytes().ok_or_else(|| Error::needs_code(code))?;
        let begin = Instant::now();
        let module = self.compile(bytes.clone()).await?;
        self.starts.observe(&class.id, Step::Compile, begin.elapsed());
        let ready = self.link(&module)?;
        self.store(&module, code);
        Ok(ready)
    }

    async fn load(&self, code: Digest) -> Result<Option<Module>, Error> {
        let Some(cache) = self.cache.clone() else { return Ok(None) };
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || cache.load(&engine, code)).await.map_err(Error::bug)
    }

    async fn compile(&self, code: Bytes) -> Result<Module, Error> {
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || build(&engine, &code)).await.map_err(Error::bug)?
    }

    /// Keeps a module on disk. Nobody waits for that.
    fn store(&self, module: &Module, code: Digest) {
        if let Some(cache) = self.cache.clone() {
            let module = module.clone();
            drop(tokio::task::spawn_blocking(move || cache.store(&module, code)));
        }
    }

    fn link(&self, module: &Module) -> Result<Ready, Error> {
        check_exports(module)?;
        let linked = self
            .linker
            .instantiate_pre(module)
            .map_err(|error| Error::rejected(format!("the code imports what this node does not offer: {error:#}")))?;
        let image = module.image_range();
        Ok(Ready { module: linked, bytes: image.end.addr() - image.start.addr() })
    }
}

fn build(engine: &Engine, code: &[u8]) -> Result<Module, Error> {
    Module::validate(engine, code)
        .map_err(|error| Error::rejected(format!("the code is not a WebAssembly module: {error:#}")))?;
    // What is valid and yet cannot be compiled asks for more than there is.
    Module::from_binary(engine, code).map_err(|error| {
        Error::rejected(format!("the code needs more than this node gives (wasm_runtime.memory_limit): {error:#}"))
    })
}

fn check_exports(module: &Module) -> Result<(), Error> {
    for (name, is_right) in guest::EXPORTS {
        match module.get_export(name) {
            Some(export) if is_right(&export) => {}
            Some(export) => {
                let found = match export {
                    ExternType::Func(func) => func.to_string(),
                    _ => "not a function".to_string(),
                };
                return Err(Error::rejected(format!("the code exports '{name}' with another type: {found}")));
            }
            None => {
                return Err(Error::rejected(format!(
                    "the code does not export '{name}': build it with the crate edgeless_function"
                )));
            }
        }
    }
    Ok(())
}
