//! Files of records that something has damaged: they are refused by name, or what is read from them was written.

use std::sync::LazyLock;

use edgeless_daemon::store::{Change, Kind, Store};

use crate::{Random, Target};

pub(crate) const TARGET: Target = Target { name: "store", make, run };

const KIND: Kind = Kind { name: "fuzz", shape: 1 };

/// A file as it should be.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("good.redb");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(&path, KIND).expect("a store");
        for number in 0..20_u8 {
            store.write(vec![Change::put("records", vec![number], vec![number; 300])]).await.expect("a write");
        }
        let closed = store.closed();
        drop(store);
        closed.cancelled().await;
    });
    std::fs::read(&path).expect("the file")
});

fn run(input: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("damaged.redb");
    std::fs::write(&path, input).expect("room for a file");
    let store = match Store::open(&path, KIND) {
        Ok(store) => store,
        Err(error) => return assert!(error.message.contains("damaged.redb"), "{error}"),
    };
    match store.all("records") {
        Ok(_) => {}
        Err(error) => assert!(error.message.contains("damaged.redb"), "{error}"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let written = store.write(vec![Change::put("records", "new", "new")]).await;
        assert!(written.is_err() || matches!(store.get("records", b"new"), Ok(Some(_))));
        let closed = store.closed();
        drop(store);
        closed.cancelled().await;
    });
}

fn make(random: &mut Random) -> Vec<u8> {
    let mut file = GOOD.clone();
    match random.below(3) {
        // A page that never reached the disk.
        0 => {
            let pages = file.len() / 4096;
            let page = random.below(pages) * 4096;
            file.get_mut(page..page + 4096).expect("a page").fill(0);
        }
        1 => file.truncate(random.below(file.len())),
        _ => {
            for _ in 0..=random.below(4) {
                let at = random.below(file.len());
                *file.get_mut(at).expect("a byte") ^= 1 << random.below(8);
            }
        }
    }
    file
}
