//! Objects of single targets.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use daos_types::{Epoch, ObjectId};
use daos_xstream::{
    Access, Env, IoBuffer, PeerId, RemoteBuffer,
    rpc::{Call, Opcode, Reply, RpcError, Status},
};

use super::{
    ContainerHandle, DsmError,
    caller::{Verdict, judge},
};
use crate::rpc::{
    module,
    object::{
        Enumerate, EnumerateKind, Enumerated, QueryReply, REQUEST_DATA_BYTES_MAX, ReadRecord, UpdateRecord,
        encode_enumerate, encode_fetch, encode_punch, encode_query, encode_update, parse_enumerated,
    },
    object_procedure as procedure,
};

mod fetched;
mod limits;

pub use fetched::{Fetched, FetchedData, ReadPiece};
use limits::{check_count, check_keys, check_length, overhead, too_far};

/// Requests of one fetch after which a value that grows faster than we can make room is given up.
const FETCH_ROUNDS_MAX: usize = 8;

/// A shard: an object on one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectAddress {
    /// Ordinal of the target in the pool map.
    pub ordinal: u32,
    /// Version of the pool map by which the target was chosen.
    pub map_version: u32,
    /// The object.
    pub object: ObjectId,
}

/// Objects of single targets, through an open container handle. Clones share connections.
pub struct ObjectIo<E: Env> {
    container: ContainerHandle<E>,
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The peer of each target, by ordinal.
    peers: RefCell<Vec<Option<PeerId>>>,
    /// Memory for bodies.
    scratch: RefCell<Vec<Vec<u8>>>,
    /// A connection was lost: the service may think that the handle's owner is gone.
    lost: Cell<bool>,
}

impl<E: Env> Clone for ObjectIo<E> {
    fn clone(&self) -> Self {
        Self { container: self.container.clone(), shared: self.shared.clone() }
    }
}

impl<E: Env> ObjectIo<E> {
    pub(super) fn new(container: ContainerHandle<E>) -> Self {
        Self { container, shared: Rc::default() }
    }

    /// The container handle.
    pub fn container(&self) -> &ContainerHandle<E> {
        &self.container
    }

    /// Writes (and punches) records of one object in one atomic step. `flags` are of
    /// [`rpc::object::flags`](crate::rpc::object::flags).
    pub async fn update(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        flags: u16,
        dkey: &[u8],
        records: &[UpdateRecord<'_>],
    ) -> Result<(), DsmError> {
        check_keys(dkey, records)?;
        self.check_held(epoch)?;
        let data_bytes: usize = records.iter().map(|record| record.data().len()).sum();
        check_length(data_bytes)?;
        let bulk = if self.fits_message(data_bytes + overhead(dkey, records)) {
            None
        } else {
            let mut buffer = IoBuffer::zeroed(data_bytes);
            let mut rest = buffer.as_mut_slice();
            for record in records {
                let (place, after) = rest.split_at_mut(record.data().len());
                place.copy_from_slice(record.data());
                rest = after;
            }
            Some((buffer, Access::Read))
        };
        let encode = |body: &mut Vec<u8>, remote| {
            encode_update(body, at.object, epoch, flags, dkey, records, remote);
        };
        self.exchange(at, procedure::UPDATE, bulk, encode).await.1.map(drop)
    }

    /// Writes the buffer's bytes in use at `offset` of an array object, or (with `document`: dkey and akey) of an array
    /// in a document. The buffer comes back; large data is read from it by the engine, without a copy here.
    pub async fn write(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        flags: u16,
        document: Option<(&[u8], &[u8])>,
        offset: u64,
        buffer: IoBuffer,
    ) -> (IoBuffer, Result<(), DsmError>) {
        if let Err(error) = check_length(buffer.len()).and_then(|()| self.check_held(epoch)) {
            return (buffer, Err(error));
        }
        if buffer.is_empty() {
            return (buffer, Ok(()));
        }
        let (dkey, key) = document.unwrap_or_default();
        let inline = {
            let records = [UpdateRecord::Extent { key, offset, data: buffer.as_slice() }];
            self.fits_message(buffer.len() + overhead(dkey, &records))
        };
        if inline {
            let records = [UpdateRecord::Extent { key, offset, data: buffer.as_slice() }];
            let result = self.update(at, epoch, flags, dkey, &records).await;
            return (buffer, result);
        }
        // The head of the body holds checksums of the data, so it is made before the buffer is lent out.
        let mut head = Vec::new();
        {
            let records = [UpdateRecord::Extent { key, offset, data: buffer.as_slice() }];
            let nowhere = RemoteBuffer::default();
            encode_update(&mut head, at.object, epoch, flags, dkey, &records, Some(nowhere));
        }
        let encode = |body: &mut Vec<u8>, remote: Option<RemoteBuffer>| {
            body.extend_from_slice(&head);
            crate::rpc::object::set_remote(body, remote.unwrap_or_default());
        };
        let (buffer, result) =
            self.exchange(at, procedure::UPDATE, Some((buffer, Access::Read)), encode).await;
        (buffer.unwrap_or_else(|| IoBuffer::zeroed(0)), result.map(drop))
    }

    /// Reads records of one object. Values come whole, of whatever size; of an extent at least the beginning.
    pub async fn fetch(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        dkey: &[u8],
        records: &[ReadRecord<'_>],
    ) -> Result<Fetched, DsmError> {
        check_count(records.len())?;
        let mut asked = Vec::new();
        let mut rooms: Vec<u64> = Vec::new();
        for _ in 0..FETCH_ROUNDS_MAX {
            let bulk = match rooms.iter().sum::<u64>() {
                0 => None,
                bytes => {
                    check_length(usize::try_from(bytes).unwrap_or(usize::MAX))?;
                    Some((IoBuffer::zeroed(bytes as usize), Access::Write))
                }
            };
            let round = if rooms.is_empty() { records } else { asked.as_slice() };
            let encode = |body: &mut Vec<u8>, remote| {
                encode_fetch(body, at.object, epoch, dkey, round, remote);
            };
            let (bulk, reply) = self.exchange(at, procedure::FETCH, bulk, encode).await;
            let fetched = Fetched::new(reply?, bulk, rooms, records.len())?;
            rooms = fetched.rooms_needed(records);
            if rooms.is_empty() {
                return if fetched.is_intact() { Ok(fetched) } else { Err(DsmError::BadChecksum) };
            }
            asked = records
                .iter()
                .zip(&rooms)
                .map(|(record, room)| match *record {
                    ReadRecord::Value { key, .. } => ReadRecord::Value { key, room: *room },
                    extent => extent,
                })
                .collect();
        }
        Err(DsmError::TimedOut { last: "a value grew faster than room for it could be made".to_owned() })
    }

    /// Fills the buffer's bytes in use from `offset` of an array object, or (with `document`: dkey and akey) of an array
    /// in a document. What holds no data becomes zero. The pieces cover the range exactly, in order.
    pub async fn read(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        document: Option<(&[u8], &[u8])>,
        offset: u64,
        mut buffer: IoBuffer,
    ) -> (IoBuffer, Result<Vec<ReadPiece>, DsmError>) {
        let mut pieces = Vec::new();
        let mut done = 0;
        // What this side expects in one message may be more than the other side's way back carries.
        let mut inline_allowed = true;
        while done < buffer.len() {
            let (back, result) = self
                .read_some(at, epoch, document, offset, buffer, (done, inline_allowed), &mut pieces)
                .await;
            buffer = back;
            match result {
                Ok(0) if inline_allowed => inline_allowed = false,
                Ok(0) => {
                    let error = crate::rpc::Malformed("it covers nothing");
                    return (buffer, Err(DsmError::BadReply(error)));
                }
                Ok(covered) => done += covered,
                Err(error) => return (buffer, Err(error)),
            }
        }
        (buffer, Ok(pieces))
    }

    /// Reads from `done` on, as far as one request reaches. Returns how far.
    #[expect(clippy::too_many_arguments, reason = "the inner half of a loop")]
    async fn read_some(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        document: Option<(&[u8], &[u8])>,
        offset: u64,
        mut buffer: IoBuffer,
        (done, inline_allowed): (usize, bool),
        pieces: &mut Vec<ReadPiece>,
    ) -> (IoBuffer, Result<usize, DsmError>) {
        let (dkey, key) = document.unwrap_or_default();
        let length = (buffer.len() - done).min(REQUEST_DATA_BYTES_MAX as usize);
        let start = offset + done as u64;
        let records = [ReadRecord::Extent { key, offset: start, length: length as u64 }];
        let encode = |body: &mut Vec<u8>, remote: Option<RemoteBuffer>| {
            let remote = remote.map(|remote| RemoteBuffer {
                offset: remote.offset + done as u64,
                length: length as u64,
                ..remote
            });
            encode_fetch(body, at.object, epoch, dkey, &records, remote);
        };
        let inline = inline_allowed && self.fits_message(length + 256);
        let result = if inline {
            self.exchange(at, procedure::FETCH, None, encode).await.1
        } else {
            let (back, result) =
                self.exchange(at, procedure::FETCH, Some((buffer, Access::Write)), encode).await;
            buffer = back.unwrap_or_else(|| IoBuffer::zeroed(0));
            result
        };
        let taken = result.and_then(|reply| {
            let place = buffer.as_mut_slice().get_mut(done..done + length).ok_or_else(too_far)?;
            fetched::take_extent(&reply, start, place, pieces)
        });
        (buffer, taken)
    }

    /// Punches the object (flag `OBJECT`), a distribution key (flag `DKEY`), or records.
    pub async fn punch(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        flags: u16,
        dkey: &[u8],
        records: &[UpdateRecord<'_>],
    ) -> Result<(), DsmError> {
        check_keys(dkey, records)?;
        self.check_held(epoch)?;
        let encode = |body: &mut Vec<u8>, _| encode_punch(body, at.object, epoch, flags, dkey, records);
        self.exchange(at, procedure::PUNCH, None, encode).await.1.map(drop)
    }

    /// Whether an object has anything visible at `epoch`, and how far the data of its array (with `document`: of the array
    /// at this dkey and akey) reaches.
    pub async fn query(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        document: Option<(&[u8], &[u8])>,
    ) -> Result<QueryReply, DsmError> {
        let encode = |body: &mut Vec<u8>, _| encode_query(body, at.object, epoch, document);
        let reply = self.exchange(at, procedure::QUERY, None, encode).await.1?;
        Ok(QueryReply::parse(reply.body())?)
    }

    #[expect(clippy::too_many_arguments, reason = "what an enumeration consists of")]
    /// One page of keys or extents of an object, handed to `visit`. Returns where to go on, `None` at the end.
    pub async fn enumerate(
        &self,
        at: ObjectAddress,
        epoch: Epoch,
        kind: EnumerateKind,
        keys: (&[u8], &[u8]),
        anchor: &[u8],
        entries_max: u32,
        visit: impl FnMut(Enumerated<'_>),
    ) -> Result<Option<Vec<u8>>, DsmError> {
        let object = (kind != EnumerateKind::Objects).then_some(at.object);
        let request = Enumerate { object, epoch, kind, entries_max, dkey: keys.0, akey: keys.1, anchor };
        let encode = |body: &mut Vec<u8>, _| encode_enumerate(body, &request);
        let reply = self.exchange(at, procedure::ENUMERATE, None, encode).await.1?;
        // Looked at twice, so that nothing of a malformed reply reaches the caller.
        parse_enumerated(kind, reply.body(), drop)?;
        Ok(parse_enumerated(kind, reply.body(), visit)?.map(<[u8]>::to_vec))
    }

    /// Sends a request until it is answered, and lends `bulk` out for each attempt.
    async fn exchange(
        &self,
        at: ObjectAddress,
        procedure: u8,
        mut bulk: Option<(IoBuffer, Access)>,
        encode: impl Fn(&mut Vec<u8>, Option<RemoteBuffer>),
    ) -> (Option<IoBuffer>, Result<Reply, DsmError>) {
        let mut body = self.shared.scratch.borrow_mut().pop().unwrap_or_default();
        let mut patience = self.container.caller().patience();
        // An attempt may have been carried out, or still be.
        let mut in_doubt = false;
        let result = loop {
            let timeout = patience.attempt();
            let error = match self.attempt(at, procedure, &mut bulk, &encode, &mut body, timeout).await {
                Ok(reply) => break Ok(reply),
                Err(error) => error,
            };
            let verdict = match &error {
                RpcError::Refused {
                    status: Status::STALE_MAP | Status::WRONG_RANK | Status::BAD_TARGET,
                    ..
                } => {
                    self.shared.lost.set(true);
                    Verdict::Again
                }
                error => judge(error),
            };
            match verdict {
                Verdict::Again => {}
                Verdict::Reconnect => self.forget(at.ordinal),
                Verdict::Final => break Err(DsmError::from_rpc(error)),
            }
            in_doubt |= !error.nothing_changed();
            // The map is looked at before the next attempt: it may say that the target is out.
            if self.shared.lost.get()
                && let Err(error) = self.look_around(at).await
            {
                break Err(error);
            }
            if let Err(error) = patience.pause(error).await {
                break Err(error);
            }
        };
        body.clear();
        self.shared.scratch.borrow_mut().push(body);
        let result = result.map_err(|error| if in_doubt { error.late() } else { error });
        (bulk.map(|(buffer, _)| buffer), result)
    }

    async fn attempt(
        &self,
        at: ObjectAddress,
        procedure: u8,
        bulk: &mut Option<(IoBuffer, Access)>,
        encode: &impl Fn(&mut Vec<u8>, Option<RemoteBuffer>),
        body: &mut Vec<u8>,
        timeout: std::time::Duration,
    ) -> Result<Reply, RpcError> {
        let (peer, rank, target) = self.target(at.ordinal).await?;
        let call = Call {
            opcode: Opcode::new(module::OBJECT, procedure),
            rank,
            target,
            map_version: at.map_version,
            handle: self.container.handle(),
            flags: 0,
            timeout,
        };
        let endpoint = self.container.caller().endpoint();
        body.clear();
        match bulk.take() {
            None => {
                encode(body, None);
                endpoint.call(peer, &call, &[body]).await
            }
            Some((buffer, access)) => {
                let (exposed, remote) = match endpoint.expose(peer, buffer, access) {
                    Ok(exposed) => exposed,
                    Err((buffer, error)) => {
                        *bulk = Some((buffer, access));
                        return Err(error);
                    }
                };
                encode(body, Some(remote));
                let result = endpoint.call(peer, &call, &[body]).await;
                *bulk = Some((endpoint.withdraw(exposed, result.is_ok()), access));
                result
            }
        }
    }

    /// Peer, rank and index of a target.
    async fn target(&self, ordinal: u32) -> Result<(PeerId, u32, u32), RpcError> {
        let map = self.container.pool().map();
        let Some(target) = map.targets().get(ordinal as usize) else {
            return Err(RpcError::Refused {
                status: Status::INVALID,
                map_version: map.version(),
                message: format!("the pool has no target of ordinal {ordinal}"),
            });
        };
        let known = self.shared.peers.borrow().get(ordinal as usize).copied().flatten();
        let peer = match known {
            Some(peer) => peer,
            None => {
                let peer = self.container.caller().peer(&target.addresses).await?;
                let mut peers = self.shared.peers.borrow_mut();
                if peers.len() <= ordinal as usize {
                    peers.resize(map.targets().len(), None);
                }
                peers[ordinal as usize] = Some(peer);
                peer
            }
        };
        Ok((peer, target.id.rank, target.id.index))
    }

    fn forget(&self, ordinal: u32) {
        self.shared.lost.set(true);
        let peer = self.shared.peers.borrow_mut().get_mut(ordinal as usize).and_then(Option::take);
        if let Some(peer) = peer {
            self.container.caller().forget(peer);
        }
    }

    /// After trouble with a target: tells the service that this handle's owner lives, and looks at the pool map. Trouble
    /// with the service is left to the next attempt.
    async fn look_around(&self, at: ObjectAddress) -> Result<(), DsmError> {
        match self.container.epoch_query().await {
            Ok(_) => {}
            Err(error @ DsmError::Refused { .. }) => return Err(error),
            Err(_) => return Ok(()),
        }
        if let Ok(map) = self.container.pool().refresh_map().await {
            self.shared.lost.set(false);
            if map.version() > at.map_version && at.map_version != 0 {
                return Err(DsmError::StaleMap { version: map.version() });
            }
        }
        Ok(())
    }

    fn fits_message(&self, bytes: usize) -> bool {
        bytes <= self.container.caller().endpoint().body_bytes_max()
    }

    /// Spares the way to the target when this process knows that the epoch is not held.
    fn check_held(&self, epoch: Epoch) -> Result<(), DsmError> {
        let held = self.container.held();
        if epoch < held {
            let message = format!("epoch {epoch} is not held: the lowest held epoch is {held}");
            return Err(DsmError::Refused { status: Status::BAD_EPOCH, message });
        }
        Ok(())
    }
}
