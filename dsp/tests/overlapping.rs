//! Operations that overlap a sync, a close or one another: what was acknowledged is there, and nothing is half there.

mod common;

use std::{
    pin::pin,
    task::{Context, Waker},
};

use common::{attributes, block_on, dump, new_fs, options};
use daos_dsp::{Fs, FsError, Options};
use daos_xstream::{both, join_all};

/// Two writes to one first block, of which a sync puts one into the next epoch.
#[test]
fn writes_on_both_sides_of_a_sync_are_both_there() {
    for seed in 0..200 {
        let (_, fs) = new_fs(2, seed);
        let block = u64::from(fs.superblock().options.first_block_bytes);
        let file = block_on(fs.create("/f", attributes())).unwrap();
        block_on(file.write_at(0, b"start")).unwrap();
        block_on(fs.sync()).unwrap();
        let across = vec![b'A'; 1000];
        let writes_and_sync =
            both(both(file.write_at(block - 500, &across), fs.sync()), file.write_at(10, b"BBBB"));
        let ((across_written, synced), written) = block_on(writes_and_sync);
        across_written.unwrap();
        synced.unwrap();
        written.unwrap();
        block_on(fs.sync()).unwrap();
        let bytes = block_on(fs.read_file("/f")).unwrap();
        assert_eq!(bytes.len() as u64, block + 500, "seed {seed}");
        assert!(bytes[block as usize - 500..].iter().all(|byte| *byte == b'A'), "seed {seed}");
        assert_eq!(&bytes[10..14], b"BBBB", "seed {seed}");
    }
}

#[test]
fn of_two_that_make_a_name_around_a_sync_one_succeeds() {
    for seed in 0..200 {
        let (_, fs) = new_fs(2, seed);
        let make = async |text: &'static [u8]| {
            let file = fs.create("/x", attributes()).await?;
            file.write_at(0, text).await
        };
        let ((first, synced), second) = block_on(both(both(make(b"first"), fs.sync()), make(b"second")));
        synced.unwrap();
        let made = [&first, &second].iter().filter(|made| made.is_ok()).count();
        assert_eq!(made, 1, "seed {seed}: {first:?} {second:?}");
    }
}

/// The close of a file stores its size while somebody opens it again and writes further.
#[test]
fn a_close_does_not_hide_what_is_written_meanwhile() {
    for seed in 0..300 {
        let (_, fs) = new_fs(2, seed);
        let file = block_on(fs.create("/f", attributes())).unwrap();
        block_on(file.write_at(100_000, b"old")).unwrap();
        let write_again = async {
            let again = fs.open("/f").await?;
            again.write_at(1_000_000, b"precious").await?;
            again.close().await
        };
        let (closed, wrote) = block_on(both(file.close(), write_again));
        closed.unwrap();
        wrote.unwrap();
        block_on(fs.sync()).unwrap();
        let bytes = block_on(fs.read_file("/f")).unwrap();
        assert_eq!(bytes.len(), 1_000_008, "seed {seed}");
        assert!(bytes.ends_with(b"precious"), "seed {seed}");
    }
}

#[test]
fn a_rename_that_finds_no_space_leaves_both_names_as_they_were() {
    for directory_times in [false, true] {
        let (pool, fs) = new_fs(2, 3);
        for (name, data) in [("/config", &b"the old content"[..]), ("/config.new", b"new")] {
            let file = block_on(fs.create(name, attributes())).unwrap();
            block_on(file.write_at(0, data)).unwrap();
            block_on(file.close()).unwrap();
        }
        block_on(fs.sync()).unwrap();
        pool.set_full(true);
        let full = block_on(Fs::mount(&pool, Options { directory_times, ..options(5) })).unwrap();
        let refused = block_on(full.rename("/config.new", "/config"));
        assert!(matches!(refused, Err(FsError::Storage(_))), "{refused:?}");
        block_on(full.sync()).unwrap();
        assert_eq!(block_on(full.read_file("/config")).unwrap(), b"the old content");
        assert_eq!(block_on(full.read_file("/config.new")).unwrap(), b"new");
        pool.set_full(false);
        block_on(full.rename("/config.new", "/config")).unwrap();
        assert_eq!(block_on(full.read_file("/config")).unwrap(), b"new");
        assert!(matches!(block_on(full.stat("/config.new")), Err(FsError::NotFound(_))));
    }
}

/// Nothing of what a name held before shows through what replaces it.
#[test]
fn a_replaced_entry_leaves_nothing_behind() {
    let (_, fs) = new_fs(2, 4);
    let long = block_on(fs.create("/long", attributes())).unwrap();
    block_on(long.write_at(0, &[7; 9000])).unwrap();
    block_on(long.close()).unwrap();
    block_on(fs.symlink("/long", "/link", attributes())).unwrap();
    for name in ["/long", "/link"] {
        let empty = block_on(fs.create("/empty", attributes())).unwrap();
        block_on(empty.close()).unwrap();
        block_on(fs.rename("/empty", name)).unwrap();
        block_on(fs.truncate(name, 10_000)).unwrap();
        assert_eq!(block_on(fs.read_file(name)).unwrap(), vec![0; 10_000], "{name}");
    }
}

/// A file may state any size and hold next to nothing: reading it as a whole asked for memory that no machine has.
#[test]
fn a_huge_sparse_file_is_not_read_as_a_whole() {
    let (_, fs) = new_fs(2, 1);
    let file = block_on(fs.create("/huge", attributes())).unwrap();
    block_on(file.write_at(1 << 50, b"end")).unwrap();
    assert_eq!(block_on(file.size()).unwrap(), (1 << 50) + 3);
    let error = block_on(fs.read_file("/huge")).expect_err("too large");
    assert!(matches!(error, FsError::TooLarge(_)), "{error}");
    let (room, read) = block_on(file.read(1 << 50, daos_xstream::IoBuffer::zeroed(10)));
    assert_eq!((read.unwrap(), &room.as_slice()[..3]), (3, &b"end"[..]));
}

/// Nobody awaited a rename to its end: a timeout had dropped it between its steps. The next sync committed the new name beside
/// the old one.
#[test]
fn a_rename_that_is_given_up_half_way_is_not_committed() {
    let (mut refused, mut nothing) = (0, 0);
    for seed in 0..10 {
        for polls in 0.. {
            let (pool, fs) = new_fs(2, seed);
            block_on(async { fs.create("/old", attributes()).await?.write_at(0, b"text").await }).unwrap();
            block_on(fs.sync()).unwrap();
            let done = {
                let mut rename = pin!(fs.rename("/old", "/new"));
                let mut context = Context::from_waker(Waker::noop());
                (0..polls).any(|_| rename.as_mut().poll(&mut context).is_ready())
            };
            match block_on(fs.sync()) {
                Ok(_) if !done => nothing += 1,
                Ok(_) => {}
                Err(FsError::HalfDone(_)) => {
                    refused += 1;
                    let written = block_on(fs.create("/other", attributes())).map(drop);
                    assert!(matches!(written, Err(FsError::HalfDone(_))), "{written:?}");
                }
                Err(error) => panic!("{error}"),
            }
            drop(fs);
            pool.discard_uncommitted();
            let names: Vec<_> = dump(&block_on(Fs::mount(&pool, options(9))).unwrap()).into_keys().collect();
            let whole = [if done { b"/new".to_vec() } else { b"/old".to_vec() }];
            assert_eq!(names, whole, "seed {seed}, {polls} steps");
            if done {
                break;
            }
        }
    }
    assert!(refused > 10 && nothing > 10, "{refused} half-way, {nothing} before");
}

/// A target that is full refused the second step of a truncation, and everything since the last sync was lost with the first.
#[test]
fn a_truncation_that_finds_no_space_changes_nothing() {
    let (pool, fs) = new_fs(2, 1);
    let bytes: Vec<u8> = (0..20_000).map(|index| index as u8).collect();
    let file = block_on(fs.create("/file", attributes())).unwrap();
    block_on(file.write_at(0, &bytes)).unwrap();
    block_on(file.close()).unwrap();
    pool.set_full(true);
    let refused = block_on(fs.truncate("/file", 100)).expect_err("no space");
    assert_eq!(refused.errno(), daos_xstream::rpc::Status::NO_SPACE.0, "{refused}");
    pool.set_full(false);
    block_on(fs.sync()).unwrap();
    assert_eq!(block_on(fs.read_file("/file")).unwrap(), bytes);
    block_on(fs.truncate("/file", 100)).unwrap();
    block_on(fs.sync()).unwrap();
    assert_eq!(block_on(fs.read_file("/file")).unwrap(), bytes[..100]);
}

/// Appends that ran together would have written over each other: each of them asked for the size, and got the same.
#[test]
fn appends_of_many_handles_follow_each_other() {
    for seed in 0..50 {
        let (_, fs) = new_fs(2, seed);
        block_on(fs.create("/log", attributes())).unwrap();
        // Across the end of the first block, and beyond.
        let lengths: Vec<usize> = (1..=20).map(|number| number * 70).collect();
        let append = |length: &usize| {
            let (fs, length) = (fs.clone(), *length);
            async move {
                let file = fs.open("/log").await?;
                let record = daos_xstream::IoBuffer::copy_of(&vec![(length / 70) as u8; length]);
                let (_, appended) = file.append(record).await;
                let offset = appended?;
                file.close().await?;
                Ok::<_, FsError>((offset as usize, length))
            }
        };
        let sync = async { fs.sync().await.map(|_| (0, 0)) };
        let (appended, synced) = block_on(both(join_all(lengths.iter().map(append)), sync));
        synced.unwrap();
        let mut places: Vec<_> = appended.into_iter().map(|place| place.expect("appended")).collect();
        places.sort_unstable();
        let bytes = block_on(fs.read_file("/log")).unwrap();
        let mut end = 0;
        for (offset, length) in places {
            assert_eq!(offset, end, "seed {seed}");
            end += length;
            assert!(bytes[offset..end].iter().all(|byte| usize::from(*byte) == length / 70), "seed {seed}");
        }
        assert_eq!(bytes.len(), end, "seed {seed}");
    }
}
