//! The key pair by which the node is known from one of its processes to the next.
//!
//! It is made at the first start and kept in the state directory, as PKCS #8 in PEM, for the user of the node only. The
//! file appears whole or not at all, and is never replaced: of two nodes that start with the same directory, both get
//! the key of the one that was first. What is there and cannot be read is an error, because a new key in its place would
//! make the node a stranger to its orchestrator.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use edgeless_api::node::{Hello, NodeKey, Proof, Registration};
use edgeless_api::{Error, NodeId};
use ring::rand::SystemRandom;
use ring::signature::{ED25519_PUBLIC_KEY_LEN, Ed25519KeyPair, KeyPair as _};

/// The file, in the state directory.
pub const FILE: &str = "node.key";

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Longer than any key.
const LONGEST: u64 = 4096;

/// The key pair of a node.
pub struct KeyPair {
    pair: Ed25519KeyPair,
    public: NodeKey,
}

impl KeyPair {
    /// The key pair that is kept in a directory. Makes both if they are not there.
    ///
    /// # Errors
    /// What is there is not a key, or nothing can be written there.
    pub fn of_directory(directory: &Path, node: NodeId) -> Result<Self, Error> {
        let file = directory.join(FILE);
        if let Some(pair) = read(&file, node)? {
            return Ok(pair);
        }
        create(directory, &file).map_err(|error| {
            Error::unavailable(format!("cannot keep the key of this node in {}: {error}", file.display()))
        })?;
        read(&file, node)?.ok_or_else(|| Error::unavailable(format!("{} has vanished again", file.display())))
    }

    /// The registration, signed.
    #[must_use]
    pub fn sign(&self, about: Registration) -> Registration {
        let signature = self.pair.sign(&about.claim());
        // It is as long as signatures of this kind are.
        let proof = signature.as_ref().try_into().ok().map(|signature| Proof { key: self.public, signature });
        Registration { proof, ..about }
    }

    /// What the process with this nonce says first over its link, signed.
    pub fn hello(&self, node: NodeId, nonce: u64) -> Hello {
        let hello = Hello { node, nonce, signature: None };
        Hello { signature: self.pair.sign(&hello.claim()).as_ref().try_into().ok(), ..hello }
    }
}

/// The key in a file; `None`: there is no such file.
fn read(file: &Path, node: NodeId) -> Result<Option<KeyPair>, Error> {
    let text = match fs::metadata(file) {
        Ok(about) if about.len() > LONGEST => Ok(String::new()),
        Ok(_) => fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => parse(&text).map(Some).ok_or_else(|| damaged(file, node)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Error::unavailable(format!("cannot read the key of this node in {}: {error}", file.display())))
        }
    }
}

fn damaged(file: &Path, node: NodeId) -> Error {
    Error::rejected(format!(
        "{} is damaged: it should hold the key of this node; restore it, or remove it and let the domain know this node \
         anew: `edgeless_cli node forget {node}`",
        file.display()
    ))
}

fn parse(text: &str) -> Option<KeyPair> {
    let body = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let body: String = body.split_whitespace().collect();
    // It also holds the public key, which would not fit if a bit of the other were wrong.
    let pair = Ed25519KeyPair::from_pkcs8(&BASE64.decode(body).ok()?).ok()?;
    let public: [u8; ED25519_PUBLIC_KEY_LEN] = pair.public_key().as_ref().try_into().ok()?;
    Some(KeyPair { pair, public: NodeKey(public) })
}

/// Puts a new key there, unless there is one by then.
fn create(directory: &Path, file: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
    let beside = Beside(file.with_extension(format!("key.{:016x}", rand::random::<u64>())));
    let mut options = File::options();
    let mut new = options.write(true).create_new(true).mode(0o600).open(&beside.0)?;
    new.write_all(format!("{BEGIN}\n{}\n{END}\n", BASE64.encode(pair)).as_bytes())?;
    new.sync_all()?;
    match fs::hard_link(&beside.0, file) {
        // Another node was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // A file system without links: nothing is put over what is there.
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            match options.open(file) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                opened => {
                    let mut whole = opened?;
                    whole.write_all(&fs::read(&beside.0)?)?;
                    whole.sync_all()
                }
            }
        }
        Err(error) => Err(error),
        Ok(()) => File::open(directory)?.sync_all(),
    }
}

/// A file that is gone in the end.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_user_only() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("deep").join("state");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let state = state.clone();
                std::thread::spawn(move || KeyPair::of_directory(&state, NodeId::random()).unwrap().public)
            })
            .collect();
        let keys: Vec<NodeKey> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "whoever comes at the same time gets the same");
        assert_eq!(KeyPair::of_directory(&state, NodeId::random()).unwrap().public, keys[0]);
        let files: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, [FILE], "nothing is left over");
        assert_eq!(fs::metadata(state.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_named_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        KeyPair::of_directory(directory.path(), NodeId::NONE).unwrap();
        let good = fs::read_to_string(&file).unwrap();
        // In the middle of the private key, and of the public one.
        let flipped = |at: usize| {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(bytes).unwrap()
        };
        let body = BEGIN.len() + 1;
        let half = good[..good.len() / 2].to_string();
        for bad in [String::new(), half, flipped(body + 40), flipped(body + 90), "x".repeat(1 << 20)] {
            fs::write(&file, &bad).unwrap();
            let error = KeyPair::of_directory(directory.path(), NodeId::NONE).err().unwrap();
            assert!(error.message.contains(&file.display().to_string()), "{error}");
            assert!(error.message.contains("is damaged"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
        fs::write(&file, format!("\n{good}\r\n")).unwrap();
        KeyPair::of_directory(directory.path(), NodeId::NONE).unwrap();
    }
}
