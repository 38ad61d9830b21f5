//! Files: content, errors, durability calls, what outlives what.

mod common;

use std::{os::unix::fs::FileExt, path::Path, time::Duration};

use daos_xstream::{
    BLOCK_BYTES, Clock, Durability, Env, IoBuffer, Media, MediaError, MediaFile, OpenOptions, open_alone,
};

use common::{TestEnv, alone, folder, world};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn new_file(blocks: u64, preallocate: bool) -> OpenOptions {
    OpenOptions { create_new: true, size: blocks * BLOCK, preallocate, ..OpenOptions::default() }
}

fn pattern(blocks: usize, seed: u8) -> IoBuffer {
    let bytes: Vec<_> = (0..blocks * BLOCK_BYTES).map(|i| (i / 7) as u8 ^ seed).collect();
    IoBuffer::copy_of(&bytes)
}

#[test]
fn what_was_written_is_read_and_survives_a_restart() {
    let root = folder();
    for preallocate in [false, true] {
        let name = format!("pools/{preallocate}/heap");
        world(1, root.path(), |env: TestEnv| {
            let name = name.clone();
            async move {
                let file = env.media().open(&name, new_file(600, preallocate)).await.unwrap();
                assert_eq!(file.size(), 600 * BLOCK);
                let (zeros, result) = file.read(0, IoBuffer::zeroed(BLOCK_BYTES)).await;
                result.unwrap();
                assert!(zeros.as_slice().iter().all(|byte| *byte == 0));
                // More than fits into the ring at once, of all sizes, all in flight together.
                let writes: Vec<_> = (0..300_u64)
                    .map(|i| {
                        let durability = if i % 3 == 0 { Durability::Durable } else { Durability::Volatile };
                        file.write(i * 2 * BLOCK, pattern(2, i as u8), durability)
                    })
                    .collect();
                for write in writes {
                    write.await.1.unwrap();
                }
                file.flush().await.unwrap();
            }
        });
        world(1, root.path(), |env: TestEnv| {
            let name = name.clone();
            async move {
                let file = env.media().open(&name, OpenOptions::default()).await.unwrap();
                assert_eq!(file.size(), 600 * BLOCK);
                for i in 0..300_u64 {
                    let (buffer, result) = file.read(i * 2 * BLOCK, IoBuffer::zeroed(2 * BLOCK_BYTES)).await;
                    result.unwrap();
                    assert_eq!(buffer.as_slice(), pattern(2, i as u8).as_slice(), "blocks {i}");
                }
            }
        });
    }
}

#[test]
fn a_preallocated_file_has_all_its_blocks() {
    use std::os::unix::fs::MetadataExt;
    let root = folder();
    world(1, root.path(), |env| async move {
        env.media().open("sparse", new_file(1000, false)).await.unwrap();
        env.media().open("full", new_file(1000, true)).await.unwrap();
    });
    let blocks = |name: &str| root.path().join(name).metadata().unwrap().blocks() * 512;
    assert_eq!(blocks("sparse"), 0);
    assert!(blocks("full") >= 1000 * BLOCK);
}

#[test]
fn names_are_listed_renamed_and_removed() {
    alone(|env| async move {
        let media = env.media();
        for name in ["pool/b", "pool/a", "pool/deep/er/c"] {
            media.open(name, new_file(1, false)).await.unwrap();
        }
        assert_eq!(media.list("").await.unwrap(), ["pool"]);
        assert_eq!(media.list("pool").await.unwrap(), ["a", "b", "deep"]);
        assert_eq!(media.list("nowhere").await.unwrap(), Vec::<String>::new());
        media.rename("pool/a", "pool/b").await.unwrap();
        media.rename("pool/deep", "moved").await.unwrap();
        assert_eq!(media.list("pool").await.unwrap(), ["b"]);
        assert_eq!(media.list("moved/er").await.unwrap(), ["c"]);
        media.remove("moved").await.unwrap();
        media.remove("moved").await.unwrap();
        media.remove("never/was/there").await.unwrap();
        assert_eq!(media.list("").await.unwrap(), ["pool"]);
    });
}

#[test]
fn errors_say_what_is_wrong() {
    alone(|env| async move {
        let media = env.media();
        let open = |name: &'static str, options| async move { media.open(name, options).await.map(drop) };
        assert_eq!(open("none", OpenOptions::default()).await, Err(MediaError::NotFound("none".into())));
        open("file", new_file(4, false)).await.unwrap();
        assert_eq!(open("file", new_file(4, false)).await, Err(MediaError::Exists("file".into())));
        for path in ["", "/etc/passwd", "../file", "a//b", "a/../../b", "a\0b"] {
            assert!(matches!(open(path, new_file(1, false)).await, Err(MediaError::Failed(_))), "{path:?}");
        }
        let odd = OpenOptions { create_new: true, size: 5000, preallocate: false, ..OpenOptions::default() };
        assert!(matches!(open("odd", odd).await, Err(MediaError::BadRange { .. })));
        // More than any disk here has: nothing is left of it.
        let vast =
            OpenOptions { create_new: true, size: 1 << 43, preallocate: true, ..OpenOptions::default() };
        let refused = open("vast", vast).await.unwrap_err();
        assert!(matches!(refused, MediaError::Full(_)), "{refused}");
        assert_eq!(media.list("").await.unwrap(), ["file"]);
        let missing = media.rename("none", "other").await.unwrap_err();
        assert_eq!(missing, MediaError::NotFound("none".into()));

        let file = media.open("file", OpenOptions::default()).await.unwrap();
        for (offset, length) in
            [(0, 5 * BLOCK), (4 * BLOCK, BLOCK), (1, BLOCK), (0, 100), (u64::MAX - 4095, BLOCK)]
        {
            let expected = MediaError::BadRange { offset, length, size: 4 * BLOCK };
            let buffer = IoBuffer::zeroed(length as usize);
            let (buffer, result) = file.write(offset, buffer, Durability::Volatile).await;
            assert_eq!(result, Err(expected.clone()));
            assert_eq!(file.read(offset, buffer).await.1, Err(expected.clone()));
            assert_eq!(file.discard(offset, length).await, Err(expected));
        }
        assert_eq!(file.write(0, IoBuffer::zeroed(0), Durability::Durable).await.1, Ok(()));
    });
}

#[test]
fn a_file_that_somebody_cut_fails_to_read() {
    let root = folder();
    let path = root.path().to_owned();
    world(1, root.path(), move |env| {
        let path = path.clone();
        async move {
            let file = env.media().open("file", new_file(4, true)).await.unwrap();
            std::fs::File::options().write(true).open(path.join("file")).unwrap().set_len(2 * BLOCK).unwrap();
            let (_, result) = file.read(0, IoBuffer::zeroed(4 * BLOCK_BYTES)).await;
            assert!(matches!(result, Err(MediaError::Failed(_))), "{result:?}");
        }
    });
}

#[test]
fn a_dropped_write_goes_on_to_its_end() {
    let root = folder();
    world(1, root.path(), |env| async move {
        let file = env.media().open("file", new_file(64, true)).await.unwrap();
        for block in 0..64 {
            drop(file.write(block * BLOCK, pattern(1, block as u8), Durability::Volatile));
        }
        // No await after the drops: the end of the world waits for them.
    });
    assert_holds_patterns(&root.path().join("file"), 64);
}

#[test]
fn a_file_is_open_alone_once_and_until_its_writes_have_ended() {
    let root = folder();
    world(1, root.path(), |env| async move {
        drop(env.media().open("file", new_file(64, true)).await.unwrap());
        let only = OpenOptions { alone: true, ..OpenOptions::default() };
        let file = env.media().open("file", only).await.unwrap();
        assert!(matches!(env.media().open("file", only).await, Err(MediaError::InUse(_))));
        // Who only looks does not ask.
        env.media().open("file", OpenOptions::default()).await.unwrap();
        for block in 0..64 {
            drop(file.write(block * BLOCK, pattern(1, block as u8), Durability::Volatile));
        }
        drop(file);
        let again = open_alone(&env, "file").await.unwrap();
        for block in 0..64 {
            let (buffer, result) = again.read(block * BLOCK, IoBuffer::zeroed(BLOCK_BYTES)).await;
            result.unwrap();
            assert_eq!(buffer.as_slice(), pattern(1, block as u8).as_slice(), "a write came late");
        }
    });
}

fn assert_holds_patterns(path: &Path, blocks: u64) {
    let file = std::fs::File::open(path).unwrap();
    for block in 0..blocks {
        let mut bytes = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
        assert_eq!(bytes, pattern(1, block as u8).as_slice(), "block {block}");
    }
}

#[test]
fn submissions_are_gathered() {
    alone(|env| async move {
        let file = env.media().open("file", new_file(64, true)).await.unwrap();
        let before = env.counters().ring;
        let writes: Vec<_> =
            (0..64).map(|block| file.write(block * BLOCK, pattern(1, 1), Durability::Volatile)).collect();
        for write in writes {
            write.await.1.unwrap();
        }
        let after = env.counters().ring;
        assert_eq!(after.operations - before.operations, 64);
        let submissions = after.submissions - before.submissions;
        // The first goes alone, at once; the rest together. Some may follow what the kernel asks to repeat.
        assert!(submissions <= 4, "{submissions} submissions for 64 writes");
    });
}

#[test]
fn a_parked_core_is_woken_by_a_completion() {
    alone(|env| async move {
        let file = env.media().open("file", new_file(1, true)).await.unwrap();
        for _ in 0..50 {
            let before = env.clock().now();
            file.write(0, pattern(1, 3), Durability::Durable).await.1.unwrap();
            let took = env.clock().now().since(before);
            // No timer runs here: a completion that woke nobody would hang.
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        assert!(env.counters().parks > 0, "a flush outlasts the idle budget");
    });
}

#[test]
fn tmpfs_works_with_what_it_has() {
    let Ok(root) = tempfile::tempdir_in("/dev/shm") else { return };
    world(1, root.path(), |env| async move {
        let file = env.media().open("folder/file", new_file(16, true)).await.unwrap();
        file.write(BLOCK, pattern(2, 9), Durability::Durable).await.1.unwrap();
        file.discard(0, BLOCK).await.unwrap();
        let (buffer, result) = file.read(BLOCK, IoBuffer::zeroed(2 * BLOCK_BYTES)).await;
        result.unwrap();
        assert_eq!(buffer.as_slice(), pattern(2, 9).as_slice());
    });
}
