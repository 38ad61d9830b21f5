//! Operations that run at the same time, crashes in the middle, and what a call costs.

mod common;

use std::collections::BTreeSet;

use common::{attributes, block_on, dump, new_fs, options};
use daos_dsp::{Attributes, FormatOptions, Fs, FsError, SetAttributes};
use daos_dsr::{client::Anchor, memory::MemoryTargets};
use daos_xstream::{IoBuffer, join_all};

#[test]
fn of_many_that_make_one_name_one_succeeds() {
    for seed in 0..50 {
        let (_, fs) = new_fs(2, seed);
        let results = block_on(join_all((0..8).map(|_| fs.create("/one", attributes()))));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let exists = |result: &Result<_, FsError>| matches!(result, Err(FsError::Exists(_)));
        assert_eq!(results.iter().filter(|result| exists(result)).count(), 7);
    }
}

/// A directory is either removed, and then nothing is in it, or something is in it, and then it is not removed.
#[test]
fn no_entry_is_lost_with_a_directory_that_is_removed() {
    let (mut removed, mut kept) = (0, 0);
    for seed in 0..200 {
        let (_, fs) = new_fs(2, seed);
        let directory = block_on(fs.mkdir("/d", Attributes::new(0o755, 0, 0))).expect("mkdir");
        let (rmdir, create) =
            block_on(async { futures_pair(fs.rmdir("/d"), directory.create(b"f", attributes())).await });
        match (rmdir, create.map(drop)) {
            (Ok(()), Err(FsError::NotFound(_))) => {
                removed += 1;
                assert!(matches!(block_on(fs.stat("/d")), Err(FsError::NotFound(_))));
            }
            (Err(FsError::NotEmpty(_)), Ok(())) => {
                kept += 1;
                block_on(fs.stat("/d/f")).expect("the file is there");
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(removed > 0 && kept > 0, "{removed} removed, {kept} kept: both orders must be seen");
}

async fn futures_pair<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (None, None);
    let work: [std::pin::Pin<Box<dyn Future<Output = ()> + '_>>; 2] =
        [Box::pin(async { first = Some(a.await) }), Box::pin(async { second = Some(b.await) })];
    join_all(work).await;
    (first.expect("done"), second.expect("done"))
}

/// Two directories, each moved into the other at the same time: one of the moves must fail, or both become unreachable.
#[test]
fn directories_never_end_up_in_each_other() {
    for seed in 0..100 {
        let (_, fs) = new_fs(2, seed);
        for name in ["/a", "/b"] {
            block_on(fs.mkdir(name, Attributes::new(0o755, 0, 0))).expect("mkdir");
        }
        let (one, other) =
            block_on(async { futures_pair(fs.rename("/a", "/b/a"), fs.rename("/b", "/a/b")).await });
        assert_eq!(u32::from(one.is_ok()) + u32::from(other.is_ok()), 1, "{one:?} {other:?}");
        assert_eq!(dump(&fs).len(), 2);
    }
}

#[test]
fn a_sync_commits_whole_operations_and_ids_are_never_given_twice() {
    let pool = MemoryTargets::new(3, 11);
    block_on(Fs::format(&pool, FormatOptions::default(), attributes(), &options(1))).expect("format");
    let mut objects = BTreeSet::new();
    let mut wanted = BTreeSet::new();
    for round in 0..15u64 {
        // The same random stamp every time: only the counter keeps the IDs apart.
        let fs = block_on(Fs::mount(&pool, options(7))).expect("mount");
        let survived: BTreeSet<Vec<u8>> = dump(&fs).into_keys().collect();
        assert!(survived.is_superset(&wanted), "a committed file is gone");
        wanted = survived;
        for entry in block_on(fs.list("/", &Anchor::default(), 100_000)).expect("list").items {
            objects.insert(entry.inode.object);
        }
        let before = objects.len();
        assert_eq!(before, wanted.len(), "an ID was given twice");
        block_on(async {
            let made = join_all((0..20).map(|number| {
                let fs = &fs;
                async move {
                    if number % 5 == 4 {
                        fs.sync().await.map(drop)
                    } else {
                        let file = fs.create(format!("/{round}-{number}"), attributes()).await?;
                        file.write_at(4090, b"across the end of the first block").await?;
                        file.close().await
                    }
                }
            }))
            .await;
            assert!(made.iter().all(Result::is_ok), "{made:?}");
        });
        // What was complete before this sync must survive; what began later must be there wholly, or not at all.
        if round % 3 == 0 {
            block_on(fs.sync()).expect("sync");
            wanted = dump(&fs).into_keys().collect();
        }
        for number in 0..3 {
            block_on(fs.create(format!("/{round}-lost-{number}"), attributes())).expect("create");
        }
        drop(fs);
        pool.discard_uncommitted();
    }
    assert!(wanted.len() > 100);
}

#[test]
fn a_small_file_costs_one_request_to_make_and_one_to_read() {
    let (pool, fs) = new_fs(2, 1);
    let directory = block_on(fs.mkdir("/d", Attributes::new(0o755, 0, 0))).expect("mkdir");
    let mut quiet = options(3);
    quiet.directory_times = false;
    drop(fs);
    let fs = block_on(async {
        // A mount that leaves the times of directories alone, as a copy does.
        Fs::mount(&pool, quiet).await
    })
    .expect("mount");
    drop(directory);
    let directory = block_on(fs.open_directory("/d")).expect("open");
    let content = vec![7; 3901];
    // The first allocation takes a range of IDs.
    block_on(directory.create(b"first", attributes())).expect("create");
    let before = pool.requests();
    block_on(directory.create_with(b"small", attributes(), &content, 3901, true)).expect("create");
    assert_eq!(pool.requests() - before, 1);
    let before = pool.requests();
    assert_eq!(block_on(directory.read_file(b"small")), Ok(content));
    assert_eq!(pool.requests() - before, 1);
    let before = pool.requests();
    block_on(directory.stat(b"small")).expect("stat");
    assert_eq!(pool.requests() - before, 1);
}

#[test]
fn an_open_file_follows_its_name_and_ends_with_it() {
    let (_, fs) = new_fs(2, 1);
    let file = block_on(fs.create("/a", attributes())).expect("create");
    block_on(file.write_at(0, b"one")).expect("write");
    block_on(fs.rename("/a", "/b")).expect("rename");
    block_on(file.write_at(3, b" two")).expect("write");
    block_on(file.write_at(1 << 21, b"far")).expect("write");
    assert_eq!(block_on(fs.stat("/b")).expect("stat").size, (1 << 21) + 3);
    block_on(file.clone().close()).expect("close");
    let (room, read) = block_on(file.read(0, IoBuffer::zeroed(7)));
    assert_eq!((read, room.as_slice()), (Ok(7), &b"one two"[..]));
    block_on(fs.unlink("/b")).expect("unlink");
    assert!(matches!(block_on(file.write_at(0, b"x")), Err(FsError::NotFound(_))));
    assert!(dump(&fs).is_empty());
}

#[test]
fn what_a_writer_that_died_has_reached_is_found_without_its_close() {
    let (pool, fs) = new_fs(3, 1);
    let file = block_on(fs.create("/log", attributes())).expect("create");
    block_on(file.write_at(5_000_000, b"end")).expect("write");
    // No close: only the epoch is committed.
    let epoch = fs.epoch();
    std::mem::forget(file);
    drop(fs);
    block_on(async {
        use daos_dsr::client::ContainerEpochs;
        pool.commit(epoch).await
    })
    .expect("commit");
    let fs = block_on(Fs::mount(&pool, options(5))).expect("mount");
    assert_eq!(block_on(fs.stat("/log")).expect("stat").size, 5_000_003);
    assert_eq!(block_on(fs.read_file("/log")).expect("read").len(), 5_000_003);
}

#[test]
fn an_earlier_epoch_can_be_mounted_and_not_be_changed() {
    let (pool, fs) = new_fs(2, 1);
    block_on(fs.create("/old", attributes())).expect("create");
    let epoch = block_on(fs.sync()).expect("sync");
    block_on(fs.unlink("/old")).expect("unlink");
    block_on(fs.create("/new", attributes())).expect("create");
    block_on(fs.sync()).expect("sync");
    let past =
        block_on(Fs::mount(&pool, daos_dsp::Options { read_at: Some(epoch), ..options(9) })).expect("mount");
    assert_eq!(dump(&past).into_keys().collect::<Vec<_>>(), [b"/old"]);
    assert_eq!(dump(&fs).into_keys().collect::<Vec<_>>(), [b"/new"]);
    assert_eq!(block_on(past.unlink("/old")), Err(FsError::ReadOnly));
    assert_eq!(block_on(past.sync()), Err(FsError::ReadOnly));
    let set = SetAttributes { size: Some(1), ..SetAttributes::default() };
    assert_eq!(block_on(past.set_attributes("/old", set)), Err(FsError::ReadOnly));
}

#[test]
fn a_container_is_formatted_once_and_mounted_only_if_it_was() {
    let pool = MemoryTargets::new(1, 1);
    assert!(matches!(block_on(Fs::mount(&pool, options(1))), Err(FsError::NotMountable(_))));
    let format = FormatOptions { file_class: daos_types::ObjectClass(0x0201), ..FormatOptions::default() };
    let refused = block_on(Fs::format(&pool, format, attributes(), &options(1)));
    assert_eq!(refused.map_err(|error| error.errno()), Err(daos_dsp::errno::EINVAL));
    let format = |options| Fs::format(&pool, FormatOptions::default(), attributes(), options);
    let options = options(1);
    block_on(format(&options)).expect("format");
    assert!(matches!(block_on(format(&options)), Err(FsError::Exists(_))));
}

#[test]
fn too_many_links_and_long_names_are_refused() {
    let (_, fs) = new_fs(1, 1);
    block_on(fs.symlink("loop", "/loop", attributes())).expect("symlink");
    assert!(matches!(block_on(fs.stat("/loop")), Err(FsError::Loop(_))));
    block_on(fs.create("/l0", attributes())).expect("create");
    for number in 1..=41 {
        block_on(fs.symlink(format!("l{}", number - 1), format!("/l{number}"), attributes()))
            .expect("symlink");
    }
    block_on(fs.stat("/l40")).expect("forty links are followed");
    assert!(matches!(block_on(fs.stat("/l41")), Err(FsError::Loop(_))));
    let longest = "n".repeat(255);
    block_on(fs.create(format!("/{longest}"), attributes())).expect("create");
    let too_long = block_on(fs.create(format!("/{longest}n"), attributes())).map(drop);
    assert!(matches!(too_long, Err(FsError::NameTooLong(_))));
    assert!(matches!(block_on(fs.stat("/x".repeat(2048))), Err(FsError::NameTooLong(_))));
    assert!(matches!(block_on(fs.stat("")), Err(FsError::NotFound(_))));
}
