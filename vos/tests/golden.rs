//! Media as earlier software wrote it: images in `tests/data` are opened, and hold what they are known to hold. A change of
//! the format that these do not survive needs a new version and an upgrade.

mod support;

use daos_umem::FORMAT_VERSION;
use daos_vos::Pool;
use daos_xstream_sim::{Config, Loss, Simulation};
use support::{driver::verify, image, sample};

fn path() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1.image")
}

/// Run by hand once for every format: `cargo test -p daos-vos --test golden -- --ignored`.
#[test]
#[ignore = "writes the image that others read"]
fn make_the_image_of_the_present_format() {
    assert_eq!(FORMAT_VERSION, 1, "the image of an older format cannot be made any more");
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let made = simulation.block_on(&node, |env| async move {
        let _ = sample::make(&env, "pool").await.expect("a pool");
    });
    made.expect("the run ends");
    node.kill(Loss::Process);
    node.restart();
    // Opened once more, so that a super-block vouches for all of the log.
    let files = simulation.block_on(&node, |env| async move {
        let _ = Pool::open(&env, "pool").await.expect("the pool");
        image::read_files(&env, "pool").await
    });
    let packed = image::pack(&files.expect("the run ends"));
    println!("{} bytes", packed.len());
    std::fs::create_dir_all(path().parent().expect("a folder")).expect("a folder");
    std::fs::write(path(), packed).expect("written");
}

#[test]
fn an_image_of_format_1_opens_and_holds_what_it_held() {
    let files = image::unpack(&std::fs::read(path()).expect("the image"));
    assert_eq!(files.len(), 3);
    let simulation = Simulation::new(2, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        image::write_files(&env, "pool", &files).await;
        let (inspected, inspection) = Pool::inspect(&env, "pool").await.expect("an inspection");
        assert_eq!(inspection.format_version, 1);
        assert!(!inspection.frames.is_empty(), "a part of it is in the log only");
        assert_eq!(sample::check(&inspected).await, Ok(()));
        verify(&inspected).await.expect("a sound pool");
        assert!(image::read_files(&env, "pool").await == files, "inspection writes nothing");
        let pool = Pool::open(&env, "pool").await.expect("the pool");
        assert_eq!(pool.uuid(), sample::POOL);
        assert_eq!(sample::check(&pool).await, Ok(()));
        verify(&pool).await.expect("a sound pool");
        pool.close().await.expect("a close");
    });
    ended.expect("the run ends");
}
