//! Calls that are repeated until they are answered.

use std::{cell::RefCell, rc::Rc, time::Duration};

use daos_xstream::{
    Address, Clock, Env, FabricError, PeerId, Rng, Time,
    rpc::{Call, Endpoint, Reply, RpcError, Status},
};
use serde::{Serialize, de::DeserializeOwned};

use super::DsmError;
use crate::{access::Identity, rpc::control};

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Who it says it is, where nothing better vouches for it.
    pub identity: Identity,
    /// How long one attempt may take.
    pub attempt_timeout: Duration,
    /// How long a call may take, with all its attempts.
    pub call_timeout: Duration,
    /// The first pause before another attempt; it doubles from then on.
    pub pause_min: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

impl ClientConfig {
    /// What suits most, for this identity.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            attempt_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(60),
            pause_min: Duration::from_micros(200),
            pause_max: Duration::from_millis(200),
        }
    }
}

/// An endpoint, the peers that it has connected to, and the patience with them. A cheap handle.
pub struct Caller<E: Env>(Rc<Inner<E>>);

struct Inner<E: Env> {
    endpoint: Endpoint<E>,
    config: ClientConfig,
    /// Peers by address: few, and looked at only when a target has none.
    peers: RefCell<Vec<(Address, PeerId)>>,
}

impl<E: Env> Clone for Caller<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What to do about a failed attempt.
pub(super) enum Verdict {
    /// Try again after a pause.
    Again,
    /// Try again after a pause, over a new connection.
    Reconnect,
    /// Give up.
    Final,
}

/// Judges a failed attempt.
pub(super) fn judge(error: &RpcError) -> Verdict {
    match error {
        RpcError::Refused { status, .. } if status.retry_helps() => Verdict::Again,
        // Damaged on the way: nothing changed.
        RpcError::Refused { status: Status::BAD_CHECKSUM, message, .. } if message.is_empty() => {
            Verdict::Again
        }
        // It may come back: then over a new connection.
        RpcError::Refused { status: Status::SHUTTING_DOWN, .. } => Verdict::Reconnect,
        RpcError::Refused { .. } => Verdict::Final,
        RpcError::Fabric(FabricError::Busy) | RpcError::TimedOut => Verdict::Again,
        RpcError::Fabric(FabricError::TooLong { .. } | FabricError::BadAddress(_)) => Verdict::Final,
        _ => Verdict::Reconnect,
    }
}

/// Growing pauses up to a deadline.
pub(super) struct Patience<'a, E: Env> {
    caller: &'a Caller<E>,
    /// When the next attempt begins.
    now: Time,
    deadline: Time,
    pause: Duration,
}

impl<E: Env> Patience<'_, E> {
    /// How long the next attempt may take.
    pub fn attempt(&self) -> Duration {
        self.deadline.since(self.now).min(self.caller.config().attempt_timeout)
    }

    /// Waits before another attempt. Returns `error` if the deadline will have passed by then.
    pub async fn pause(&mut self, error: RpcError) -> Result<(), DsmError> {
        let env = self.caller.env();
        // Between half and all of it, so that clients who were refused together do not come back together.
        let nanos = u64::try_from(self.pause.as_nanos()).unwrap_or(u64::MAX).max(2);
        let pause = Duration::from_nanos(nanos / 2 + env.rng().next_u64() % (nanos / 2));
        let until = env.clock().now() + pause;
        if until >= self.deadline {
            return Err(DsmError::TimedOut { last: error.to_string() });
        }
        env.clock().sleep_until(until).await;
        self.now = until;
        self.pause = (self.pause * 2).min(self.caller.config().pause_max);
        Ok(())
    }
}

impl<E: Env> Caller<E> {
    /// Calls through `endpoint`.
    pub fn new(endpoint: Endpoint<E>, config: ClientConfig) -> Self {
        Self(Rc::new(Inner { endpoint, config, peers: RefCell::default() }))
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint<E> {
        &self.0.endpoint
    }

    /// The world.
    pub fn env(&self) -> &E {
        self.0.endpoint.env()
    }

    /// How it behaves.
    pub fn config(&self) -> &ClientConfig {
        &self.0.config
    }

    pub(super) fn patience(&self) -> Patience<'_, E> {
        let now = self.env().clock().now();
        let config = self.config();
        Patience { caller: self, now, deadline: now + config.call_timeout, pause: config.pause_min }
    }

    /// The peer at the first of `addresses` that can be connected to. Addresses of fabrics that this client does not
    /// have are passed over.
    pub(super) async fn peer(&self, addresses: &[Address]) -> Result<PeerId, RpcError> {
        let known = |address: &Address| {
            self.0.peers.borrow().iter().find(|(other, _)| other == address).map(|(_, peer)| *peer)
        };
        if let Some(peer) = addresses.iter().find_map(known) {
            return Ok(peer);
        }
        let mut last = RpcError::Fabric(FabricError::Unreachable("a target without address".to_owned()));
        for address in addresses {
            match self.endpoint().connect(address).await {
                Ok(peer) => {
                    self.0.peers.borrow_mut().push((address.clone(), peer));
                    return Ok(peer);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Forgets a peer that is of no use any more.
    pub(super) fn forget(&self, peer: PeerId) {
        let mut peers = self.0.peers.borrow_mut();
        if let Some(place) = peers.iter().position(|(_, other)| *other == peer) {
            peers.swap_remove(place);
            drop(peers);
            self.endpoint().disconnect(peer);
        }
    }

    /// One attempt at one of `addresses`.
    pub(super) async fn attempt(
        &self,
        addresses: &[Address],
        call: &Call,
        body: &[&[u8]],
    ) -> Result<Reply, RpcError> {
        let peer = self.peer(addresses).await?;
        let result = self.endpoint().call(peer, call, body).await;
        if let Err(error) = &result
            && let Verdict::Reconnect = judge(error)
        {
            self.forget(peer);
        }
        result
    }

    /// Calls a control procedure, until it is answered.
    pub(super) async fn control<Request: Serialize, Answer: DeserializeOwned>(
        &self,
        addresses: &[Address],
        call: Call,
        request: &Request,
    ) -> Result<Answer, DsmError> {
        let body = control::encode(request);
        let mut patience = self.patience();
        loop {
            let call = Call { timeout: patience.attempt(), ..call };
            match self.attempt(addresses, &call, &[&body]).await {
                Ok(reply) => return Ok(control::decode(reply.body())?),
                Err(error) => match judge(&error) {
                    Verdict::Again | Verdict::Reconnect => patience.pause(error).await?,
                    Verdict::Final => return Err(DsmError::from_rpc(error)),
                },
            }
        }
    }
}
