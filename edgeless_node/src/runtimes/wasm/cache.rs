//! Compiled modules on disk, so that a node that starts again neither compiles nor asks for code.
//!
//! ```text
//!  <digest of the code>-<what it was compiled for>.module:  compiled module | magic | seal
//! ```
//! A file is written beside its name and renamed, and never changed after that: who has it open keeps
//! what he opened. One that is damaged, or is not what its name says, is thrown away. What was compiled
//! for another engine has another name and is left to make room, as the least recently used ones do
//! when there is more than the quota. The cache is worth nothing but time: when the disk fails, that is
//! said once, and the node compiles.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use edgeless_api::Digest;
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, Module};

/// Where compiled modules are kept, and how much of them.
#[derive(Clone, Debug)]
pub struct Disk {
    /// A directory that is made when it is first needed.
    pub directory: PathBuf,
    /// The bytes of all files.
    pub quota: u64,
}

const MAGIC: &[u8; 8] = b"EDGLSS\x00\x01";
/// The magic and a SHA-256. Behind the module, because a file is mapped from its beginning.
const TRAILER: u64 = 8 + 32;
const KEPT: &str = "module";
const UNFINISHED: &str = "new";

/// The compiled modules of one engine.
#[derive(Debug)]
pub(super) struct Cache {
    disk: Disk,
    /// Version, target and settings of the compiler.
    compiler: [u8; 32],
    has_failed: AtomicBool,
}

impl Cache {
    pub(super) fn new(disk: Disk, engine: &Engine) -> Self {
        let mut hasher = ShaHasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self { disk, compiler: hasher.0.finalize().into(), has_failed: AtomicBool::new(false) }
    }

    /// The compiled module of this code, if it is there. Blocks.
    pub(super) fn load(&self, engine: &Engine, code: Digest) -> Option<Module> {
        match self.open(engine, code) {
            Ok(module) => module,
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Keeps the compiled module of this code. Blocks.
    pub(super) fn store(&self, module: &Module, code: Digest) {
        let stored = module.serialize().map_err(io::Error::other).and_then(|compiled| {
            if compiled.len() as u64 + TRAILER > self.disk.quota {
                return Ok(());
            }
            self.write(&compiled, code)?;
            self.trim()
        });
        if let Err(error) = stored {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &io::Error) {
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            let directory = self.disk.directory.display();
            tracing::warn!(%directory, %error, "compiled modules cannot be kept: going on without");
        }
    }

    fn path(&self, code: Digest) -> PathBuf {
        let compiler = Digest(self.compiler).to_string();
        let compiler = compiler.get(..16).unwrap_or_default();
        self.disk.directory.join(format!("{code}-{compiler}.{KEPT}"))
    }

    fn open(&self, engine: &Engine, code: Digest) -> io::Result<Option<Module>> {
        let path = self.path(code);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.check_directory()?;
        check_owner(&path, &file.metadata()?)?;
        let is_whole = self.is_sealed(&mut file, code)?;
        // Who was used last is seen by its time; a disk that takes no time forgets in another order.
        file.set_modified(SystemTime::now()).ok();
        let module = if is_whole { map(engine, file).ok() } else { None };
        if module.is_none() {
            tracing::warn!(file = %path.display(), "a compiled module is damaged: compiling it again");
            fs::remove_file(&path)?;
        }
        Ok(module)
    }

    /// Whether a file is what was once written under this name.
    fn is_sealed(&self, file: &mut File, code: Digest) -> io::Result<bool> {
        let Some(length) = file.metadata()?.len().checked_sub(TRAILER) else { return Ok(false) };
        let mut seal = self.seal(code);
        let copied = io::copy(&mut Read::by_ref(file).take(length), &mut Update(&mut seal))?;
        let mut trailer = Vec::new();
        file.take(TRAILER).read_to_end(&mut trailer)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(copied == length && trailer == trailer_of(seal))
    }

    /// The beginning of the seal: also a whole file under the name of another is none.
    fn seal(&self, code: Digest) -> Sha256 {
        Sha256::new().chain_update(self.compiler).chain_update(code.0)
    }

    fn write(&self, compiled: &[u8], code: Digest) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.disk.directory)?;
        self.check_directory()?;
        let path = self.path(code);
        let beside = path.with_extension(format!("{:016x}.{UNFINISHED}", rand::random::<u64>()));
        let written = write_new(&beside, &[compiled, &trailer_of(self.seal(code).chain_update(compiled))])
            .and_then(|()| fs::rename(&beside, &path));
        if written.is_err() {
            fs::remove_file(&beside).ok();
        }
        written
    }

    fn check_directory(&self) -> io::Result<()> {
        check_owner(&self.disk.directory, &fs::metadata(&self.disk.directory)?)
    }

    /// Removes the least recently used files until the others keep to the quota; also those that were
    /// never finished. Several nodes may share the directory: what another has removed is gone.
    fn trim(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.disk.directory)? {
            let path = entry?.path();
            if is_ours(&path)
                && let Ok(metadata) = fs::metadata(&path)
            {
                files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), path));
            }
        }
        files.sort();
        let mut size: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, length, path) in files {
            if size <= self.disk.quota {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => size -= length,
            }
        }
        Ok(())
    }
}

/// Whether a file is of this cache: an operator may have named a directory where there are others.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (stem, _) = name.split_once('.').unwrap_or_default();
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_named = stem
        .split_once('-')
        .is_some_and(|(code, compiler)| code.len() == 64 && compiler.len() == 16 && is_hex(code) && is_hex(compiler));
    is_named && path.extension().is_some_and(|kind| kind == KEPT || kind == UNFINISHED)
}

fn trailer_of(seal: Sha256) -> Vec<u8> {
    [MAGIC.as_slice(), seal.finalize().as_slice()].concat()
}

/// Not forced to the disk: what a power failure leaves half is seen by its seal.
fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

/// Refuses what somebody else may have written: a compiled module is trusted like the node itself.
fn check_owner(path: &Path, found: &Metadata) -> io::Result<()> {
    const ROOT: u32 = 0;
    const OTHERS_WRITE: u32 = 0o022;
    let own = fs::metadata("/proc/self")?.uid();
    if (found.uid() == own || found.uid() == ROOT) && found.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    let reason = format!("others may write to {}: give the node a directory of its own", path.display());
    Err(io::Error::new(ErrorKind::PermissionDenied, reason))
}

#[expect(unsafe_code, reason = "compiled code is run as it is; this is the one place where it comes from outside")]
fn map(engine: &Engine, file: File) -> wasmtime::Result<Module> {
    // SAFETY: the file must hold what `Module::serialize` made, and must not change as long as it is
    // mapped. Its seal was checked on this very descriptor, so that it is whole, and it was written by
    // `Cache::write`: nobody but the user of this process, and root, can write to it or its directory,
    // and both could replace this program as well. We never write to a file that has its name.
    // That the module is for this engine is in the seal, and wasmtime checks it again.
    unsafe { Module::deserialize_open_file(engine, file) }
}

/// Hashes what can be hashed into a digest, because that of the standard library is short and differs
/// between its versions.
struct ShaHasher(Sha256);

impl Hasher for ShaHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest: [u8; 32] = self.0.clone().finalize().into();
        digest.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

/// Writes into a hash.
struct Update<'a>(&'a mut Sha256);

impl Write for Update<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use wasmtime::{Config, Instance, OptLevel, Store};

    struct Fixture {
        directory: tempfile::TempDir,
        engine: Engine,
        cache: Cache,
    }

    fn disk(directory: &tempfile::TempDir, quota: u64) -> Disk {
        Disk { directory: directory.path().join("cache"), quota }
    }

    fn fixture() -> Fixture {
        let (directory, engine) = (tempfile::tempdir().unwrap(), Engine::default());
        let cache = Cache::new(disk(&directory, 64 << 20), &engine);
        Fixture { directory, engine, cache }
    }

    /// A module that answers with a number, and has it in its memory as well.
    fn code(number: u8) -> Vec<u8> {
        let text = format!(
            r#"(module (memory (export "memory") 1) (data (i32.const 0) "\{number:02x}")
                (func (export "answer") (result i32) (i32.load8_u (i32.const 0))))"#
        );
        wat::parse_str(text).unwrap()
    }

    impl Fixture {
        fn compile(&self, number: u8) -> (Module, Digest) {
            (Module::from_binary(&self.engine, &code(number)).unwrap(), Digest::of(&code(number)))
        }

        fn stored(&self, number: u8) -> Digest {
            let (module, digest) = self.compile(number);
            self.cache.store(&module, digest);
            digest
        }

        fn answer(&self, code: Digest) -> Option<i32> {
            let module = self.cache.load(&self.engine, code)?;
            let mut store = Store::new(&self.engine, ());
            let instance = Instance::new(&mut store, &module, &[]).unwrap();
            let answer = instance.get_typed_func::<(), i32>(&mut store, "answer").unwrap();
            Some(answer.call(&mut store, ()).unwrap())
        }

        fn files(&self) -> Vec<PathBuf> {
            let files = fs::read_dir(&self.cache.disk.directory).into_iter().flatten();
            files.map(|entry| entry.unwrap().path()).collect()
        }
    }

    #[test]
    fn what_is_stored_is_loaded_and_runs() {
        let fixture = fixture();
        assert_eq!(fixture.answer(Digest::of(&code(7))), None);
        let digest = fixture.stored(7);
        assert_eq!(fixture.answer(digest), Some(7));
        let again = Cache::new(disk(&fixture.directory, 64 << 20), &Engine::default());
        assert!(again.load(&Engine::default(), digest).is_some(), "by another process as well");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&fixture.cache.disk.directory), mode(&fixture.files()[0])), (0o700, 0o600));
    }

    #[test]
    fn what_is_damaged_or_foreign_is_thrown_away() {
        let fixture = fixture();
        let (digest, other) = (fixture.stored(7), fixture.stored(8));
        let (path, other) = (fixture.cache.path(digest), fixture.cache.path(other));
        let whole = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let damages = [
            flipped(whole.len() / 2),
            flipped(whole.len() - 1),
            flipped(whole.len() - 40),
            whole[..whole.len() - 100].to_vec(),
            whole[..whole.len() - 40].to_vec(),
            [whole.as_slice(), b"x"].concat(),
            b"short".to_vec(),
            vec![],
            fs::read(&other).unwrap(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            fs::write(&path, damage).unwrap();
            assert_eq!(fixture.answer(digest), None, "damage {number}");
            assert!(!path.exists(), "damage {number}");
        }
        fs::write(&path, whole).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fixture.answer(digest), Some(7), "it was the damage");
    }

    #[test]
    fn what_was_compiled_for_another_engine_is_left_alone() {
        let fixture = fixture();
        let digest = fixture.stored(7);
        let engine = Engine::new(Config::new().cranelift_opt_level(OptLevel::None)).unwrap();
        let cache = Cache::new(disk(&fixture.directory, 64 << 20), &engine);
        assert!(cache.load(&engine, digest).is_none());
        // Even under the name of the other, it is not taken.
        fs::copy(fixture.cache.path(digest), cache.path(digest)).unwrap();
        assert!(cache.load(&engine, digest).is_none());
        assert_eq!(fixture.answer(digest), Some(7));
    }

    #[test]
    fn the_least_recently_used_make_room_and_nothing_else_does() {
        let mut fixture = fixture();
        let [first, second, third] = [1, 2, 3].map(|number| fixture.stored(number));
        let size = fs::metadata(fixture.cache.path(first)).unwrap().len();
        let operators_own = fixture.cache.disk.directory.join("notes.module");
        fs::write(&operators_own, "of the operator").unwrap();
        for (age, code) in [first, second, third].into_iter().enumerate() {
            let file = File::open(fixture.cache.path(code)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(1000 - age as u64)).unwrap();
        }
        assert_eq!(fixture.answer(first), Some(1));
        fixture.cache.disk.quota = size * 3 + size / 2;
        let fourth = fixture.stored(4);
        let answers = [first, second, third, fourth].map(|code| fixture.answer(code));
        assert_eq!(answers, [Some(1), None, Some(3), Some(4)], "the second was used least recently");
        assert!(operators_own.exists());
        fixture.cache.disk.quota = size - 1;
        fixture.stored(5);
        assert_eq!(fixture.answer(third), Some(3), "what is larger than all is not kept");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_used() {
        let fixture = fixture();
        let digest = fixture.stored(7);
        fs::set_permissions(&fixture.cache.disk.directory, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(fixture.answer(digest), None);
        fixture.stored(8);
        assert_eq!(fixture.files().len(), 1, "nothing is written there either");
        assert!(fixture.cache.has_failed.load(Ordering::Relaxed), "and that is said");
    }

    #[test]
    fn without_a_disk_the_node_goes_on() {
        let mut fixture = fixture();
        let in_the_way = fixture.directory.path().join("file");
        fs::write(&in_the_way, "").unwrap();
        fixture.cache.disk.directory = in_the_way.join("cache");
        let digest = fixture.stored(7);
        assert_eq!(fixture.answer(digest), None);
    }
}
