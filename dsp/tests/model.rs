//! Random operations against the kernel's own file system: every outcome, errno included, must be the same; and after a
//! crash the tree is the one of the last sync.

mod common;

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use common::{Random, Tree, attributes, block_on, dump, new_fs, options};
use daos_dsp::{FileType, Fs, FsError, SetAttributes};
use daos_dsr::memory::MemoryTargets;

#[derive(Clone, Debug)]
enum Call {
    Mkdir(String),
    Create(String),
    Write(String, u64, Vec<u8>),
    Read(String, u64, usize),
    Truncate(String, u64),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Symlink(String, String),
    Readlink(String),
    Stat(String),
    Lstat(String),
    Chmod(String, u32),
    Sync,
    Crash,
}

/// What a call gave: bytes to compare, or an errno.
type Outcome = Result<Vec<u8>, i32>;

fn name(random: &mut Random) -> &'static str {
    ["a", "b", "c", "."][random.below(4) as usize]
}

fn path(random: &mut Random) -> String {
    let mut path = String::new();
    for _ in 0..1 + random.below(3) {
        path += "/";
        path += ["a", "b", "c", "d"][random.below(4) as usize];
    }
    match random.below(40) {
        0 => path + "/",
        1 => path + "/.",
        2 => path + "//" + name(random),
        3 => path + "/../" + name(random),
        4 => path + "/" + &"n".repeat(255 + random.below(2) as usize),
        _ => path,
    }
}

fn call(random: &mut Random) -> Call {
    // Around the end of the first block, and around the end of a cell.
    let offset = |random: &mut Random| match random.below(3) {
        0 => random.below(100),
        1 => 4000 + random.below(200),
        _ => (1 << 20) - 100 + random.below(200),
    };
    match random.below(100) {
        0..15 => Call::Mkdir(path(random)),
        15..30 => Call::Create(path(random)),
        30..42 => {
            let longest = if random.below(4) == 0 { 9000 } else { 200 };
            let length = 1 + random.below(longest) as usize;
            let byte = random.below(255) as u8 + 1;
            Call::Write(path(random), offset(random), vec![byte; length])
        }
        42..50 => Call::Read(path(random), offset(random), random.below(9000) as usize),
        50..55 => Call::Truncate(path(random), offset(random)),
        55..62 => Call::Unlink(path(random)),
        62..68 => Call::Rmdir(path(random)),
        68..80 => Call::Rename(path(random), path(random)),
        80..86 => {
            let target = path(random);
            Call::Symlink(target[1..].to_owned(), path(random))
        }
        86..88 => Call::Readlink(path(random)),
        88..91 => Call::Stat(path(random)),
        91..94 => Call::Lstat(path(random)),
        94..96 => Call::Chmod(path(random), random.below(0o1000) as u32 | 0o700),
        96..99 => Call::Sync,
        _ => Call::Crash,
    }
}

fn described(file_type: FileType, permissions: u32, size: u64) -> Vec<u8> {
    let size = if file_type == FileType::Directory { 0 } else { size };
    let permissions = if file_type == FileType::Symlink { 0 } else { permissions };
    format!("{file_type:?} {permissions:o} {size}").into_bytes()
}

fn ours(fs: &Fs<MemoryTargets>, call: &Call) -> Outcome {
    let directory = daos_dsp::Attributes::new(0o755, 0, 0);
    let done = |result: Result<(), FsError>| result.map(|()| Vec::new());
    let outcome = match call {
        Call::Mkdir(path) => done(block_on(fs.mkdir(path, directory)).map(drop)),
        Call::Create(path) => done(block_on(fs.create(path, attributes())).map(drop)),
        Call::Write(path, offset, bytes) => done(block_on(async {
            let file = fs.open(path).await?;
            file.write_at(*offset, bytes).await?;
            file.close().await
        })),
        Call::Read(path, offset, length) => block_on(async {
            let file = fs.open(path).await?;
            let (room, read) = file.read(*offset, daos_xstream::IoBuffer::zeroed(*length)).await;
            Ok(room.as_slice()[..read?].to_vec())
        }),
        Call::Truncate(path, size) => done(block_on(fs.truncate(path, *size))),
        Call::Unlink(path) => done(block_on(fs.unlink(path))),
        Call::Rmdir(path) => done(block_on(fs.rmdir(path))),
        Call::Rename(from, to) => done(block_on(fs.rename(from, to))),
        Call::Symlink(target, path) => done(block_on(fs.symlink(target, path, attributes()))),
        Call::Readlink(path) => block_on(fs.readlink(path)),
        Call::Stat(path) => block_on(fs.stat(path)).map(|i| described(i.file_type, i.permissions, i.size)),
        Call::Lstat(path) => block_on(fs.lstat(path)).map(|i| described(i.file_type, i.permissions, i.size)),
        Call::Chmod(path, bits) => {
            let set = SetAttributes { permissions: Some(*bits), ..SetAttributes::default() };
            done(block_on(fs.set_attributes(path, set)))
        }
        Call::Sync => done(block_on(fs.sync()).map(drop)),
        Call::Crash => Ok(Vec::new()),
    };
    outcome.map_err(|error| error.errno())
}

fn theirs(root: &Path, call: &Call) -> Outcome {
    // Plain concatenation: `Path::join` would normalise what is to be tested.
    let at = |path: &str| PathBuf::from(format!("{}{path}", root.display()));
    let done = |result: std::io::Result<()>| result.map(|()| Vec::new());
    let meta = |meta: fs::Metadata| {
        let file_type = if meta.is_dir() {
            FileType::Directory
        } else if meta.is_symlink() {
            FileType::Symlink
        } else {
            FileType::File
        };
        described(file_type, meta.mode() & 0o7777, meta.size())
    };
    let outcome = match call {
        Call::Mkdir(path) => done(fs::create_dir(at(path))),
        Call::Create(path) => {
            done(fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(at(path)).map(drop))
        }
        Call::Write(path, offset, bytes) => done((|| {
            let mut file = fs::OpenOptions::new().write(true).open(at(path))?;
            file.seek(SeekFrom::Start(*offset))?;
            file.write_all(bytes)
        })()),
        Call::Read(path, offset, length) => (|| {
            let mut file = fs::OpenOptions::new().read(true).write(true).open(at(path))?;
            file.seek(SeekFrom::Start(*offset))?;
            let mut bytes = Vec::new();
            file.take(*length as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        })(),
        Call::Truncate(path, size) => {
            done((|| fs::OpenOptions::new().write(true).open(at(path))?.set_len(*size))())
        }
        Call::Unlink(path) => done(fs::remove_file(at(path))),
        Call::Rmdir(path) => done(fs::remove_dir(at(path))),
        Call::Rename(from, to) => done(fs::rename(at(from), at(to))),
        Call::Symlink(target, path) => done(std::os::unix::fs::symlink(target, at(path))),
        Call::Readlink(path) => {
            fs::read_link(at(path)).map(|target| target.as_os_str().as_encoded_bytes().to_vec())
        }
        Call::Stat(path) => fs::metadata(at(path)).map(meta),
        Call::Lstat(path) => fs::symlink_metadata(at(path)).map(meta),
        Call::Chmod(path, bits) => done(fs::set_permissions(at(path), fs::Permissions::from_mode(*bits))),
        Call::Sync | Call::Crash => Ok(Vec::new()),
    };
    outcome.map_err(|error| error.raw_os_error().expect("an errno"))
}

fn their_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).expect("readdir") {
            let path = entry.expect("an entry").path();
            let meta = fs::symlink_metadata(&path).expect("lstat");
            let name = path.as_os_str().as_encoded_bytes()[root.as_os_str().len()..].to_vec();
            let (file_type, bytes) = if meta.is_dir() {
                pending.push(path);
                (FileType::Directory, Vec::new())
            } else if meta.is_symlink() {
                let target = fs::read_link(path).expect("readlink");
                (FileType::Symlink, target.as_os_str().as_encoded_bytes().to_vec())
            } else {
                (FileType::File, fs::read(path).expect("read"))
            };
            let permissions = if file_type == FileType::Symlink { 0 } else { meta.mode() & 0o7777 };
            tree.insert(name, (file_type, permissions, bytes));
        }
    }
    tree
}

fn our_tree(fs: &Fs<MemoryTargets>) -> Tree {
    let mut tree = dump(fs);
    for (file_type, permissions, _) in tree.values_mut() {
        if *file_type == FileType::Symlink {
            *permissions = 0;
        }
    }
    tree
}

fn rebuild(root: &Path, tree: &Tree) {
    fs::remove_dir_all(root).expect("remove the tree");
    fs::create_dir(root).expect("make the root");
    for (path, (file_type, permissions, bytes)) in tree {
        let path = format!("{}{}", root.display(), String::from_utf8_lossy(path));
        let text = String::from_utf8_lossy(bytes).into_owned();
        match file_type {
            FileType::Directory => fs::create_dir(&path).expect("mkdir"),
            FileType::File => fs::write(&path, bytes).expect("write"),
            FileType::Symlink => std::os::unix::fs::symlink(text, &path).expect("symlink"),
        }
        if *file_type != FileType::Symlink {
            fs::set_permissions(&path, fs::Permissions::from_mode(*permissions)).expect("chmod");
        }
    }
}

/// Returns how many calls succeeded.
fn run(seed: u64, calls: u32) -> u32 {
    let scratch = tempfile::tempdir().expect("a folder");
    let root = scratch.path().join("root");
    fs::create_dir(&root).expect("make the root");
    let (pool, mut ours_fs) = new_fs(1 + (seed % 3) as u32, seed);
    let mut random = Random(seed);
    let mut synced = Tree::new();
    let mut history = Vec::new();
    let mut agreed = 0;
    for number in 0..calls {
        let call = call(&mut random);
        history.push(call.clone());
        let (ours, theirs) = (ours(&ours_fs, &call), theirs(&root, &call));
        let tail = &history[history.len().saturating_sub(8)..];
        assert!(ours == theirs, "seed {seed}, call {number}: {ours:?}, the kernel {theirs:?}; {tail:#?}");
        agreed += u32::from(ours.is_ok());
        match call {
            Call::Sync => synced = their_tree(&root),
            Call::Crash => {
                pool.discard_uncommitted();
                ours_fs = block_on(Fs::mount(&pool, options(seed + u64::from(number)))).expect("mount");
                assert_eq!(our_tree(&ours_fs), synced, "seed {seed}, call {number}: after a crash");
                rebuild(&root, &synced);
            }
            _ if number % 50 == 0 => {
                assert_eq!(our_tree(&ours_fs), their_tree(&root), "seed {seed}, call {number}");
            }
            _ => {}
        }
    }
    assert_eq!(our_tree(&ours_fs), their_tree(&root), "seed {seed}, at the end");
    agreed
}

#[test]
fn the_tree_behaves_as_the_kernels() {
    let seeds = std::env::var("SEEDS").map_or(6, |seeds| seeds.parse().expect("a number"));
    let succeeded: u32 = (1..=seeds).map(|seed| run(seed, 400)).sum();
    // A run in which nearly everything fails shows nothing.
    assert!(succeeded > 400 * seeds as u32 / 8, "only {succeeded} calls did something");
}
