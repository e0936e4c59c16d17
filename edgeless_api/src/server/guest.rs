//! What guests in containers ask of their node, and what they serve themselves.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use super::{Adapter, LINK_WINDOW, Server, Values, Wire, WireStream, answer, empty};
use crate::error::Error;
use crate::event::Reply;
use crate::guest::{Ask, Boot, Caller, FromGuest, Goal, SDK, TOKEN, Tell, ToGuest};
use crate::id::InstanceId;
use crate::wire::{guest, pb, required};

/// Hosts guests.
///
/// Who calls is found out by the [`Caller`]; the originator is only what the guest says.
#[async_trait]
pub trait GuestHost: Send + Sync + 'static {
    /// Does what needs no answer.
    async fn tell(&self, caller: Caller, originator: InstanceId, tell: Tell) -> Result<(), Error>;
    /// Does what the guest waits for. A saved state is answered with an empty reply.
    async fn ask(&self, caller: Caller, originator: InstanceId, ask: Ask) -> Result<Reply, Error>;
    /// Who the caller is.
    async fn slf(&self, caller: Caller) -> Result<InstanceId, Error>;
    /// Takes the stream of a guest, and returns what goes to it.
    async fn attach(&self, caller: Caller, messages: Values<FromGuest>) -> Result<Values<ToGuest>, Error>;
}

impl Server {
    /// Adds what guests ask of their node.
    #[must_use]
    pub fn guest_host(mut self, service: Arc<impl GuestHost>) -> Self {
        use pb::guest_api_host_server::GuestApiHostServer;
        use pb::guest_link_server::GuestLinkServer;
        let limit = self.limits.frame();
        let host = GuestApiHostServer::new(self.adapter(service.clone())).max_decoding_message_size(limit);
        let link = GuestLinkServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(host).add_service(link);
        self.window = Some(LINK_WINDOW);
        self
    }
}

fn caller<T>(request: &Request<T>) -> Caller {
    let token = request.metadata().get(TOKEN).and_then(|token| token.to_str().ok()).map(ToString::to_string);
    Caller { address: request.remote_addr().map(|address| address.ip().to_canonical()), token }
}

fn originator(id: Option<pb::InstanceId>) -> Result<InstanceId, Error> {
    required(id, "originator")?.try_into()
}

impl<T: GuestHost> Adapter<T> {
    async fn tell(&self, caller: Caller, from: Option<pb::InstanceId>, tell: Tell) -> Wire<()> {
        empty(self.service.tell(caller, originator(from)?, tell).await)
    }

    async fn ask(&self, caller: Caller, from: Option<pb::InstanceId>, ask: Ask) -> Wire<pb::CallReturn> {
        answer(self.service.ask(caller, originator(from)?, ask).await.map(Into::into))
    }
}

#[async_trait]
impl<T: GuestHost> pb::guest_api_host_server::GuestApiHost for Adapter<T> {
    async fn cast(&self, request: Request<pb::OutputEventData>) -> Wire<()> {
        let caller = caller(&request);
        let pb::OutputEventData { originator, alias, msg } = request.into_inner();
        self.tell(caller, originator, Tell::Cast(Goal::Output(alias), msg)).await
    }

    async fn cast_raw(&self, request: Request<pb::OutputEventDataRaw>) -> Wire<()> {
        let caller = caller(&request);
        let pb::OutputEventDataRaw { originator, dst, msg } = request.into_inner();
        let target = required(dst, "dst")?.try_into()?;
        self.tell(caller, originator, Tell::Cast(Goal::Instance(target), msg)).await
    }

    async fn call(&self, request: Request<pb::OutputEventData>) -> Wire<pb::CallReturn> {
        let caller = caller(&request);
        let pb::OutputEventData { originator, alias, msg } = request.into_inner();
        self.ask(caller, originator, Ask::Call(Goal::Output(alias), msg)).await
    }

    async fn call_raw(&self, request: Request<pb::OutputEventDataRaw>) -> Wire<pb::CallReturn> {
        let caller = caller(&request);
        let pb::OutputEventDataRaw { originator, dst, msg } = request.into_inner();
        let target = required(dst, "dst")?.try_into()?;
        self.ask(caller, originator, Ask::Call(Goal::Instance(target), msg)).await
    }

    async fn telemetry_log(&self, request: Request<pb::TelemetryLogEvent>) -> Wire<()> {
        let caller = caller(&request);
        let pb::TelemetryLogEvent { originator, log_level, target, msg } = request.into_inner();
        self.tell(caller, originator, Tell::Log(guest::level(log_level), target, msg)).await
    }

    async fn slf(&self, request: Request<()>) -> Wire<pb::InstanceId> {
        answer(self.service.slf(caller(&request)).await.map(Into::into))
    }

    async fn delayed_cast(&self, request: Request<pb::DelayedEventData>) -> Wire<()> {
        let caller = caller(&request);
        // What it says of its metadata is not needed: the event that is being handled has them.
        let pb::DelayedEventData { originator, alias, msg, delay, metadata: _ } = request.into_inner();
        self.tell(caller, originator, Tell::DelayedCast(Duration::from_millis(delay), alias, msg)).await
    }

    async fn sync(&self, request: Request<pb::SyncData>) -> Wire<()> {
        let caller = caller(&request);
        let pb::SyncData { originator: from, serialized_state } = request.into_inner();
        empty(self.service.ask(caller, originator(from)?, Ask::Sync(serialized_state)).await.map(|_| ()))
    }
}

#[async_trait]
impl<T: GuestHost> pb::guest_link_server::GuestLink for Adapter<T> {
    type AttachStream = WireStream<pb::HostMessage>;

    async fn attach(&self, request: Request<Streaming<pb::GuestMessage>>) -> Wire<Self::AttachStream> {
        let caller = caller(&request);
        let messages = request.into_inner().map(|message| message.map_err(Error::from)?.try_into());
        let messages = self.service.attach(caller, Box::pin(messages)).await?;
        Ok(self.stream(messages))
    }
}

/// Is a guest: what a container serves.
#[async_trait]
pub trait GuestFunction: Send + Sync + 'static {
    /// Learns who it is. Whether it knows what to do with a token.
    async fn boot(&self, boot: Boot) -> Result<bool, Error>;
    /// Initialises itself.
    async fn init(&self, payload: String, state: Bytes) -> Result<(), Error>;
    /// Handles an event that needs no answer.
    async fn cast(&self, source: InstanceId, payload: Bytes) -> Result<(), Error>;
    /// Handles an event whose sender waits.
    async fn call(&self, source: InstanceId, payload: Bytes) -> Result<Reply, Error>;
    /// Ends.
    async fn stop(&self) -> Result<(), Error>;
}

impl Server {
    /// Adds a guest.
    #[must_use]
    pub fn guest_function(mut self, service: Arc<impl GuestFunction>) -> Self {
        use pb::guest_api_function_server::GuestApiFunctionServer;
        let limit = self.limits.frame();
        let guest = GuestApiFunctionServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(guest);
        self
    }
}

#[async_trait]
impl<T: GuestFunction> pb::guest_api_function_server::GuestApiFunction for Adapter<T> {
    async fn boot(&self, request: Request<pb::BootData>) -> Wire<()> {
        let knows_tokens = self.service.boot(request.into_inner().try_into()?).await?;
        let mut answer = tonic::Response::new(());
        if knows_tokens {
            answer.metadata_mut().insert(SDK, MetadataValue::from_static("2"));
        }
        Ok(answer)
    }

    async fn init(&self, request: Request<pb::FunctionInstanceInit>) -> Wire<()> {
        let init = request.into_inner();
        empty(self.service.init(init.init_payload, init.serialized_state).await)
    }

    async fn cast(&self, request: Request<pb::InputEventData>) -> Wire<()> {
        let (source, payload) = guest::event(request.into_inner())?;
        empty(self.service.cast(source, payload).await)
    }

    async fn call(&self, request: Request<pb::InputEventData>) -> Wire<pb::CallReturn> {
        let (source, payload) = guest::event(request.into_inner())?;
        answer(self.service.call(source, payload).await.map(Into::into))
    }

    async fn stop(&self, _: Request<()>) -> Wire<()> {
        empty(self.service.stop().await)
    }
}
