//! Times the store's own paths on heap media, for profiling: `cargo run --release -p daos-vos --example profile [RECORDS]`.
//! Under `valgrind --tool=callgrind` use few records. Comparable numbers come from `vos_perf`.

#![allow(
    clippy::disallowed_methods,
    reason = "this program measures real time; nothing of it runs in the simulator"
)]

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use daos_types::{Checksum, Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    AkeyData, AkeyUpdate, Checksums, Conflict, Container, Data, ExtentData, ExtentUpdate, FetchRequest,
    Fetched, KeyUpdate, MediaKind, Pool, PoolOptions, Update, Value,
};
use daos_xstream::Env;
use daos_xstream_sim::{Config, Simulation};
use uuid::Uuid;

const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };

fn key(number: u64) -> [u8; 16] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn report(case: &str, count: u64, start: Instant) {
    let elapsed = start.elapsed();
    println!(
        "{case:<28} {:>8.0} k/s {:>7.0} ns",
        count as f64 / elapsed.as_secs_f64() / 1e3,
        elapsed.as_nanos() as f64 / count as f64
    );
}

fn update<E: Env>(container: &Container<E>, object: ObjectId, epoch: u64, key: &[u8], value: &[u8]) {
    let value = Value::Inline(value, Checksum(crc32c::crc32c(value)));
    let akeys = [AkeyUpdate { akey: b"v", data: AkeyData::Single(Some(value)) }];
    let keys = [KeyUpdate { key, value: Some(value) }];
    let update = match object.object_type() {
        ObjectType::Document => Update::Document { dkey: key, akeys: &akeys },
        _ => Update::KeyValue(&keys),
    };
    let _ = container.update(object, Epoch(epoch), WRITER, Conflict::LastWins, &update).expect("an update");
}

fn values<E: Env>(pool: &Pool<E>, container: &Container<E>, name: &str, object: ObjectId, count: u64) {
    let akey = (object.object_type() == ObjectType::Document).then_some(&b"v"[..]);
    let free = pool.usage().expect("usage").arena_bytes_free;
    let start = Instant::now();
    for number in 0..count {
        update(container, object, 1, &key(number), &[number as u8; 64]);
    }
    report(&format!("{name} insert"), count, start);
    let used = free - pool.usage().expect("usage").arena_bytes_free;
    let data = count * (16 + 64 + akey.map_or(0, |akey| akey.len() as u64));
    println!("{name} metadata per record       {:>6.1} bytes", (used - data) as f64 / count as f64);
    let order: Vec<u64> = (0..count).map(|number| number.wrapping_mul(0x9e37_79b9) % count).collect();
    let start = Instant::now();
    for &number in &order {
        update(container, object, 1, &key(number), &[!number as u8; 64]);
    }
    report(&format!("{name} overwrite, same epoch"), count, start);
    let start = Instant::now();
    for &number in &order {
        let key = key(number);
        let request = FetchRequest { object, dkey: &key, akey };
        let found = container.fetch(&request, Epoch(9), |answer| match answer {
            Fetched::Value(value) => match value.data {
                Data::Inline(bytes) => bytes[0] == !number as u8,
                Data::Stored(_) => false,
            },
            _ => false,
        });
        assert!(found.expect("a fetch"));
    }
    report(&format!("{name} fetch"), count, start);
    let start = Instant::now();
    for numbers in order.chunks(16) {
        let keys: [[u8; 16]; 16] = std::array::from_fn(|index| key(numbers[index % numbers.len()]));
        let requests: [FetchRequest<'_>; 16] =
            std::array::from_fn(|index| FetchRequest { object, dkey: &keys[index], akey });
        let fetched = container.fetch_batch(&requests[..numbers.len()], Epoch(9), |_, answer| {
            black_box(answer.expect("a fetch"));
        });
        fetched.expect("a batch");
    }
    report(&format!("{name} fetch by 16"), count, start);
    let start = Instant::now();
    for &number in &order {
        update(container, object, 2, &key(number), &[number as u8; 64]);
    }
    report(&format!("{name} second version"), count, start);
}

fn arrays<E: Env>(pool: &Pool<E>, container: &Container<E>, object: ObjectId, count: u64) {
    let block: Vec<u8> = (0..4096u32).map(|index| index as u8).collect();
    let checksum = [Checksum(crc32c::crc32c(&block))];
    let blocks = count.next_power_of_two();
    let place = |number: u64| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % blocks * 4096;
    let free = pool.usage().expect("usage").arena_bytes_free;
    let start = Instant::now();
    for number in 0..count {
        let data = ExtentData::Inline(&block, Checksums { chunk_bytes: 4096, chunks: &checksum });
        let update = Update::Array(&[ExtentUpdate { offset: place(number), data }]);
        let _ = container
            .update(object, Epoch(number / 1000 + 1), WRITER, Conflict::LastWins, &update)
            .expect("an update");
    }
    report("array 4 KiB write", count, start);
    let used = free - pool.usage().expect("usage").arena_bytes_free;
    println!("array metadata per extent         {:>6.1} bytes", used as f64 / count as f64 - 4096.0);
    let start = Instant::now();
    let mut sum = 0;
    for number in 0..count {
        let from = place(number);
        container
            .fetch_array(object, None, from..from + 4096, Epoch(u64::MAX), |piece| {
                if let Fetched::Value(data) = piece.content
                    && let Data::Inline(bytes) = data.data
                {
                    sum += bytes.len();
                }
            })
            .expect("a read");
    }
    assert_eq!(sum as u64, count * 4096);
    report("array 4 KiB read", count, start);
    let mut target = vec![0; 4096];
    let source = vec![1u8; (count * 4096) as usize];
    let start = Instant::now();
    for number in 0..count {
        let from = (place(number) % (count * 4096)) as usize;
        target.copy_from_slice(&source[from..from + 4096]);
        black_box(crc32c::crc32c(&target));
    }
    report("limit: memcpy + CRC32C", count, start);
}

/// Touches the memory that the cases will use: the first touch of a page costs more than all else.
async fn warm_up<E: Env>(pool: &Pool<E>, count: u64) {
    let uuid = Uuid::from_u128(9);
    let _ = pool.container_create(uuid).expect("a container");
    let container = pool.container_open(uuid).expect("the container");
    let object =
        ObjectId::new(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, 1));
    let bytes = vec![1; 1 << 20];
    let checksum = [Checksum(crc32c::crc32c(&bytes))];
    for number in 0..(count * 1900) >> 20 {
        let data = ExtentData::Inline(&bytes, Checksums { chunk_bytes: 1 << 20, chunks: &checksum });
        let update = Update::Array(&[ExtentUpdate { offset: number << 20, data }]);
        let _ = container.update(object, Epoch(1), WRITER, Conflict::LastWins, &update).expect("an update");
    }
    drop(container);
    let _ = pool.container_destroy(uuid).await.expect("a destruction");
}

fn main() {
    let count = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().expect("a number of records"));
    let mut map = BTreeMap::new();
    let start = Instant::now();
    for number in 0..count {
        map.insert(key(number).to_vec(), vec![number as u8; 64]);
    }
    report("peer: BTreeMap insert", count, start);
    let start = Instant::now();
    for number in 0..count {
        black_box(map.get(&key(number.wrapping_mul(0x9e37_79b9) % count)[..]));
    }
    report("peer: BTreeMap get", count, start);
    drop(map);
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        let options = PoolOptions {
            uuid: Uuid::from_u128(1),
            media: MediaKind::Heap,
            heap_bytes: (2 << 30) + (count * 2048).next_multiple_of(1 << 20),
            log_bytes: 0,
            block_bytes: 0,
        };
        let pool = Pool::create(&env, "pool", options).await.expect("a pool");
        warm_up(&pool, count).await;
        let uuid = Uuid::from_u128(2);
        let _ = pool.container_create(uuid).expect("a container");
        let container = pool.container_open(uuid).expect("the container");
        let id = |kind, number| {
            ObjectId::new(kind, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
        };
        values(&pool, &container, "KV", id(ObjectType::KeyValue, 1), count);
        values(&pool, &container, "document", id(ObjectType::Document, 2), count);
        arrays(&pool, &container, id(ObjectType::Array, 3), count / 4);
    });
    ended.expect("the run ends");
}
