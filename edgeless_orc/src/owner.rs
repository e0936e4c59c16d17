//! Who the domain works for: one controller at a time.
//!
//! A controller that follows the domain owns it for as long as it listens. Another one that comes
//! after it, be it the same program started again, knows nothing of what runs here: the domain starts
//! afresh for it, or what ran for the first could never be stopped by anybody.
//!
//! Starting afresh shows in the nonce of the domain: the first controller, should it come back, sees
//! by it that nothing of its own runs here any more.

use std::sync::{Arc, Mutex, PoisonError};

use edgeless_api::error::Error;

/// Who owns the domain.
#[derive(Clone, Debug)]
pub(crate) struct Owner(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The process of the controller.
    controller: Option<u64>,
    /// Random for each process of ours, and drawn again whenever the domain changes hands.
    nonce: u64,
    listening: usize,
}

/// A controller that listens, until this is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    owner: Owner,
    /// The nonce of the domain while it works for this controller.
    pub(crate) nonce: u64,
    /// The domain worked for another controller before.
    pub(crate) changes_hands: bool,
}

impl Owner {
    /// A domain that works for nobody yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { controller: None, nonce: rand::random(), listening: 0 })))
    }

    /// The nonce of the domain at present.
    pub(crate) fn nonce(&self) -> u64 {
        self.state(|state| state.nonce)
    }

    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A controller begins to listen.
    ///
    /// # Errors
    /// Another controller listens.
    pub(crate) fn listen(&self, controller: u64) -> Result<Listening, Error> {
        self.state(|state| {
            if state.listening > 0 && state.controller != Some(controller) {
                return Err(Error::rejected(
                    "the domain works for another controller: stop that one, or take the domain out of its 'orchestrators'",
                ));
            }
            let changes_hands = state.controller.replace(controller).is_some_and(|before| before != controller);
            if changes_hands {
                state.nonce = rand::random();
            }
            state.listening += 1;
            Ok(Listening { owner: self.clone(), nonce: state.nonce, changes_hands })
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.owner.state(|state| state.listening -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_controller_at_a_time_and_a_new_one_starts_afresh() {
        let owner = Owner::new();
        let first = owner.listen(1).unwrap();
        assert!(!first.changes_hands, "nothing ran for anybody");
        let error = owner.listen(2).unwrap_err();
        assert!(error.message.contains("works for another controller"), "{error}");
        drop(first);
        let again = owner.listen(1).unwrap();
        assert!(!again.changes_hands, "it only lost its connection");
        drop(again);
        assert!(owner.listen(2).unwrap().changes_hands);
    }

    #[test]
    fn the_nonce_changes_with_the_hands_and_only_then() {
        let owner = Owner::new();
        let nonce = |controller| owner.listen(controller).unwrap().nonce;
        assert_eq!(owner.nonce(), nonce(1), "what was announced before anybody listened");
        let (first, again, second, back) = (nonce(1), nonce(1), nonce(2), nonce(1));
        assert_eq!(first, again, "it only lost its connection");
        assert!(first != second && second != back && back != first, "what ran for it was stopped: {first} {back}");
        assert_eq!(owner.nonce(), back);
    }
}
