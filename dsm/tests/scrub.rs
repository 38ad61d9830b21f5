//! The scrubber of a target: what it finds, how fast it goes, and whom it lets go first.
#![cfg(feature = "service")]

mod common;

use std::time::Duration;

use common::{Client, Cluster, POOL_BYTES, at, kv, label, name};
use daos_dsm::{
    client::{OpenOptions, PoolSpec},
    rpc::object::{Outcome, ReadRecord, UpdateRecord},
    service::{ScrubConfig, ScrubUsage, ServiceConfig, Target},
};
use daos_types::Epoch;
use daos_vos::ScrubRate;
use daos_xstream::{Clock, Env, WallTime};
use daos_xstream_sim::{Config, Loss, SimEnv, Simulation};

const TARGETS: u32 = 2;
const VALUES: u32 = 24;
const VALUE_BYTES: usize = 64 << 10;
/// A pass over the values of one target takes about three seconds.
const RATE: u64 = VALUE_BYTES as u64 * VALUES as u64 / 3;
const PERIOD: Duration = Duration::from_secs(3600);

fn cluster(seed: u64, bytes_per_second: u64) -> Cluster {
    let sim = Simulation::new(seed, Config::default());
    let engine = sim.add_node(TARGETS);
    let scrub = ScrubConfig { period: PERIOD, rate: ScrubRate { bytes_per_second } };
    let config =
        ServiceConfig { grace: Duration::from_secs(5), scrub: Some(scrub), ..ServiceConfig::default() };
    let cluster = Cluster { sim, engine, config };
    cluster.start();
    cluster
}

/// Writes values that lie on the block tier to both targets, and commits them.
async fn fill(client: &Client) -> Epoch {
    client.make().await;
    let handle = client.open(OpenOptions::NO_TRANSACTION).await;
    let epoch = handle.held();
    for number in 0..VALUES * TARGETS {
        let value = vec![number as u8; VALUE_BYTES];
        let record = [UpdateRecord::Value { key: &number.to_le_bytes(), value: &value }];
        let place = at(number % TARGETS, kv(1));
        handle.objects().update(place, epoch, 0, b"", &record).await.expect("written");
    }
    handle.flush(epoch).await.expect("flushed");
    handle.commit(epoch).await.expect("committed");
    epoch
}

fn scrubbed(cluster: &Cluster, target: u32) -> ScrubUsage {
    let target = cluster.engine.env(target).locals().get::<Target<SimEnv>>();
    target.map(|target| target.usage().scrub).unwrap_or_default()
}

/// A byte of a value changed on a disk that stood still, and nobody was to know before the value was read.
#[test]
fn damage_is_found_while_others_are_served() {
    for seed in 0..8 {
        let cluster = cluster(seed, RATE);
        let client = cluster.client();
        let epoch = cluster.run(&client, |client| async move { fill(&client).await });
        assert_eq!(scrubbed(&cluster, 1).faults, 0);
        cluster.engine.kill(Loss::Process);
        let disk = cluster.engine.disk();
        let files = disk.files();
        let (blocks, _) = files.iter().find(|(path, _)| path.ends_with("/1/blocks")).expect("a block tier");
        let byte = disk.written_byte(blocks, 1).expect("something written");
        assert!(disk.flip_bit(blocks, byte * 8));
        cluster.engine.restart();
        cluster.start();
        // Everything else is read meanwhile, over and over.
        let engine = cluster.engine.env(1);
        let (refused, rounds) = cluster.run(&client, move |client| async move {
            let handle = client.open(OpenOptions::READ).await;
            let (mut refused, mut rounds) = (0, 0);
            let target = Target::of(&engine).await;
            while target.usage().scrub.passes == 0 {
                rounds += 1;
                for number in 0..VALUES * TARGETS {
                    let key = number.to_le_bytes();
                    let records = [ReadRecord::Value { key: &key, room: VALUE_BYTES as u64 }];
                    let place = at(number % TARGETS, kv(1));
                    match handle.objects().fetch(place, epoch, b"", &records).await {
                        Ok(fetched) => {
                            let record = fetched.records().next().expect("a record");
                            assert!(matches!(record.outcome, Outcome::Value { .. }), "{number}");
                            assert_eq!(record.value, vec![number as u8; VALUE_BYTES], "{number}");
                        }
                        Err(_) => refused += 1,
                    }
                }
            }
            (refused, rounds)
        });
        assert!(rounds > 1, "the pass was over before anybody had read anything");
        assert_eq!(refused, rounds, "one value is damaged, and is never given out");
        let found = scrubbed(&cluster, 1);
        assert_eq!((found.passes, found.faults, found.damaged_pools), (1, 1, 1), "{found:?}");
        assert_eq!(found.records, u64::from(VALUES));
        assert!(found.last_pass_end > WallTime(0));
        let bytes = u64::from(VALUES) * VALUE_BYTES as u64;
        assert!((bytes - VALUE_BYTES as u64..bytes + 4096).contains(&found.bytes), "{found:?}");
        cluster.sim.run_for(Duration::from_secs(10)).expect("it runs");
        let other = scrubbed(&cluster, 0);
        assert_eq!((other.faults, other.damaged_pools), (0, 0), "{other:?}");
        // What stays is found again, and the pool counts as damaged until a pass finds nothing.
        cluster.sim.run_for(PERIOD).expect("it runs");
        let again = scrubbed(&cluster, 1);
        assert_eq!((again.passes, again.faults, again.damaged_pools), (2, 2, 1), "{again:?}");
        assert!(disk.flip_bit(blocks, byte * 8));
        cluster.sim.run_for(PERIOD).expect("it runs");
        let mended = scrubbed(&cluster, 1);
        assert_eq!((mended.passes, mended.faults, mended.damaged_pools), (3, 2, 0), "{mended:?}");
    }
}

/// A sector that cannot be read is damage like any other, and the pass goes on behind it; a device that is gone ends the
/// pass, which begins again later.
#[test]
fn one_sector_is_a_fault_and_a_whole_device_is_another_matter() {
    let cluster = cluster(3, RATE);
    let client = cluster.client();
    cluster.run(&client, |client| async move { fill(&client).await });
    cluster.engine.kill(Loss::Process);
    let disk = cluster.engine.disk();
    let files = disk.files();
    let (blocks, _) = files.iter().find(|(path, _)| path.ends_with("/1/blocks")).expect("a block tier");
    assert!(disk.break_sector(blocks, disk.written_byte(blocks, 1).expect("something written")));
    cluster.engine.restart();
    cluster.start();
    cluster.sim.run_for(Duration::from_secs(20)).expect("it runs");
    let found = scrubbed(&cluster, 1);
    assert_eq!(
        (found.passes, found.passes_failed, found.faults, found.damaged_pools),
        (1, 0, 1, 1),
        "{found:?}"
    );
    assert_eq!(found.records, u64::from(VALUES), "those behind it were looked at");

    disk.set_failed(true);
    cluster.sim.run_for(PERIOD).expect("it runs");
    for target in 0..TARGETS {
        let gone = scrubbed(&cluster, target);
        assert!(gone.passes_failed > 0 && gone.passes == 1, "{gone:?}");
        assert!(gone.faults < 40, "it does not go on for ever: {gone:?}");
    }
    disk.set_failed(false);
    cluster.sim.run_for(Duration::from_secs(620)).expect("it runs");
    let back = scrubbed(&cluster, 0);
    assert_eq!((back.passes, back.damaged_pools), (2, 0), "{back:?}");
}

/// However it is looked at, no stretch of time has more bytes than the rate allows, but for a slice; and a pass takes no
/// longer than it must.
#[test]
fn the_rate_is_kept_and_used() {
    const STEP: Duration = Duration::from_millis(20);
    // What may come at once: the bytes of 10 ms, and a slice.
    const SLACK: u64 = RATE / 100 + (256 << 10) + VALUE_BYTES as u64;
    let cluster = cluster(1, RATE);
    let client = cluster.client();
    cluster.run(&client, |client| async move { fill(&client).await });
    cluster.restart(Loss::Process);
    let mut seen = vec![0];
    while scrubbed(&cluster, 0).passes == 0 {
        cluster.sim.run_for(STEP).expect("it runs");
        seen.push(scrubbed(&cluster, 0).bytes);
        assert!(seen.len() < 1000, "the pass does not end");
    }
    for from in 0..seen.len() {
        for to in from..seen.len() {
            let allowed = (to - from) as u64 * RATE * STEP.as_millis() as u64 / 1000 + SLACK;
            assert!(
                seen[to] - seen[from] <= allowed,
                "{} bytes in {} steps",
                seen[to] - seen[from],
                to - from
            );
        }
    }
    let least = Duration::from_millis(seen[seen.len() - 1] * 1000 / RATE);
    let took = scrubbed(&cluster, 0).last_pass;
    assert!(took >= least && took < least * 2, "{took:?} for what may be read in {least:?}");
}

/// A pool is destroyed, or the engine told to stop, in the middle of a pass that would take a day: neither waits for it, no
/// access fails, and a pool that is made later is scrubbed.
#[test]
fn a_pass_is_given_up_when_its_pool_goes() {
    for seed in 0..8 {
        let cluster = cluster(seed, 20);
        let client = cluster.client();
        cluster.run(&client, |client| async move { fill(&client).await });
        // The pass that began when the pool was empty is over.
        cluster.restart(Loss::Process);
        cluster.sim.run_for(Duration::from_secs(60)).expect("it runs");
        let took = cluster.run(&client, |client| async move {
            let env = client.caller.env().clone();
            let began = env.clock().now();
            client.service.pool_destroy(name("tank"), true).await.expect("destroyed");
            env.clock().now().since(began)
        });
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(cluster.engine.disk().files().is_empty(), "{:?}", cluster.engine.disk().files());
        for target in 0..TARGETS {
            let usage = scrubbed(&cluster, target);
            assert_eq!((usage.passes, usage.passes_failed, usage.faults), (0, 0, 0), "{usage:?}");
        }
        cluster.run(&client, |client| async move {
            let spec = PoolSpec { label: Some(label("pond")), bytes: POOL_BYTES, ..PoolSpec::default() };
            client.service.pool_create(&spec).await.expect("a pool");
        });
        cluster.sim.run_for(Duration::from_secs(3000)).expect("it runs");
        assert_eq!(scrubbed(&cluster, 1).passes, 1, "an empty pool is soon done");
        for target in 0..TARGETS {
            let env = cluster.engine.env(target);
            let closed = cluster.sim.block_on(&client, move |_| async move {
                env.locals().get::<Target<SimEnv>>().expect("a target").close().await
            });
            closed.expect("it ends").expect("closed cleanly");
        }
    }
}
