//! What a transaction costs: one block allocated with 64 bytes, four stores of 8 to 16 bytes elsewhere.
//!
//! `cargo bench -p daos-umem`. The limit beside it is the same stores without any transaction, into a plain buffer.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{hint::black_box, time::Instant};

use daos_umem::{
    Arena, Heap, MediaKind, Off, Store, StoreOptions,
    pmem::{self, Persistence},
};
use support::{World, media::TestMedia};

const HEAP_BYTES: u64 = 512 << 20;

fn report(case: &str, count: u64, start: Instant) -> f64 {
    let nanoseconds = start.elapsed().as_nanos() as f64 / count as f64;
    println!("{case:34} {nanoseconds:8.1} ns/transaction {:10.0} transactions/s", 1e9 / nanoseconds);
    nanoseconds
}

fn transaction(heap: &mut Heap, table: Off<u8>, number: u64, value: &[u8; 64]) {
    let mut transaction = heap.begin();
    let block = transaction.allocate_with(8, &[value]).expect("room");
    let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (1 << 20) / 64 * 64;
    transaction.set(table.after(place), &block).expect("a store");
    transaction.write(table.after(place + 16), &value[..16]).expect("a store");
    transaction.write(table.after(place + 40), &value[..8]).expect("a store");
    transaction.set(table.after(0), &number).expect("a store");
    let _ = black_box(transaction.seal().expect("sealed"));
}

fn table(heap: &mut Heap) -> Off<u8> {
    let mut transaction = heap.begin();
    let table = transaction.allocate_zeroed((1 << 20) + 64, 64).expect("room");
    let _ = transaction.seal().expect("sealed");
    table
}

struct NoFence;

impl Persistence for NoFence {
    fn flush(&mut self, _: &[u8], _: u64, _: u64) {}
    fn fence(&mut self, _: &[u8]) {}
}

fn main() {
    // Fewer under callgrind: UMEM_BENCH_COUNT=20000.
    let count =
        std::env::var("UMEM_BENCH_COUNT").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000u64);
    let value = [7; 64];
    let mut buffer = vec![0u8; HEAP_BYTES as usize];
    buffer.fill(1);
    let start = Instant::now();
    for number in 0..count {
        let place = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (1 << 20) / 64 * 64) as usize;
        let block = (2 << 20) + number as usize * 64;
        buffer[block..block + 64].copy_from_slice(black_box(&value));
        buffer[place..place + 8].copy_from_slice(&(block as u64).to_le_bytes());
        buffer[place + 16..place + 32].copy_from_slice(&value[..16]);
        buffer[place + 40..place + 48].copy_from_slice(&value[..8]);
        buffer[0..8].copy_from_slice(&number.to_le_bytes());
    }
    black_box(&buffer);
    let limit = report("plain stores (limit)", count, start);
    drop(buffer);

    let mut heap = Heap::volatile(HEAP_BYTES).expect("a heap");
    let place = table(&mut heap);
    let start = Instant::now();
    for number in 0..count {
        transaction(&mut heap, place, number, &value);
    }
    let heap_cost = report("heap", count, start);
    println!("{:34} {:8.2}", "  heap / plain stores", heap_cost / limit);

    let arena = Arena::reserve(HEAP_BYTES).expect("memory");
    let mut heap = pmem::create(arena, Box::new(NoFence), uuid::Uuid::nil(), 0).expect("created");
    let place = table(&mut heap);
    let start = Instant::now();
    for number in 0..count {
        transaction(&mut heap, place, number, &value);
    }
    report("pmem without flush and fence", count, start);

    if std::env::var_os("PMEM_IS_PMEM_FORCE").is_some() {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let media = MediaKind::Pmem { file: folder.path().join("heap") };
        let options = StoreOptions { uuid: uuid::Uuid::nil(), media, heap_bytes: HEAP_BYTES, log_bytes: 0 };
        let world = World::new(1, TestMedia::default());
        let inner = world.clone();
        let store = world.run(async move { Store::create(&inner, "", options).await.expect("created") });
        let store = store.expect("no crash");
        let mut heap = store.heap_mut();
        let place = table(&mut heap);
        let start = Instant::now();
        for number in 0..count {
            transaction(&mut heap, place, number, &value);
        }
        report("forced pmem, flush and fence", count, start);
    }

    // Media in memory, so this is the processor's part of the log: gathering, checksums, copies.
    let options = StoreOptions {
        uuid: uuid::Uuid::nil(),
        media: MediaKind::Wal,
        heap_bytes: HEAP_BYTES,
        log_bytes: 1 << 30,
    };
    let world = World::new(1, TestMedia::default());
    let inner = world.clone();
    let store = world.run(async move { Store::create(&inner, "", options).await.expect("created") });
    let store = store.expect("no crash");
    let place = table(&mut store.heap_mut());
    let mut in_seal = 0;
    for batch in 0..count / 1000 {
        let start = Instant::now();
        for number in batch * 1000..(batch + 1) * 1000 {
            transaction(&mut store.heap_mut(), place, number, &value);
        }
        in_seal += start.elapsed().as_nanos();
        let flushing = store.clone();
        world.run(async move { flushing.flush().await.map(drop).expect("durable") }).expect("no crash");
    }
    let nanoseconds = in_seal as f64 / count as f64;
    println!("{:34} {nanoseconds:8.1} ns/transaction", "wal, until sealed");
    println!("{:34} {:8.2}", "  heap / wal", heap_cost / nanoseconds);
    println!("{:34} {:8.1} bytes/transaction", "  log", store.counters().log_bytes as f64 / count as f64);
}
