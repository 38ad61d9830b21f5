//! The endpoint as the layers above see it.

use std::{
    future::{Future, poll_fn},
    os::fd::RawFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use daos_xstream::{
    Access, Address, Credentials, Fabric, FabricCounters, FabricError, IoBuffer, Park, PeerId, RemoteBuffer,
    Rng, Sink, Time,
};

use crate::{
    OfiConfig, OfiCounters, Place, address,
    exposure::Exposed,
    inner::Inner,
    peers::{Owed, PEERS_LIMIT, Stage},
    transfers::{Direction, Phase, TransferId},
};

/// A libfabric endpoint. A cheap handle: clones share the endpoint, which is closed with the last of them and of the
/// exposures and transfers made through it.
///
/// Everything moves only while somebody calls [`poll`](Fabric::poll), on the thread that opened the endpoint.
#[derive(Clone)]
pub struct OfiFabric {
    inner: Rc<Inner>,
}

impl OfiFabric {
    /// Opens an endpoint. `now` tells the monotonic time; `rng` must be unpredictable to peers: keys and tokens come from it.
    ///
    /// # Errors
    ///
    /// [`FabricError::Failed`] names a provider that this machine does not have, or an address that is in use;
    /// [`FabricError::BadAddress`] an address that is not of the provider's form. Nothing is left open.
    pub fn open(
        config: OfiConfig,
        now: impl Fn() -> Time + 'static,
        rng: impl Rng,
    ) -> Result<Self, FabricError> {
        let inner = Inner::open(config, Box::new(now), Box::new(rng))?;
        Ok(Self { inner: Rc::new(inner) })
    }

    /// The descriptor to wait for while the thread sleeps; `None` if the provider has none, in which case the endpoint
    /// must be polled.
    pub fn wait_descriptor(&self) -> Option<RawFd> {
        self.inner.port.wait_descriptor()
    }

    /// To be called right before the thread waits for [`wait_descriptor`](Self::wait_descriptor). If it is false something
    /// may be there already: poll instead. Wake up by [`next_timer`](Self::next_timer) at the latest, and poll then.
    pub fn prepare_to_park(&self) -> bool {
        // The next poll follows a pause of unknown length.
        let state = &mut *self.inner.state.borrow_mut();
        self.inner.look_at_clock(state);
        state.polls = u32::MAX / 32 * 32 - 1;
        state.closed.is_empty() && self.inner.port.try_wait()
    }

    /// When the endpoint must be polled even if nothing arrives.
    pub fn next_timer(&self) -> Time {
        self.inner.next_timer(&self.inner.state.borrow())
    }

    /// What the endpoint has counted.
    pub fn counters(&self) -> OfiCounters {
        let state = self.inner.state.borrow();
        OfiCounters {
            peers: state.peers.count() as u64,
            transfers: state.transfers.count() as u64,
            buffers_fenced: state.fenced.len() as u64,
            buffers_lost: state.transfers.given_up() as u64,
            connections_leaving: state.leaving.len() as u64,
            ..state.counters
        }
    }

    fn name_of(&self, address: &Address) -> Result<Vec<u8>, FabricError> {
        let config = &self.inner.config;
        config.check_scheme(address)?;
        let name = if config.uses_sockets() {
            let place = address::resolve(address)?;
            let name = address::to_bytes(place);
            if !address::is_callable(place) || name.get(..2) != self.inner.name.get(..2) {
                return Err(FabricError::BadAddress(format!(
                    "{address} cannot be called from this endpoint"
                )));
            }
            name
        } else {
            text_name(address.rest(), &self.inner.name)
                .ok_or_else(|| FabricError::BadAddress(format!("{address} is no name of this provider")))?
        };
        if name == self.inner.name {
            return Err(FabricError::BadAddress(format!("{address} is this endpoint itself")));
        }
        Ok(name)
    }

    /// Begins to call `address`, or finds who is there.
    fn call(&self, address: &Address) -> Result<PeerId, FabricError> {
        let name = self.name_of(address)?;
        let inner = &*self.inner;
        let state = &mut *inner.state.borrow_mut();
        inner.look_at_clock(state);
        let now = state.now;
        let deadline = now + inner.config.connect_timeout;
        let id = match state.peers.by_name(&name) {
            Some(id) => {
                state.peers.call(id, deadline, now);
                id
            }
            None => {
                if state.peers.count() + state.leaving.len() >= inner.config.peers_max.min(PEERS_LIMIT) {
                    return Err(FabricError::Failed(format!(
                        "this endpoint has {} peers",
                        state.peers.count()
                    )));
                }
                let destination = inner.destination(state, &name)?;
                let stage = Stage::Introducing { deadline, hello: Some(now) };
                state.peers.add(&name, destination, stage, inner.rng.next_u64(), now)
            }
        };
        if state.peers.get(id).is_some_and(|peer| peer.stage != Stage::Established) {
            inner.owe(state, id, Owed::Hello);
        }
        Ok(id)
    }

    fn transfer(
        &self,
        peer: PeerId,
        direction: Direction,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> Transferring {
        let step = match self.inner.start_transfer(peer, direction, remote, skip, buffer) {
            Ok(id) => Step::UnderWay(id),
            Err(outcome) => Step::Over(outcome),
        };
        Transferring { inner: Rc::clone(&self.inner), step }
    }
}

/// The provider's own name for an endpoint: text with a zero byte where names are text, else hexadecimal digits.
fn text_name(text: &str, own: &[u8]) -> Option<Vec<u8>> {
    if own.last() == Some(&0) && own[..own.len() - 1].iter().all(|byte| byte.is_ascii_graphic()) {
        let mut name = text.as_bytes().to_vec();
        name.push(0);
        return (name.len() <= address::NAME_BYTES_MAX).then_some(name);
    }
    let digit = |at: usize| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (text.len() == 2 * own.len()).then(|| (0..own.len()).map(|at| digit(2 * at)).collect()).flatten()
}

fn name_text(own: &[u8]) -> String {
    match own.split_last() {
        Some((0, text)) if text.iter().all(|byte| byte.is_ascii_graphic()) => {
            String::from_utf8_lossy(text).into_owned()
        }
        _ => own.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

impl Park for OfiFabric {
    fn descriptors(&self) -> Vec<RawFd> {
        self.wait_descriptor().into_iter().collect()
    }

    fn prepare_to_park(&self) -> bool {
        self.wait_descriptor().is_some() && self.prepare_to_park()
    }

    fn wake_at(&self) -> Time {
        self.next_timer()
    }

    // Nobody was told anything: the descriptor sees what arrives either way.
    fn unpark(&self) {}
}

impl Fabric for OfiFabric {
    type Exposed = Exposed;

    fn addresses(&self) -> Vec<Address> {
        let inner = &*self.inner;
        if matches!(inner.config.place, Place::ClientOf(_)) {
            return Vec::new();
        }
        let place = match address::from_bytes(&inner.name).filter(|_| inner.config.uses_sockets()) {
            Some(socket) => socket.to_string(),
            None => name_text(&inner.name),
        };
        format!("{}://{place}", inner.config.scheme()).parse().into_iter().collect()
    }

    /// Completes when the peer has answered, which needs polls in the meantime. Without an answer until the configured
    /// time it is [`FabricError::Unreachable`].
    fn connect(&self, address: &Address) -> impl Future<Output = Result<PeerId, FabricError>> {
        let begun = self.call(address);
        let text = address.to_string();
        poll_fn(move |context| {
            let id = match &begun {
                Ok(id) => *id,
                Err(error) => return Poll::Ready(Err(error.clone())),
            };
            let state = &mut *self.inner.state.borrow_mut();
            let Some(peer) = state.peers.get_mut(id) else {
                return Poll::Ready(Err(FabricError::Unreachable(text.clone())));
            };
            if peer.stage == Stage::Established {
                peer.known = true;
                return Poll::Ready(Ok(id));
            }
            if !peer.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                peer.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
    }

    fn visit_counters(&self, visit: &mut dyn FnMut(&'static str, FabricCounters)) {
        visit("ofi", self.counters().into());
    }

    fn disconnect(&self, peer: PeerId) {
        self.inner.close_peer(&mut self.inner.state.borrow_mut(), peer, true, false);
    }

    /// Always `None`: over a network nobody vouches for a peer.
    fn credentials(&self, _peer: PeerId) -> Option<Credentials> {
        None
    }

    fn message_bytes_max(&self) -> usize {
        self.inner.message_bytes_max()
    }

    fn send(&self, peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        self.inner.send(peer, parts)
    }

    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        self.inner.poll(limit, sink)
    }

    fn expose(
        &self,
        peer: PeerId,
        buffer: IoBuffer,
        access: Access,
    ) -> Result<Exposed, (IoBuffer, FabricError)> {
        Exposed::new(&self.inner, peer, buffer, access)
    }

    fn remote(&self, exposed: &Exposed) -> RemoteBuffer {
        exposed.remote()
    }

    /// Gives the memory itself back if the peer has said anything since the exposure, as an engine that answers a request
    /// has; otherwise a copy, because the peer might not have finished with the memory.
    fn withdraw(&self, exposed: Exposed) -> IoBuffer {
        exposed.withdraw(true)
    }

    fn withdraw_unanswered(&self, exposed: Exposed) -> IoBuffer {
        exposed.withdraw(false)
    }

    fn read(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        self.transfer(peer, Direction::Read, remote, skip, buffer)
    }

    fn write(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        self.transfer(peer, Direction::Write, remote, skip, buffer)
    }
}

/// A transfer as its caller waits for it. When it is dropped the transfer goes on, and its buffer is freed at its end.
struct Transferring {
    inner: Rc<Inner>,
    step: Step,
}

enum Step {
    UnderWay(TransferId),
    Over((IoBuffer, Result<(), FabricError>)),
    Taken,
}

impl Future for Transferring {
    type Output = (IoBuffer, Result<(), FabricError>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.step, Step::Taken) {
            Step::Over(outcome) => Poll::Ready(outcome),
            Step::Taken => panic!("a transfer was awaited after it had completed"),
            Step::UnderWay(id) => {
                let inner = Rc::clone(&self.inner);
                let state = &mut *inner.state.borrow_mut();
                let transfer = state.transfers.get_mut(id).expect("a transfer stays until it is taken");
                if !matches!(transfer.phase, Phase::Done(_)) {
                    if transfer.given_up {
                        transfer.abandoned = true;
                        let substitute = IoBuffer::zeroed(transfer.buffer.len());
                        return Poll::Ready((substitute, Err(FabricError::PeerGone)));
                    }
                    transfer.waker = Some(context.waker().clone());
                    self.step = Step::UnderWay(id);
                    return Poll::Pending;
                }
                let transfer = state.transfers.remove(id).expect("found just now");
                let Phase::Done(result) = transfer.phase else { unreachable!("checked above") };
                Poll::Ready((transfer.buffer, result))
            }
        }
    }
}

impl Drop for Transferring {
    fn drop(&mut self) {
        let Step::UnderWay(id) = self.step else { return };
        let state = &mut *self.inner.state.borrow_mut();
        let Some(transfer) = state.transfers.get_mut(id) else { return };
        match transfer.phase {
            Phase::Posted => transfer.abandoned = true,
            Phase::Queued | Phase::Doubtful(_) => {
                transfer.abandoned = true;
                self.inner.finish_transfer(state, id, Err(FabricError::PeerGone));
            }
            Phase::Done(_) => {
                state.transfers.remove(id);
            }
        }
    }
}
