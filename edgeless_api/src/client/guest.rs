//! The events of a guest in a container, and what a guest asks of its node: one unary call for each, which
//! is what every EDGELESS guest serves and speaks.

use bytes::Bytes;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::Connection;
use crate::error::Error;
use crate::event::Reply;
use crate::guest::{Ask, Boot, Goal, SDK, TOKEN, Tell};
use crate::id::InstanceId;
use crate::wire::node::millis;
use crate::wire::{guest, pb};
use pb::guest_api_function_client::GuestApiFunctionClient;
use pb::guest_api_host_client::GuestApiHostClient;

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
        booted.map(|answer| answer.metadata().contains_key(SDK)).map_err(|status| self.connection.error(status))
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

/// The node of a guest.
#[derive(Clone, Debug)]
pub struct GuestHost {
    connection: Connection,
    host: GuestApiHostClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl GuestHost {
    /// The node that `connection` leads to, which is shown this token; an empty one is shown to nobody.
    ///
    /// # Errors
    /// The token cannot be part of a request.
    pub fn new(connection: Connection, token: &str) -> Result<Self, Error> {
        let connection = connection.to("node");
        let limit = connection.limits.frame();
        let host = GuestApiHostClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        let token = match token {
            "" => None,
            token => Some(token.parse().map_err(|_| Error::rejected("the token is not plain text"))?),
        };
        Ok(Self { connection, host, token })
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert(TOKEN, token.clone());
        }
        request
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Error> {
        answer.map(tonic::Response::into_inner).map_err(|status| self.connection.error(status))
    }

    /// Asks for what needs no answer.
    ///
    /// # Errors
    /// The node refuses it, or cannot be reached.
    pub async fn tell(&self, originator: InstanceId, tell: Tell) -> Result<(), Error> {
        let originator = Some(originator.into());
        let mut host = self.host.clone();
        let told = match tell {
            Tell::Cast(Goal::Output(alias), msg) => {
                host.cast(self.request(pb::OutputEventData { originator, alias, msg })).await
            }
            Tell::Cast(Goal::Instance(target), msg) => {
                let dst = Some(target.into());
                host.cast_raw(self.request(pb::OutputEventDataRaw { originator, dst, msg })).await
            }
            Tell::DelayedCast(delay, alias, msg) => {
                // An EDGELESS 1.x node wants to be told what it knows.
                let metadata = Some(crate::event::Trace::default().into());
                let delay = millis(delay);
                host.delayed_cast(self.request(pb::DelayedEventData { originator, alias, msg, delay, metadata })).await
            }
            Tell::Log(level, target, msg) => {
                let log_level = guest::number(level);
                host.telemetry_log(self.request(pb::TelemetryLogEvent { originator, log_level, target, msg })).await
            }
        };
        self.answer(told)
    }

    /// Asks and waits. A saved state is answered with an empty reply.
    ///
    /// # Errors
    /// The node refuses it, or cannot be reached.
    pub async fn ask(&self, originator: InstanceId, ask: Ask) -> Result<Reply, Error> {
        let originator = Some(originator.into());
        let mut host = self.host.clone();
        let returned = match ask {
            Ask::Call(Goal::Output(alias), msg) => {
                host.call(self.request(pb::OutputEventData { originator, alias, msg })).await
            }
            Ask::Call(Goal::Instance(target), msg) => {
                let dst = Some(target.into());
                host.call_raw(self.request(pb::OutputEventDataRaw { originator, dst, msg })).await
            }
            Ask::Sync(serialized_state) => {
                let synced = host.sync(self.request(pb::SyncData { originator, serialized_state })).await;
                return self.answer(synced).map(|()| Reply::Empty);
            }
        };
        self.answer(returned).map(Into::into)
    }

    /// Asks who the guest is.
    ///
    /// # Errors
    /// The node does not know it, or cannot be reached.
    pub async fn slf(&self) -> Result<InstanceId, Error> {
        self.answer(self.host.clone().slf(self.request(())).await)?.try_into()
    }
}
