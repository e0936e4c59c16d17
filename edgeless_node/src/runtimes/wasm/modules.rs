//! Compiled modules: each content is compiled once, also when several ask for it at the same time,
//! and kept for the next that asks, the least recently used ones making room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use edgeless_api::Error;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use wasmtime::{Engine, ExternType, Linker, Module};

use super::guest::{self, Entry, Guest};

/// Modules that are kept for the next use. Those in use live as long as their functions anyway.
const KEPT: usize = 128;
/// The code of the modules that are kept, bytes as WebAssembly.
const KEPT_BYTES: usize = 64 << 20;

type Sha = [u8; 32];
type Slot = Arc<OnceCell<guest::Module>>;

struct Kept {
    sha: Sha,
    bytes: usize,
    slot: Slot,
}

/// The modules of one engine.
pub(super) struct Modules {
    engine: Engine,
    linker: Linker<guest::Data>,
    entry: Arc<Entry>,
    /// The least recently used first.
    kept: Mutex<VecDeque<Kept>>,
}

impl Modules {
    pub(super) fn new(engine: Engine) -> Result<Self, Error> {
        let linker = Guest::linker(&engine).map_err(Error::bug)?;
        let entry = Arc::new(Entry::new(&engine).map_err(Error::bug)?);
        Ok(Self { engine, linker, entry, kept: Mutex::default() })
    }

    /// What stands between the host and every guest.
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The module of this code, ready to be instantiated.
    ///
    /// # Errors
    /// The code is no module, imports what no host has or lacks what every function has.
    pub(super) async fn get(&self, code: &Bytes) -> Result<guest::Module, Error> {
        let slot = self.slot(Sha256::digest(code).into(), code.len());
        slot.get_or_try_init(|| self.compile(code.clone())).await.cloned()
    }

    fn slot(&self, sha: Sha, bytes: usize) -> Slot {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|known| known.sha == sha).and_then(|index| kept.remove(index));
        let used = found.unwrap_or_else(|| Kept { sha, bytes, slot: Slot::default() });
        let slot = used.slot.clone();
        kept.push_back(used);
        while kept.len() > KEPT || (kept.len() > 1 && kept.iter().map(|kept| kept.bytes).sum::<usize>() > KEPT_BYTES) {
            kept.pop_front();
        }
        slot
    }

    async fn compile(&self, code: Bytes) -> Result<guest::Module, Error> {
        let engine = self.engine.clone();
        let module = tokio::task::spawn_blocking(move || build(&engine, &code)).await.map_err(Error::bug)??;
        check_exports(&module)?;
        self.linker
            .instantiate_pre(&module)
            .map_err(|error| Error::rejected(format!("the code imports what this node does not offer: {error:#}")))
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
