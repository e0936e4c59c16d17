//! The code that a daemon keeps: one copy of each, however many components are made of it.
//!
//! Code is in use as long as anybody holds a clone of its bytes, and stays as long as it is in use.
//! What is out of use stays for whoever asks next, and makes room, the least recently used first,
//! when the quota is met.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use edgeless_api::error::Error;
use edgeless_api::{Binary, Digest};

/// What a kept code counts at least, so that many small ones are bounded too.
const LEAST: usize = 1 << 10;

/// Code by digest, up to a quota.
#[derive(Debug)]
pub struct Binaries {
    quota: usize,
    /// The key of the configuration that sets the quota.
    key: &'static str,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_digest: HashMap<Digest, Entry>,
    /// Of all entries.
    size: usize,
    /// Counts uses, so that they can be told apart by age.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// With its bytes.
    binary: Binary,
    used: u64,
}

impl Entry {
    fn size(&self) -> usize {
        self.binary.bytes().map_or(0, Bytes::len).max(LEAST)
    }
}

impl Binaries {
    /// Keeps up to `quota` bytes; `key` sets the quota in the configuration.
    pub fn new(quota: usize, key: &'static str) -> Self {
        Self { quota, key, kept: Mutex::default() }
    }

    /// The same code in the copy that is kept. Code that comes without its bytes gets them.
    ///
    /// # Errors
    /// Nobody has brought its bytes yet, or what is in use leaves no room for them.
    pub fn keep(&self, binary: Binary) -> Result<Binary, Error> {
        if binary.is_empty() {
            return Ok(binary);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let used = kept.clock;
        if let Some(entry) = kept.by_digest.get_mut(&binary.digest()) {
            entry.used = used;
            return Ok(entry.binary.clone());
        }
        if binary.bytes().is_none() {
            return Err(Error::needs_code(binary.digest()));
        }
        let entry = Entry { binary: binary.detached(), used };
        let size = entry.size();
        kept.make_room(size, self.quota).map_err(|in_use| {
            Error::exhausted(format!(
                "the code of what runs takes {in_use} of {} bytes, and {size} more do not fit: stop something or raise {}",
                self.quota, self.key
            ))
        })?;
        let shared = entry.binary.clone();
        kept.size += size;
        kept.by_digest.insert(shared.digest(), entry);
        Ok(shared)
    }
}

impl Kept {
    /// Drops what is out of use until `size` more bytes fit; the bytes in use if they never will.
    fn make_room(&mut self, size: usize, quota: usize) -> Result<(), usize> {
        while self.size + size > quota {
            let idle = self.by_digest.iter().filter(|(_, entry)| !entry.binary.is_shared());
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used).map(|(digest, _)| *digest) else {
                return Err(self.size);
            };
            if let Some(entry) = self.by_digest.remove(&oldest) {
                self.size -= entry.size();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeless_api::Code;

    fn code(fill: u8) -> Binary {
        vec![fill; 2 * LEAST].into()
    }

    #[test]
    fn there_is_one_copy_of_each_code() {
        let binaries = Binaries::new(8 * LEAST, "quota");
        assert_eq!(binaries.keep(code(1).without_bytes()).unwrap_err().code, Code::NeedsCode);
        let first = binaries.keep(code(1)).unwrap();
        let again = binaries.keep(code(1)).unwrap();
        let named = binaries.keep(code(1).without_bytes()).unwrap();
        let at = |binary: &Binary| binary.bytes().unwrap().as_ptr();
        assert_eq!((at(&again), at(&named)), (at(&first), at(&first)));
        assert_eq!(binaries.kept.lock().unwrap().size, 2 * LEAST);
        assert!(binaries.keep(Binary::default()).unwrap().is_empty());
    }

    /// Were code in use dropped, a lost node's components could not be started elsewhere.
    #[test]
    fn what_is_in_use_stays_and_the_rest_makes_room_by_age() {
        let binaries = Binaries::new(6 * LEAST, "max_code");
        let in_use = binaries.keep(code(1)).unwrap();
        for fill in [2, 3, 2, 4] {
            drop(binaries.keep(code(fill)).unwrap());
        }
        let has = |fill| binaries.keep(code(fill).without_bytes()).is_ok();
        assert_eq!([1, 2, 3, 4].map(has), [true, true, false, true], "3 was used least recently");

        let all: Vec<_> = [2, 4].into_iter().map(|fill| binaries.keep(code(fill)).unwrap()).collect();
        let error = binaries.keep(code(5)).unwrap_err();
        assert!(error.code == Code::Exhausted && error.message.ends_with("raise max_code"), "{error}");
        drop((in_use, all));
        binaries.keep(code(5)).unwrap();
    }
}
