//! A durable 4 KiB write, one at a time: the media of an xstream beside what a plain thread gets from the same file, and
//! beside other ways to ask io_uring for it.
//!
//! `durable_write [FOLDER] [ROUNDS]`

#![allow(clippy::disallowed_methods, reason = "this measures the real world")]

use std::{
    convert::Infallible,
    fs::File,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::Instant,
};

use daos_xstream::{BLOCK_BYTES, Durability, Env, IoBuffer, Media, MediaFile, OpenOptions};
use daos_xstream_uring::{Config, NoFabric, Shutdown, run};
use hdrhistogram::Histogram;
use io_uring::{IoUring, opcode, squeue, types};

const BLOCKS: u64 = 1024;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "/var/tmp".into()));
    let rounds: usize = arguments.next().map_or(20, |text| text.parse().expect("a number of rounds"));
    let root = tempfile::tempdir_in(folder).expect("a folder");

    let mut config = Config::new(1, root.path());
    config.idle_budget = std::time::Duration::from_micros(
        std::env::var("IDLE_US").ok().and_then(|text| text.parse().ok()).unwrap_or(50),
    );
    let names = [
        "pwrite + fdatasync",
        "pwritev2 RWF_DSYNC",
        "uring linked",
        "uring RWF_DSYNC",
        "uring RWF_DSYNC async",
        "media",
    ];
    let mut results: Vec<_> = names.iter().map(|_| Histogram::<u64>::new(3).expect("a histogram")).collect();
    let path = root.path().join("file");
    let media = run(
        &config,
        &Shutdown::new(),
        |_| Ok::<_, Infallible>(NoFabric::new()),
        |env| {
            let path = path.clone();
            async move {
                let options = OpenOptions {
                    create_new: true,
                    size: BLOCKS * BLOCK_BYTES as u64,
                    preallocate: true,
                    ..OpenOptions::default()
                };
                let file = env.media().open("file", options).await.expect("a file");
                let mut results: Vec<_> =
                    names.iter().map(|_| Histogram::<u64>::new(3).expect("a histogram")).collect();
                let raw = Raw::open(&path);
                let mut buffer = IoBuffer::copy_of(&[7; BLOCK_BYTES]);
                let mut offset = 0;
                // In turns, so that the noise of the machine meets all alike.
                for _ in 0..rounds {
                    for (way, results) in results.iter_mut().enumerate() {
                        for _ in 0..25 {
                            offset = (offset + BLOCK_BYTES as u64) % (BLOCKS * BLOCK_BYTES as u64);
                            let start = Instant::now();
                            if way == names.len() - 1 {
                                let (back, result) = file.write(offset, buffer, Durability::Durable).await;
                                result.expect("a write");
                                buffer = back;
                            } else {
                                raw.write(way, offset, buffer.as_slice());
                            }
                            results.record(start.elapsed().as_nanos() as u64).expect("in range");
                        }
                    }
                }
                results
            }
        },
    );
    for (sum, part) in results.iter_mut().zip(&media.expect("the world runs")[0]) {
        sum.add(part).expect("same range");
    }
    let limit = results[0].value_at_quantile(0.5) as f64;
    println!("{:<24} {:>9} {:>9} {:>9} {:>6}", "way", "p50 us", "p90 us", "p99 us", "ratio");
    for (name, result) in names.iter().zip(&results) {
        let us = |quantile| result.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{name:<24} {:>9.1} {:>9.1} {:>9.1} {:>6.3}",
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.5) * 1e3 / limit
        );
    }
}

struct Raw {
    file: File,
    ring: std::cell::RefCell<IoUring>,
}

impl Raw {
    fn open(path: &Path) -> Self {
        let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(path).expect("the file");
        Self { file, ring: IoUring::new(8).expect("a ring").into() }
    }

    fn write(&self, way: usize, offset: u64, bytes: &[u8]) {
        let descriptor = self.file.as_raw_fd();
        let entry =
            opcode::Write::new(types::Fd(descriptor), bytes.as_ptr(), bytes.len() as u32).offset(offset);
        match way {
            0 | 1 => {
                let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                let flags = if way == 1 { libc::RWF_DSYNC } else { 0 };
                // SAFETY: one vector that names `bytes`, which the kernel only reads.
                let written = unsafe { libc::pwritev2(descriptor, &vector, 1, offset as i64, flags) };
                assert_eq!(written, bytes.len() as isize);
                if way == 0 {
                    self.file.sync_data().expect("a flush");
                }
            }
            2 => self.spin(&[
                entry.build().flags(squeue::Flags::IO_LINK),
                opcode::Fsync::new(types::Fd(descriptor)).flags(types::FsyncFlags::DATASYNC).build(),
            ]),
            3 => self.spin(&[entry.rw_flags(libc::RWF_DSYNC).build()]),
            _ => self.spin(&[entry.rw_flags(libc::RWF_DSYNC).build().flags(squeue::Flags::ASYNC)]),
        }
    }

    /// Submits and spins until all have completed, as a busy core does.
    fn spin(&self, entries: &[squeue::Entry]) {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: what the entries point to outlives this call, which returns after their completions.
        unsafe { ring.submission().push_multiple(entries) }.expect("room");
        ring.submit().expect("a submission");
        let mut left = entries.len();
        while left > 0 {
            if let Some(completion) = ring.completion().next() {
                assert!(completion.result() >= 0, "{}", completion.result());
                left -= 1;
            }
        }
    }
}
