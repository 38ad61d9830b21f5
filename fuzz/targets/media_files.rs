//! Damage to the files of a pool: super-blocks, page table, double-write area, pages, log, block tier. Whatever is changed,
//! opening and reading end in right data or in an error; they never panic, hang, or write beyond their memory.
//!
//! Input: (file u8, offset u32, value u8) again and again.

#![no_main]

use std::sync::LazyLock;

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
    let mut files = IMAGE.clone();
    for change in input.chunks_exact(6) {
        let content = &mut files[usize::from(change[0] % 3)].1;
        let at = u32::from_le_bytes([change[1], change[2], change[3], change[4]]) as usize % content.len();
        content[at] = change[5];
    }
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        image::write_files(&env, "pool", &files).await;
        if let Ok((pool, _)) = Pool::inspect(&env, "pool").await {
            let _ = pool.verify().await;
        }
        if let Ok(pool) = Pool::open(&env, "pool").await {
            let _ = sample::check(&pool).await;
        }
    });
    ended.expect("the run ends");
});
