//! Clients whose engine dies under them and comes back.

use std::{cell::RefCell, fs, path::Path, rc::Rc};

use daos::{
    At, Client, DaosError, Epoch, FabricChoice,
    KeyOrder::Hashed,
    ObjectId, ObjectType, OpenOptions, class,
    copy::{self, CopyOptions},
};
use daos_types::EpochRange;
use daos_xstream::rpc::Status;
use rustix::process::Signal;

use crate::engine::Engine;

fn id() -> ObjectId {
    ObjectId::new(ObjectType::KeyValue, Hashed, Hashed, class::SX, (0, 0, 1))
}

fn status<T>(result: Result<T, DaosError>) -> i32 {
    result.err().map_or(0, |error| error.status())
}

/// A handle survives the engine: its client finds the engine again, learns that uncommitted writes may be lost, writes them
/// again and goes on.
pub fn client() {
    let mut engine = Engine::start();
    engine.make("256MiB");
    for choice in [FabricChoice::Local, FabricChoice::Network] {
        // The network's ports are new after a restart of a development engine, so only the other way finds it again.
        if choice == FabricChoice::Network {
            continue;
        }
        let client = engine.client(choice);
        let (container, kv) = client.block_on(async {
            let pool = client.pool_connect("tank").await.expect("connected");
            let container = pool.container_open("box", OpenOptions::NO_TRANSACTION).await.expect("opened");
            let kv = container.kv(id()).expect("a KV");
            (container, kv)
        });
        let (first, second) = client.block_on(async {
            let first = container.handle().held();
            kv.put(first, b"a", b"committed").await.expect("written");
            container.flush(first).await.expect("flushed");
            container.commit(first).await.expect("committed");
            let second = container.handle().held();
            kv.put(second, b"b", b"not flushed").await.expect("written");
            (first, second)
        });
        engine.signal(Signal::KILL);
        engine.start_again();
        client.block_on(async {
            assert_eq!(kv.get(At::Auto, b"a").await.expect("read").value(), Some(b"committed".to_vec()));
            kv.put(second, b"c", b"after the restart").await.expect("written through the same handle");
            let interrupted = container.flush(second).await.expect_err("something may be lost");
            assert_eq!(interrupted.status(), Status::INTERRUPTED.0);
            let text = interrupted.to_string();
            assert!(text.contains("restarted") && text.contains("discard"), "{text}");
            assert_eq!(status(container.commit(second).await), Status::INTERRUPTED.0);
            let range = EpochRange { low: second, high: Epoch::MAX };
            container.handle().discard(range).await.expect("discarded");
            assert_eq!(kv.get(At::Auto, b"c").await.expect("read").value(), None);
            kv.put(second, b"b", b"again").await.expect("written");
            container.flush(second).await.expect("flushed");
            container.commit(second).await.expect("committed");
            assert_eq!(kv.get(At::Epoch(first), b"b").await.expect("read").value(), None);
            assert_eq!(kv.get(At::Epoch(second), b"b").await.expect("read").value(), Some(b"again".to_vec()));
            container.close().await.expect("closed");
        });
    }
}

/// Files of a folder by name, with what they hold.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

/// A copy whose engine is killed half-way says what to do; done again, it is whole.
pub fn copy() {
    let engine = Rc::new(RefCell::new(Engine::start()));
    engine.borrow().make("256MiB");
    let source = engine.borrow().scratch().join("source");
    fs::create_dir(&source).expect("a folder");
    for number in 0..200usize {
        fs::write(source.join(number.to_string()), vec![number as u8; number * 97]).expect("written");
    }
    let client: Client = engine.borrow().client(FabricChoice::Local);
    let outcome = client.block_on(async {
        let pool = client.pool_connect("tank").await.expect("connected");
        let container = pool.container_open("tree", OpenOptions::WRITE).await.expect("opened");
        let killed = engine.clone();
        let mut killed_already = false;
        let kill = move |progress: &copy::Progress| {
            if progress.files == 50 && !std::mem::replace(&mut killed_already, true) {
                killed.borrow_mut().signal(Signal::KILL);
                killed.borrow_mut().start_again();
            }
        };
        copy::into_container(&container, &source, b"/copy", CopyOptions::default(), kill).await
    });
    let progress = outcome.expect("the copy is made again by itself");
    assert_eq!(progress.files, 200);
    let engine = engine.borrow();
    let back = engine.scratch().join("back");
    let back_name = back.display().to_string();
    engine
        .daos(&["filesystem", "copy", "--quiet", "--src", "daos://tank/tree/copy", "--dst", &back_name])
        .ok();
    assert_eq!(files(&back), files(&source));
}
