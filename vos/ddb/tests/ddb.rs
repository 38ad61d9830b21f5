//! `ddb` on a target as it lies on disk.

use std::{fs, path::Path};

use clap::Parser;
use daos_ddb::{Answer, Arguments, Failure};
use serde_json::Value;

#[path = "../../tests/support/image.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod image;

const CONTAINER: &str = "00000000-0000-0000-0000-00005eed0002";

/// Puts the golden image where an engine would have its target.
fn target(folder: &Path) -> std::path::PathBuf {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/format-1.image");
    let target = folder.join("pools/00000000-0000-0000-0000-00005eed0001/0");
    fs::create_dir_all(&target).expect("a folder");
    for (name, content) in image::unpack(&fs::read(image).expect("the image")) {
        fs::write(target.join(name), content).expect("written");
    }
    target
}

fn ddb(target: &Path, words: &[&str]) -> Result<Answer, Failure> {
    let line = ["ddb", target.to_str().expect("a path")].into_iter().chain(words.iter().copied());
    daos_ddb::run(&Arguments::try_parse_from(line).expect("a command line"))
}

fn ask(target: &Path, words: &[&str]) -> Value {
    match ddb(target, words) {
        Ok(answer) => answer.value,
        Err(Failure(message)) => panic!("{words:?}: {message}"),
    }
}

#[test]
fn it_shows_what_a_target_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = target(folder.path());
    let before: Vec<_> =
        ["heap", "log", "blocks"].map(|name| fs::read(target.join(name)).expect("a file")).into();

    let block = ask(&target, &["superblock"]);
    assert_eq!(block["format_version"], 1);
    assert_eq!(block["pool"], "00000000-0000-0000-0000-00005eed0001");
    assert_eq!(block["arena_bytes"].as_u64().map(|bytes| bytes > 500_000), Some(true));

    let space = ask(&target, &["space"]);
    assert_eq!(space["containers"][0]["objects"], 3);
    assert_eq!(space["block_bytes"].as_u64(), Some(256 << 10));

    let log = ask(&target, &["log"]);
    assert!(!log["frames"].as_array().expect("frames").is_empty());

    assert_eq!(ask(&target, &["ls"])[0]["container"], CONTAINER);
    let objects = ask(&target, &["ls", CONTAINER]);
    let objects = objects.as_array().expect("objects");
    assert_eq!(objects.len(), 3);
    let kv = objects.iter().find(|object| object["type"] == "KeyValue").expect("the KV");
    assert_eq!((kv["keys"].as_u64(), kv["metadata"].as_str()), (Some(24), Some("of the upper layer")));

    let kv = kv["object"].as_str().expect("an ID");
    let versions = ask(&target, &["ls", CONTAINER, kv, "key 007 of the sample"]);
    let versions = versions.as_array().expect("versions");
    // Epoch 2 was aggregated away.
    let epochs: Vec<_> =
        versions.iter().map(|version| version["epoch"].as_u64().expect("an epoch")).collect();
    assert_eq!(epochs, [9, 15, 22]);
    assert_eq!(versions[2]["where"], "punched");
    assert_eq!((&versions[0]["aggregated"], &versions[1]["aggregated"]), (&true.into(), &false.into()));
    assert!(ddb(&target, &["ls", CONTAINER, "1.2.3"]).is_err(), "no such object");

    let dump = ask(&target, &["dump"]);
    let dumped = dump["containers"][CONTAINER].as_array().expect("objects");
    assert_eq!(dumped.len(), 3);
    assert!(dump.to_string().contains("\"akey\":"));

    let verified = ddb(&target, &["verify"]).expect("a verification");
    assert!(verified.sound, "{}", verified.value);

    let after: Vec<_> =
        ["heap", "log", "blocks"].map(|name| fs::read(target.join(name)).expect("a file")).into();
    assert!(before == after, "nothing was written");
}

/// The story of a tool that could only read targets with a log, and called everything else damaged.
#[test]
fn it_shows_what_a_target_on_persistent_memory_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/format-1-pmem.image");
    let files = image::unpack(&fs::read(image).expect("the image"));
    let (file, elsewhere) = (folder.path().join("pmem"), folder.path().join("blocks-are-here"));
    fs::create_dir(&elsewhere).expect("a folder");
    for (name, content) in &files {
        fs::write(folder.path().join(name), content).expect("written");
    }

    let block = ask(&file, &["superblock"]);
    assert_eq!((&block["media"], &block["format_version"]), (&"pmem".into(), &1.into()));
    assert_eq!(block["pool"], "00000000-0000-0000-0000-00005eed0001");
    assert!(block["transactions_committed"].as_u64().expect("a number") > 200, "{block}");
    assert_eq!(ask(&file, &["ls", CONTAINER]).as_array().expect("objects").len(), 3);
    let verified = ddb(&file, &["verify"]).expect("a verification");
    assert!(verified.sound, "{}", verified.value);
    // What is recorded is the same on both media, but for places on the block tier.
    let wal = tempfile::tempdir().expect("a folder");
    let of_wal = ask(&target(wal.path()), &["verify"]);
    for count in ["objects", "keys", "versions", "extents", "punches", "entries"] {
        assert_eq!(verified.value[count], of_wal[count], "{count}");
    }
    let Err(Failure(message)) = ddb(&file, &["log"]) else { panic!("it has no log") };
    assert!(message.contains("no log"), "{message}");

    fs::rename(folder.path().join("blocks"), elsewhere.join("blocks")).expect("moved");
    let Err(Failure(message)) = ddb(&file, &["space"]) else { panic!("its block tier is elsewhere") };
    assert!(message.contains("--blocks"), "{message}");
    let blocks = elsewhere.to_str().expect("a path");
    assert_eq!(ask(&file, &["space", "--blocks", blocks])["block_bytes"].as_u64(), Some(256 << 10));
    assert!(ddb(&elsewhere, &["space", "--blocks", blocks]).is_err(), "that is no file");
    assert!(fs::read(&file).expect("the file") == files[1].1, "nothing was written");

    let lock = fs::File::open(&file).expect("the file");
    lock.try_lock().expect("as whoever maps it does");
    let Err(Failure(message)) = ddb(&file, &["space", "--blocks", blocks]) else { panic!("it is in use") };
    assert!(message.contains("another process"), "{message}");
    drop(lock);
    let mut damaged = files[1].1.clone();
    damaged[8] = 9;
    damaged[4096 + 8] = 9;
    fs::write(&file, damaged).expect("written");
    assert!(ddb(&file, &["space", "--blocks", blocks]).is_err(), "no super-block is left");
}

/// What every other command leaves alone, `upgrade` changes: the golden image of the first format, as an engine of that time
/// left it, is brought to the present one, loses nothing, and is upgraded once only.
#[test]
fn a_target_of_the_first_format_is_upgraded() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = target(folder.path());
    let before = ask(&target, &["dump"]);
    assert_eq!(ask(&target, &["superblock"])["pool_version"], 1);
    let upgraded = ask(&target, &["upgrade"]);
    assert_eq!((&upgraded["found"], &upgraded["now"]), (&1.into(), &2.into()));
    assert_eq!(ask(&target, &["superblock"])["pool_version"], 2);
    assert!(ddb(&target, &["verify"]).expect("a verification").sound);
    assert!(ask(&target, &["dump"]) == before, "it holds what it held");
    assert_eq!(ask(&target, &["upgrade"])["changed"], false);
}

/// The same on persistent memory, by the program: libpmem reads `PMEM_IS_PMEM_FORCE` when it is loaded. Only `Pool` was tested
/// there, and not what lies before it: locks, the look before the change, the block tier that is elsewhere.
#[test]
fn a_target_on_persistent_memory_is_upgraded() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/format-1-pmem.image");
    let files = image::unpack(&fs::read(image).expect("the image"));
    let (file, elsewhere) = (folder.path().join("pmem"), folder.path().join("blocks-are-here"));
    fs::create_dir(&elsewhere).expect("a folder");
    fs::write(&file, &files[1].1).expect("written");
    fs::write(elsewhere.join("blocks"), &files[0].1).expect("written");
    let blocks = ["--blocks", elsewhere.to_str().expect("a path")];
    let upgrade = |forced: bool, blocks: &[&str]| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_ddb"));
        program.env_remove("PMEM_IS_PMEM_FORCE");
        if forced {
            program.env("PMEM_IS_PMEM_FORCE", "1");
        }
        let output =
            program.args(["-j".as_ref(), file.as_os_str(), "upgrade".as_ref()]).args(blocks).output();
        let output = output.expect("it runs");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), said, String::from_utf8(output.stderr).expect("text"))
    };
    let ask = |words: &[&str]| ask(&file, &[words, &blocks].concat());
    let (content, before) = (fs::read(&file).expect("the file"), ask(&["dump"]));
    let unchanged = || fs::read(&file).expect("the file") == content;

    let (code, _, message) = upgrade(true, &[]);
    assert!(code == Some(1) && message.contains("--blocks") && unchanged(), "{message}");
    let (code, _, message) = upgrade(false, &blocks);
    assert!(code == Some(1) && message.contains("not on persistent memory") && unchanged(), "{message}");
    let lock = fs::File::open(&file).expect("the file");
    lock.try_lock().expect("as whoever maps it does");
    let (code, _, message) = upgrade(true, &blocks);
    assert!(code == Some(1) && message.contains("another process") && unchanged(), "{message}");
    drop(lock);
    let mut damaged = files[0].1.clone();
    damaged[100] ^= 1;
    fs::write(elsewhere.join("blocks"), &damaged).expect("written");
    let (code, _, message) = upgrade(true, &blocks);
    assert!(code == Some(1) && message.contains("nothing was changed") && unchanged(), "{message}");
    fs::write(elsewhere.join("blocks"), &files[0].1).expect("written");

    let (code, said, message) = upgrade(true, &blocks);
    assert_eq!((code, message.as_str()), (Some(0), ""));
    assert_eq!((&said["found"], &said["now"], &said["changed"]), (&1.into(), &2.into(), &true.into()));
    assert_eq!(ask(&["superblock"])["pool_version"], 2);
    let words = [&["verify"][..], &blocks].concat();
    assert!(ddb(&file, &words).expect("a verification").sound);
    assert!(ask(&["dump"]) == before, "it holds what it held");
    let (code, said, _) = upgrade(true, &blocks);
    assert_eq!((code, &said["changed"]), (Some(0), &false.into()));
}

#[test]
fn a_damaged_target_is_not_upgraded() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = target(folder.path());
    let mut blocks = fs::read(target.join("blocks")).expect("a file");
    blocks[100] ^= 1;
    fs::write(target.join("blocks"), &blocks).expect("written");
    let heap = fs::read(target.join("heap")).expect("a file");
    let Err(Failure(message)) = ddb(&target, &["upgrade"]) else { panic!("it is damaged") };
    assert!(message.contains("nothing was changed"), "{message}");
    assert!(fs::read(target.join("heap")).expect("a file") == heap);
}

#[test]
fn damage_is_told_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = target(folder.path());
    let flip = |name: &str, at: usize| {
        let mut content = fs::read(target.join(name)).expect("a file");
        content[at] ^= 1;
        fs::write(target.join(name), content).expect("written");
    };
    flip("blocks", 5000);
    let verified = ddb(&target, &["verify"]).expect("a verification");
    assert!(!verified.sound);
    let fault = &verified.value["faults"][0];
    assert!(fault["what"].as_str().expect("words").contains("block tier at 0x1000"), "{fault}");
    assert!(fault["place"].as_str().expect("words").contains(CONTAINER), "{fault}");
    flip("heap", 20);
    flip("heap", 4096 + 20);
    let Err(Failure(message)) = ddb(&target, &["verify"]) else { panic!("no super-block is left") };
    assert!(message.contains("heap") && message.contains("super-block"), "{message}");
}

#[test]
fn a_target_in_use_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = target(folder.path());
    let lock = fs::File::create(folder.path().join("engine.lock")).expect("a file");
    lock.try_lock().expect("the engine's lock");
    let Err(Failure(message)) = ddb(&target, &["ls"]) else { panic!("it is in use") };
    assert!(message.contains("in use"), "{message}");
    drop(lock);
    assert!(ddb(&target, &["ls"]).is_ok());
    assert!(ddb(&folder.path().join("nothing"), &["ls"]).is_err());
    assert!(ddb(folder.path(), &["ls"]).is_err(), "not a target");
}
