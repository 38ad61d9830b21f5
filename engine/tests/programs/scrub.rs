//! The scrubber of a running engine: what a device changed while it stood still is found before anybody reads it.

use std::{fs, path::PathBuf};

use daos::{At, Epoch, FabricChoice, ObjectType, OpenOptions};
use rustix::process::Signal;

use crate::{
    engine::{Engine, wait_for},
    telemetry::Metrics,
};

const VALUES: u64 = 48;
const VALUE_BYTES: usize = 64 << 10;

/// The block tier of the pool's share of target 1.
fn blocks(engine: &Engine) -> PathBuf {
    let pools = fs::read_dir(engine.dir().join("pools")).expect("pools").next().expect("a pool");
    pools.expect("a pool").path().join("1").join("blocks")
}

pub fn damage() {
    let mut engine = Engine::start();
    engine.make("256MiB");
    let client = engine.client(FabricChoice::Local);
    let id = client.block_on(async {
        let pool = client.pool_connect("tank").await.expect("connected");
        let container = pool.container_open("box", OpenOptions::WRITE).await.expect("opened");
        let id = container.new_object_id(ObjectType::KeyValue, Some("SX")).expect("an ID");
        let kv = container.kv(id).expect("a KV");
        let epoch = container.hold(Epoch(0)).await.expect("held");
        for number in 0..VALUES {
            kv.put(epoch, &number.to_le_bytes(), &[0xa5; VALUE_BYTES]).await.expect("written");
        }
        container.flush(epoch).await.expect("flushed");
        container.commit(epoch).await.expect("committed");
        pool.disconnect().await.expect("disconnected");
        id
    });
    drop(client);
    assert!(engine.signal(Signal::TERM).success());
    let path = blocks(&engine);
    let mut content = fs::read(&path).expect("the block tier");
    let byte = content.iter().position(|&byte| byte == 0xa5).expect("a value of target 1") + 5000;
    content[byte] ^= 0x10;
    fs::write(&path, &content).expect("written");

    engine.start_again();
    let metrics = Metrics::of(&engine);
    let client = engine.client(FabricChoice::Local);
    client.block_on(async {
        let pool = client.pool_connect("tank").await.expect("connected");
        let container = pool.container_open("box", OpenOptions::READ).await.expect("opened");
        let kv = container.kv(id).expect("a KV");
        let mut rounds = 0;
        loop {
            let mut refused = 0;
            for number in 0..VALUES {
                match kv.get(At::Auto, &number.to_le_bytes()).await {
                    Ok(found) => assert_eq!(found.value().expect("it is there"), [0xa5; VALUE_BYTES]),
                    Err(error) => {
                        assert!(error.to_string().contains("checksum"), "{error}");
                        refused += 1;
                    }
                }
            }
            assert_eq!(refused, 1, "one value is damaged, the others are served");
            rounds += 1;
            if metrics().sum("engine_scrub_passes_total", &["target=\"1\""]) > 0 {
                break;
            }
            assert!(rounds < 10_000, "no pass comes to its end");
        }
        pool.disconnect().await.expect("disconnected");
    });
    let now = metrics();
    assert_eq!(now.sum("engine_scrub_faults_total", &["target=\"1\""]), 1);
    assert_eq!(now.sum("engine_scrub_damaged_pools", &["target=\"1\""]), 1);
    assert!(now.sum("engine_scrub_bytes_total", &["target=\"1\""]) > VALUES / 4 * VALUE_BYTES as u64);
    assert!(now.sum("engine_scrub_last_pass_end_seconds", &["target=\"1\""]) > 1_700_000_000);
    wait_for("pass over target 0", || {
        (metrics().sum("engine_scrub_passes_total", &["target=\"0\""]) > 0).then_some(())
    });
    assert_eq!(metrics().sum("engine_scrub_faults_total", &["target=\"0\""]), 0);
    let printed = engine.dmg(&["telemetry", "metrics", "--filter", "engine_scrub"]).ok();
    assert!(printed.contains("engine_scrub_damaged_pools{rank=\"0\",target=\"1\"} 1"), "{printed}");
    let log = engine.log();
    let line =
        log.lines().find(|line| line.contains("the scrubber found damage")).expect("a line in the log");
    for part in ["ERROR", "pool=", "target=1", "checksum mismatch in the block tier at 0x"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(engine.signal(Signal::TERM).success());
}
