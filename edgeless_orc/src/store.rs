//! The file that keeps a domain: what it works for, its components with their code, and the nodes that it has seen.
//!
//! What is written is decided by the engine; here is what the file is called, and how it is read.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use edgeless_api::component::ComponentSpec;
use edgeless_api::domain_record as record;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, DomainId, NodeId};
use edgeless_api::{Binary, Digest};
use edgeless_daemon::store::{Change, Kind, Store, Table};
use uuid::Uuid;

use crate::engine::Kept;
use crate::engine::disk::{CODE, COMPONENTS, DOMAIN, GONE, LEFT, NODES, ROWS, SELF, digest_key};

const KIND: Kind = Kind { name: "orchestrator", shape: 1 };
/// The longest name of a file that is made of that of a domain.
const LONGEST: usize = 120;

/// The file of a domain. Orchestrators of several domains may use the same directory.
pub(crate) fn file(directory: &Path, domain: &DomainId) -> PathBuf {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let escaped = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let mut name: String = domain.0.bytes().map(escaped).collect();
    if name.len() > LONGEST {
        name.truncate(LONGEST);
        name = format!("{name}-{}", Digest::of(domain.0.as_bytes()));
    }
    directory.join(format!("{name}.redb"))
}

/// Opens the file of a domain, or makes it, and reads what is in it. A new domain gets this nonce.
///
/// # Errors
/// It cannot be read or written, is in use, or is not what it should be.
pub(crate) async fn open(path: &Path, nonce: u64) -> Result<(Store, Kept), Error> {
    let store = Store::open(path, KIND)?;
    let mut kept = Reader { store: &store, path }.kept()?;
    match &mut kept.domain {
        Some(domain) => domain.restarts += 1,
        None => kept.domain = Some(record::Domain { nonce, ..record::Domain::default() }),
    }
    let domain = kept.domain.unwrap_or_default();
    store.write(vec![Change::put(DOMAIN, SELF, domain.encode())]).await?;
    let Found { components, left, gone, nodes, rows, .. } = kept;
    Ok((store, Kept { domain, components, left, gone, nodes, rows }))
}

/// What was found in a file.
struct Found {
    /// `None`: the file is new.
    domain: Option<record::Domain>,
    components: Vec<record::Component>,
    left: Vec<(ComponentId, record::Left)>,
    gone: Vec<(ComponentId, record::Gone)>,
    nodes: Vec<(NodeId, record::Node)>,
    rows: Vec<edgeless_api::component::Row>,
}

struct Reader<'s> {
    store: &'s Store,
    path: &'s Path,
}

impl Reader<'_> {
    fn kept(&self) -> Result<Found, Error> {
        let domain = self.store.get(DOMAIN, SELF.as_bytes())?;
        let domain = domain.map(|own| record::Domain::decode(&own)).transpose();
        let code: BTreeMap<Bytes, Binary> =
            self.store.all(CODE)?.into_iter().map(|(digest, code)| (digest, code.into())).collect();
        let mut components = Vec::new();
        for (_, component) in self.all(COMPONENTS, "a component", record::Component::decode)? {
            components.push(self.with_code(component, &code)?);
        }
        let left = self.all(LEFT, "a component that has left", record::Left::decode)?;
        let gone = self.all(GONE, "a component that is gone", record::Gone::decode)?;
        let nodes = self.all(NODES, "a node", record::Node::decode)?;
        let rows = self.all(ROWS, "a row", record::Foreign::decode)?;
        Ok(Found {
            domain: domain.map_err(|error| self.damaged("the domain", &error))?,
            components,
            left: left.into_iter().map(|(id, left)| (ComponentId(id), left)).collect(),
            gone: gone.into_iter().map(|(id, gone)| (ComponentId(id), gone)).collect(),
            nodes: nodes.into_iter().map(|(id, node)| (NodeId(id), node)).collect(),
            rows: rows.into_iter().map(|(_, row)| row.0).collect(),
        })
    }

    fn all<R>(
        &self,
        table: Table,
        what: &str,
        decode: impl Fn(&[u8]) -> Result<R, Error>,
    ) -> Result<Vec<(Uuid, R)>, Error> {
        let read = |(key, value): (Bytes, Bytes)| {
            let id = Uuid::from_slice(&key).map_err(|error| self.damaged(what, &error))?;
            let record = decode(&value).map_err(|error| self.damaged(&format!("{what}, {id}"), &error))?;
            Ok((id, record))
        };
        self.store.all(table)?.into_iter().map(read).collect()
    }

    fn with_code(
        &self,
        mut component: record::Component,
        code: &BTreeMap<Bytes, Binary>,
    ) -> Result<record::Component, Error> {
        let id = component.context.component;
        if let ComponentSpec::Function(function) = &mut component.spec
            && !function.class.binary.is_empty()
        {
            let digest = function.class.binary.digest();
            let found = code.get(&digest_key(digest)).filter(|found| found.digest() == digest);
            function.class.binary = found
                .cloned()
                .ok_or_else(|| self.damaged(&format!("component {id}"), &format!("its code {digest} is missing")))?;
        }
        Ok(component)
    }

    fn damaged(&self, what: &str, why: &dyn Display) -> Error {
        Error::rejected(format!(
            "{} is damaged ({what}: {why}) and was left as it is: restore a backup, or move the file away to begin with \
             nothing",
            self.path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edgeless_api::component::{FunctionClass, FunctionSpec, Row, StartContext, StatePolicy, StateSpec};
    use edgeless_api::id::{StateId, WorkflowId};

    use super::*;
    use crate::engine::disk::key;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn component(code: &'static [u8]) -> record::Component {
        let class = FunctionClass {
            id: "f".into(),
            function_type: "RUST_WASM".into(),
            binary: Bytes::from_static(code).into(),
            ..FunctionClass::default()
        };
        record::Component {
            spec: ComponentSpec::Function(FunctionSpec {
                class,
                annotations: BTreeMap::new(),
                state: StateSpec { id: StateId(id(3)), policy: StatePolicy::Transient },
                workflow: WorkflowId(id(4)),
            }),
            context: StartContext::new(ComponentId(id(1)), 1, "one"),
            is_held: true,
            is_wanted_active: true,
            is_exported: false,
            is_leaving: false,
            leaving_grace: None,
            is_born: true,
            epoch: 1,
            first_epoch: 0,
            row_epoch: 1 << 32,
            wanted: 1,
            outputs: BTreeMap::new(),
            replicas: vec![],
            loss: None,
            saved: None,
        }
    }

    fn named(mut component: record::Component) -> Bytes {
        if let ComponentSpec::Function(function) = &mut component.spec {
            function.class.binary = function.class.binary.without_bytes();
        }
        component.encode()
    }

    async fn close(store: Store) {
        let closed = store.closed();
        drop(store);
        closed.cancelled().await;
    }

    #[tokio::test]
    async fn a_domain_is_found_as_it_was_written_and_counts_its_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), &DomainId("d".into()));
        let (store, kept) = open(&path, 7).await.unwrap();
        assert_eq!((kept.domain.nonce, kept.domain.restarts, kept.components.len()), (7, 0, 0));
        let (left, node) = (record::Left { epoch: 2, legacy: Ok(None) }, record::Node::default());
        let row = Row::new(ComponentId(id(9)), 5, vec![]);
        let written = vec![
            Change::put(COMPONENTS, key(id(1)), named(component(b"code"))),
            Change::put(CODE, digest_key(Digest::of(b"code")), "code"),
            Change::put(LEFT, key(id(2)), left.clone().encode()),
            Change::put(NODES, key(id(3)), node.encode()),
            Change::put(ROWS, key(id(9)), record::Foreign(row.clone()).encode()),
        ];
        store.write(written).await.unwrap();
        close(store).await;
        let (store, kept) = open(&path, 8).await.unwrap();
        assert_eq!((kept.domain.nonce, kept.domain.restarts), (7, 1));
        assert_eq!(kept.components, [component(b"code")]);
        assert_eq!((kept.left, kept.nodes), (vec![(ComponentId(id(2)), left)], vec![(NodeId(id(3)), node)]));
        assert_eq!(kept.rows, [row]);
        close(store).await;
        assert_eq!(open(&path, 9).await.unwrap().1.domain.restarts, 2);
    }

    /// A damaged file is named, kept, and never taken for a new one.
    #[tokio::test]
    async fn what_cannot_be_read_is_named() {
        let code = || Change::put(CODE, digest_key(Digest::of(b"code")), "cöde");
        for (change, what) in [
            (Change::put(COMPONENTS, key(id(1)), "never a record"), "the record of a component cannot be read"),
            (Change::put(COMPONENTS, "short", named(component(b""))), "a component"),
            (Change::put(COMPONENTS, key(id(1)), named(component(b"code"))), "is missing"),
            (Change::put(NODES, key(id(1)), "never a record"), "a node"),
            (Change::put(LEFT, key(id(1)), "never a record"), "has left"),
            (Change::put(GONE, key(id(1)), "never a record"), "is gone"),
            (Change::put(ROWS, key(id(1)), "never a record"), "a row"),
            (Change::put(DOMAIN, SELF, "never a record"), "the domain"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = file(directory.path(), &DomainId("d".into()));
            let (store, _) = open(&path, 7).await.unwrap();
            store.write(vec![code(), change]).await.unwrap();
            close(store).await;
            let before = std::fs::read(&path).unwrap().len();
            let error = open(&path, 7).await.err().unwrap().message;
            assert!(error.contains(what) && error.contains("d.redb is damaged"), "{what}: {error}");
            assert!(error.contains("restore a backup"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap().len(), before);
        }
    }

    #[test]
    fn each_domain_has_a_file_of_its_own_whatever_its_name() {
        let of = |name: &str| file(Path::new("d"), &DomainId(name.into())).display().to_string();
        assert_eq!(of("domain-1"), "d/domain-1.redb");
        assert_eq!(of("../a b"), "d/%2E%2E%2Fa%20b.redb");
        assert_ne!(of("%2E"), of("."));
        let (one, other) = (of(&"é".repeat(100)), of(&format!("{}x", "é".repeat(100))));
        assert!(one != other && one.len() < 250, "{one}");
    }
}
