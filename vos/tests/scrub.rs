//! The scrubber: what it finds, its rate, and how much it does in one piece.

mod support;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
};

use daos_types::{Checksum, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType};
use daos_types::{Cookie, Writer, WriterKind};
use daos_vos::{
    AkeyData, AkeyUpdate, Conflict, KeyUpdate, Pool, Punch, ScrubCounters, ScrubRate, Update, Value,
};
use daos_xstream::{Clock, Env, IoBuffer};
use daos_xstream_sim::{Config, Simulation};
use support::{image, pool};
use uuid::Uuid;

#[test]
fn the_scrubber_finds_damage_and_keeps_to_its_rate() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-2.image");
    let mut files = image::unpack(&std::fs::read(path).expect("the image"));
    // Byte 5000 of the extent that lies first on the block tier.
    files[0].1[5000] ^= 4;
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        image::write_files(&env, "pool", &files).await;
        let pool = Pool::open(&env, "pool").await.expect("the pool");
        let counters = Rc::new(ScrubCounters::default());
        let faults = Rc::new(RefCell::new(Vec::new()));
        let began = env.clock().now();
        let rate = ScrubRate { bytes_per_second: 100_000 };
        let told = faults.clone();
        let scrubbed = pool.scrub(rate, &counters, |fault| told.borrow_mut().push(fault.to_string())).await;
        assert_eq!(scrubbed, Ok(()));
        let took = env.clock().now().0 - began.0;
        let bytes = counters.bytes.get();
        assert!(bytes > 20_000, "{bytes} bytes were compared");
        assert!(took >= bytes * 10_000, "{bytes} bytes in {took} ns");
        assert_eq!((counters.passes.get(), counters.faults.get()), (1, 1));
        let faults = faults.borrow();
        assert!(faults[0].contains("block tier at 0x1000"), "{}", faults[0]);
    });
    ended.expect("the run ends");
}

fn object(kind: ObjectType, number: u64) -> ObjectId {
    ObjectId::new(kind, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

/// A slice looked through all containers for its own, took sixteen values however long they were, and all punches of a
/// dkey; with many of any of them it held the core for long.
#[test]
fn a_slice_is_small_whatever_there_is() {
    const CONTAINERS: u64 = 300;
    const VALUES: u64 = 40;
    const PUNCHES: u64 = 5000;
    const MIB: u64 = 1 << 20;
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        let (pool, container) = pool::create(&env, pool::wal(128 * MIB, 32 * MIB, 64 * MIB)).await;
        for number in 1..CONTAINERS {
            let uuid = Uuid::from_u128(u128::from(1000 + number));
            let _ = pool.container_create(uuid).expect("a container");
        }
        let writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };
        let long = vec![3; MIB as usize];
        let sum = Checksum(crc32c::crc32c(&long));
        for number in 0..VALUES {
            pool.log_space().await.expect("room");
            let key = number.to_le_bytes();
            let update = [KeyUpdate { key: &key, value: Some(Value::Inline(&long, sum)) }];
            let update = Update::KeyValue(&update);
            let kv = object(ObjectType::KeyValue, 1);
            let _ = container.update(kv, Epoch(1), writer, Conflict::Refuse, &update).expect("written");
        }
        let document = object(ObjectType::Document, 2);
        let akeys = [AkeyUpdate { akey: b"a", data: AkeyData::Single(Some(Value::Inline(&long, sum))) }];
        let update = Update::Document { dkey: b"d", akeys: &akeys };
        let _ = container.update(document, Epoch(1), writer, Conflict::Refuse, &update).expect("written");
        for epoch in 2..PUNCHES + 2 {
            pool.log_space().await.expect("room");
            let punch = Punch::Dkey(b"d");
            let _ =
                container.punch(document, Epoch(epoch), writer, Conflict::Refuse, &punch).expect("punched");
        }
        let (stored, extent) = pool.store_value(IoBuffer::copy_of(&long), sum).await;
        let update = [KeyUpdate { key: b"stored", value: Some(Value::Stored(&extent.expect("stored"))) }];
        let kv = object(ObjectType::KeyValue, 3);
        let written = container.update(kv, Epoch(1), writer, Conflict::Refuse, &Update::KeyValue(&update));
        let _ = written.expect("written");
        drop(stored);

        let counters = ScrubCounters::default();
        let rate = ScrubRate { bytes_per_second: u64::MAX };
        let (mut polls, mut most) = (0u64, (0, 0));
        {
            let mut pass = pin!(pool.scrub(rate, &counters, |fault| panic!("{fault}")));
            poll_fn(|context| {
                let before = (counters.records.get(), counters.bytes.get());
                let result = pass.as_mut().poll(context);
                most.0 = most.0.max(counters.records.get() - before.0);
                most.1 = most.1.max(counters.bytes.get() - before.1);
                polls += 1;
                result
            })
            .await
            .expect("a pass");
        }
        // All punches of the dkey are one record.
        assert_eq!(counters.records.get(), VALUES + 1 + 1 + 1);
        assert!((42 * MIB..43 * MIB).contains(&counters.bytes.get()), "{} bytes", counters.bytes.get());
        assert!(most.0 <= 16 && most.1 < MIB + MIB / 2, "{most:?} records and bytes in one piece");
        assert!(polls >= CONTAINERS + VALUES, "{polls} pieces");
    });
    ended.expect("the run ends");
}

/// What is damaged is read like anything else, and counted as little: a pass over many damaged values took all of the device.
#[test]
fn damaged_values_are_read_at_the_same_rate() {
    const VALUES: u64 = 40;
    const BYTES: u64 = 64 << 10;
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let disk = node.disk();
    let ended = simulation.block_on(&node, move |env| async move {
        let (pool, container) = pool::create(&env, pool::wal(32 << 20, 8 << 20, 64 << 20)).await;
        let writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };
        for number in 0..VALUES {
            let bytes = vec![number as u8; BYTES as usize];
            let sum = Checksum(crc32c::crc32c(&bytes));
            let (stored, extent) = pool.store_value(IoBuffer::copy_of(&bytes), sum).await;
            let key = number.to_le_bytes();
            let update = [KeyUpdate { key: &key, value: Some(Value::Stored(&extent.expect("stored"))) }];
            let update = Update::KeyValue(&update);
            let kv = object(ObjectType::KeyValue, 1);
            let _ = container.update(kv, Epoch(1), writer, Conflict::Refuse, &update).expect("written");
            drop(stored);
        }
        let files = disk.files();
        let (blocks, _) = files.iter().find(|(path, _)| path.ends_with("blocks")).expect("a block tier");
        for number in 0..VALUES {
            assert!(disk.flip_bit(blocks, (4096 + number * BYTES + 100) * 8));
        }
        let counters = ScrubCounters::default();
        let rate = ScrubRate { bytes_per_second: 1 << 20 };
        let began = env.clock().now();
        pool.scrub(rate, &counters, |_| {}).await.expect("a pass");
        let took = env.clock().now().0 - began.0;
        assert_eq!((counters.faults.get(), counters.bytes.get()), (VALUES, VALUES * (BYTES + 8)));
        let least = VALUES * BYTES * 1_000_000_000 / rate.bytes_per_second;
        assert!(took >= least, "{took} ns, not {least}");
    });
    ended.expect("the run ends");
}
