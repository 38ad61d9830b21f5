//! Single values: records of a KV object, and of a document with one akey per dkey.

use daos_bench::{limits::btree_map_per_s, meter::Measured, report::Row};
use daos_types::{Checksum, Epoch, ObjectId, ObjectType};
use daos_vos::{
    AkeyData, AkeyUpdate, Conflict, Container, Data, Error, FetchRequest, Fetched, KeyUpdate, Pool, Update,
    Value,
};

use crate::{
    MediaName,
    setup::{Bench, LATEST, Rates, WRITER, World, arena_bytes_used, container, key, object, scattered},
};

/// The cases of this module.
pub const CASES: [&str; 8] = [
    "kv-update",
    "kv-update-existing",
    "kv-fetch",
    "kv-fetch-batch",
    "doc-update",
    "doc-update-existing",
    "doc-fetch",
    "doc-fetch-batch",
];

const VALUE_BYTES: usize = 64;
const BATCH: usize = 16;
const AKEY: &[u8] = b"v";
/// What the original DAOS VOS reached on this kind of machine with the same work on forced persistent memory, per second:
/// update and fetch. It cannot run beside us, so these are figures from before.
const ORIGINAL_UPDATES_PER_S: f64 = 163_000.0;
const ORIGINAL_FETCHES_PER_S: f64 = 378_000.0;

/// Peers of one run.
struct Peers {
    insert_per_s: f64,
    lookup_per_s: f64,
}

/// Measures the cases that were asked for on `media`; prints them if `print`.
pub async fn measure(
    world: &World,
    bench: &Bench,
    media: MediaName,
    rates: &mut Rates,
    print: bool,
) -> anyhow::Result<()> {
    let count = bench.records;
    let (insert_per_s, lookup_per_s) =
        btree_map_per_s(count, VALUE_BYTES, key, |number| scattered(number, count));
    let peers = Peers { insert_per_s, lookup_per_s };
    for kind in [ObjectType::KeyValue, ObjectType::Document] {
        let cases = names(kind);
        if bench.wants_any(&cases) {
            let (pool, first) = bench.pool(world, media, (256 << 20) + count * 1024, 0).await?;
            // The first touch of a page of memory costs more than an update: fill once, remove, and measure the second.
            fill(bench, &pool, &first, object(kind, 1)).await?;
            let _ = pool.container_destroy(first.uuid()).await?;
            let _ = pool.flush().await?;
            let second = container(&pool, 2)?;
            let case = Case { bench, pool: &pool, container: &second, object: object(kind, 1), media, print };
            case.measure(cases, &peers, rates).await?;
            pool.close().await?;
            drop((pool, first, second));
            bench.remove_pool(world).await?;
        }
    }
    Ok(())
}

fn names(kind: ObjectType) -> [&'static str; 4] {
    let first = if kind == ObjectType::KeyValue { 0 } else { 4 };
    std::array::from_fn(|index| CASES[first + index])
}

struct Case<'a> {
    bench: &'a Bench,
    pool: &'a Pool<World>,
    container: &'a Container<World>,
    object: ObjectId,
    media: MediaName,
    print: bool,
}

impl Case<'_> {
    async fn measure(
        &self,
        [update, existing, fetch, batch]: [&'static str; 4],
        peers: &Peers,
        rates: &mut Rates,
    ) -> anyhow::Result<()> {
        let count = self.bench.records;
        let akey_bytes =
            if self.object.object_type() == ObjectType::Document { AKEY.len() as u64 } else { 0 };
        let before = arena_bytes_used(self.pool)?;
        let measured = fill(self.bench, self.pool, self.container, self.object).await?;
        let taken = arena_bytes_used(self.pool)? - before;
        let metadata = taken as f64 / count as f64 - (16 + VALUE_BYTES as u64 + akey_bytes) as f64;
        let mut row = self.update_row(update, &measured, peers, rates);
        row.metadata_bytes_per_record = Some(metadata);
        self.print(&row);

        if self.bench.wants(existing) {
            let measured = self
                .bench
                .drive(self.pool, count, 1, |number| {
                    write(self.container, self.object, scattered(number, count), 1, !(number as u8))
                })
                .await?;
            self.print(&self.update_row(existing, &measured, peers, rates));
        }
        if self.bench.wants_any(&[fetch, batch]) {
            let measured = self
                .bench
                .drive(self.pool, count, 1, |number| self.fetch_one(scattered(number, count)))
                .await?;
            let fetch_per_cpu_s = measured.per_cpu_s();
            let row = self.row(fetch).measured(&measured);
            self.print(&match self.media {
                MediaName::Pmem => {
                    row.cpu_rate_limit("original DAOS VOS, from before", ORIGINAL_FETCHES_PER_S, 3.0)
                }
                _ => row.cpu_rate_limit("BTreeMap lookup", peers.lookup_per_s, 3.0),
            });
            let count = count / BATCH as u64 * BATCH as u64;
            let measured = self
                .bench
                .drive(self.pool, count, BATCH as u64, |first| {
                    self.fetch_batch(std::array::from_fn(|index| scattered(first + index as u64, count)))
                })
                .await?;
            let mut row = self.row(batch).measured(&measured);
            row.depth = BATCH as u32;
            self.print(&row.cpu_rate_limit("single fetch", fetch_per_cpu_s, 1.5));
        }
        Ok(())
    }

    fn row(&self, case: &str) -> Row {
        Row {
            case: case.to_owned(),
            media: Some(format!("{:?}", self.media).to_lowercase()),
            durable: self.media == MediaName::Pmem,
            value_bytes: VALUE_BYTES as u64,
            depth: 1,
            ..Row::default()
        }
    }

    fn update_row(&self, case: &'static str, measured: &Measured, peers: &Peers, rates: &mut Rates) -> Row {
        rates.insert((self.media, case), measured.per_cpu_s());
        let row = self.row(case).measured(measured);
        match (self.media, rates.get(&(MediaName::Heap, case))) {
            (MediaName::Wal, Some(&heap)) => row.cpu_rate_limit("the same on heap media", heap, 0.7),
            (MediaName::Pmem, _) => {
                row.cpu_rate_limit("original DAOS VOS, from before", ORIGINAL_UPDATES_PER_S, 3.0)
            }
            _ => row.cpu_rate_limit("BTreeMap insertion", peers.insert_per_s, 1.5),
        }
    }

    fn print(&self, row: &Row) {
        if self.print {
            self.bench.print(row);
        }
    }

    fn request<'k>(&self, key: &'k [u8]) -> FetchRequest<'k> {
        let akey = (self.object.object_type() == ObjectType::Document).then_some(AKEY);
        FetchRequest { object: self.object, dkey: key, akey }
    }

    fn fetch_one(&self, number: u64) -> Result<(), Error> {
        self.container.fetch(&self.request(&key(number)), LATEST, check)?
    }

    fn fetch_batch(&self, numbers: [u64; BATCH]) -> Result<(), Error> {
        let keys = numbers.map(key);
        let requests: [_; BATCH] = std::array::from_fn(|index| self.request(&keys[index]));
        let mut result = Ok(());
        self.container.fetch_batch(&requests, LATEST, |_, answer| {
            if let Err(error) = answer.and_then(check) {
                result = Err(error);
            }
        })?;
        result
    }
}

/// An answer must be a value of the right length: a benchmark of misses would be fast.
fn check(answer: Fetched<daos_vos::ValueRef<'_>>) -> Result<(), Error> {
    match answer {
        Fetched::Value(value) => match value.data {
            Data::Inline(bytes) if std::hint::black_box(bytes).len() == VALUE_BYTES => Ok(()),
            _ => Err(Error::Invalid("a fetch gave another value than was written")),
        },
        _ => Err(Error::NotFound("record that was written before")),
    }
}

async fn fill(
    bench: &Bench,
    pool: &Pool<World>,
    container: &Container<World>,
    object: ObjectId,
) -> anyhow::Result<Measured> {
    bench.drive(pool, bench.records, 1, |number| write(container, object, number, 1, number as u8)).await
}

/// Writes record `number` with a value of `fill` bytes.
#[inline]
pub fn write(
    container: &Container<World>,
    object: ObjectId,
    number: u64,
    epoch: u64,
    fill: u8,
) -> Result<(), Error> {
    let bytes = [fill; VALUE_BYTES];
    let value = Value::Inline(&bytes, Checksum(crc32c::crc32c(&bytes)));
    let key = key(number);
    let akeys = [AkeyUpdate { akey: AKEY, data: AkeyData::Single(Some(value)) }];
    let keys = [KeyUpdate { key: &key, value: Some(value) }];
    let update = match object.object_type() {
        ObjectType::Document => Update::Document { dkey: &key, akeys: &akeys },
        _ => Update::KeyValue(&keys),
    };
    container.update(object, Epoch(epoch), WRITER, Conflict::LastWins, &update).map(drop)
}
