//! Turns: what is asked about one thing is done in the order in which it was asked, one after the
//! other; what is asked about different things does not wait for each other.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

type Turn = tokio::sync::Mutex<()>;

/// Gives turns; clones give the same ones.
#[derive(Debug)]
pub struct Turns<K> {
    waiting: Arc<Mutex<HashMap<K, Weak<Turn>>>>,
}

impl<K> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { waiting: Arc::default() }
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Waits for a turn, which lasts until the guard is dropped.
    pub async fn turn(&self, key: K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|_, turn| turn.strong_count() > 0);
            let known = waiting.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                waiting.insert(key, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_waits_for_another_about_the_same_thing_only() {
        let turns = Turns::default();
        let first = turns.turn("a").await;
        let mut second = Box::pin(turns.turn("a"));
        assert!((&mut second).now_or_never().is_none());
        assert!(turns.turn("b").now_or_never().is_some());
        drop(first);
        drop(second.await);
        drop(turns.turn("c").await);
        assert_eq!(turns.waiting.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}
