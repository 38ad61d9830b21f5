//! A pool with something of everything in it, whose content is known: for the golden image, and to be damaged.

use daos_types::{
    Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind,
};
use daos_vos::{
    AkeyData, AkeyUpdate, Checksums, Conflict, Container, Data, Error, ExtentData, ExtentUpdate,
    FetchRequest, Fetched, KeyUpdate, MediaKind, Pool, PoolOptions, Punch, Update, Value,
};
use daos_xstream::{Env, IoBuffer};
use uuid::Uuid;

use super::driver::{chunks, crc};

pub const POOL: Uuid = Uuid::from_u128(0x5eed_0001);
pub const CONTAINER: Uuid = Uuid::from_u128(0x5eed_0002);
pub const LAST: u64 = 30;
const WRITER: Writer = Writer { cookie: Cookie(0xc00_c1e), map_version: 3, kind: WriterKind::Application };

pub fn kv() -> ObjectId {
    id(ObjectType::KeyValue, KeyOrder::Lexical, KeyOrder::Hashed, 1)
}

pub fn document() -> ObjectId {
    id(ObjectType::Document, KeyOrder::Hashed, KeyOrder::Integer, 2)
}

pub fn array() -> ObjectId {
    id(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, 3)
}

fn id(kind: ObjectType, dkey: KeyOrder, akey: KeyOrder, number: u64) -> ObjectId {
    ObjectId::new(kind, dkey, akey, ObjectClass(1), (0, 0, number))
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (seed.wrapping_mul(31) ^ (at / 8 * 7)) as u8).collect()
}

fn key(number: u64) -> Vec<u8> {
    format!("key {number:03} of the sample").into_bytes()
}

/// Epochs in which the keys are written; key 7 is punched in the last.
const EPOCHS: [u64; 4] = [2, 9, 15, 22];
const KEYS: u64 = 24;
/// Bytes of the array: written at 3 (block tier), in part again at 12 (arena), punched in part at 20.
const ARRAY_BYTES: usize = 30_000;

fn options(media: MediaKind) -> PoolOptions {
    PoolOptions { uuid: POOL, media, heap_bytes: 4 << 20, log_bytes: 512 << 10, block_bytes: 256 << 10 }
}

/// Makes the pool on `wal` media.
pub async fn make<E: Env>(env: &E, directory: &str) -> Result<Pool<E>, Error> {
    make_on(env, directory, MediaKind::Wal).await
}

/// Makes the pool. Everything up to epoch 10 has been aggregated; on `wal` media what came after 16 is in the log only.
pub async fn make_on<E: Env>(env: &E, directory: &str, media: MediaKind) -> Result<Pool<E>, Error> {
    let mut pool = Pool::create(env, directory, options(media.clone())).await?;
    let _ = pool.container_create(CONTAINER)?;
    let mut container = pool.container_open(CONTAINER)?;
    for epoch in 1..=LAST {
        if EPOCHS.contains(&epoch) {
            for number in 0..KEYS {
                pool.log_space().await?;
                put(&container, epoch, number)?;
            }
        }
        write_array(&pool, &container, epoch).await?;
        if epoch == 10 {
            let _ = container.aggregate(EpochRange { low: Epoch(1), high: Epoch(10) }).await?;
        }
        if epoch == 16 && media == MediaKind::Wal {
            // With this a part is in the checkpoint, and the rest in the log only.
            pool.close().await?;
            // Its files are locked as long as anybody has it.
            drop((container, pool));
            pool = Pool::open(env, directory).await?;
            container = pool.container_open(CONTAINER)?;
        }
    }
    let _ = container.punch(document(), Epoch(25), WRITER, Conflict::Refuse, &Punch::Dkey(&key(9)))?;
    let _ = container.set_metadata(kv(), b"of the upper layer")?;
    let _ = pool.flush().await?;
    Ok(pool)
}

fn put<E: Env>(container: &Container<E>, epoch: u64, number: u64) -> Result<(), Error> {
    let (key, value) = (key(number), bytes(epoch * 100 + number, (number * 13 % 1500) as usize));
    let gone = number == 7 && epoch == EPOCHS[3];
    let inline = || (!gone).then(|| Value::Inline(&value, crc(&value)));
    let update = Update::KeyValue(&[KeyUpdate { key: &key, value: inline() }]);
    let _ = container.update(kv(), Epoch(epoch), WRITER, Conflict::Refuse, &update)?;
    let akey = (number % 3).to_le_bytes();
    let akeys = [AkeyUpdate { akey: &akey, data: AkeyData::Single(inline()) }];
    let update = Update::Document { dkey: &key, akeys: &akeys };
    let _ = container.update(document(), Epoch(epoch), WRITER, Conflict::Refuse, &update)?;
    Ok(())
}

async fn write_array<E: Env>(pool: &Pool<E>, container: &Container<E>, epoch: u64) -> Result<(), Error> {
    let update = |offset, data: ExtentData<'_>| {
        let extents = [ExtentUpdate { offset, data }];
        container.update(array(), Epoch(epoch), WRITER, Conflict::Refuse, &Update::Array(&extents))
    };
    match epoch {
        3 => {
            let data = bytes(3, ARRAY_BYTES);
            let sums = chunks(&(0..ARRAY_BYTES as u64), &data, 4096);
            let checksums = Checksums { chunk_bytes: 4096, chunks: &sums };
            let stored = pool.store(IoBuffer::copy_of(&data), 0, checksums).await.1?;
            let _ = update(0, ExtentData::Stored(&stored))?;
        }
        12 => {
            let data = bytes(12, 3000);
            let sums = chunks(&(10_000..13_000), &data, 512);
            let _ = update(10_000, ExtentData::Inline(&data, Checksums { chunk_bytes: 512, chunks: &sums }))?;
        }
        20 => {
            let punch = Punch::Extent(12_500..14_000);
            let _ = container.punch(array(), Epoch(20), WRITER, Conflict::Refuse, &punch)?;
        }
        _ => {}
    }
    Ok(())
}

/// What the array holds at an epoch.
fn array_at(epoch: u64) -> Vec<u8> {
    let mut data = if epoch >= 3 { bytes(3, ARRAY_BYTES) } else { vec![0; ARRAY_BYTES] };
    if epoch >= 12 {
        data[10_000..13_000].copy_from_slice(&bytes(12, 3000));
    }
    if epoch >= 20 {
        data[12_500..14_000].fill(0);
    }
    data
}

/// Reads everything at every epoch that may be read. Wrong data panics; the first error is returned.
pub async fn check<E: Env>(pool: &Pool<E>) -> Result<(), Error> {
    let container = pool.container_open(CONTAINER)?;
    let mut failed = Ok(());
    let mut note = |result: Result<(), Error>| {
        if failed.is_ok() {
            failed = result;
        }
    };
    for epoch in 10..=LAST + 1 {
        let written = EPOCHS.into_iter().rfind(|&at| at <= epoch).expect("the first is before");
        for number in 0..KEYS {
            let (key, akey) = (key(number), (number % 3).to_le_bytes());
            let wanted = bytes(written * 100 + number, (number * 13 % 1500) as usize);
            let gone = number == 7 && written == EPOCHS[3];
            for (object, akey, punched) in
                [(kv(), None, gone), (document(), Some(&akey[..]), gone || (number == 9 && epoch >= 25))]
            {
                let request = FetchRequest { object, dkey: &key, akey };
                note(container.fetch(&request, Epoch(epoch), |answer| match answer {
                    Fetched::Value(value) => match value.data {
                        Data::Inline(data) => {
                            assert!(!punched && data == wanted, "{object} {number} at {epoch}")
                        }
                        Data::Stored(_) => panic!("nothing was stored"),
                    },
                    Fetched::Punched(_) => assert!(punched, "{object} {number} at {epoch}: punched"),
                    Fetched::Miss => panic!("{object} {number} at {epoch}: a miss"),
                }));
            }
        }
        let wanted = array_at(epoch);
        let mut loads = Vec::new();
        note(container.fetch_array(array(), None, 0..ARRAY_BYTES as u64, Epoch(epoch), |piece| {
            let wanted = &wanted[piece.range.start as usize..piece.range.end as usize];
            match piece.content {
                Fetched::Value(data) => match data.data {
                    Data::Inline(data) => assert!(data == wanted, "{:?} at {epoch}", piece.range),
                    Data::Stored(place) => loads.push((place, wanted.to_vec())),
                },
                _ => assert!(epoch >= 20 && wanted.iter().all(|&byte| byte == 0), "{:?}", piece.range),
            }
        }));
        for (place, wanted) in loads {
            match pool.load(&place).await {
                Ok(data) => assert!(data.as_slice() == wanted, "the array at {epoch}"),
                Err(error) => note(Err(error)),
            }
        }
    }
    note(container.metadata(kv(), |metadata| assert_eq!(metadata, b"of the upper layer")));
    failed
}

/// Reads and changes what [`make`] made, whatever has become of it: nothing may panic, or go on for ever.
#[allow(dead_code, reason = "a fuzz target calls it")]
pub fn handle<E: Env>(pool: &Pool<E>) -> Result<(), Error> {
    let container = pool.container_open(CONTAINER)?;
    for epoch in [1, 3, 9, 12, 14, 20, 23, LAST, u64::MAX] {
        for number in 0..KEYS {
            let (key, akey) = (key(number), (number % 3).to_le_bytes());
            for (object, akey) in [(kv(), None), (document(), Some(&akey[..]))] {
                let _ = container.fetch(&FetchRequest { object, dkey: &key, akey }, Epoch(epoch), |_| ());
            }
        }
        for range in [0..ARRAY_BYTES as u64, 9_000..9_001, 12_400..12_600] {
            let _ = container.fetch_array(array(), None, range, Epoch(epoch), |_| ());
        }
    }
    for conflict in [Conflict::Refuse, Conflict::LastWins] {
        for epoch in [2, 12, 20, 22, 31] {
            for number in [0, 7, 9, 23, 99] {
                let (key, akey, value) = (key(number), (number % 3).to_le_bytes(), bytes(number, 100));
                let value = Some(Value::Inline(&value, crc(&value)));
                let update = Update::KeyValue(&[KeyUpdate { key: &key, value }]);
                let _ = container.update(kv(), Epoch(epoch), WRITER, conflict, &update);
                let akeys = [AkeyUpdate { akey: &akey, data: AkeyData::Single(value) }];
                let update = Update::Document { dkey: &key, akeys: &akeys };
                let _ = container.update(document(), Epoch(epoch), WRITER, conflict, &update);
            }
            for start in [0, 10_000, 12_000, 12_900] {
                let data = bytes(start, 700);
                let sums = chunks(&(start..start + 700), &data, 512);
                let data = ExtentData::Inline(&data, Checksums { chunk_bytes: 512, chunks: &sums });
                let update = Update::Array(&[ExtentUpdate { offset: start, data }]);
                let _ = container.update(array(), Epoch(epoch), WRITER, conflict, &update);
                let punch = Punch::Extent(start + 100..start + 300);
                let _ = container.punch(array(), Epoch(epoch), WRITER, conflict, &punch);
            }
        }
    }
    Ok(())
}

/// Epoch and writer of what [`grow`] adds, after all that is checked.
const GROWN: (u64, Cookie) = (LAST + 10, Cookie(0x9409));

/// Adds keys to the KV and the document, and a document of its own.
pub async fn grow<E: Env>(pool: &Pool<E>, count: u64) -> Result<(), Error> {
    let container = pool.container_open(CONTAINER)?;
    let writer = Writer { cookie: GROWN.1, ..WRITER };
    for number in 0..count {
        pool.log_space().await?;
        let (key, value) = (format!("grown {number}").into_bytes(), bytes(number, 40));
        let value = Value::Inline(&value, crc(&value));
        let update = Update::KeyValue(&[KeyUpdate { key: &key, value: Some(value) }]);
        let _ = container.update(kv(), Epoch(GROWN.0), writer, Conflict::Refuse, &update)?;
        let akey = (number % 3).to_le_bytes();
        let akeys = [AkeyUpdate { akey: &akey, data: AkeyData::Single(Some(value)) }];
        for object in [document(), id(ObjectType::Document, KeyOrder::Hashed, KeyOrder::Integer, 9)] {
            let update = Update::Document { dkey: &key, akeys: &akeys };
            let _ = container.update(object, Epoch(GROWN.0), writer, Conflict::Refuse, &update)?;
        }
    }
    Ok(())
}

/// Takes back what [`grow`] added.
pub async fn shrink<E: Env>(pool: &Pool<E>) -> Result<(), Error> {
    let range = EpochRange { low: Epoch(GROWN.0), high: Epoch(GROWN.0) };
    let _ = pool.container_open(CONTAINER)?.discard(GROWN.1, range).await?;
    Ok(())
}
