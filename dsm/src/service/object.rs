//! Objects of one target.
//!
//! # Invariants
//!
//! * Every request is checked against the handle that the service told of: container, capabilities, held epoch.
//! * What comes inline and needs no media is answered within the call: no task, and no allocation for up to a few records.
//! * A request that waited checks its handle again before it changes anything: a discard that ran meanwhile must not be
//!   followed by a write that it should have removed. And it checks that its caller still waits: who has given up may have
//!   written something newer in the same place.

use std::rc::Rc;

use daos_types::{Epoch, Writer, WriterKind};
use daos_vos::{Anchor, Error, Sealed};
use daos_xstream::{
    Class, Clock, CoreId, Env, IoBuffer, Spawn,
    rpc::{Request, Responder, Service, Status},
    submit_to,
};
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::{
    control::Control,
    refusal::{Refusal, vos_status},
    target::{Handle, HandleInfo, Target},
};
use crate::{
    access::Capabilities,
    rpc::{
        Malformed, module,
        object::{Enumerate, ObjectRequest, Procedure, QueryReply, flags},
        object_procedure,
    },
};

mod enumerate;
mod fetch;
mod update;

use update::Pulled;

/// The module of object I/O of one xstream.
pub(super) struct ObjectService<E: Env> {
    env: E,
    target: Rc<Target<E>>,
}

/// A request that has to wait for something, with a copy of its body.
struct Waiting<E: Env> {
    procedure: u8,
    body: Vec<u8>,
    handle: Uuid,
    responder: Responder<E>,
}

impl<E: Env> ObjectService<E> {
    pub fn new(env: &E, target: Rc<Target<E>>) -> Rc<Self> {
        Rc::new(Self { env: env.clone(), target })
    }
}

impl<E: Env> Service<E> for ObjectService<E> {
    fn module(&self) -> u8 {
        module::OBJECT
    }

    fn name(&self) -> &'static str {
        "object"
    }

    fn procedures(&self) -> &'static [(u8, &'static str)] {
        &[
            (object_procedure::UPDATE, "update"),
            (object_procedure::FETCH, "fetch"),
            (object_procedure::PUNCH, "punch"),
            (object_procedure::ENUMERATE, "enumerate"),
            (object_procedure::QUERY, "query"),
        ]
    }

    fn call(&self, request: Request<'_>, responder: Responder<E>) {
        if request.target() != self.env.core().0 {
            return responder.fail(Status::BAD_TARGET, "this xstream serves another target");
        }
        match self.target.handle(request.handle()) {
            Some(handle) => {
                self.serve(&handle, request.procedure(), request.body, responder);
            }
            None => {
                let waiting = Waiting {
                    procedure: request.procedure(),
                    body: request.body.to_vec(),
                    handle: request.handle(),
                    responder,
                };
                self.ask_service(waiting);
            }
        }
    }
}

impl<E: Env> ObjectService<E> {
    /// A handle that this target does not know: after a restart the service may know it.
    fn ask_service(&self, waiting: Waiting<E>) {
        let service = Self { env: self.env.clone(), target: self.target.clone() };
        self.env.scheduler().spawn(Class::Service, "ask for a handle", async move {
            let handle = waiting.handle;
            let asked = submit_to(&service.env, CoreId(0), move |env: &E| {
                let control = Control::of(env);
                async move {
                    match control {
                        Some(control) => control.lookup(handle).await,
                        None => Err(Status::TRY_AGAIN.into()),
                    }
                }
            });
            let info: Result<HandleInfo, Refusal> =
                asked.await.unwrap_or_else(|error| Err(Refusal::from(error)));
            let Waiting { procedure, body, responder, .. } = waiting;
            let known = info.and_then(|info| {
                check_awaited(&service.env, &responder)?;
                service.target.install(&info)
            });
            match known {
                Ok(known) => service.serve(&known, procedure, &body, responder),
                Err(refusal) => responder.fail(refusal.status, &refusal.message),
            }
        });
    }

    /// A write to an epoch that its handle has flushed: the service must know before it is made.
    fn announce(&self, handle: Rc<Handle<E>>, epoch: Epoch, waiting: Waiting<E>) {
        let service = Self { env: self.env.clone(), target: self.target.clone() };
        self.env.scheduler().spawn(Class::Foreground, "write after a flush", async move {
            let Waiting { procedure, body, responder, .. } = waiting;
            let announced = handle.announce(&service.env, epoch).await;
            match announced.and_then(|()| check_awaited(&service.env, &responder)) {
                Ok(()) => service.serve(&handle, procedure, &body, responder),
                Err(refusal) => responder.fail(refusal.status, &refusal.message),
            }
        });
    }

    fn serve(&self, handle: &Rc<Handle<E>>, procedure: u8, body: &[u8], responder: Responder<E>) {
        let parsed = match procedure {
            object_procedure::UPDATE => ObjectRequest::parse(Procedure::Update, body),
            object_procedure::FETCH => ObjectRequest::parse(Procedure::Fetch, body),
            object_procedure::PUNCH => ObjectRequest::parse(Procedure::Punch, body),
            object_procedure::QUERY => ObjectRequest::parse(Procedure::Query, body),
            object_procedure::ENUMERATE => return self.enumerate(handle, body, responder),
            _ => return responder.fail(Status::NO_SUCH_PROCEDURE, ""),
        };
        let request = match parsed {
            Ok(request) => request,
            Err(Malformed(text)) => return responder.fail(Status::INVALID, text),
        };
        let changes = matches!(procedure, object_procedure::UPDATE | object_procedure::PUNCH);
        if let Err(refusal) = check(handle, &responder, &request, changes) {
            return responder.fail(refusal.status, &refusal.message);
        }
        if changes && handle.is_flushed(request.epoch()) {
            let (body, uuid) = (body.to_vec(), handle.uuid);
            let waiting = Waiting { procedure, body, handle: uuid, responder };
            return self.announce(handle.clone(), request.epoch(), waiting);
        }
        let writer = Writer {
            cookie: handle.cookie,
            map_version: responder.asked_map_version(),
            kind: if request.has(flags::REBUILD) { WriterKind::Rebuild } else { WriterKind::Application },
        };
        match procedure {
            object_procedure::UPDATE if request.is_bulk() => {
                self.update_by_bulk(handle, writer, &request, body, responder);
            }
            object_procedure::UPDATE => {
                let sealed = update::apply(&handle.container, writer, &request, &Pulled::default());
                self.reply_changed(handle, (Procedure::Update, &request, body), writer, sealed, responder);
            }
            object_procedure::PUNCH => {
                let sealed = update::punch(&handle.container, writer, &request);
                self.reply_changed(handle, (Procedure::Punch, &request, body), writer, sealed, responder);
            }
            object_procedure::FETCH if request.is_bulk() => {
                self.fetch_by_bulk(handle, &request, body, responder);
            }
            object_procedure::FETCH => self.fetch(handle, &request, None, responder),
            _ => self.query(handle, &request, body, responder),
        }
    }

    /// A fetch to the client's memory: at once if there is room for what it may find.
    fn fetch_by_bulk(
        &self,
        handle: &Rc<Handle<E>>,
        request: &ObjectRequest<'_>,
        body: &[u8],
        responder: Responder<E>,
    ) {
        let bytes = request.records().map(|record| record.length).sum();
        if let Some(room) = responder.try_bulk_room(bytes) {
            return self.fetch(handle, request, Some(room), responder);
        }
        let service = Self { env: self.env.clone(), target: self.target.clone() };
        let (handle, body) = (handle.clone(), body.to_vec());
        self.env.scheduler().spawn(Class::Foreground, "wait for memory", async move {
            let room = responder.bulk_room(bytes).await;
            let request = check_awaited(&service.env, &responder)
                .and_then(|()| Ok(ObjectRequest::parse(Procedure::Fetch, &body)?))
                .and_then(|request| check(&handle, &responder, &request, false).map(|()| request));
            match request {
                Ok(request) => service.fetch(&handle, &request, Some(room), responder),
                Err(refusal) => responder.fail(refusal.status, &refusal.message),
            }
        });
    }

    /// Answers a question about an object: at once, but for one of which very much has to be looked at.
    fn query(
        &self,
        handle: &Rc<Handle<E>>,
        request: &ObjectRequest<'_>,
        body: &[u8],
        responder: Responder<E>,
    ) {
        let mut course = enumerate::Course::default();
        match enumerate::query(&handle.container, request, &mut course) {
            Ok(Some(reply)) => responder.reply(&[reply.as_bytes()]),
            Err(error) => fail(responder, &error),
            Ok(None) => {
                let (handle, body, env) = (handle.clone(), body.to_vec(), self.env.clone());
                self.env.scheduler().spawn(Class::Foreground, "look for a visible key", async move {
                    match query_in_slices(&env, &handle, &body, course, &responder).await {
                        Ok(reply) => responder.reply(&[reply.as_bytes()]),
                        Err(refusal) => responder.fail(refusal.status, &refusal.message),
                    }
                });
            }
        }
    }

    /// Answers a change: at once if it is visible and that is enough, else once it is durable. A change that found the log
    /// full is made again when there is room.
    fn reply_changed(
        &self,
        handle: &Rc<Handle<E>>,
        (procedure, request, body): (Procedure, &ObjectRequest<'_>, &[u8]),
        writer: Writer,
        sealed: Result<Sealed, Error>,
        responder: Responder<E>,
    ) {
        if sealed.is_ok() {
            handle.traffic.written.add(request.data_length());
        }
        match sealed {
            Ok(_) if !request.has(flags::DURABLE) => responder.reply(&[]),
            Ok(sealed) => {
                let vpool = handle.container.pool().clone();
                self.env.scheduler().spawn(Class::Foreground, "durable update", async move {
                    match vpool.persisted(sealed).await {
                        Ok(_) => responder.reply(&[]),
                        Err(error) => fail(responder, &error),
                    }
                });
            }
            Err(Error::LogFull) => {
                // Rare, and the one who waits here is what keeps the log from being overrun.
                let (handle, body) = (handle.clone(), body.to_vec());
                self.env.scheduler().spawn(Class::Foreground, "wait for the log", async move {
                    let data = Pulled::default();
                    match change_with_room(&handle, procedure, &body, data, writer, &responder).await {
                        Ok(()) => responder.reply(&[]),
                        Err(refusal) => responder.fail(refusal.status, &refusal.message),
                    }
                });
            }
            Err(error) => fail(responder, &error),
        }
    }

    /// Pulls the data from the client, then updates.
    fn update_by_bulk(
        &self,
        handle: &Rc<Handle<E>>,
        writer: Writer,
        request: &ObjectRequest<'_>,
        body: &[u8],
        responder: Responder<E>,
    ) {
        let (handle, body, env) = (handle.clone(), body.to_vec(), self.env.clone());
        let (remote, length) = (request.remote(), request.data_length());
        self.env.scheduler().spawn(Class::Foreground, "bulk update", async move {
            // Held until the reply: the data is in memory for that long.
            let _room = responder.bulk_room(length).await;
            let pull_and_change = async {
                check_awaited(&env, &responder)?;
                let buffer = IoBuffer::for_overwrite(length as usize);
                let (buffer, pulled) = responder.pull(remote, 0, buffer).await;
                pulled?;
                bulk_change(&handle, &body, buffer, writer, &responder).await
            };
            match pull_and_change.await {
                Ok(()) => responder.reply(&[]),
                Err(refusal) => responder.fail(refusal.status, &refusal.message),
            }
        });
    }
}

/// Goes on with a query from `anchor`, and lets others have their turn again and again.
async fn query_in_slices<E: Env>(
    env: &E,
    handle: &Handle<E>,
    body: &[u8],
    mut course: enumerate::Course,
    responder: &Responder<E>,
) -> Result<QueryReply, Refusal> {
    let request = ObjectRequest::parse(Procedure::Query, body)?;
    loop {
        env.scheduler().yield_now().await;
        check_awaited(env, responder)?;
        check(handle, responder, &request, false)?;
        if let Some(reply) = enumerate::query(&handle.container, &request, &mut course)? {
            return Ok(reply);
        }
    }
}

/// Makes an update whose data has been pulled.
async fn bulk_change<E: Env>(
    handle: &Handle<E>,
    body: &[u8],
    buffer: IoBuffer,
    writer: Writer,
    responder: &Responder<E>,
) -> Result<(), Refusal> {
    let request = ObjectRequest::parse(Procedure::Update, body)?;
    let pulled = update::store_large(handle.container.pool(), &request, buffer).await?;
    change_with_room(handle, Procedure::Update, body, pulled, writer, responder).await
}

/// Makes a change, waiting for room in the log as often as it takes, and for durability if it was asked for.
async fn change_with_room<E: Env>(
    handle: &Handle<E>,
    procedure: Procedure,
    body: &[u8],
    data: Pulled,
    writer: Writer,
    responder: &Responder<E>,
) -> Result<(), Refusal> {
    let request = ObjectRequest::parse(procedure, body)?;
    let vpool = handle.container.pool();
    loop {
        // Time has passed since the handle was looked at, and since the caller asked.
        check_awaited(vpool.env(), responder)?;
        check(handle, responder, &request, true)?;
        if handle.is_flushed(request.epoch()) {
            handle.announce(vpool.env(), request.epoch()).await?;
            continue;
        }
        let sealed = match procedure {
            Procedure::Punch => update::punch(&handle.container, writer, &request),
            _ => update::apply(&handle.container, writer, &request, &data),
        };
        match sealed {
            Err(Error::LogFull) => vpool.log_space().await?,
            Err(error) => return Err(error.into()),
            Ok(sealed) => {
                handle.traffic.written.add(request.data_length());
                if request.has(flags::DURABLE) {
                    let _ = vpool.persisted(sealed).await?;
                }
                return Ok(());
            }
        }
    }
}

/// Refuses what nobody waits for any more. The caller's time is counted from when its request arrived, so it has given up
/// before; and what it sends then, over the same connection, arrives after its time is up here.
fn check_awaited<E: Env>(env: &E, responder: &Responder<E>) -> Result<(), Refusal> {
    if !responder.is_wanted() {
        return Err(Refusal::new(Status::CANCELED, "who asked is gone"));
    }
    if env.clock().now() >= responder.deadline() {
        return Err(Refusal::new(
            Status::TIMED_OUT,
            "the time for this attempt is over: nothing was changed",
        ));
    }
    Ok(())
}

/// Whether the handle may do this, and asks the right target. Both may change while a request waits.
fn check<E: Env>(
    handle: &Handle<E>,
    responder: &Responder<E>,
    request: &ObjectRequest<'_>,
    changes: bool,
) -> Result<(), Refusal> {
    check_permitted(handle, responder, if changes { Capabilities::WRITE } else { Capabilities::READ })?;
    if changes && request.epoch() < handle.lhe.get() {
        return Err(Refusal::new(Status::BAD_EPOCH, "the handle does not hold that epoch"));
    }
    if changes && handle.was_discarded_since(responder.arrived(), request.epoch()) {
        return Err(Refusal::new(Status::TRY_AGAIN, "what the handle had written was given up meanwhile"));
    }
    Ok(())
}

fn check_permitted<E: Env>(
    handle: &Handle<E>,
    responder: &Responder<E>,
    needed: Capabilities,
) -> Result<(), Refusal> {
    let (asked, known) = (responder.asked_map_version(), handle.map_version());
    if asked != 0 && asked < known {
        responder.set_map_version(known);
        return Err(Status::STALE_MAP.into());
    }
    handle.check_open().map_err(|(status, text)| Refusal::new(status, text))?;
    match handle.capabilities.permits(needed) {
        true => Ok(()),
        false => Err(Refusal::new(Status::NOT_PERMITTED, "the handle does not permit this")),
    }
}

/// Answers with an error of the store.
fn fail<E: Env>(responder: Responder<E>, error: &Error) {
    responder.fail(vos_status(error), &error.to_string());
}

impl<E: Env> ObjectService<E> {
    /// Answers a request for a list: at once, but where very much below one entry has to be looked at.
    fn enumerate(&self, handle: &Rc<Handle<E>>, body: &[u8], responder: Responder<E>) {
        let room = responder.body_bytes_max();
        let page = |anchor: &mut Option<Anchor>| {
            let request = Enumerate::parse(body)?;
            check_permitted(handle, &responder, Capabilities::READ)?;
            let start = anchor.insert(enumerate::start(&request)?);
            enumerate::enumerate(&handle.container, &request, start, room)
        };
        let mut anchor = None;
        match page(&mut anchor) {
            Ok(Some(reply)) => responder.reply(&[&reply]),
            Err(refusal) => responder.fail(refusal.status, &refusal.message),
            Ok(None) => {
                let (handle, body, env) = (handle.clone(), body.to_vec(), self.env.clone());
                let anchor = anchor.unwrap_or_default();
                self.env.scheduler().spawn(Class::Foreground, "look below an entry", async move {
                    match enumerate_in_slices(&env, &handle, &body, anchor, &responder).await {
                        Ok(reply) => responder.reply(&[&reply]),
                        Err(refusal) => responder.fail(refusal.status, &refusal.message),
                    }
                });
            }
        }
    }
}

/// Goes on with a list from `anchor`, and lets others have their turn again and again.
async fn enumerate_in_slices<E: Env>(
    env: &E,
    handle: &Handle<E>,
    body: &[u8],
    mut anchor: Anchor,
    responder: &Responder<E>,
) -> Result<Vec<u8>, Refusal> {
    let request = Enumerate::parse(body)?;
    loop {
        env.scheduler().yield_now().await;
        check_awaited(env, responder)?;
        check_permitted(handle, responder, Capabilities::READ)?;
        let page = enumerate::enumerate(&handle.container, &request, &mut anchor, responder.body_bytes_max());
        if let Some(reply) = page? {
            return Ok(reply);
        }
    }
}
