//! Input that is wrong: each kind gets one clear line and a non-zero exit, or an error reply; the engine goes on, and
//! nothing that is stored is lost.

use std::{
    fs::{self, File},
    io::Write,
    net::TcpStream,
    path::Path,
};

use daos::{FabricChoice, System};
use daos_xstream::rpc::{HEADER_BYTES, PROTOCOL_VERSION, Status};
use rustix::{
    net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with},
    process::Signal,
};

use crate::{
    engine::{Engine, engine_command, output, wait_for},
    raw::{self, Wire},
};

const VALUE: &str = "must not be lost";

/// Stores something that must survive everything that follows.
fn store(engine: &Engine) {
    engine.make("256MiB");
    engine.daos(&["kv", "put", "tank", "box", "1", "key", VALUE]).ok();
}

#[track_caller]
fn stored(engine: &mut Engine) {
    assert!(engine.runs(), "the engine ended");
    assert_eq!(engine.daos(&["kv", "get", "tank", "box", "1", "key"]).ok().trim_end(), VALUE);
}

/// An engine that must not start.
#[track_caller]
fn refused(arguments: &[&str], dir: &Path, parts: &[&str]) {
    let output = output(engine_command().args(arguments).arg("--dir").arg(dir).args(["--log", "error"]), b"");
    output.refused(parts);
}

/// Every file below a folder but for locks, with what it holds.
fn contents(folder: &Path) -> Vec<(String, u64, u32)> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if !path.ends_with("engine.lock") {
                let bytes = fs::read(&path).expect("a file");
                found.push((path.display().to_string(), bytes.len() as u64, crc32c::crc32c(&bytes)));
            }
        }
    }
    found.sort();
    found
}

/// Unknown and corrupt media, a folder in use, sizes that do not fit, fabrics that are not there.
pub fn storage() {
    let mut engine = Engine::start();
    let (dir, scratch) = (engine.dir(), engine.scratch().to_owned());
    store(&engine);

    // A second engine on the same folder.
    refused(&["--dev"], &dir, &["another engine uses this folder", "dmg system stop", "--dir"]);
    stored(&mut engine);
    assert!(engine.signal(Signal::TERM).success());
    let whole = contents(&dir);

    // Storage of another version, damaged, foreign, or of another shape.
    let superblock = dir.join("superblock.json");
    let text = fs::read_to_string(&superblock).expect("a superblock");
    let dir_name = dir.display().to_string();
    for (from, to, parts) in [
        ("\"format_version\": 1", "\"format_version\": 77", ["superblock.json", "77", "version"]),
        ("\"targets\": 2", "\"targets\": 3", ["superblock.json", "checksum", "restore"]),
        ("{", "", ["superblock.json", "damaged", "restore"]),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from:?} is not there");
        fs::write(&superblock, changed).expect("written");
        let before = contents(&dir);
        refused(&["--dev", "--targets", "2"], &dir, &parts);
        assert_eq!(contents(&dir), before, "left alone");
    }
    fs::write(&superblock, &text).expect("written");
    refused(&["--dev", "--targets", "1"], &dir, &[&dir_name, "2 targets, not 1"]);
    let thesis = scratch.join("thesis");
    fs::create_dir(&thesis).expect("a folder");
    fs::write(thesis.join("chapter1"), "years of work").expect("written");
    refused(&["--dev"], &thesis, &["not empty", "chapter1", "choose an empty folder"]);
    assert_eq!(contents(&thesis).len(), 1);
    let file = scratch.join("file");
    fs::write(&file, "no folder").expect("written");
    refused(&["--dev"], &file, &["file"]);

    // Sizes that do not fit.
    let fresh = scratch.join("fresh");
    refused(&["--dev", "--size", "1PiB"], &fresh, &["fresh", "free", "choose a smaller"]);
    refused(&["--dev", "--targets", "2", "--size", "1MiB"], &fresh, &["1048576", "give at least"]);
    refused(&["--dev", "--targets", "0"], &fresh, &["0 targets", "choose between"]);
    let wrong = output(engine_command().args(["--dev", "--size", "plenty"]), b"");
    assert!(wrong.code == Some(2) && wrong.stderr.contains("plenty"), "{wrong:?}");

    // Fabrics that nobody has, and that this machine has not.
    refused(&["--dev", "--fabric", "pigeon"], &fresh, &["\"pigeon\"", "local", "tcp"]);
    let config = scratch.join("server.yml");
    for (provider, host, parts) in [
        ("ofi+verbs;ofi_rxm", "127.0.0.1", vec!["verbs;ofi_rxm", "provider"]),
        ("ofi+tcp;ofi_rxm", "192.0.2.1", vec!["192.0.2.1"]),
    ] {
        let text = format!(
            "provider: {provider}\nengines:\n- targets: 1\n  fabric_iface: {host}\n  fabric_iface_port: 0\n  storage:\n  - \
             class: ram\n    scm_mount: {}\n    scm_size: 1\n",
            scratch.join("other").display()
        );
        fs::write(&config, text).expect("written");
        let command = &mut engine_command();
        output(command.arg("--config").arg(&config).args(["--log", "error"]), b"").refused(&parts);
    }
    let missing = scratch.join("missing.yml");
    output(engine_command().arg("--config").arg(&missing), b"").refused(&["missing.yml", "No such file"]);

    // Nothing of all this has touched what was stored.
    assert_eq!(contents(&dir), whole);
    engine.start_again();
    stored(&mut engine);

    // A pool that is damaged on media does not stop the others, and is kept for repair.
    engine.dmg(&["pool", "create", "--size", "64MiB", "other"]).ok();
    engine.daos(&["container", "create", "other", "box"]).ok();
    engine.daos(&["kv", "put", "other", "box", "1", "key", VALUE]).ok();
    assert!(engine.signal(Signal::TERM).success());
    let with_other = contents(&dir);
    let heap = with_other
        .iter()
        .find(|(path, ..)| path.ends_with("1/heap") && !whole.iter().any(|(old, ..)| old == path));
    let heap = &heap.expect("the heap of the other pool").0;
    let bytes = fs::read(heap).expect("read");
    let mut damaged = bytes.clone();
    damaged[..8192].fill(0x5a);
    fs::write(heap, &damaged).expect("written");
    engine.start_again();
    stored(&mut engine);
    engine.daos(&["pool", "query", "other"]).refused(&["there is no pool other", "cannot be opened", "heap"]);
    assert!(engine.log().contains("the pool cannot be opened"));
    assert!(engine.signal(Signal::TERM).success());
    fs::write(heap, &bytes).expect("written");
    engine.start_again();
    stored(&mut engine);
    assert_eq!(engine.daos(&["kv", "get", "other", "box", "1", "key"]).ok().trim_end(), VALUE);
}

/// Wrong names, paths, object IDs, sizes, values; a target that is full.
pub fn requests() {
    let mut engine = Engine::start();
    store(&engine);
    let scratch = engine.scratch().to_owned();
    let at = |name: &str| scratch.join(name).display().to_string();

    // Pools and their sizes.
    engine.daos(&["pool", "query", "nopool"]).refused(&["there is no pool nopool", "dmg pool list"]);
    engine.dmg(&["pool", "query", "no pool"]).refused(&["\"no pool\" is no label"]);
    engine.dmg(&["pool", "destroy", "nopool"]).refused(&["there is no pool nopool"]);
    engine.dmg(&["pool", "create", "--size", "64MiB", "tank"]).refused(&["there is a pool tank already"]);
    engine.dmg(&["pool", "create", "--size", "1TiB", "large"]).refused(&[
        "no space",
        "more than",
        "dmg storage query usage",
    ]);
    engine.dmg(&["pool", "create", "--size", "1KiB", "small"]).refused(&["too few", "33554432"]);
    engine.dmg(&["storage", "format"]).refused(&["formatted"]);
    stored(&mut engine);

    // Containers, object IDs, keys.
    engine.daos(&["container", "query", "tank", "nobox"]).refused(&["no container nobox", "list"]);
    engine.daos(&["container", "create", "tank", "box"]).refused(&["there is a container box already"]);
    for object in ["banana", "1.2", "0x", "-1.2.3", "99999999999999999999999999"] {
        let output = engine.daos(&["kv", "get", "tank", "box", "--", object, "key"]);
        output.refused(&[object, "no object", "HIGH.MIDDLE.LOW"]);
    }
    engine.daos(&["array", "read", "tank", "box", "1.0.0"]).refused(&["1.0.0"]);
    engine
        .daos(&["kv", "get", "tank", "box", "1", "nokey"])
        .refused(&["\"nokey\" is not there", "daos kv list"]);
    engine
        .daos(&["kv", "put", "tank", "box", "1", "key", "x", "--epoch", "1"])
        .refused(&["epoch 1", "first that can"]);
    engine
        .daos(&["container", "create-snap", "tank", "box", "--epoch", "999"])
        .refused(&["999", "out of range"]);

    // Paths.
    let into = "daos://tank/tree/x";
    engine
        .daos(&["filesystem", "copy", "--src", &at("nothing"), "--dst", into])
        .refused(&["nothing", "No such file"]);
    let from = "daos://tank/tree/nothing";
    engine
        .daos(&["filesystem", "copy", "--src", from, "--dst", &at("out")])
        .refused(&["nothing", "no such file"]);
    engine.daos(&["filesystem", "stat", from]).refused(&["nothing", "no such file"]);
    engine.daos(&["filesystem", "list", "daos://tank"]).refused(&["daos://POOL/CONT/PATH"]);
    engine.daos(&["filesystem", "list", "daos://tank/box/"]).refused(&["cannot mount", "POSIX"]);
    engine.daos(&["filesystem", "copy", "--src", "/a", "--dst", "/b"]).refused(&["both places are local"]);
    engine
        .daos(&["array", "write", "tank", "box", "5", "--input", &at("nothing")])
        .refused(&["nothing", "No such file"]);
    output(crate::engine::program("dmg").args(["pool", "list", "--dir", &at("nowhere")]), b"")
        .refused(&["nowhere", "no engine"]);
    output(crate::engine::program("dmg").args(["pool", "list"]), b"").refused(&[
        "which system?",
        "--dir",
        "DAOS_DIR",
    ]);
    stored(&mut engine);

    // Over the limits.
    let key = "k".repeat(100_000);
    engine.daos(&["kv", "put", "tank", "box", "1", &key, "x"]).refused(&["key", "65536"]);
    let value = vec![7; (16 << 20) + 1];
    let large = engine.run_with("daos", &["kv", "put", "tank", "box", "1", "big", "-"], &value);
    large.refused(&["16777217", "16777216"]);
    let value = &value[1..];
    engine.run_with("daos", &["kv", "put", "tank", "box", "2", "big", "-"], value).ok();
    let back = engine.daos(&["kv", "get", "tank", "box", "2", "big"]).ok();
    assert!(back.as_bytes() == value, "the largest value comes back");
    stored(&mut engine);

    // A full target: what does not fit is refused, the pool goes on, and there is room again afterwards.
    let big = at("big");
    File::create(&big).and_then(|file| file.set_len(600 << 20)).expect("a sparse file");
    engine
        .daos(&["filesystem", "copy", "--quiet", "--src", &big, "--dst", into])
        .refused(&["no space", "free"]);
    stored(&mut engine);
    engine.daos(&["filesystem", "stat", into]).refused(&["no such file"]);
    let small = at("small");
    fs::write(&small, vec![9; 3 << 20]).expect("written");
    engine.daos(&["filesystem", "copy", "--quiet", "--src", &small, "--dst", into]).ok();
    let back = at("back");
    engine.daos(&["filesystem", "copy", "--quiet", "--src", into, "--dst", &back]).ok();
    assert!(fs::read(&back).expect("read") == vec![9; 3 << 20]);

    // All of it is there after the machine has failed, too.
    engine.signal(Signal::KILL);
    engine.start_again();
    stored(&mut engine);
}

/// Garbage and another protocol's messages, over both fabrics; a client file of another version.
pub fn garbage() {
    let mut engine = Engine::start();
    store(&engine);
    let system = System::read(&engine.dir()).expect("the engine's file");
    let addresses = system.service_addresses();
    let address = |fabric: &str| {
        let found = addresses.iter().find(|address| address.fabric() == fabric);
        found.unwrap_or_else(|| panic!("no {fabric} in {addresses:?}"))
    };

    // Below the fabrics: bytes on the TCP port and on the socket.
    let port = address("tcp").to_string();
    let port = port.rsplit("://").next().expect("a place").to_owned();
    for length in [1, 64, 5000, 100_000] {
        let noise = raw::noise(length);
        let mut stream = TcpStream::connect(&port).expect("connected");
        // It may hang up before it has seen everything.
        let _ = stream.write_all(&noise);
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a socket");
        connect(&socket, &SocketAddrUnix::new(engine.dir().join("daos.sock")).expect("a path"))
            .expect("connected");
        let _ = send(&socket, &noise, SendFlags::NOSIGNAL);
    }
    stored(&mut engine);

    // Above them: messages that are none, and messages of other versions.
    for fabric in ["local", "tcp"] {
        let mut wire = Wire::connect(address(fabric));
        for length in [0, 1, 2, HEADER_BYTES - 1, HEADER_BYTES, 500, 4000] {
            wire.send(&raw::noise(length));
        }
        let null = raw::null_request(PROTOCOL_VERSION, 7);
        let mut other = Wire::connect(address(fabric));
        for version in [PROTOCOL_VERSION + 1, 0, 255] {
            let (status, text) = other.ask(&raw::null_request(version, 7));
            assert_eq!(status, Status::BAD_PROTOCOL);
            assert!(text.contains(&version.to_string()) && text.contains("version"), "{text:?}");
        }
        assert_eq!(other.ask(&null).0, Status::OK, "the same connection, in the right version");
        // A wrong checksum is answered so that it can be repeated.
        let mut damaged = raw::request(PROTOCOL_VERSION, daos_xstream::rpc::system::ECHO, 9, b"body");
        *damaged.last_mut().expect("a body") ^= 1;
        assert_eq!(other.ask(&damaged).0, Status::BAD_CHECKSUM);
        stored(&mut engine);
        // Who goes on like this is thrown out, and others are served.
        wait_for("end of a bad connection", || {
            wire.send(&raw::noise(200));
            wire.is_closed().then_some(())
        });
        assert_eq!(Wire::connect(address(fabric)).ask(&null).0, Status::OK);
        stored(&mut engine);
    }

    // Another version in the file, by which a program finds out before it sends anything.
    let text = fs::read_to_string(engine.dir().join("daos.json")).expect("read");
    let changed = text.replacen("\"protocol\": 1", "\"protocol\": 9", 1);
    assert_ne!(changed, text);
    let file = engine.scratch().join("client.json");
    fs::write(&file, changed).expect("written");
    output(crate::engine::program("daos").args(["pool", "query", "tank", "--agent-file"]).arg(&file), b"")
        .refused(&["client.json", "protocol 9", "this program 1", "same version"]);
    fs::write(&file, "{ not json").expect("written");
    output(crate::engine::program("daos").args(["pool", "query", "tank", "--agent-file"]).arg(&file), b"")
        .refused(&["client.json"]);

    // A network client may not stop the engine, whoever it says it is.
    let client = engine.client(FabricChoice::Network);
    let stop = daos_xstream::rpc::system::STOP;
    let refused = client.block_on(client.system_call(stop, &[], std::time::Duration::from_secs(60)));
    assert_eq!(refused.expect_err("refused").status(), Status::NOT_PERMITTED.0);
    client.block_on(client.pool_connect("tank")).expect("a development engine believes it");
    client.block_on(client.pool_connect("tank")).expect("and again");
    let believed = engine.log().matches("states who it is and is believed").count();
    assert_eq!(believed, 1, "said once: {}", engine.log());
    stored(&mut engine);
}

/// 1,100 connections over TCP that said nothing left an engine with the usual limit of 1,024 files no descriptor: it could
/// open no pool and let nobody in, for as long as they stayed.
pub fn silence() {
    let mut engine = Engine::start();
    store(&engine);
    let system = System::read(&engine.dir()).expect("the engine's file");
    let tcp = system.service_addresses().into_iter().find(|address| address.fabric() == "tcp").expect("tcp");
    let silent: Vec<_> = (0..1100).map(|_| TcpStream::connect(tcp.rest()).expect("connected")).collect();
    engine.dmg(&["pool", "create", "--size", "256MiB", "another"]).ok();
    for choice in [FabricChoice::Local, FabricChoice::Network] {
        let client = engine.client(choice);
        client.block_on(client.pool_connect("tank")).expect("served");
    }
    stored(&mut engine);
    // They end, although they do not hang up.
    for mut socket in silent {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(120))).expect("set");
        match std::io::Read::read(&mut socket, &mut [0]) {
            Ok(read) => assert_eq!(read, 0, "words for one that said none"),
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it was never ended"),
        }
    }
    let open = fs::read_dir(format!("/proc/{}/fd", engine.pid())).expect("the engine's descriptors").count();
    assert!(open < 1000, "{open} descriptors");
    assert!(engine.runs());
}

/// Places for clients were at least 32 per target, however many targets there were and however few descriptors.
pub fn descriptors() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("engine");
    let limited = "ulimit -n 100 && exec \"$@\"";
    let mut engine = std::process::Command::new("sh");
    engine.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_daos_engine")]);
    engine.args(["--dev", "--size", "1GiB", "--targets", "2", "--dir"]).arg(&dir);
    let refused = engine.output().expect("it ends");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    for part in ["100 open files", "2 targets", "raise the limit to 128", "ulimit -n"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!dir.exists(), "nothing was formatted");
}

/// `daos kv get` and `array read` did not notice that their output was lost, and what printed text panicked.
pub fn outputs() {
    let engine = Engine::start();
    store(&engine);
    engine.daos(&["kv", "put", "tank", "box", "7", "key", "value"]).ok();
    let commands: [(&str, &[&str]); 5] = [
        ("daos", &["kv", "get", "tank", "box", "7", "key"]),
        ("daos", &["-j", "kv", "get", "tank", "box", "7", "key"]),
        ("daos", &["pool", "query", "tank"]),
        ("dmg", &["pool", "list"]),
        ("dmg", &["completion", "bash"]),
    ];
    for (name, arguments) in commands {
        let mut command = crate::engine::program(name);
        if arguments[0] != "completion" {
            command.arg("--dir").arg(engine.dir());
        }
        command.args(arguments);
        let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let failed = command.stdout(full).output().expect("it ends");
        let error = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains("standard output") && error.contains("No space"), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        // A reader that has gone has seen what it wanted.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ended = command.stdout(writer).output().expect("it ends");
        let error = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*error), (Some(141), ""), "{arguments:?}");
    }
}
