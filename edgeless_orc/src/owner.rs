//! Who the domain works for: one controller at a time.
//!
//! A controller that follows the domain owns it for as long as it listens. Another one that comes
//! after it knows nothing of what runs here: the domain starts afresh for it, which the engine sees to and keeps, or
//! what ran for the first could never be stopped by anybody.

use std::sync::{Arc, Mutex, PoisonError};

use edgeless_api::error::Error;

/// Who listens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    controller: u64,
    listening: usize,
}

/// A controller that listens, until this is dropped.
#[derive(Debug)]
pub(crate) struct Listening(Owner);

impl Owner {
    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A controller begins to listen.
    ///
    /// # Errors
    /// Another controller listens.
    pub(crate) fn listen(&self, controller: u64) -> Result<Listening, Error> {
        self.state(|state| {
            if state.listening > 0 && state.controller != controller {
                return Err(Error::rejected(
                    "the domain works for another controller: stop that one, or take the domain out of its 'orchestrators'",
                ));
            }
            state.controller = controller;
            state.listening += 1;
            Ok(Listening(self.clone()))
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
    fn one_controller_listens_at_a_time() {
        let owner = Owner::default();
        let (first, second) = (owner.listen(1).unwrap(), owner.listen(1).unwrap());
        let error = owner.listen(2).unwrap_err();
        assert!(error.message.contains("works for another controller"), "{error}");
        drop(first);
        assert!(owner.listen(2).is_err());
        drop(second);
        owner.listen(2).unwrap();
        owner.listen(1).unwrap();
    }
}
