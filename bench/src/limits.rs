//! What this machine can do without us: the limits that results are held against, each measured with nothing of ours in
//! the path.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    hint::black_box,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use daos_xstream::IoBuffer;
use hdrhistogram::Histogram;

use crate::{machine::own_cpu_s, report::latencies};

/// Median, in microseconds, of writing 4 KiB with O_DIRECT to a file in `folder` and calling `fdatasync`, one at a time.
/// The file is written once before, so that no write allocates.
pub fn durable_write_us(folder: &Path, writes: u32) -> io::Result<f64> {
    Ok(durable_writes(folder, writes)?.value_at_quantile(0.5) as f64 / 1e3)
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
fn durable_writes(folder: &Path, writes: u32) -> io::Result<Histogram<u64>> {
    const FILE_BYTES: u64 = 16 << 20;
    const O_DIRECT: i32 = 0o40000;
    let path = folder.join("limit.tmp");
    let open =
        |flags| OpenOptions::new().create(true).truncate(false).write(true).custom_flags(flags).open(&path);
    let file: File = open(O_DIRECT).or_else(|_| open(0))?;
    let megabyte = IoBuffer::zeroed(1 << 20);
    for offset in (0..FILE_BYTES).step_by(1 << 20) {
        file.write_all_at(megabyte.as_slice(), offset)?;
    }
    file.sync_all()?;
    let block = IoBuffer::copy_of(&[0x5a; 4096]);
    let mut histogram = latencies();
    for write in 0..u64::from(writes) {
        let start = Instant::now();
        file.write_all_at(block.as_slice(), write * 4096 % FILE_BYTES)?;
        file.sync_data()?;
        histogram.saturating_record(nanoseconds(start.elapsed()));
    }
    drop(file);
    std::fs::remove_file(path)?;
    Ok(histogram)
}

/// Blocks of `bytes` per second of CPU time that one core copies and checksums (CRC32C), over `span` bytes of memory.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
pub fn copy_and_checksum_per_s(bytes: usize, span: usize, duration: Duration) -> f64 {
    let source = vec![0x5au8; bytes];
    let mut target = vec![0u8; span];
    // The first touch of a page costs more than a copy to it, and is not what is measured.
    target.fill(1);
    let blocks = span / bytes;
    let (start, cpu_start_s) = (Instant::now(), own_cpu_s());
    let mut copied = 0u64;
    let mut place = 1usize;
    while start.elapsed() < duration {
        for _ in 0..64 {
            // A multiplicative generator visits the blocks in no order that a prefetcher knows.
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (place >> 20) % blocks * bytes;
            target[at..at + bytes].copy_from_slice(&source);
            black_box(crc32c::crc32c(&target[at..at + bytes]));
        }
        copied += 64;
    }
    copied as f64 / (own_cpu_s() - cpu_start_s)
}

/// Insertions, then lookups in the order that `order` gives, per second of CPU time of `std::collections::BTreeMap<Vec<u8>, Vec<u8>>`
/// with `count` keys and values of `value_bytes`: the peer of the store's own trees.
pub fn btree_map_per_s(
    count: u64,
    value_bytes: usize,
    key: impl Fn(u64) -> [u8; 16],
    order: impl Fn(u64) -> u64,
) -> (f64, f64) {
    let value = vec![0x5au8; value_bytes];
    let mut map = BTreeMap::new();
    let cpu_start_s = own_cpu_s();
    for number in 0..count {
        map.insert(key(number).to_vec(), value.clone());
    }
    let inserted = count as f64 / (own_cpu_s() - cpu_start_s);
    let cpu_start_s = own_cpu_s();
    for number in 0..count {
        black_box(map.get(key(order(number)).as_slice()));
    }
    (inserted, count as f64 / (own_cpu_s() - cpu_start_s))
}

/// A duration in nanoseconds, for a histogram.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
