//! The endpoint of one xstream or client: where calls go out and requests come in.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use super::{
    Call, Counters, EndpointConfig, HEADER_BYTES, Header, Kind, Malformed, Opcode, RANK_ANY, Rejected, Reply,
    Request, Responder, RpcError, Service, Status,
    call::{BufferPool, CallId, Calls, Ended, Progress},
    counters::count,
    header::RequestFields,
    meter::Meters,
    module,
    peer::{Peer, Peers},
};
use crate::{
    Access, Address, Class, Clock, Env, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Rng, Sink,
    Spawn, Time,
    combine::race,
    sync::{Budget, Notify},
    telemetry::Metrics,
};

/// Longest text that is kept of a refusal.
const MESSAGE_BYTES_MAX: usize = 1024;

/// One in so many places for requests is kept for the modules `SYSTEM` and `MANAGEMENT`.
const REQUESTS_RESERVED_SHARE: u32 = 16;

/// What [`Endpoint::expose`] ends with: the exposure and its name, or the buffer and why not.
pub type Exposure<E> = Result<(<<E as Env>::Fabric as Fabric>::Exposed, RemoteBuffer), (IoBuffer, RpcError)>;

/// The way of one xstream, or one client, to call and be called. A cheap handle.
pub struct Endpoint<E: Env>(Rc<Inner<E>>);

pub(super) struct Inner<E: Env> {
    pub env: E,
    pub requests_open: Cell<u32>,
    pub counters: Counters,
    pub meters: Meters,
    pub config: EndpointConfig,
    rank: Cell<u32>,
    message_bytes_max: usize,
    pub services: Box<[OnceCell<Rc<dyn Service<E>>>]>,
    pub calls: Calls,
    pub peers: Peers,
    pub buffers: Rc<BufferPool>,
    /// Bounds what bulk transfers of all requests hold.
    pub bulk: Rc<Budget>,
    /// Bytes in the outboxes of all peers.
    pub outbox_bytes: Cell<usize>,
    /// Peers whose outbox is not empty.
    pub backlog: RefCell<Vec<Rc<Peer>>>,
    /// Peers to disconnect once no code of theirs or the fabric's runs.
    pub doomed: RefCell<Vec<Rc<Peer>>>,
    /// When the watch looks next, and how to make it look earlier.
    alarm_at: Cell<Time>,
    alarm: Notify,
    /// When the poll under way began, once somebody has asked; `None` between polls.
    poll_time: Cell<Option<Time>>,
}

impl<E: Env> Clone for Endpoint<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Endpoint<E> {
    /// Makes the endpoint of `env`'s xstream, has it polled, and leaves it in the xstream's locals. It lives as long as
    /// the xstream.
    pub fn new(env: &E, config: EndpointConfig) -> Self {
        let endpoint = Self(Rc::new(Inner {
            env: env.clone(),
            requests_open: Cell::new(0),
            counters: Counters::default(),
            meters: Meters::new(config.poll_limit),
            rank: Cell::new(config.rank),
            message_bytes_max: env.fabric().message_bytes_max(),
            services: (0..=u8::MAX).map(|_| OnceCell::new()).collect(),
            calls: Calls::new(env.rng().next_u64() as u32),
            peers: Peers::default(),
            buffers: Rc::new(BufferPool::new(config.buffers_kept)),
            bulk: Budget::new(config.bulk_bytes_max),
            outbox_bytes: Cell::new(0),
            backlog: RefCell::default(),
            doomed: RefCell::default(),
            alarm_at: Cell::new(Time::NEVER),
            alarm: Notify::new(),
            poll_time: Cell::new(None),
            config,
        }));
        env.locals().insert(Rc::new(endpoint.clone()));
        let inner = endpoint.0.clone();
        env.scheduler().add_progress("rpc", move || inner.poll());
        env.scheduler().spawn(Class::Foreground, "rpc watch", endpoint.0.clone().watch());
        endpoint
    }

    /// The endpoint of this xstream, if it has been made.
    pub fn of(env: &E) -> Option<Self> {
        env.locals().get::<Self>().map(|endpoint| (*endpoint).clone())
    }

    /// Adds a module.
    ///
    /// # Panics
    ///
    /// If there is one of that number already.
    pub fn register(&self, service: Rc<dyn Service<E>>) {
        let module = service.module();
        self.0.meters.measure(module, service.name(), service.procedures());
        if self.0.services[usize::from(module)].set(service).is_err() {
            panic!("module {module} is registered twice");
        }
    }

    /// Measures the [procedures](Service::procedures) of all modules, those registered later included, and shows the result
    /// in `metrics`.
    pub fn measure(&self, metrics: &Metrics) {
        self.0.meters.set_metrics(metrics);
        for service in self.0.services.iter().filter_map(OnceCell::get) {
            self.0.meters.measure(service.module(), service.name(), service.procedures());
        }
    }

    /// Makes this endpoint serve as `rank` from now on.
    pub fn set_rank(&self, rank: u32) {
        self.0.rank.set(rank);
    }

    /// The world that the endpoint lives in.
    pub fn env(&self) -> &E {
        &self.0.env
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Peers known, calls open, requests being served.
    pub fn load(&self) -> (usize, usize, usize) {
        (self.0.peers.count(), self.0.calls.open_count(), self.0.requests_open.get() as usize)
    }

    /// Bytes kept for peers that have not taken them yet, and bytes that bulk transfers hold.
    pub fn bytes_held(&self) -> (usize, u64) {
        (self.0.outbox_bytes.get(), self.0.config.bulk_bytes_max - self.0.bulk.free())
    }

    /// The longest body of a request or a reply.
    pub fn body_bytes_max(&self) -> usize {
        self.0.body_bytes_max()
    }

    /// Finds or makes the peer at `address`.
    pub async fn connect(&self, address: &Address) -> Result<PeerId, RpcError> {
        Ok(self.0.env.fabric().connect(address).await?)
    }

    /// Forgets a peer. Calls to it end with [`RpcError::PeerGone`].
    pub fn disconnect(&self, peer: PeerId) {
        self.0.forget(peer);
        self.0.env.fabric().disconnect(peer);
    }

    /// Exposes memory to a peer for the time of one request. With an error the memory comes back.
    pub fn expose(&self, peer: PeerId, buffer: IoBuffer, access: Access) -> Exposure<E> {
        let exposed = self.0.env.fabric().expose(peer, buffer, access);
        let exposed = exposed.map_err(|(buffer, error)| (buffer, RpcError::from(error)))?;
        let remote = self.0.env.fabric().remote(&exposed);
        Ok((exposed, remote))
    }

    /// Ends an exposure after the call that named it, and gives the memory back, or a copy where the server may still be
    /// writing to it: after a call that was not `answered`.
    pub fn withdraw(&self, exposed: <E::Fabric as Fabric>::Exposed, answered: bool) -> IoBuffer {
        let fabric = self.0.env.fabric();
        if answered { fabric.withdraw(exposed) } else { fabric.withdraw_unanswered(exposed) }
    }

    /// Calls a procedure with the concatenation of `body` and waits for its reply. Dropping the future gives the call
    /// up; whether it is still carried out is unknown then.
    pub async fn call(&self, peer: PeerId, call: &Call, body: &[&[u8]]) -> Result<Reply, RpcError> {
        let inner = &*self.0;
        inner.check_length(peer, body)?;
        let peer = inner.peers.get(peer);
        let mut now = inner.env.clock().now();
        let deadline = now + call.timeout;
        let (id, granted) = inner.open(&peer, deadline);
        let mut open = OpenCall { inner, id, ended: false };
        if !granted {
            poll_fn(|context| match inner.calls.progress(id, context.waker()) {
                Progress::Granted => Poll::Ready(Ok(())),
                Progress::Pending => Poll::Pending,
                Progress::Done(result) => {
                    open.ended = true;
                    Poll::Ready(result.map(drop))
                }
            })
            .await?;
            now = inner.env.clock().now();
        }
        let fields = RequestFields {
            opcode: call.opcode,
            flags: call.flags,
            request_id: id.to_wire(),
            rank: call.rank,
            target: call.target,
            map_version: call.map_version,
            // What is left of the budget; 0 would mean that there is none.
            deadline_us: u32::try_from(deadline.since(now).as_micros()).unwrap_or(u32::MAX).max(1),
            handle: call.handle,
        };
        inner.calls.sent(id);
        count(&inner.counters.calls);
        if let Err(error) = inner.transmit(&peer, &Header::request(&fields, body), body) {
            inner.calls.unsent(id);
            return Err(error.into());
        }
        poll_fn(|context| match inner.calls.progress(id, context.waker()) {
            Progress::Done(result) => {
                open.ended = true;
                Poll::Ready(result)
            }
            _ => Poll::Pending,
        })
        .await
    }
}

/// A call that is given up when this is dropped before the result was taken.
struct OpenCall<'a, E: Env> {
    inner: &'a Inner<E>,
    id: CallId,
    ended: bool,
}

impl<E: Env> Drop for OpenCall<'_, E> {
    fn drop(&mut self) {
        if !self.ended {
            let credit = self.inner.calls.abandon(self.id);
            self.inner.settle(Ended { credit, waker: None });
        }
    }
}

/// What the fabric hands up.
struct Intake<'a, E: Env>(&'a Rc<Inner<E>>);

impl<E: Env> Sink for Intake<'_, E> {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        let peer = self.0.peers.get(peer);
        if peer.gone.get() {
            return;
        }
        match Header::parse(bytes) {
            Ok((header, body)) => {
                peer.atone();
                match header.kind() {
                    Kind::Request => self.0.serve(&peer, header, body),
                    Kind::Reply => self.0.accept(&peer, header, bytes),
                }
            }
            Err(rejected) => self.0.reject(&peer, &rejected),
        }
    }

    fn closed(&mut self, peer: PeerId) {
        count(&self.0.counters.peers_closed);
        self.0.forget(peer);
    }
}

impl<E: Env> Inner<E> {
    /// Moves everything forward once; returns how many things happened.
    fn poll(self: &Rc<Self>) -> usize {
        let mut done = 0;
        if !self.backlog.borrow().is_empty() {
            done += self.flush();
        }
        done += self.env.fabric().poll(self.config.poll_limit, &mut Intake(self));
        if let Some(began) = self.poll_time.take() {
            self.meters.poll_ended(began, || self.env.clock().now());
        }
        self.bury();
        done
    }

    /// Serves a request.
    fn serve(self: &Rc<Self>, peer: &Rc<Peer>, header: &Header, body: &[u8]) {
        let refuse = |status, text: &str| {
            self.answer(peer, header.opcode(), header.request_id(), status, 0, &[text.as_bytes()]);
        };
        count(&self.counters.requests);
        if header.rank() != RANK_ANY && self.rank.get() != RANK_ANY && header.rank() != self.rank.get() {
            count(&self.counters.requests_wrong_rank);
            return refuse(Status::WRONG_RANK, "the engine here has another rank");
        }
        let Some(service) = self.services[usize::from(header.opcode().module())].get() else {
            count(&self.counters.requests_unknown_module);
            refuse(Status::NO_SUCH_PROCEDURE, "there is no such module here");
            return self.blame(peer);
        };
        // A reply that waits for its peer to take it has its request's place still: who never reads gets no more.
        let places = peer.requests_open.get() as usize + peer.outbox.borrow().len();
        if places >= self.config.requests_per_peer_max as usize
            || self.requests_open.get() >= self.requests_max_for(header.opcode().module())
        {
            count(&self.counters.requests_refused_busy);
            return refuse(Status::BUSY, "");
        }
        let arrived = self.poll_time();
        let deadline = match header.deadline_us() {
            0 => Time::NEVER,
            budget => arrived + Duration::from_micros(u64::from(budget)),
        };
        let responder = Responder::new(self, peer, header, arrived, deadline);
        service.call(Request { header, body, peer: peer.id }, responder);
    }

    /// Requests that may be open when one for `module` comes. The last places are for those who look after the engine.
    fn requests_max_for(&self, module: u8) -> u32 {
        let all = self.config.requests_max;
        match module {
            module::SYSTEM | module::MANAGEMENT => all,
            _ => all - all / REQUESTS_RESERVED_SHARE,
        }
    }

    /// Takes a reply.
    fn accept(&self, peer: &Rc<Peer>, header: &Header, message: &[u8]) {
        let make = || match header.status() {
            Status::OK => Ok(Reply::copy_of(&self.buffers, message)),
            status => {
                let text = &message[HEADER_BYTES..message.len().min(HEADER_BYTES + MESSAGE_BYTES_MAX)];
                let message = String::from_utf8_lossy(text).into_owned();
                Err(RpcError::Refused { status, map_version: header.map_version(), message })
            }
        };
        match self.calls.complete(CallId::from_wire(header.request_id()), peer.id, make) {
            Some(ended) => self.settle(ended),
            None => count(&self.counters.replies_unexpected),
        }
    }

    /// Deals with a message that did not parse.
    fn reject(&self, peer: &Rc<Peer>, rejected: &Rejected<'_>) {
        let reason = rejected.reason;
        count(match reason {
            Malformed::Truncated => &self.counters.malformed_truncated,
            Malformed::Magic => &self.counters.malformed_magic,
            Malformed::HeaderChecksum => &self.counters.malformed_header_checksum,
            Malformed::Version(_) => &self.counters.malformed_version,
            Malformed::Kind(_) => &self.counters.malformed_kind,
            Malformed::BodyLength => &self.counters.malformed_body_length,
            Malformed::BodyChecksum => &self.counters.malformed_body_checksum,
        });
        if let Some(header) = rejected.header {
            match header.kind() {
                Kind::Request => {
                    let text = reason.to_string();
                    self.answer(
                        peer,
                        header.opcode(),
                        header.request_id(),
                        reason.status(),
                        0,
                        &[text.as_bytes()],
                    );
                }
                Kind::Reply => {
                    let id = CallId::from_wire(header.request_id());
                    if let Some(ended) = self.calls.complete(id, peer.id, || Err(RpcError::BadReply(reason)))
                    {
                        self.settle(ended);
                    }
                }
            }
        }
        self.blame(peer);
    }

    /// Sends an answer. Errors of the fabric end here: who asked has gone, or will time out.
    pub fn answer(
        &self,
        peer: &Rc<Peer>,
        opcode: Opcode,
        request_id: u64,
        status: Status,
        map_version: u32,
        body: &[&[u8]],
    ) {
        let too_long: &[&[u8]] = &[b"the reply does not fit into a message"];
        let (status, body) = if self.check_length(peer.id, body).is_ok() {
            (status, body)
        } else {
            (Status::TOO_LONG, too_long)
        };
        let header = Header::reply(opcode, request_id, status, map_version, body);
        if self.transmit(peer, &header, body).is_err() {
            count(&self.counters.replies_lost);
        }
    }

    /// Counts the answer to a request that arrived at `arrived`.
    pub fn answered(&self, opcode: Opcode, status: Status, arrived: Time) {
        if self.poll_time.get() == Some(arrived) {
            self.meters.answered_in_poll(opcode, status);
        } else {
            self.meters.answered(opcode, status, arrived, || self.env.clock().now());
        }
    }

    pub fn body_bytes_max(&self) -> usize {
        self.message_bytes_max - HEADER_BYTES
    }

    pub fn body_bytes_max_to(&self, peer: PeerId) -> usize {
        self.env.fabric().message_bytes_max_to(peer).saturating_sub(HEADER_BYTES)
    }

    fn check_length(&self, peer: PeerId, body: &[&[u8]]) -> Result<(), FabricError> {
        let length: usize = body.iter().map(|part| part.len()).sum();
        match self.body_bytes_max_to(peer) {
            limit if length > limit => {
                Err(FabricError::TooLong { length: length as u64, limit: limit as u64 })
            }
            _ => Ok(()),
        }
    }

    /// Takes a place for a call, with a credit if one is free.
    fn open(&self, peer: &Rc<Peer>, deadline: Time) -> (CallId, bool) {
        let granted =
            peer.calls_open.get() < self.config.calls_per_peer_max && peer.calls_waiting.borrow().is_empty();
        let id = self.calls.open(peer, deadline, granted);
        if granted {
            peer.calls_open.set(peer.calls_open.get() + 1);
        } else {
            peer.calls_waiting.borrow_mut().push_back(id);
        }
        self.alarm_by(deadline);
        (id, granted)
    }

    /// Does what the end of a call entails.
    pub fn settle(&self, ended: Ended) {
        if let Some(peer) = ended.credit {
            peer.calls_open.set(peer.calls_open.get() - 1);
            while peer.calls_open.get() < self.config.calls_per_peer_max {
                let Some(next) = peer.calls_waiting.borrow_mut().pop_front() else { break };
                if let Some(waker) = self.calls.grant(next) {
                    peer.calls_open.set(peer.calls_open.get() + 1);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            }
        }
        if let Some(waker) = ended.waker {
            waker.wake();
        }
    }

    /// When the poll under way began, to a microsecond.
    fn poll_time(&self) -> Time {
        self.poll_time.get().unwrap_or_else(|| {
            let now = self.env.clock().recent();
            self.poll_time.set(Some(now));
            now
        })
    }

    /// Makes the watch look at `deadline` at the latest.
    pub fn alarm_by(&self, deadline: Time) {
        if deadline < self.alarm_at.get() {
            self.alarm_at.set(deadline);
            self.alarm.notify_one();
        }
    }

    /// Ends what has passed its deadline. Sleeps until the next one, so that deadlines cost a comparison per call and
    /// hold on a parked core too.
    async fn watch(self: Rc<Self>) {
        loop {
            let now = self.env.clock().now();
            // Whatever is opened while this looks sets the alarm anew.
            self.alarm_at.set(Time::NEVER);
            self.bury();
            let mut next = self.calls.sweep(now, None, |ended, _| {
                count(&self.counters.calls_timed_out);
                self.settle(ended);
            });
            if let Some(retry) = self.retry(now) {
                next = next.min(retry);
            }
            next = next.min(self.alarm_at.get());
            self.alarm_at.set(next);
            if next == Time::NEVER {
                self.alarm.notified().await;
            } else {
                race(self.alarm.notified(), self.env.clock().sleep_until(next)).await;
            }
        }
    }
}
