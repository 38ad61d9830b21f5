//! The metadata store under the pool and container services.
//!
//! # Invariants
//!
//! * A batch is one transaction: all of its changes, or none, whatever fails.
//! * [`Rdb::submit`] makes a batch visible; [`Rdb::settled`] returns when it, and every batch before it, survives any crash.
//!   A service answers nobody, also no query, before what the answer rests on is settled.
//! * A handler is: queries, then one batch, then [`settled`](Rdb::settled), then the reply. So the batches can later be the
//!   entries of a replicated log.
//!
//! One replica now: tables are KV objects of a reserved container in the vpool of the service's target. Records are
//! overwritten in place (one epoch, one writer), so no history grows.

use std::cell::Cell;

use daos_types::{
    Checksum, Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind,
};
use daos_vos::{
    Anchor, Conflict, Container, Data, Error, FetchRequest, Fetched, KeyUpdate, Pool, Sealed, Update, Value,
};
use daos_xstream::{Env, Spawn};
use uuid::Uuid;

/// The reserved container. Its UUID is not of a version that is ever generated.
const CONTAINER: Uuid = Uuid::from_u128(0xda05_0000_0000_0000_0000_0000_0000_0001);
const EPOCH: Epoch = Epoch(1);
const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 0, kind: WriterKind::Application };
/// Removed records after which the room of their negative entries is given back.
const REMOVALS_BEFORE_SWEEP: u32 = 1024;
const SCAN_LIMIT: usize = 128;

/// Whether this is the container that no client may reach, by whatever name.
pub fn is_reserved(container: Uuid) -> bool {
    container == CONTAINER
}

/// Which table a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The pool, its handles, its containers, their handles and snapshots.
    Main,
    /// Attributes of one container.
    Attributes(Uuid),
}

impl Table {
    fn object(self) -> ObjectId {
        let caller = match self {
            Self::Main => (0, 0, 0),
            Self::Attributes(container) => {
                let (high, low) = container.as_u64_pair();
                (1, high, low)
            }
        };
        ObjectId::new(ObjectType::KeyValue, KeyOrder::Lexical, KeyOrder::Hashed, ObjectClass(0), caller)
    }
}

/// Changes that are made together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets a record.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push((table, key, Some(value)));
    }

    /// Removes a record, if it is there.
    pub fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.changes.push((table, key, None));
    }
}

/// A way over the keys of a table that begin with a prefix, and over hardly any others.
struct Walk<'p> {
    table: Table,
    prefix: &'p [u8],
    anchor: Anchor,
}

impl<'p> Walk<'p> {
    fn new(table: Table, prefix: &'p [u8]) -> Self {
        // No key is empty, and none is one of our prefixes.
        let anchor = if prefix.is_empty() { Anchor::default() } else { Anchor::after(prefix) };
        Self { table, prefix, anchor }
    }

    /// Adds the next keys, and says whether there may be more.
    fn slice<E: Env>(&mut self, rdb: &Rdb<E>, keys: &mut Vec<Vec<u8>>) -> Result<bool, Error> {
        let (mut visited, mut past) = (0, false);
        let object = self.table.object();
        rdb.container.enumerate_keys(object, EPOCH, &mut self.anchor, SCAN_LIMIT, |key| {
            visited += 1;
            match key.starts_with(self.prefix) {
                true => keys.push(key.to_vec()),
                false => past = true,
            }
        })?;
        rdb.visited.set(rdb.visited.get() + visited);
        Ok(!past && !self.anchor.at_end())
    }
}

/// The metadata store of one pool.
pub struct Rdb<E: Env> {
    container: Container<E>,
    last: Cell<Option<Sealed>>,
    removals: Cell<u32>,
    visited: Cell<u64>,
}

impl<E: Env> Rdb<E> {
    /// Makes the store of a new pool.
    pub fn create(pool: &Pool<E>) -> Result<Self, Error> {
        let sealed = pool.container_create(CONTAINER)?;
        let rdb = Self::open(pool)?;
        rdb.last.set(Some(sealed));
        Ok(rdb)
    }

    /// Opens the store of a pool.
    pub fn open(pool: &Pool<E>) -> Result<Self, Error> {
        let container = pool.container_open(CONTAINER)?;
        Ok(Self { container, last: Cell::new(None), removals: Cell::new(0), visited: Cell::new(0) })
    }

    /// A record.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let request = FetchRequest { object: table.object(), dkey: key, akey: None };
        self.container.fetch(&request, EPOCH, |fetched| match fetched {
            Fetched::Value(value) => match value.data {
                Data::Inline(bytes) => Ok(Some(bytes.to_vec())),
                Data::Stored(_) => Err(Error::WrongType("a metadata record on the block tier")),
            },
            Fetched::Punched(_) | Fetched::Miss => Ok(None),
        })?
    }

    /// All keys of a table that begin with `prefix`, in their order. For what is bounded by a small limit.
    pub fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let (mut keys, mut walk) = (Vec::new(), Walk::new(table, prefix));
        while walk.slice(self, &mut keys)? {}
        Ok(keys)
    }

    /// Visits all records of a table whose keys begin with `prefix`, in the order of their keys, and lets others have their turn
    /// in between. Nobody may change them meanwhile.
    pub async fn for_each<Failure: From<Error>>(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (mut keys, mut walk, mut more) = (Vec::new(), Walk::new(table, prefix), true);
        while more {
            more = walk.slice(self, &mut keys)?;
            for key in keys.drain(..) {
                if let Some(value) = self.get(table, &key)? {
                    visit(&key, &value)?;
                }
            }
            let scheduler = self.container.pool().env().scheduler();
            if scheduler.should_yield() {
                scheduler.yield_now().await;
            }
        }
        Ok(())
    }

    /// Keys that were looked at since the store was opened, wanted or not: what something costs.
    pub fn visited(&self) -> u64 {
        self.visited.get()
    }

    /// Makes all changes of a batch, visible at once. After an error none is made.
    pub fn submit(&self, batch: &Batch) -> Result<(), Error> {
        if batch.changes.is_empty() {
            return Ok(());
        }
        // What fills a target up must not keep its handles from being closed.
        let ((), sealed) = self.container.reserved_transaction(|tx| {
            for (table, key, value) in &batch.changes {
                let value = value.as_ref().map(|bytes| Value::Inline(bytes, Checksum(crc32c::crc32c(bytes))));
                let update = [KeyUpdate { key, value }];
                tx.update(table.object(), EPOCH, WRITER, Conflict::LastWins, &Update::KeyValue(&update))?;
            }
            Ok::<(), Error>(())
        })?;
        self.last.set(Some(sealed));
        let removals = batch.changes.iter().filter(|(_, _, value)| value.is_none()).count();
        self.removals.set(self.removals.get().saturating_add(removals as u32));
        Ok(())
    }

    /// Returns when every batch so far survives any crash.
    pub async fn settled(&self) -> Result<(), Error> {
        if let Some(sealed) = self.last.get() {
            let _ = self.container.pool().persisted(sealed).await?;
        }
        if self.removals.get() >= REMOVALS_BEFORE_SWEEP {
            self.removals.set(0);
            let _ = self.container.aggregate(EpochRange { low: EPOCH, high: EPOCH }).await?;
        }
        Ok(())
    }
}
