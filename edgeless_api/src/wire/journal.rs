//! The records of a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use super::{node, pb};
use crate::error::Error;
use crate::journal::SavedState;

fn read<M: Message + Default>(bytes: &[u8], what: &str) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::rejected(format!("the record of {what} cannot be read: {error}")))
}

impl SavedState {
    /// The record.
    pub fn encode(&self) -> Bytes {
        let saved_at_ms = node::millis(self.at.duration_since(UNIX_EPOCH).unwrap_or_default());
        pb::SavedStateRecord { epoch: self.epoch, syncs: self.syncs, saved_at_ms }.encode_to_vec().into()
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::SavedStateRecord = read(record, "a state")?;
        let at = UNIX_EPOCH.checked_add(Duration::from_millis(record.saved_at_ms));
        Ok(Self { epoch: record.epoch, syncs: record.syncs, at: at.unwrap_or(SystemTime::UNIX_EPOCH) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_state_is_read_as_it_was_written() {
        let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let state = SavedState { epoch: 7, syncs: u64::MAX, at };
        assert_eq!(SavedState::decode(&state.encode()), Ok(state));
        let error = SavedState::decode(b"never a record").unwrap_err();
        assert!(error.message.contains("the record of a state cannot be read"), "{error}");
    }
}
