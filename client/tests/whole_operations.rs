//! A file system's operations are committed whole, whoever commits: the mount, another mount of the same container handle,
//! the handle itself. Each test stops the client after the commit and looks at what is there.
//!
//! The story: a mount counted its own epochs, beside those of the container handle that it was mounted from. A rename writes
//! the new name and removes the old one in one epoch; a sync of the handle, or of another mount of it, knew nothing of that
//! and committed the epoch between the two steps. Then the client died, and the file was there under both names. With the
//! target's old content under way too, it could also be gone.

mod common;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use common::{Cluster, open};
use daos::{
    At, ClientConfig, Container, DaosError, Epoch, Fetched, Fs, FsError, Identity, ObjectType, Objects,
    fs::Attributes,
};
use daos_xstream::{Clock, Env};
use daos_xstream_sim::{Loss, SimEnv};

type Mounted = Fs<Objects<SimEnv>>;

/// Who commits while a mount renames.
#[derive(Clone, Copy, Debug)]
enum Committer {
    Handle,
    OtherMount,
    /// The handle, an epoch that it holds and has chosen itself.
    Explicitly,
}

impl Committer {
    async fn commit(self, container: &Container<SimEnv>, other: &Mounted) -> Result<(), DaosError> {
        match self {
            Self::Handle => container.sync().await.map(drop),
            Self::OtherMount => Ok(other.sync().await.map(drop)?),
            Self::Explicitly => {
                let kv = container.kv(container.new_object_id(ObjectType::KeyValue, Some("SX"))?)?;
                let epoch = container.hold(Epoch::ZERO).await?;
                kv.put(epoch, b"key", b"chosen").await?;
                container.flush(epoch).await?;
                container.commit(epoch).await
            }
        }
    }
}

/// Lets `work` make so many steps, then lets it rest for a while, as a task does whose thread is busy otherwise. During the
/// rest and after it, `then` runs; returns when that is done. False if `work` was done before it had made so many steps.
async fn interrupted_by<A>(
    env: &SimEnv,
    work: impl Future<Output = A>,
    steps: u32,
    rest: Duration,
    then: impl Future<Output = ()>,
) -> bool {
    let (mut work, mut then) = (pin!(work), pin!(then));
    let (mut made, mut done) = (0, false);
    poll_fn(|context| {
        if made < steps && !done {
            done = work.as_mut().poll(context).is_ready();
            made += 1;
        }
        if done || made == steps { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let until = env.clock().now() + rest;
    let mut rested = pin!(env.clock().sleep_until(until));
    let mut resting = true;
    let reached = !done;
    poll_fn(|context| {
        resting = resting && rested.as_mut().poll(context).is_pending();
        if !resting && !done {
            done = work.as_mut().poll(context).is_ready();
        }
        then.as_mut().poll(context)
    })
    .await;
    reached
}

/// Content of a file; `None` if there is none.
async fn content(fs: &Mounted, path: &str) -> Option<Vec<u8>> {
    match fs.read_file(path).await {
        Ok(bytes) => Some(bytes),
        Err(FsError::NotFound(_)) => None,
        Err(error) => panic!("{path}: {error}"),
    }
}

async fn write(fs: &Mounted, path: &str, bytes: &[u8]) {
    let file = fs.create(path, Attributes::new(0o644, 1, 2)).await.unwrap();
    file.write_at(0, bytes).await.unwrap();
    file.close().await.unwrap();
}

/// Commits at every step of a rename, and looks at what is there once the client is dead. Returns how many states were seen:
/// before the rename, and after it.
fn commit_at_every_step(seed: u64, committer: Committer) -> (u32, u32) {
    let cluster = Cluster::new(seed);
    cluster.make();
    let (mut before, mut after) = (0, 0);
    for steps in 0.. {
        assert!(steps < 200, "a rename of so many steps");
        let rest = Duration::from_micros(cluster.sim.choose(20_000));
        let (committed, reached) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (was_committed, was_reached) = (committed.clone(), reached.clone());
        let node = cluster.start_client(move |client| async move {
            let container = open(&client, "tree").await;
            let fs = container.mount().await.unwrap();
            let other = container.mount().await.unwrap();
            for name in ["/old", "/new"] {
                let _ = fs.unlink(name).await;
            }
            write(&fs, "/old", b"moved").await;
            write(&fs, "/new", b"replaced").await;
            fs.sync().await.unwrap();
            let commit = async { committer.commit(&container, &other).await.unwrap() };
            reached.set(interrupted_by(client.env(), fs.rename("/old", "/new"), steps, rest, commit).await);
            committed.set(true);
            // The client does nothing more until it is killed.
            std::future::pending::<()>().await;
        });
        cluster.sim.run_until(Duration::from_secs(600), || was_committed.get()).expect("the commit ends");
        node.kill(Loss::Power);
        if cluster.sim.choose(4) == 0 {
            cluster.restart();
        }
        let renamed = cluster.run(move |client| async move {
            client.pool_evict("tank", None).await.unwrap();
            let container = open(&client, "tree").await;
            let epoch = container.epochs().await.unwrap().container_hce;
            let committed = container.mount_at(epoch).await.unwrap();
            let found = (content(&committed, "/old").await, content(&committed, "/new").await);
            // Nothing of the dead client is left beyond what it has committed.
            let now = container.mount().await.unwrap();
            assert_eq!((content(&now, "/old").await, content(&now, "/new").await), found);
            container.close().await.unwrap();
            match found {
                (Some(old), Some(new)) if old == b"moved" && new == b"replaced" => false,
                (None, Some(new)) if new == b"moved" => true,
                half => panic!("seed {seed}, {committer:?} after {steps} steps: half a rename: {half:?}"),
            }
        });
        if renamed {
            after += 1
        } else {
            before += 1
        }
        if !was_reached.get() {
            break;
        }
    }
    (before, after)
}

fn commit_at_every_step_of_many_seeds(committer: Committer) {
    let (mut before, mut after) = (0, 0);
    for seed in 0..30 {
        let seen = commit_at_every_step(seed, committer);
        (before, after) = (before + seen.0, after + seen.1);
    }
    assert!(before > 50 && after > 50, "{before} before the rename, {after} after it: both must be seen");
}

#[test]
fn a_sync_of_the_handle_commits_no_half_of_a_rename() {
    commit_at_every_step_of_many_seeds(Committer::Handle);
}

#[test]
fn a_sync_of_another_mount_of_the_handle_commits_no_half_of_a_rename() {
    commit_at_every_step_of_many_seeds(Committer::OtherMount);
}

#[test]
fn a_commit_of_a_chosen_epoch_takes_no_half_of_a_rename() {
    commit_at_every_step_of_many_seeds(Committer::Explicitly);
}

/// An automatic write after a hold went into the first held epoch, below those of earlier automatic writes: it was
/// acknowledged, and the older value was read.
#[test]
fn an_automatic_write_after_a_hold_is_the_newest() {
    let cluster = Cluster::new(1);
    cluster.make();
    cluster.run(|client| async move {
        let container = open(&client, "box").await;
        let kv = container.kv(container.new_object_id(ObjectType::KeyValue, Some("S1")).unwrap()).unwrap();
        for value in [b"first", b"again", b"third"] {
            kv.put(At::Auto, b"key", value).await.unwrap();
        }
        container.hold(Epoch::ZERO).await.unwrap();
        kv.put(At::Auto, b"key", b"newest").await.unwrap();
        let newest = Fetched::Value(b"newest".to_vec());
        assert_eq!(kv.get(At::Auto, b"key").await.unwrap(), newest);
        let epoch = container.sync().await.unwrap();
        assert_eq!(kv.get(epoch, b"key").await.unwrap(), newest);
        container.close().await.unwrap();
    });
}

/// Changes of two steps, of which the first is not answered in time.
#[derive(Clone, Copy, Debug)]
enum Change {
    Rename,
    Truncate,
}

impl Change {
    /// What is there before and after.
    fn states(self) -> [Vec<(&'static str, usize)>; 2] {
        match self {
            Self::Rename => [vec![("/new", 1), ("/old", 20_000)], vec![("/new", 20_000)]],
            Self::Truncate => [vec![("/old", 20_000)], vec![("/old", 100)]],
        }
    }

    async fn make(self, fs: &Mounted) -> Result<(), FsError> {
        match self {
            Self::Rename => fs.rename("/old", "/new").await,
            Self::Truncate => fs.truncate("/old", 100).await,
        }
    }
}

/// Cuts the network in the midst of a change until the client has lost its patience, then heals it, so that what was under way
/// arrives after all, and lets the client sync. Returns how often the sync was refused, and how often not though the change was.
fn lose_patience_at_every_step(seed: u64, change: Change) -> (u32, u32) {
    let cluster = Cluster::new(seed);
    cluster.make();
    let (mut refused, mut synced) = (0, 0);
    for steps in 0.. {
        assert!(steps < 200, "a change of so many steps");
        let (cut, failed, healed) =
            (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let outcome = Rc::new(Cell::new(None));
        let seen = (cut.clone(), failed.clone(), healed.clone(), outcome.clone());
        let mut config = ClientConfig::new(Identity { uid: 1000, gid: 1000 });
        config.call_timeout = Duration::from_millis(20);
        let node = cluster.start_client_with(config, move |client| async move {
            let fs = open(&client, "tree").await.mount().await.unwrap();
            for name in ["/old", "/new"] {
                let _ = fs.unlink(name).await;
            }
            for (name, bytes) in change.states()[0].iter() {
                write(&fs, name, &vec![7; *bytes]).await;
            }
            fs.sync().await.unwrap();
            let made = {
                let mut made = pin!(change.make(&fs));
                let mut polls = 0;
                poll_fn(|context| {
                    if polls == steps {
                        cut.set(true);
                    }
                    polls += 1;
                    made.as_mut().poll(context)
                })
                .await
            };
            let was_cut = cut.replace(true);
            failed.set(true);
            while !healed.get() {
                let soon = client.env().clock().now() + Duration::from_millis(1);
                client.env().clock().sleep_until(soon).await;
            }
            let result = match fs.sync().await {
                Ok(_) => Some(true),
                Err(FsError::HalfDone(_)) => Some(false),
                Err(error) => panic!("seed {seed}, {change:?} after {steps} steps: {error}"),
            };
            outcome.set(Some((was_cut, made.is_ok(), result)));
            std::future::pending::<()>().await;
        });
        let minute = Duration::from_secs(60);
        cluster.sim.run_until(minute, || seen.0.get()).expect("the change begins");
        cluster.sim.run_for(Duration::from_nanos(cluster.sim.choose(30_000))).unwrap();
        cluster.sim.partition(&node, &cluster.engine);
        cluster.sim.run_until(minute, || seen.1.get()).expect("patience ends");
        cluster.sim.heal(&node, &cluster.engine);
        seen.2.set(true);
        cluster.sim.run_until(minute, || seen.3.get().is_some()).expect("the sync ends");
        node.kill(Loss::Power);
        let (was_cut, made, result) = seen.3.get().expect("it has ended");
        let found = cluster.run(move |client| async move {
            client.pool_evict("tank", None).await.unwrap();
            let container = open(&client, "tree").await;
            let committed =
                container.mount_at(container.epochs().await.unwrap().container_hce).await.unwrap();
            let mut found = Vec::new();
            for name in ["/new", "/old"] {
                if let Some(bytes) = content(&committed, name).await {
                    assert!(bytes.iter().all(|byte| *byte == 7), "{name} has lost bytes");
                    found.push((name, bytes.len()));
                }
            }
            container.close().await.unwrap();
            found
        });
        let [before, after] = change.states();
        let what = format!("seed {seed}, {change:?} after {steps} steps: made {made}, synced {result:?}");
        match (made, result) {
            (true, Some(true)) => assert_eq!(found, after, "{what}"),
            (_, Some(false)) => assert_eq!(found, before, "{what}"),
            _ => assert!(found == before || found == after, "{what}: {found:?}"),
        }
        refused += u32::from(result == Some(false));
        synced += u32::from(!made && result == Some(true));
        if !was_cut {
            break;
        }
    }
    (refused, synced)
}

/// The first step of a rename was carried out, and its answer was lost: the rename counted as refused, and the next sync
/// committed the file under both names.
#[test]
fn a_change_whose_first_step_was_not_answered_is_committed_whole_or_not_at_all() {
    for change in [Change::Rename, Change::Truncate] {
        let (mut refused, mut synced) = (0, 0);
        for seed in 1..=10 {
            let counts = lose_patience_at_every_step(seed, change);
            refused += counts.0;
            synced += counts.1;
        }
        assert!(refused > 10 && synced > 10, "{change:?}: {refused} syncs refused, {synced} not");
    }
}

/// A target's refusal that follows an attempt without an answer does not say whether anything has changed. It counted as if it did.
#[test]
fn a_refusal_after_an_attempt_without_an_answer_leaves_doubt() {
    for seed in 1..=10 {
        let cluster = Cluster::new(seed);
        cluster.make();
        let (cut, healed, ended) =
            (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let seen = (cut.clone(), healed.clone(), ended.clone());
        let mut config = ClientConfig::new(Identity { uid: 1000, gid: 1000 });
        config.attempt_timeout = Duration::from_millis(5);
        let node = cluster.start_client_with(config, move |client| async move {
            let container = open(&client, "box").await;
            let kv =
                container.kv(container.new_object_id(ObjectType::KeyValue, Some("SX")).unwrap()).unwrap();
            let epoch = container.hold(Epoch::ZERO).await.unwrap();
            kv.put(epoch, b"key", b"first").await.unwrap();
            cut.set(true);
            let in_doubt = |result: Result<(), DaosError>| match result {
                Err(DaosError::Object(error)) => !error.nothing_changed(),
                other => panic!("{other:?}"),
            };
            assert!(in_doubt(kv.put(epoch, b"key", b"second").await), "seed {seed}");
            assert!(healed.get());
            assert!(!in_doubt(kv.put(epoch, b"key", b"third").await), "seed {seed}");
            ended.set(true);
            std::future::pending::<()>().await;
        });
        let minute = Duration::from_secs(60);
        cluster.sim.run_until(minute, || seen.0.get()).expect("the put begins");
        cluster.sim.partition(&node, &cluster.engine);
        cluster.run(|client| async move { client.pool_evict("tank", None).await.unwrap() });
        cluster.sim.run_for(Duration::from_millis(20)).unwrap();
        seen.1.set(true);
        cluster.sim.heal(&node, &cluster.engine);
        cluster.sim.run_until(minute, || seen.2.get()).expect("the puts end");
    }
}

/// A discard, or a hold of a later epoch, whose future was dropped went on at the service. Writes that came after it were let in
/// meanwhile, acknowledged, and discarded; a sync of them succeeded.
#[test]
fn what_is_written_after_a_discard_that_nobody_awaited_stays() {
    for seed in 1..=10 {
        let cluster = Cluster::new(seed);
        cluster.make();
        cluster.run(move |client| async move {
            let container = open(&client, "box").await;
            let kv =
                container.kv(container.new_object_id(ObjectType::KeyValue, Some("SX")).unwrap()).unwrap();
            for late_hold in [false, true] {
                for steps in 0.. {
                    let keys: Vec<_> = (0..20u8).map(|number| [number]).collect();
                    let old: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &b"old"[..])).collect();
                    kv.put_all(At::Auto, &old).await.unwrap();
                    let later = Epoch(container.epochs().await.unwrap().lhe.0 + 10);
                    let give_up = async {
                        match late_hold {
                            true => container.hold(later).await.map(drop),
                            false => container.discard().await,
                        }
                    };
                    let done = {
                        let (mut give_up, mut made) = (pin!(give_up), 0);
                        poll_fn(|context| {
                            made += 1;
                            match give_up.as_mut().poll(context) {
                                Poll::Ready(result) => Poll::Ready(result.map(|()| true)),
                                Poll::Pending if made > steps => Poll::Ready(Ok(false)),
                                Poll::Pending => Poll::Pending,
                            }
                        })
                        .await
                        .unwrap()
                    };
                    let new: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &b"new"[..])).collect();
                    kv.put_all(At::Auto, &new).await.unwrap();
                    let epoch = container.sync().await.unwrap();
                    for key in &keys {
                        let value = kv.get(epoch, key).await.unwrap();
                        assert_eq!(value, Fetched::Value(b"new".to_vec()), "seed {seed}, {steps} steps");
                    }
                    if done {
                        break;
                    }
                }
            }
            // What is on its way when everything is discarded must not come after that, nor after the next write.
            kv.put(At::Auto, b"key", b"old").await.unwrap();
            let written = container.epochs().await.unwrap().lhe;
            container.discard().await.unwrap();
            kv.put(At::Auto, b"other", b"new").await.unwrap();
            let late = kv.put(written, b"key", b"late").await;
            let status = late.expect_err("that epoch is not held any more").status();
            assert_eq!(status, daos_xstream::rpc::Status::BAD_EPOCH.0);
            assert!(container.epochs().await.unwrap().lhe > written);
            // What was written in chosen epochs only can be written again there.
            container.close().await.unwrap();
            let container = open(&client, "box").await;
            let kv = container.kv(kv.id()).unwrap();
            let epoch = container.hold(Epoch::ZERO).await.unwrap();
            kv.put(epoch, b"key", b"first").await.unwrap();
            container.flush(epoch).await.unwrap();
            container.discard().await.unwrap();
            kv.put(epoch, b"key", b"second").await.unwrap();
            container.flush(epoch).await.unwrap();
            container.commit(epoch).await.unwrap();
            assert_eq!(kv.get(epoch, b"key").await.unwrap(), Fetched::Value(b"second".to_vec()));
            container.close().await.unwrap();
        });
    }
}

/// What a mount has written can be given up under it, by a hold of a later epoch or a discard. A sync of it must not say then
/// that it lasts.
#[test]
fn a_mount_whose_writes_were_given_up_says_so() {
    let cluster = Cluster::new(1);
    cluster.make();
    cluster.run(|client| async move {
        let container = open(&client, "tree").await;
        for later_hold in [false, true] {
            let fs = container.mount().await.unwrap();
            write(&fs, "/kept", b"kept").await;
            let last = fs.sync().await.unwrap();
            write(&fs, "/lost", b"lost").await;
            match later_hold {
                true => assert_eq!(container.hold(Epoch(last.0 + 10)).await.unwrap(), Epoch(last.0 + 10)),
                false => container.discard().await.unwrap(),
            }
            let given_up =
                |error: Option<FsError>| assert!(matches!(error, Some(FsError::GivenUp)), "{error:?}");
            given_up(fs.create("/more", Attributes::new(0o644, 1, 2)).await.err());
            given_up(fs.sync().await.err());
            let again = container.mount().await.unwrap();
            assert_eq!(content(&again, "/lost").await, None);
            write(&again, "/lost", b"written again").await;
            let epoch = again.sync().await.unwrap();
            let committed = container.mount_at(epoch).await.unwrap();
            assert_eq!(content(&committed, "/lost").await, Some(b"written again".to_vec()));
            assert_eq!(content(&committed, "/kept").await, Some(b"kept".to_vec()));
            for name in ["/kept", "/lost"] {
                again.unlink(name).await.unwrap();
            }
        }
        container.close().await.unwrap();
    });
}
