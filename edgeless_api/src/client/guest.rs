//! The events of a guest in a container, one unary call for each: what every EDGELESS guest serves.

use bytes::Bytes;
use tonic::transport::Channel;

use super::Connection;
use crate::error::Error;
use crate::event::Reply;
use crate::guest::{Boot, SDK};
use crate::id::InstanceId;
use crate::wire::{guest, pb};
use pb::guest_api_function_client::GuestApiFunctionClient;

/// A guest in a container.
#[derive(Clone, Debug)]
pub struct Guest {
    connection: Connection,
    guest: GuestApiFunctionClient<Channel>,
}

impl Guest {
    /// The guest that `connection` leads to.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("guest");
        let limit = connection.limits.frame();
        let guest = GuestApiFunctionClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        Self { connection, guest }
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Error> {
        answer.map(tonic::Response::into_inner).map_err(|status| self.connection.error(status))
    }

    /// Tells it who it is; whether it knows what to do with a token.
    ///
    /// # Errors
    /// It refuses, or cannot be reached.
    pub async fn boot(&self, boot: Boot) -> Result<bool, Error> {
        let booted = self.guest.clone().boot(pb::BootData::from(boot)).await;
        booted
            .map(|answer| answer.metadata().contains_key(SDK))
            .map_err(|status| self.connection.error(status))
    }

    /// Initialises it.
    ///
    /// # Errors
    /// Its handler fails, or it cannot be reached.
    pub async fn init(&self, payload: String, state: Bytes) -> Result<(), Error> {
        let init = pb::FunctionInstanceInit { init_payload: payload, serialized_state: state };
        self.answer(self.guest.clone().init(init).await)
    }

    /// Gives it an event that needs no answer.
    ///
    /// # Errors
    /// Its handler fails, or it cannot be reached.
    pub async fn cast(&self, source: InstanceId, payload: Bytes) -> Result<(), Error> {
        self.answer(self.guest.clone().cast(guest::input(source, payload)).await)
    }

    /// Gives it an event and brings the reply.
    ///
    /// # Errors
    /// Its handler fails, or it cannot be reached.
    pub async fn call(&self, source: InstanceId, payload: Bytes) -> Result<Reply, Error> {
        self.answer(self.guest.clone().call(guest::input(source, payload)).await).map(Into::into)
    }

    /// Ends it.
    ///
    /// # Errors
    /// Its handler fails, or it cannot be reached.
    pub async fn stop(&self) -> Result<(), Error> {
        self.answer(self.guest.clone().stop(()).await)
    }
}
