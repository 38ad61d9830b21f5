//! A flipped bit anywhere on media is found, with its place, or is harmless: never wrong data.

mod support;

use daos_vos::{Error, Pool};
use daos_xstream::Env;
use daos_xstream_sim::{Config, Simulation};
use support::{Random, driver::verify, image, sample};

fn files() -> Vec<(String, Vec<u8>)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-2.image");
    image::unpack(&std::fs::read(path).expect("the image"))
}

/// What a pool with this damage does: whether anything was found.
async fn look<E: Env>(env: &E, what: &str) -> bool {
    let pool = match Pool::open(env, "pool").await {
        Ok(pool) => pool,
        Err(Error::Heap(message) | Error::Damaged(message)) => {
            assert!(
                message.contains("pool/") && message.contains("byte"),
                "{what}: {message} names no place"
            );
            return true;
        }
        Err(Error::Corrupt { .. } | Error::BadChecksum { .. }) => return true,
        Err(error) => panic!("{what}: {error}"),
    };
    // Wrong data panics in here.
    let read = sample::check(&pool).await;
    let verified = verify(&pool).await;
    match (&read, &verified) {
        (Ok(()), Ok(())) => false,
        (Err(Error::BadChecksum { .. }), Err(_)) => true,
        (Ok(()), Err(fault)) => {
            // What no read shows (hidden history) is found by verification.
            assert!(fault.contains("checksum"), "{what}: {fault}");
            true
        }
        _ => panic!("{what}: reads say {read:?}, verification {verified:?}"),
    }
}

#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let rounds = std::env::var("VOS_FLIPS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(150);
    let files = files();
    for (index, name) in ["blocks", "heap", "log"].into_iter().enumerate() {
        let content = &files[index].1;
        assert_eq!(files[index].0, name);
        let used: Vec<usize> = (0..content.len()).filter(|&at| content[at] != 0).collect();
        let (mut found, mut harmless) = (0, 0);
        for round in 0..rounds {
            let mut random = Random(index as u64 * 1_000_000 + round);
            let mut damaged = files.clone();
            // Most flips go where something is written; now and then there are several.
            for _ in 0..1 + random.below(3) / 2 {
                let at = match round % 4 {
                    0 => random.below(content.len() as u64) as usize,
                    _ => used[random.below(used.len() as u64) as usize],
                };
                damaged[index].1[at] ^= 1 << random.below(8);
            }
            let simulation = Simulation::new(round, Config::default());
            let node = simulation.add_node(1);
            let looked = simulation.block_on(&node, move |env| async move {
                image::write_files(&env, "pool", &damaged).await;
                look(&env, &format!("{name}, round {round}")).await
            });
            if looked.expect("the run ends") {
                found += 1;
            } else {
                harmless += 1;
            }
        }
        println!("{name}: {found} found, {harmless} harmless");
        // A quarter of the flips goes anywhere, mostly where nothing is; and two thirds of what the log's file has in it
        // were checkpointed, so nobody reads it again.
        assert!(found > rounds / 8, "{name}: only {found} of {rounds} were found");
    }
}
