//! Who the domain works for: one controller at a time.
//!
//! A controller that follows the domain owns it for as long as it listens. Another one that comes
//! after it, be it the same program started again, knows nothing of what runs here: the domain starts
//! afresh for it, or what ran for the first could never be stopped by anybody.

use std::sync::{Arc, Mutex, PoisonError};

use edgeless_api::error::Error;

/// Who owns the domain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The process of the controller.
    nonce: Option<u64>,
    listening: usize,
}

/// A controller that listens, until this is dropped.
#[derive(Debug)]
pub(crate) struct Listening(Owner);

impl Owner {
    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A controller begins to listen. The second value says that the domain changes hands.
    ///
    /// # Errors
    /// Another controller listens.
    pub(crate) fn listen(&self, controller: u64) -> Result<(Listening, bool), Error> {
        self.state(|state| {
            if state.listening > 0 && state.nonce != Some(controller) {
                return Err(Error::rejected(
                    "the domain works for another controller: stop that one, or take the domain out of its 'orchestrators'",
                ));
            }
            let changes_hands = state.nonce.replace(controller).is_some_and(|before| before != controller);
            state.listening += 1;
            Ok((Listening(self.clone()), changes_hands))
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.state(|state| state.listening -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_controller_at_a_time_and_a_new_one_starts_afresh() {
        let owner = Owner::default();
        let (first, changes_hands) = owner.listen(1).unwrap();
        assert!(!changes_hands, "nothing ran for anybody");
        let error = owner.listen(2).unwrap_err();
        assert!(error.message.contains("works for another controller"), "{error}");
        drop(first);
        let (_again, changes_hands) = owner.listen(1).unwrap();
        assert!(!changes_hands, "it only lost its connection");
        drop(_again);
        assert!(owner.listen(2).unwrap().1);
    }
}
