//! Damage to the arena that no checksum of a page tells (as on persistent memory): nodes of trees, records, groups, space
//! map. Verification, walks, reads and changes end, without a panic, whatever they meet.
//!
//! Input: (block u16, offset u16, value u8) again and again.

#![no_main]

use std::{ops::ControlFlow, sync::LazyLock};

use daos_vos::Pool;
use daos_xstream_sim::{Config, Simulation};
use libfuzzer_sys::fuzz_target;

#[path = "../../vos/tests/support/mod.rs"]
mod support;
use support::{image, sample};

/// The files of the image, unpacked once.
static IMAGE: LazyLock<Vec<(String, Vec<u8>)>> =
    LazyLock::new(|| image::unpack(include_bytes!("../../vos/tests/data/format-2.image")));

fuzz_target!(|input: &[u8]| {
    let input = input.to_vec();
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        image::write_files(&env, "pool", &IMAGE).await;
        let (pool, _) = Pool::inspect(&env, "pool").await.expect("it is sound");
        let blocks = pool.arena_blocks();
        for change in input.chunks_exact(5) {
            let (offset, bytes) = blocks[usize::from(u16::from_le_bytes([change[0], change[1]])) % blocks.len()];
            let within = u64::from(u16::from_le_bytes([change[2], change[3]])) % bytes.min(4096);
            pool.overwrite(offset + within, &change[4..5]);
        }
        let _ = pool.verify().await;
        let _ = pool.walk(sample::CONTAINER, &mut |_| ControlFlow::Continue(()));
        let _ = pool.usage();
        let _ = sample::handle(&pool);
    });
    ended.expect("the run ends");
});
