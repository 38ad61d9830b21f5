//! The whole way in the simulator: client, targets, store, and crashes of the engine.

mod common;

use std::time::Duration;

use common::{Cluster, open};
use daos::{
    Anchor, At, Epoch, Fetched, FsError, IoBuffer, ObjectType,
    copy::{CopyOptions, export, import},
    fs::Attributes,
};
use daos_xstream::{Clock, Env, Rng, both};
use daos_xstream_sim::Config;

#[test]
fn objects_are_written_in_epochs_and_read_at_any_of_them() {
    let cluster = Cluster::new(1);
    cluster.make();
    cluster.run(|client| async move {
        let container = open(&client, "box").await;
        let kv = container.kv(container.new_object_id(ObjectType::KeyValue, Some("SX")).unwrap()).unwrap();
        let first = container.hold(Epoch::ZERO).await.unwrap();
        for number in 0..100u32 {
            kv.put(first, &number.to_le_bytes(), b"first").await.unwrap();
        }
        container.flush(first).await.unwrap();
        container.commit(first).await.unwrap();
        kv.put(At::Auto, &7u32.to_le_bytes(), b"second").await.unwrap();
        kv.remove(At::Auto, &[&8u32.to_le_bytes()]).await.unwrap();
        let second = container.sync().await.unwrap();
        assert!(second > first);
        let get = async |at: Epoch, number: u32| kv.get(at, &number.to_le_bytes()).await.unwrap();
        assert_eq!(get(first, 7).await, Fetched::Value(b"first".to_vec()));
        assert_eq!(get(second, 7).await, Fetched::Value(b"second".to_vec()));
        assert_eq!(get(first, 8).await, Fetched::Value(b"first".to_vec()));
        assert_eq!(get(second, 8).await, Fetched::Punched);
        assert_eq!(get(second, 1000).await, Fetched::Miss);
        let mut keys = Vec::new();
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = kv.list(second, &from, 9).await.unwrap();
            keys.extend(page.items);
            anchor = page.next;
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 99);

        let array = container.array(container.new_object_id(ObjectType::Array, Some("S2")).unwrap()).unwrap();
        let mut data = IoBuffer::zeroed(3 << 20);
        for (place, byte) in data.as_mut_slice().iter_mut().zip((0..=250u8).cycle()) {
            *place = byte;
        }
        let (data, result) = array.write(At::Auto, 12_345, data).await;
        result.unwrap();
        array.punch_range(At::Auto, 1 << 20, (1 << 20) + 100).await.unwrap();
        assert_eq!(array.size(At::Auto).await.unwrap(), 12_345 + (3 << 20));
        let (room, outcome) = array.read(At::Auto, 0, IoBuffer::zeroed((3 << 20) + 20_000)).await;
        let outcome = outcome.unwrap();
        assert_eq!(outcome.data_bytes(), (3 << 20) - 100);
        let mut wanted = vec![0; (3 << 20) + 20_000];
        wanted[12_345..12_345 + (3 << 20)].copy_from_slice(data.as_slice());
        wanted[1 << 20..(1 << 20) + 100].fill(0);
        assert!(room.as_slice() == wanted);

        let mut listed = Vec::new();
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = container.list_objects(At::Auto, &from, 10).await.unwrap();
            listed.extend(page.items);
            anchor = page.next;
        }
        listed.sort();
        let mut wanted = vec![kv.id(), array.id()];
        wanted.sort();
        assert_eq!(listed, wanted);
        container.close().await.unwrap();
    });
}

/// A write of many values goes to all targets at once. A sync that began meanwhile flushed what one target had got, and committed
/// it before the rest arrived at the others: the write was done again in a later epoch, but half of it was committed, and a
/// crash or a reader of that epoch found it so. Now a sync waits for the writes under way.
#[test]
fn a_sync_commits_no_half_of_a_write_that_is_under_way() {
    // What is lost on its way is noticed late, and sent again: long after what went to the other target.
    let network =
        Config { connection_loss_ppm: 50_000, break_notice_ns: (1_000_000, 20_000_000), ..Config::default() };
    for seed in 0..20 {
        let cluster = Cluster::with(seed, network.clone());
        cluster.make();
        cluster.run(move |client| async move {
            let container = open(&client, "box").await;
            let id = container.new_object_id(ObjectType::KeyValue, Some("SX")).unwrap();
            let kv = container.kv(id).unwrap();
            let keys: Vec<[u8; 1]> = (0..10).map(|key| [key]).collect();
            let mut before = Fetched::Miss;
            for round in 0..20u8 {
                let value = [round];
                let records: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &value[..])).collect();
                let random = container.env().rng().next_u64();
                let late_sync = async {
                    let clock = container.env().clock();
                    clock.sleep_until(clock.now() + Duration::from_nanos(random % 300_000)).await;
                    container.sync().await
                };
                let (put, synced) = both(kv.put_all(At::Auto, &records), late_sync).await;
                put.unwrap();
                let synced = synced.unwrap();
                let mut found = Vec::new();
                for key in &keys {
                    found.push(kv.get(synced, key).await.unwrap());
                }
                let written = Fetched::Value(vec![round]);
                let whole = found.iter().all(|found| *found == written);
                let nothing = found.iter().all(|found| *found == before);
                assert!(whole || nothing, "seed {seed}, round {round}, epoch {synced}: {found:?}");
                before = written;
            }
            container.close().await.unwrap();
        });
    }
}

#[test]
fn files_survive_a_crash_up_to_the_last_sync() {
    let cluster = Cluster::new(2);
    cluster.make();
    cluster.run(|client| async move {
        let fs = open(&client, "tree").await.mount().await.unwrap();
        let attributes = Attributes::new(0o640, 5, 6);
        fs.mkdir("/d", Attributes::new(0o750, 0, 0)).await.unwrap();
        for number in 0..300 {
            let file = fs.create(format!("/d/{number:03}"), attributes).await.unwrap();
            file.write_at(0, &vec![number as u8; number * 40]).await.unwrap();
            file.close().await.unwrap();
        }
        // All that may happen to one name within one epoch.
        fs.create("/same", attributes).await.unwrap().write_at(0, b"first").await.unwrap();
        fs.unlink("/same").await.unwrap();
        assert!(matches!(fs.stat("/same").await, Err(FsError::NotFound(_))));
        fs.create("/same", attributes).await.unwrap().write_at(0, b"2nd").await.unwrap();
        assert_eq!(fs.read_file("/same").await.unwrap(), b"2nd");
        fs.rename("/same", "/other").await.unwrap();
        fs.create("/same", attributes).await.unwrap().write_at(0, b"third").await.unwrap();
        fs.rename("/same", "/other").await.unwrap();
        fs.rename("/other", "/same").await.unwrap();
        fs.symlink("d/007", "/link", attributes).await.unwrap();
        fs.sync().await.unwrap();
        fs.unlink("/link").await.unwrap();
        fs.create("/lost", attributes).await.unwrap();
        fs.rename("/d", "/e").await.unwrap();
    });
    cluster.restart();
    cluster.run(|client| async move {
        let fs = open(&client, "tree").await.mount().await.unwrap();
        let mut names = Vec::new();
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = fs.list("/d", &from, 64).await.unwrap();
            names.extend(page.items.into_iter().map(|entry| entry.name));
            anchor = page.next;
        }
        let wanted: Vec<Vec<u8>> = (0..300).map(|number| format!("{number:03}").into_bytes()).collect();
        assert_eq!(names, wanted);
        for number in 0..300usize {
            let bytes = fs.read_file(format!("/d/{number:03}")).await.unwrap();
            assert!(bytes == vec![number as u8; number * 40], "file {number}");
        }
        let inode = fs.stat("/d/100").await.unwrap();
        assert_eq!((inode.permissions, inode.uid, inode.gid, inode.size), (0o640, 5, 6, 4000));
        assert_eq!(fs.read_file("/link").await.unwrap(), vec![7; 280]);
        assert_eq!(fs.read_file("/same").await.unwrap(), b"third");
        for gone in ["/lost", "/other", "/e"] {
            assert!(matches!(fs.stat(gone).await, Err(FsError::NotFound(_))), "{gone}");
        }
    });
}

/// Path, type, mode, time of change, content or target of everything below a folder.
type Listing = Vec<(std::path::PathBuf, u32, i64, Vec<u8>)>;

fn local_tree(root: &std::path::Path) -> Listing {
    use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
    let mut tree = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = std::fs::symlink_metadata(&path).expect("lstat");
        let content = if meta.is_symlink() {
            std::fs::read_link(&path).expect("readlink").as_os_str().as_bytes().to_vec()
        } else if meta.is_dir() {
            pending
                .extend(std::fs::read_dir(&path).expect("readdir").map(|entry| entry.expect("entry").path()));
            Vec::new()
        } else {
            std::fs::read(&path).expect("read")
        };
        let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        tree.push((path.strip_prefix(root).expect("below").to_owned(), meta.mode(), time, content));
    }
    tree.sort();
    tree
}

#[test]
fn a_tree_is_copied_in_and_out_and_is_the_same_after_a_crash() {
    use std::os::unix::{ffi::OsStrExt, fs::PermissionsExt};
    let scratch = tempfile::tempdir().expect("a folder");
    let source = scratch.path().join("source");
    for folder in ["", "a", "a/b", "a/b/c", "empty"] {
        std::fs::create_dir_all(source.join(folder)).expect("mkdir");
    }
    for (number, size) in [0, 1, 4095, 4096, 4097, 70_000, 1 << 20, (3 << 20) + 5].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size).map(|offset: usize| (offset * 31 + number) as u8).collect();
        for folder in ["", "a", "a/b/c"] {
            let path = source.join(folder).join(format!("{number}"));
            std::fs::write(&path, &bytes).expect("write");
            let mode = std::fs::Permissions::from_mode(0o400 + number as u32);
            std::fs::set_permissions(path, mode).expect("chmod");
        }
    }
    for number in 0..200 {
        std::fs::write(source.join(format!("a/b/many-{number}")), format!("{number}")).expect("write");
    }
    std::os::unix::fs::symlink("../nowhere", source.join("a/dangling")).expect("symlink");
    std::fs::write(source.join(std::ffi::OsStr::from_bytes(b"not \xff text")), "x").expect("write");

    for times in [true, false] {
        copy_there_and_back(scratch.path(), &source, times);
    }
}

fn copy_there_and_back(scratch: &std::path::Path, source: &std::path::Path, directory_times: bool) {
    let cluster = Cluster::new(3);
    cluster.make();
    let from = source.to_owned();
    let options = CopyOptions { owners: false, ..CopyOptions::default() };
    let progress = cluster.run(move |client| async move {
        let container = open(&client, "tree").await;
        let fs = match directory_times {
            true => container.mount().await.unwrap(),
            false => container.mount_for_copy().await.unwrap(),
        };
        let missing = import(container.env(), &fs, &from.join("missing"), b"/x", options, |_| {}).await;
        assert_eq!(missing.unwrap_err().errno(), 2);
        import(container.env(), &fs, &from, b"/copy", options, |_| {}).await.unwrap()
    });
    assert_eq!((progress.files, progress.directories, progress.links), (24 + 200 + 1, 5, 1));
    cluster.restart();
    let to = scratch.join(format!("back-{directory_times}"));
    let back = to.clone();
    let again = cluster.run(move |client| async move {
        let container = open(&client, "tree").await;
        let fs = container.mount().await.unwrap();
        export(container.env(), &fs, b"/copy", &back, options, |_| {}).await.unwrap()
    });
    assert_eq!(again, progress);
    over_links(scratch, &cluster, &to);
    let (ours, theirs) = (local_tree(&to), local_tree(source));
    for (copy, original) in ours.iter().zip(&theirs) {
        // Not the whole lines: they are megabytes long.
        assert_eq!((&copy.0, copy.1, copy.2), (&original.0, original.1, original.2));
        assert!(copy.3 == original.3, "{}: other content", copy.0.display());
    }
    assert_eq!(ours.len(), theirs.len());
}

/// An earlier copy had left links in the target, and the next one wrote through them, to wherever they led.
fn over_links(scratch: &std::path::Path, cluster: &Cluster, to: &std::path::Path) {
    let outside = scratch.join("outside");
    let _ = std::fs::remove_dir_all(&outside);
    std::fs::create_dir(&outside).expect("mkdir");
    std::fs::write(outside.join("file"), "years").expect("write");
    std::fs::remove_file(to.join("1")).expect("unlink");
    std::os::unix::fs::symlink(outside.join("file"), to.join("1")).expect("symlink");
    std::fs::remove_dir_all(to.join("a/b")).expect("rm");
    std::os::unix::fs::symlink(&outside, to.join("a/b")).expect("symlink");
    let again = to.to_owned();
    cluster.run(move |client| async move {
        let container = open(&client, "tree").await;
        let fs = container.mount().await.unwrap();
        let options = CopyOptions { owners: false, ..CopyOptions::default() };
        export(container.env(), &fs, b"/copy", &again, options, |_| {}).await.unwrap();
    });
    let left: Vec<_> = std::fs::read_dir(&outside).expect("readdir").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(std::fs::read_to_string(outside.join("file")).expect("read"), "years");
}
