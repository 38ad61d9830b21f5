//! The end of an engine, asked for while clients are busy.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use daos::{
    At, Client, DaosError, Epoch, FabricChoice, KeyOrder::Hashed, ObjectId, ObjectType, OpenOptions, System,
    class,
};
use daos_xstream::{Clock, Env, join_all, race};
use rustix::process::Signal;

use crate::engine::{Engine, wait_for};

/// What a stopped engine leaves: its storage and the file that is locked by a running one.
const LEFT: [&str; 3] = ["engine.lock", "pools", "superblock.json"];

fn names(engine: &Engine) -> Vec<String> {
    let entries = fs::read_dir(engine.dir()).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn id() -> ObjectId {
    ObjectId::new(ObjectType::KeyValue, Hashed, Hashed, class::SX, (0, 0, 1))
}

/// Runs `work` of a client process of its own, in a thread, until it ends or `stop` is set.
fn client<F: Future<Output = Result<(), DaosError>>>(
    engine: &Engine,
    choice: FabricChoice,
    stop: &Arc<AtomicBool>,
    work: impl FnOnce(Client) -> F + Send + 'static,
) -> JoinHandle<()> {
    let (system, stop) = (System::read(&engine.dir()).expect("the engine's file"), stop.clone());
    thread::spawn(move || {
        let client = Client::connect_to(&system, choice).expect("a client");
        let clock = client.env().clock();
        let stopped = async {
            while !stop.load(SeqCst) {
                clock.sleep_until(clock.now() + Duration::from_millis(5)).await;
            }
        };
        let _ = client.block_on(race(work(client.clone()), stopped));
    })
}

/// A container for each writer: what one commits is not held back by what another holds.
const BOXES: [&str; 2] = ["box", "second"];

/// Writes without end, 16 at a time, and counts what was committed.
async fn write(client: Client, name: &str, committed: Arc<AtomicU64>) -> Result<(), DaosError> {
    let pool = client.pool_connect("tank").await?;
    let container = pool.container_open(name, OpenOptions::WRITE).await?;
    let kv = container.kv(id())?;
    let mut epoch = container.hold(Epoch(0)).await?;
    for round in 0u64.. {
        let puts = (0..16u64).map(|key| {
            let kv = &kv;
            async move { kv.put(epoch, &key.to_le_bytes(), &round.to_le_bytes()).await }
        });
        for put in join_all(puts).await {
            put?;
        }
        container.flush(epoch).await?;
        container.commit(epoch).await?;
        committed.store(round + 1, SeqCst);
        epoch = container.handle().held();
    }
    Ok(())
}

pub fn signals() {
    let mut engine = Engine::start();
    engine.make("256MiB");
    engine.daos(&["container", "create", "tank", "second"]).ok();
    for signal in [Signal::TERM, Signal::INT] {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = [FabricChoice::Local, FabricChoice::Network]
            .into_iter()
            .zip(BOXES)
            .map(|(choice, name)| {
                let committed = Arc::new(AtomicU64::new(0));
                let count = committed.clone();
                let thread = client(&engine, choice, &stop, move |client| write(client, name, count));
                (name, committed, thread)
            })
            .collect();
        // A request that is open for ever: nobody commits that epoch.
        let waiting = client(&engine, FabricChoice::Local, &stop, async |client| {
            let pool = client.pool_connect("tank").await?;
            let container = pool.container_open("box", OpenOptions::READ).await?;
            container.wait(Epoch(u64::MAX - 3)).await.map(drop)
        });
        for (_, committed, _) in &writers {
            wait_for("committed round", || (committed.load(SeqCst) > 3).then_some(()));
        }
        let status = engine.signal(signal);
        assert_eq!(status.code(), Some(0), "{signal:?}: {}", engine.log());
        assert_eq!(names(&engine), LEFT, "{signal:?}");
        stop.store(true, SeqCst);
        let counts: Vec<_> = writers
            .into_iter()
            .map(|(name, committed, thread)| {
                thread.join().expect("the writer ends");
                (name, committed.load(SeqCst))
            })
            .collect();
        waiting.join().expect("the one who waits ends");
        engine.start_again();
        let client = engine.client(FabricChoice::Local);
        client.block_on(async {
            let pool = client.pool_connect("tank").await.expect("connected");
            for (name, committed) in counts {
                let container = pool.container_open(name, OpenOptions::READ).await.expect("opened");
                let kv = container.kv(id()).expect("a KV");
                let hce = container.epochs().await.expect("queried").container_hce;
                let mut rounds = Vec::new();
                for key in 0..16u64 {
                    let value = kv.get(At::Epoch(hce), &key.to_le_bytes()).await.expect("read").value();
                    let value = value.expect("committed before the signal");
                    rounds.push(u64::from_le_bytes(value.try_into().expect("8 bytes")));
                }
                assert!(rounds.iter().all(|round| *round == rounds[0]), "whole rounds only: {rounds:?}");
                assert!(rounds[0] + 1 >= committed, "round {committed} was committed, {rounds:?} is there");
            }
            // The handles of the writers outlive the engine, and what they hold is in the way of the next ones.
            assert!(client.pool_evict("tank", None).await.expect("evicted") >= 4);
        });
    }
    assert!(!engine.log().contains("panic"), "{}", engine.log());
    assert!(engine.signal(Signal::TERM).success());
    assert_eq!(names(&engine), LEFT);
}
