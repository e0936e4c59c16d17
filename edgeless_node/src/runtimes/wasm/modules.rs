//! Compiled modules: each content is compiled once, also when several ask for it at the same time,
//! and kept for the next that asks, the least recently used ones making room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use edgeless_api::Error;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use wasmtime::{Engine, ExternType, InstancePre, Linker, Module};

use super::guest::{self, Guest};

/// Modules that are kept for the next use. Those in use live as long as their instances anyway.
const KEPT: usize = 128;

type Sha = [u8; 32];
type Slot = Arc<OnceCell<InstancePre<guest::Data>>>;

/// The modules of one engine.
pub(super) struct Modules {
    engine: Engine,
    linker: Linker<guest::Data>,
    /// The least recently used first.
    kept: Mutex<VecDeque<(Sha, Slot)>>,
}

impl Modules {
    pub(super) fn new(engine: Engine) -> Result<Self, Error> {
        let linker = Guest::linker(&engine).map_err(Error::bug)?;
        Ok(Self { engine, linker, kept: Mutex::default() })
    }

    /// The module of this code, ready to be instantiated.
    ///
    /// # Errors
    /// The code is no module, imports what no host has or lacks what every function has.
    pub(super) async fn get(&self, code: &Bytes) -> Result<InstancePre<guest::Data>, Error> {
        let slot = self.slot(Sha256::digest(code).into());
        slot.get_or_try_init(|| self.compile(code.clone())).await.cloned()
    }

    fn slot(&self, sha: Sha) -> Slot {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(known, _)| *known == sha).and_then(|index| kept.remove(index));
        let (_, slot) = found.unwrap_or_else(|| (sha, Slot::default()));
        kept.push_back((sha, slot.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        slot
    }

    async fn compile(&self, code: Bytes) -> Result<InstancePre<guest::Data>, Error> {
        let engine = self.engine.clone();
        let compiled = tokio::task::spawn_blocking(move || Module::from_binary(&engine, &code)).await;
        let module = compiled
            .map_err(Error::bug)?
            .map_err(|error| Error::rejected(format!("the code is not a WebAssembly module: {error:#}")))?;
        check_exports(&module)?;
        self.linker
            .instantiate_pre(&module)
            .map_err(|error| Error::rejected(format!("the code imports what this node does not offer: {error:#}")))
    }
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
