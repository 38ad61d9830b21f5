//! What the cases share: the pool, keys, and the loop that measures.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use daos_bench::{
    meter::{Measured, Meter},
    report::{Printer, Row},
};
use daos_types::{Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{Container, Error, MediaKind, Pool, PoolOptions};
use daos_xstream::{Env, Media, Spawn};
use daos_xstream_uring::{NoFabric, UringEnv};
use uuid::Uuid;

use crate::MediaName;

/// The world that the store runs in.
pub type World = UringEnv<NoFabric>;

/// Operations per second, by (media, case): what later cases are held against.
pub type Rates = BTreeMap<(MediaName, &'static str), f64>;

/// Who writes.
pub const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };

/// An epoch after all that the cases write in.
pub const LATEST: Epoch = Epoch(1 << 40);

/// Operations between two looks at the scheduler.
const SLICE: u64 = 64;

/// What was asked for.
#[derive(Clone)]
pub struct Bench {
    pub records: u64,
    pub seconds: f64,
    pub folder: PathBuf,
    pub cases: Arc<[String]>,
    pub json: bool,
}

impl Bench {
    /// Whether `case` was asked for.
    pub fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| case.contains(wanted.as_str()))
    }

    /// Whether any of `cases` was asked for.
    pub fn wants_any(&self, cases: &[&str]) -> bool {
        cases.iter().any(|case| self.wants(case))
    }

    /// Prints a row that was asked for.
    pub fn print(&self, row: &Row) {
        if !self.wants(&row.case) {
            return;
        }
        if !self.json {
            return Printer { json: false }.print(row);
        }
        let mut row = row.clone();
        row.records.get_or_insert(self.records);
        row.peer = row.limit.take().map(Into::into);
        Printer { json: true }.print(&row);
    }

    /// A fresh pool with one container.
    pub async fn pool(
        &self,
        world: &World,
        media: MediaName,
        heap_bytes: u64,
        block_bytes: u64,
    ) -> anyhow::Result<(Pool<World>, Container<World>)> {
        self.remove_pool(world).await?;
        let options = PoolOptions {
            uuid: Uuid::from_u128(1),
            media: match media {
                MediaName::Heap => MediaKind::Heap,
                MediaName::Wal => MediaKind::Wal,
                MediaName::Pmem => MediaKind::Pmem { file: self.folder.join("pmem") },
            },
            heap_bytes: heap_bytes.next_multiple_of(1 << 20),
            log_bytes: if media == MediaName::Wal { 256 << 20 } else { 0 },
            block_bytes,
        };
        let pool = Pool::create(world, "pool", options).await?;
        let container = container(&pool, 1)?;
        Ok((pool, container))
    }

    /// Removes what [`pool`](Self::pool) has made.
    pub async fn remove_pool(&self, world: &World) -> anyhow::Result<()> {
        world.media().remove("pool").await?;
        world.media().remove("pmem").await?;
        Ok(())
    }

    /// Runs `operation` with 0, `step`, 2 `step` … below `count`, each of which does `step` operations. Others of this
    /// core (the log, checkpoints) run in between; at the end everything is flushed, within the time taken.
    pub async fn drive(
        &self,
        pool: &Pool<World>,
        count: u64,
        step: u64,
        mut operation: impl FnMut(u64) -> Result<(), Error>,
    ) -> anyhow::Result<Measured> {
        let mut next = 0;
        let mut meter = Meter::start();
        while next < count {
            let end = (next + SLICE * step).min(count);
            let result = meter.slice(|meter| {
                while next < end {
                    meter.run(step, || operation(next))?;
                    next += step;
                }
                Ok(())
            });
            match result {
                Ok(()) => {}
                Err(Error::LogFull) => {
                    meter.forget(step);
                    pool.log_space().await?;
                }
                Err(error) => return Err(error.into()),
            }
            if pool.env().scheduler().should_yield() {
                pool.env().scheduler().yield_now().await;
            }
        }
        let _ = pool.flush().await?;
        Ok(meter.stop())
    }
}

/// Makes a container and opens it.
pub fn container(pool: &Pool<World>, number: u128) -> anyhow::Result<Container<World>> {
    let uuid = Uuid::from_u128(number);
    let _ = pool.container_create(uuid)?;
    Ok(pool.container_open(uuid)?)
}

/// The identifier of an object, with hashed keys.
pub fn object(object_type: ObjectType, number: u64) -> ObjectId {
    ObjectId::new(object_type, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

/// Key `number`: distinct, and in no order.
#[inline]
pub fn key(number: u64) -> [u8; 16] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A number below `count` that looks random.
#[inline]
pub fn scattered(number: u64, count: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count
}

/// Bytes of the arena in use.
pub fn arena_bytes_used(pool: &Pool<World>) -> anyhow::Result<u64> {
    let usage = pool.usage()?;
    Ok(usage.arena_bytes - usage.arena_bytes_free)
}
