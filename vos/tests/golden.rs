//! Media as earlier software wrote it: images in `tests/data` are opened, and hold what they are known to hold. A change of
//! the format that these do not survive needs a new version and an upgrade.

mod support;

use daos_vos::{Error, MediaInspection, Pool};
use daos_xstream::Env;
use daos_xstream_sim::{Config, Simulation};
use support::{driver::verify, image, sample};
use uuid::Uuid;

/// The version in which this software writes.
const PRESENT: u64 = 2;

fn image_of(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    image::unpack(&std::fs::read(folder.join(name)).expect("the image"))
}

async fn holds_what_it_held<E: Env>(pool: &Pool<E>, version: u64) {
    assert_eq!((pool.uuid(), pool.format_version()), (sample::POOL, Ok(version)));
    assert_eq!(sample::check(pool).await, Ok(()));
    verify(pool).await.expect("a sound pool");
}

fn is_refused(error: Option<Error>) {
    let error = error.expect("it is too old");
    assert_eq!(error, Error::OldFormat { found: 1, known: PRESENT });
    assert!(error.to_string().contains("`ddb TARGET upgrade`"), "{error}");
}

/// What `examples/make_image.rs` makes an image of, when the format has changed.
#[test]
fn the_pool_of_which_images_are_made_can_be_made() {
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, |env| async move {
        let pool = sample::make(&env, "pool").await.expect("a pool");
        holds_what_it_held(&pool, PRESENT).await;
    });
    ended.expect("the run ends");
}

#[test]
fn an_image_of_each_format_opens_and_holds_what_it_held() {
    for version in [1, PRESENT] {
        let files = image_of(&format!("format-{version}.image"));
        assert_eq!(files.len(), 3);
        let simulation = Simulation::new(2, Config::default());
        let node = simulation.add_node(1);
        let ended = simulation.block_on(&node, move |env| async move {
            image::write_files(&env, "pool", &files).await;
            let (inspected, inspection) = Pool::inspect(&env, "pool").await.expect("an inspection");
            assert_eq!(inspection.format_version, 1);
            let MediaInspection::Wal(wal) = inspection.media else { panic!("it is on `wal` media") };
            assert!(!wal.frames.is_empty(), "a part of it is in the log only");
            holds_what_it_held(&inspected, version).await;
            assert!(image::read_files(&env, "pool").await == files, "inspection writes nothing");
            if version < PRESENT {
                is_refused(Pool::open(&env, "pool").await.err());
                assert_eq!(Pool::upgrade(&env, "pool").await, Ok(version));
            }
            assert_eq!(Pool::upgrade(&env, "pool").await, Ok(PRESENT), "nothing is left to do");
            let pool = Pool::open(&env, "pool").await.expect("the pool");
            holds_what_it_held(&pool, PRESENT).await;
            // Trees that version 1 began stay wide, and grow and shrink as they are, beside narrow ones.
            sample::grow(&pool, 600).await.expect("more keys");
            holds_what_it_held(&pool, PRESENT).await;
            sample::shrink(&pool).await.expect("fewer keys");
            holds_what_it_held(&pool, PRESENT).await;
            pool.close().await.expect("a close");
        });
        ended.expect("the run ends");
    }
}

/// Needs `PMEM_IS_PMEM_FORCE=1` in the environment, which libpmem reads when it is loaded: the test runs itself again.
#[test]
fn an_image_of_each_format_on_pmem_opens_and_holds_what_it_held() {
    if std::env::var_os("PMEM_IS_PMEM_FORCE").is_none() {
        let status = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "an_image_of_each_format_on_pmem_opens_and_holds_what_it_held"])
            .env("PMEM_IS_PMEM_FORCE", "1")
            .status()
            .expect("it runs");
        assert!(status.success(), "failed with forced pmem");
        return;
    }
    for version in [1, PRESENT] {
        let mut files = image_of(&format!("format-{version}-pmem.image"));
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("pmem");
        let (name, arena) = files.pop().expect("two files");
        assert_eq!((name.as_str(), files.len()), ("pmem", 1));
        std::fs::write(&place, &arena).expect("written");
        let simulation = Simulation::new(3, Config::default());
        let node = simulation.add_node(1);
        let ended = simulation.block_on(&node, move |env| async move {
            image::write_files(&env, "pool", &files).await;
            let (inspected, inspection) =
                Pool::inspect_pmem(&env, "pool", &place).await.expect("an inspection");
            assert_eq!(inspection.format_version, 1);
            let MediaInspection::Pmem { committed, entries_to_undo, .. } = inspection.media else {
                panic!("it is on pmem")
            };
            assert!(committed > 200 && entries_to_undo == 0, "{inspection:?}");
            holds_what_it_held(&inspected, version).await;
            assert!(std::fs::read(&place).expect("the file") == arena, "inspection writes nothing");
            if version < PRESENT {
                is_refused(Pool::open_pmem(&env, "pool", &place).await.err());
                assert_eq!(Pool::upgrade_pmem(&env, "pool", &place).await, Ok(version));
            }
            let pool = Pool::open_pmem(&env, "pool", &place).await.expect("the pool");
            holds_what_it_held(&pool, PRESENT).await;
            assert!(Pool::inspect_pmem(&env, "pool", &place).await.is_err(), "it is in use");
            assert!(Pool::open_pmem(&env, "pool", &place).await.is_err(), "it is in use");
            let other = Uuid::from_u128(77);
            let _ = pool.container_create(other).expect("a container");
            drop(pool);
            let pool = Pool::open_pmem(&env, "pool", &place).await.expect("the pool");
            assert!(pool.containers().expect("containers").contains(&other), "durable once it was sealed");
        });
        ended.expect("the run ends");
    }
}
