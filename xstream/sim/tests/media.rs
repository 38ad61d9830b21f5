//! What the simulated disk promises, and what it does not.

use std::time::Duration;

use daos_xstream::{
    BLOCK_BYTES, Clock, Durability, Env, IoBuffer, Media, MediaError, MediaFile, OpenOptions, open_alone,
};
use daos_xstream_sim::{Config, Loss, SimEnv, SimFile, Simulation};

const CREATE: OpenOptions =
    OpenOptions { create_new: true, size: 16 * BLOCK_BYTES as u64, preallocate: true, alone: false };

async fn write(file: &SimFile, block: u64, fill: u8, durability: Durability) -> Result<(), MediaError> {
    let buffer = IoBuffer::copy_of(&[fill; BLOCK_BYTES]);
    file.write(block * BLOCK_BYTES as u64, buffer, durability).await.1
}

async fn read(env: &SimEnv, path: &str, block: u64) -> Result<Vec<u8>, MediaError> {
    let file = env.media().open(path, OpenOptions::default()).await?;
    let (buffer, result) = file.read(block * BLOCK_BYTES as u64, IoBuffer::zeroed(BLOCK_BYTES)).await;
    result.map(|()| buffer.as_slice().to_vec())
}

/// Blocks 0..4 are written and flushed, 4 durably, 5 and 6 not at all; after the power is lost, what was promised is
/// there, and the rest is a mixture, sector by sector, of old and new: over the seeds all of it is seen.
#[test]
fn losing_power_loses_only_what_was_not_flushed() {
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let sim = Simulation::new(seed, Config::default());
        let node = sim.add_node(1);
        sim.block_on(&node, |env| async move {
            let file = env.media().open("pool/data", CREATE).await.unwrap();
            for block in 0..4 {
                write(&file, block, 1, Durability::Volatile).await.unwrap();
            }
            file.flush().await.unwrap();
            write(&file, 5, 1, Durability::Durable).await.unwrap();
            write(&file, 5, 2, Durability::Volatile).await.unwrap();
            write(&file, 4, 2, Durability::Volatile).await.unwrap();
            write(&file, 4, 3, Durability::Durable).await.unwrap();
            write(&file, 6, 2, Durability::Volatile).await.unwrap();
        })
        .unwrap();
        node.kill(Loss::Power);
        node.restart();
        sim.block_on(&node, |env| async move {
            let mut outcomes = Vec::new();
            for block in 0..4 {
                assert_eq!(read(&env, "pool/data", block).await.unwrap(), [1; BLOCK_BYTES], "flushed");
            }
            assert_eq!(
                read(&env, "pool/data", 4).await.unwrap(),
                [3; BLOCK_BYTES],
                "durable, over a volatile write"
            );
            for (block, old) in [(5, 1), (6, 0)] {
                let bytes = read(&env, "pool/data", block).await.unwrap();
                for sector in bytes.chunks(512) {
                    assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is not torn");
                    assert!(
                        sector[0] == old || sector[0] == 2,
                        "a sector holds something that was written to it"
                    );
                }
                outcomes.push((bytes.iter().all(|byte| *byte == old), bytes.iter().all(|byte| *byte == 2)));
            }
            outcomes
        })
        .unwrap()
        .into_iter()
        .for_each(|outcome| match outcome {
            (true, false) => lost += 1,
            (false, true) => kept += 1,
            _ => torn += 1,
        });
    }
    assert!(lost > 20 && kept > 20 && torn > 20, "{lost} lost, {kept} kept, {torn} torn");
}

#[test]
fn a_flush_covers_only_what_had_completed_before_it() {
    let mut survived = 0;
    for seed in 0..200 {
        let sim = Simulation::new(seed, Config::default());
        let node = sim.add_node(1);
        sim.block_on(&node, |env| async move {
            let file = env.media().open("data", CREATE).await.unwrap();
            let flush = file.flush();
            write(&file, 0, 9, Durability::Volatile).await.unwrap();
            flush.await.unwrap();
        })
        .unwrap();
        node.restart();
        let bytes = sim.block_on(&node, |env| async move { read(&env, "data", 0).await.unwrap() }).unwrap();
        survived += usize::from(bytes == [9; BLOCK_BYTES]);
    }
    assert!(survived < 150, "a write after the flush survived in {survived} of 200 runs");
}

#[test]
fn a_process_that_dies_takes_nothing_from_the_disk() {
    let sim = Simulation::new(1, Config::default());
    let node = sim.add_node(1);
    sim.block_on(&node, |env| async move {
        let file = env.media().open("data", CREATE).await.unwrap();
        write(&file, 0, 7, Durability::Volatile).await.unwrap();
    })
    .unwrap();
    node.kill(Loss::Process);
    node.restart();
    let bytes = sim.block_on(&node, |env| async move { read(&env, "data", 0).await.unwrap() }).unwrap();
    assert_eq!(bytes, [7; BLOCK_BYTES]);
}

#[test]
fn names_are_durable_when_the_call_returns() {
    let sim = Simulation::new(2, Config::default());
    let node = sim.add_node(1);
    sim.block_on(&node, |env| async move {
        let media = env.media();
        media.open("a/one", CREATE).await.unwrap();
        media.open("a/two", CREATE).await.unwrap();
        media.open("b/three", CREATE).await.unwrap();
        media.rename("a", "c/d").await.unwrap();
        media.remove("b").await.unwrap();
        assert_eq!(media.open("c/d/one", CREATE).await.err(), Some(MediaError::Exists("c/d/one".to_owned())));
    })
    .unwrap();
    node.kill(Loss::Power);
    node.restart();
    sim.block_on(&node, |env| async move {
        let media = env.media();
        assert_eq!(media.list("").await.unwrap(), ["c"]);
        assert_eq!(media.list("c/d").await.unwrap(), ["one", "two"]);
        assert_eq!(
            media.open("a/one", OpenOptions::default()).await.err(),
            Some(MediaError::NotFound("a/one".to_owned()))
        );
    })
    .unwrap();
}

#[test]
fn faults_are_seen_and_go_away() {
    let sim = Simulation::new(3, Config::default());
    let node = sim.add_node(1);
    let disk = node.disk();
    disk.set_capacity(20 * BLOCK_BYTES as u64);
    let file = sim
        .block_on(&node, |env| async move {
            let file = env.media().open("data", CREATE).await.unwrap();
            write(&file, 1, 5, Durability::Durable).await.unwrap();
            assert!(matches!(env.media().open("more", CREATE).await, Err(MediaError::Full(_))));
            file
        })
        .unwrap();
    assert!(disk.break_sector("data", BLOCK_BYTES as u64 + 512));
    sim.block_on(&node, |env| async move {
        assert!(matches!(read(&env, "data", 1).await, Err(MediaError::Failed(_))));
        assert_eq!(read(&env, "data", 0).await.unwrap(), [0; BLOCK_BYTES]);
        write(&file, 1, 6, Durability::Volatile).await.unwrap();
        assert_eq!(read(&env, "data", 1).await.unwrap(), [6; BLOCK_BYTES], "writing repairs a sector");
    })
    .unwrap();
    assert!(disk.flip_bit("data", 8 * BLOCK_BYTES as u64 + 1));
    let bytes = sim.block_on(&node, |env| async move { read(&env, "data", 1).await.unwrap() }).unwrap();
    assert_eq!(bytes[0], 6 ^ 2);
    disk.set_failed(true);
    let failed = sim.block_on(&node, |env| async move { read(&env, "data", 1).await }).unwrap();
    assert!(matches!(failed, Err(MediaError::Failed(_))));
    disk.set_failed(false);
    assert!(!disk.break_sector("data", CREATE.size) && !disk.flip_bit("nothing", 0));
}

#[test]
fn ranges_are_whole_blocks_within_the_file() {
    let sim = Simulation::new(4, Config::default());
    let node = sim.add_node(1);
    sim.block_on(&node, |env| async move {
        let file = env.media().open("data", CREATE).await.unwrap();
        for (offset, length) in [(1, 4096), (0, 100), (CREATE.size, 4096), (u64::MAX - 4095, 4096)] {
            let (_, result) = file.read(offset, IoBuffer::zeroed(length)).await;
            assert!(matches!(result, Err(MediaError::BadRange { .. })), "{offset}+{length}: {result:?}");
        }
    })
    .unwrap();
}

/// Whoever opens a file alone finds what was written to it before, or waits; and not for ever.
#[test]
fn a_file_is_open_alone_once_and_until_its_writes_have_ended() {
    for seed in 0..20 {
        let sim = Simulation::new(seed, Config::default());
        let node = sim.add_node(1);
        let run = sim.block_on(&node, |env| async move {
            drop(env.media().open("data", CREATE).await.unwrap());
            let file = open_alone(&env, "data").await.unwrap();
            let asked = env.clock().now();
            assert!(matches!(open_alone(&env, "data").await, Err(MediaError::InUse(_))));
            assert!(env.clock().now().since(asked) >= Duration::from_secs(60), "it did not wait");
            drop(file.write(0, IoBuffer::copy_of(&[7; BLOCK_BYTES]), Durability::Volatile));
            drop(file);
            let _file = open_alone(&env, "data").await.unwrap();
            assert_eq!(read(&env, "data", 0).await.unwrap()[0], 7, "a write came late");
        });
        run.unwrap();
    }
}
