//! How long tasks hold a core: a world like the real one that takes the time of every poll of every task.
//!
//! What counts is the CPU time of the thread, not the time that passes: what else the machine does meanwhile is nobody's
//! pause.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
};

use daos_types::{Checksum, Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    Conflict, Error, KeyUpdate, MediaKind, Pool, PoolOptions, ScrubCounters, ScrubRate, Update, Value,
};
use daos_xstream::{Class, CoreId, Env, IoBuffer, Locals, Media, NoMailbox, Spawn};
use hdrhistogram::Histogram;
use uuid::Uuid;

use crate::report::latencies;

/// Name of the task that writes checkpoints.
pub const CHECKPOINT: &str = "umem-checkpoint";

/// The CPU time of each poll of the tasks of one name, in nanoseconds.
pub type Slices = Histogram<u64>;

/// What is known of each name.
type Known = Rc<RefCell<BTreeMap<&'static str, Slices>>>;

/// The world `E`, with a scheduler that takes the time.
pub struct Metered<E: Env>(Rc<Inner<E>>);

struct Inner<E: Env> {
    env: E,
    spawn: MeteredSpawn<E>,
    mailbox: NoMailbox,
}

/// The scheduler of [`Metered`].
pub struct MeteredSpawn<E: Env> {
    env: E,
    known: Known,
}

impl<E: Env> Clone for Metered<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Metered<E> {
    /// The same world, with nothing known yet.
    pub fn new(env: &E) -> Self {
        let spawn = MeteredSpawn { env: env.clone(), known: Known::default() };
        Self(Rc::new(Inner { env: env.clone(), spawn, mailbox: NoMailbox }))
    }

    /// What tasks of this name have done.
    pub fn slices(&self, name: &str) -> Slices {
        self.0.spawn.known.borrow().get(name).cloned().unwrap_or_else(latencies)
    }

    /// `task`, of which every poll counts under `name`.
    pub fn metered<R>(&self, name: &'static str, task: impl Future<Output = R>) -> impl Future<Output = R> {
        timed(self.0.spawn.known.clone(), name, task)
    }
}

async fn timed<R>(known: Known, name: &'static str, task: impl Future<Output = R>) -> R {
    let mut task = pin!(task);
    poll_fn(|context| {
        let before = thread_cpu_ns();
        let result = task.as_mut().poll(context);
        let took = thread_cpu_ns() - before;
        known.borrow_mut().entry(name).or_insert_with(latencies).saturating_record(took);
        result
    })
    .await
}

impl<E: Env> Spawn for MeteredSpawn<E> {
    fn spawn(&self, class: Class, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.env.scheduler().spawn(class, name, timed(self.known.clone(), name, task));
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        self.env.scheduler().yield_now()
    }

    fn should_yield(&self) -> bool {
        self.env.scheduler().should_yield()
    }

    fn add_progress(&self, name: &'static str, poll: impl FnMut() -> usize + 'static) {
        self.env.scheduler().add_progress(name, poll);
    }
}

impl<E: Env> Env for Metered<E> {
    type Clock = E::Clock;
    type Rng = E::Rng;
    type Spawn = MeteredSpawn<E>;
    type Mailbox = NoMailbox;
    type Fabric = E::Fabric;
    type Media = E::Media;

    fn clock(&self) -> &E::Clock {
        self.0.env.clock()
    }

    fn rng(&self) -> &E::Rng {
        self.0.env.rng()
    }

    fn scheduler(&self) -> &MeteredSpawn<E> {
        &self.0.spawn
    }

    fn mailbox(&self) -> &NoMailbox {
        &self.0.mailbox
    }

    fn fabric(&self) -> &E::Fabric {
        self.0.env.fabric()
    }

    fn media(&self) -> &E::Media {
        self.0.env.media()
    }

    fn locals(&self) -> &Locals {
        self.0.env.locals()
    }

    fn core(&self) -> CoreId {
        self.0.env.core()
    }
}

/// CPU time that this thread has used, in nanoseconds.
fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Writes `arena_bytes` of values to a fresh pool with a log, in random order, twice (the log is a quarter of that, so
/// checkpoints run meanwhile), and closes it; gives the number of checkpoints and what the task that writes them has done.
pub async fn of_checkpoints<E: Env>(env: &E, arena_bytes: u64) -> Result<(u64, Slices), Error> {
    const VALUE_BYTES: usize = 1000;
    let env = Metered::new(env);
    let pool = make(&env, arena_bytes / 2 * 3, arena_bytes / 4, 0).await?;
    let container = pool.container_open(CONTAINER)?;
    let value = [0x5a; VALUE_BYTES];
    let checksum = Checksum(crc32c::crc32c(&value));
    let count = arena_bytes / VALUE_BYTES as u64;
    for number in 0..count * 2 {
        let key = (number % count).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let update = [KeyUpdate { key: &key, value: Some(Value::Inline(&value, checksum)) }];
        pool.log_space().await?;
        let _ =
            container.update(object(1), Epoch(1), WRITER, Conflict::LastWins, &Update::KeyValue(&update))?;
        if env.scheduler().should_yield() {
            env.scheduler().yield_now().await;
        }
    }
    pool.close().await?;
    let checkpoints = pool.log_usage().checkpoints;
    remove(&env).await;
    Ok((checkpoints, env.slices(CHECKPOINT)))
}

/// Scrubs a pool of what takes longest, at full speed: values of 1 MiB in the arena and of 16 MiB on the block tier, and
/// many small ones. Gives the records, and what the scrubber has done.
pub async fn of_scrubber<E: Env>(env: &E) -> Result<(u64, Slices), Error> {
    const SMALL: u64 = 100_000;
    const IN_ARENA: u64 = 48;
    const STORED: u64 = 4;
    let env = Metered::new(env);
    let pool = make(&env, 256 << 20, 64 << 20, STORED * (16 << 20)).await?;
    let container = pool.container_open(CONTAINER)?;
    let inline = vec![7; 1 << 20];
    let stored = IoBuffer::copy_of(&vec![8; 16 << 20]);
    let put = |object_number, number: u64, value: Value<'_>| {
        let key = number.to_be_bytes();
        let update = [KeyUpdate { key: &key, value: Some(value) }];
        let update = Update::KeyValue(&update);
        container.update(object(object_number), Epoch(1), WRITER, Conflict::LastWins, &update)
    };
    for number in 0..SMALL {
        pool.log_space().await?;
        let small = Value::Inline(&inline[..64], Checksum(crc32c::crc32c(&inline[..64])));
        let _ = put(1, number, small)?;
    }
    for number in 0..IN_ARENA {
        pool.log_space().await?;
        let _ = put(2, number, Value::Inline(&inline, Checksum(crc32c::crc32c(&inline))))?;
    }
    for number in 0..STORED {
        let checksum = Checksum(crc32c::crc32c(stored.as_slice()));
        let (_, extent) = pool.store_value(IoBuffer::copy_of(stored.as_slice()), checksum).await;
        let _ = put(3, number, Value::Stored(&extent?))?;
    }
    let counters = ScrubCounters::default();
    let rate = ScrubRate { bytes_per_second: u64::MAX };
    let mut faults = 0;
    let pass = pool.scrub(rate, &counters, |_| faults += 1);
    env.metered("scrub", pass).await?;
    assert_eq!((faults, counters.records.get()), (0, SMALL + IN_ARENA + STORED));
    pool.close().await?;
    remove(&env).await;
    Ok((counters.records.get(), env.slices("scrub")))
}

/// CPU time, in nanoseconds, of a task that copies `bytes` without letting anybody run: to see that the meter shows it.
pub async fn of_copy<E: Env>(env: &E, bytes: usize) -> u64 {
    let env = Metered::new(env);
    let from = vec![1u8; bytes];
    let to = Cell::new(Vec::new());
    env.metered("copy", async { to.set(from.clone()) }).await;
    assert_eq!(to.take().len(), bytes);
    env.slices("copy").max()
}

const DIRECTORY: &str = "slices";
const CONTAINER: Uuid = Uuid::from_u128(1);
const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };

fn object(number: u64) -> ObjectId {
    ObjectId::new(ObjectType::KeyValue, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

async fn make<E: Env>(
    env: &Metered<E>,
    heap_bytes: u64,
    log_bytes: u64,
    block_bytes: u64,
) -> Result<Pool<Metered<E>>, Error> {
    remove(env).await;
    let uuid = Uuid::from_u128(2);
    let (heap_bytes, log_bytes) = (heap_bytes.next_multiple_of(1 << 20), log_bytes.next_multiple_of(1 << 20));
    let options = PoolOptions { uuid, media: MediaKind::Wal, heap_bytes, log_bytes, block_bytes };
    let pool = Pool::create(env, DIRECTORY, options).await?;
    let _ = pool.container_create(CONTAINER)?;
    Ok(pool)
}

async fn remove<E: Env>(env: &Metered<E>) {
    // What stays is in the way of the next pool, which says so.
    let _ = env.media().remove(DIRECTORY).await;
}
