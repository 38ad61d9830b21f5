//! Objects of one target over RPC, in the simulator: every type, inline and by bulk.
#![cfg(feature = "service")]

mod common;

use std::time::Duration;

use common::{Client, Cluster, array, at, document, get, kv};
use daos_dsm::{
    access::Identity,
    client::{Caller, ClientConfig, ContainerHandle, DsmError, ObjectIo, OpenOptions, PoolHandle},
    rpc::object::{EnumerateKind, Enumerated, Outcome, PieceKind, ReadRecord, UpdateRecord, flags},
};
use daos_types::{Epoch, ObjectId};
use daos_xstream::{Clock, Env, IoBuffer, rpc::Status};
use daos_xstream_sim::{Config, Loss, SimEnv};

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

async fn open(client: &Client) -> (ContainerHandle<SimEnv>, ObjectIo<SimEnv>) {
    client.make().await;
    let handle = client.open(OpenOptions::NO_TRANSACTION).await;
    let io = handle.objects();
    (handle, io)
}

async fn keys(
    io: &ObjectIo<SimEnv>,
    object: ObjectId,
    kind: EnumerateKind,
    dkey: &[u8],
    page: u32,
) -> Vec<Vec<u8>> {
    let (mut found, mut anchor) = (Vec::new(), Vec::new());
    loop {
        let visit = |entry: Enumerated<'_>| match entry {
            Enumerated::Key(key) => found.push(key.to_vec()),
            Enumerated::Object(object) => found.push(object.to_string().into_bytes()),
            Enumerated::Extent { low, high, .. } => found.push(format!("{low}..{high}").into_bytes()),
        };
        let next = io
            .enumerate(at(0, object), Epoch::MAX, kind, (dkey, b""), &anchor, page, visit)
            .await
            .expect("enumerated");
        match next {
            Some(next) => anchor = next,
            None => return found,
        }
    }
}

#[test]
fn values_of_every_size_come_back() {
    let cluster = Cluster::new(1);
    cluster.run(&cluster.client(), |client| async move {
        let (_handle, io) = open(&client).await;
        // The simulated network's messages are 16 KiB: the larger ones go by bulk.
        let sizes = [0usize, 1, 64, 4095, 4096, 10_000, 16_000, 16_384, 40_000, 500_000, 2_000_000];
        for (index, size) in sizes.into_iter().enumerate() {
            let (key, value) = (format!("k{index}"), pattern(size, index as u8));
            let records = [UpdateRecord::Value { key: key.as_bytes(), value: &value }];
            io.update(at(0, kv(1)), Epoch(1), 0, b"", &records).await.expect("written");
        }
        for (index, size) in sizes.into_iter().enumerate() {
            let key = format!("k{index}");
            let records = [ReadRecord::Value { key: key.as_bytes(), room: 0 }];
            let fetched = io.fetch(at(0, kv(1)), Epoch(1), b"", &records).await.expect("fetched");
            let record = fetched.records().next().expect("a record");
            assert_eq!(record.value, pattern(size, index as u8), "{size} bytes");
        }
        // All of them in one request, with one that is not there.
        let names: Vec<_> = (0..sizes.len() + 1).map(|index| format!("k{index}")).collect();
        let records: Vec<_> =
            names.iter().map(|key| ReadRecord::Value { key: key.as_bytes(), room: 0 }).collect();
        let fetched = io.fetch(at(0, kv(1)), Epoch(1), b"", &records).await.expect("fetched");
        let got: Vec<_> = fetched.records().collect();
        for (index, size) in sizes.into_iter().enumerate() {
            assert_eq!(got[index].value, pattern(size, index as u8), "{size} bytes");
        }
        assert_eq!(got[sizes.len()].outcome, Outcome::Miss);
    });
}

#[test]
fn arrays_are_read_as_data_holes_and_punches() {
    let cluster = Cluster::new(2);
    cluster.run(&cluster.client(), |client| async move {
        let (handle, io) = open(&client).await;
        let big = pattern(300_000, 3);
        let (_, written) =
            io.write(at(1, array(1)), Epoch(1), 0, None, 100_000, IoBuffer::copy_of(&big)).await;
        written.expect("written by bulk");
        let (_, written) =
            io.write(at(1, array(1)), Epoch(1), flags::DURABLE, None, 10, IoBuffer::copy_of(b"small")).await;
        written.expect("written inline");
        handle.flush(Epoch(1)).await.expect("flushed");
        handle.commit(Epoch(1)).await.expect("committed");
        let hole = [UpdateRecord::PunchExtent { key: b"", offset: 150_000, length: 1000 }];
        io.punch(at(1, array(1)), Epoch(2), 0, b"", &hole).await.expect("punched");

        let mut expected = vec![0; 450_000];
        expected[10..15].copy_from_slice(b"small");
        expected[100_000..400_000].copy_from_slice(&big);
        let dirty = IoBuffer::copy_of(&vec![0xee; 450_000]);
        let (buffer, pieces) = io.read(at(1, array(1)), Epoch(1), None, 0, dirty).await;
        let pieces = pieces.expect("read");
        assert!(buffer.as_slice() == expected);
        let mut end = 0;
        for piece in &pieces {
            assert_eq!(piece.range.start, end, "pieces cover the range in order");
            end = piece.range.end;
        }
        assert_eq!(end, 450_000);
        expected[150_000..151_000].fill(0);
        let (buffer, pieces) = io.read(at(1, array(1)), Epoch(2), None, 0, IoBuffer::zeroed(450_000)).await;
        assert!(buffer.as_slice() == expected);
        let punched: Vec<_> = pieces
            .expect("read")
            .into_iter()
            .filter(|piece| piece.kind == PieceKind::Punched)
            .map(|piece| (piece.range.start, piece.range.end))
            .collect();
        assert_eq!(punched, [(150_000, 151_000)]);
        // A short read in the middle, inline.
        let (buffer, _) = io.read(at(1, array(1)), Epoch(2), None, 149_990, IoBuffer::zeroed(20)).await;
        assert_eq!(buffer.as_slice(), &expected[149_990..150_010]);
        assert_eq!(io.query(at(1, array(1)), Epoch(2), None).await.expect("queried").end(), 400_000);
        assert!(!io.query(at(0, array(1)), Epoch(2), None).await.expect("queried").exists());
    });
}

#[test]
fn thousands_of_small_extents_come_back_although_no_reply_can_name_them_all() {
    let cluster = Cluster::new(3);
    cluster.run(&cluster.client(), |client| async move {
        let (_handle, io) = open(&client).await;
        for first in (0..4000u64).step_by(100) {
            let bytes: Vec<_> = (first..first + 100).map(|index| [index as u8; 5]).collect();
            let records: Vec<_> = (first..)
                .zip(&bytes)
                .map(|(index, data)| UpdateRecord::Extent { key: b"", offset: index * 10, data })
                .collect();
            io.update(at(0, array(1)), Epoch(1), 0, b"", &records).await.expect("written");
        }
        let (buffer, pieces) = io.read(at(0, array(1)), Epoch(1), None, 0, IoBuffer::zeroed(40_000)).await;
        assert_eq!(pieces.expect("read").len(), 8000);
        for (index, part) in buffer.as_slice().chunks(10).enumerate() {
            assert_eq!(part, [[index as u8; 5], [0; 5]].concat());
        }
    });
}

#[test]
fn a_document_record_changes_in_one_step() {
    let cluster = Cluster::new(4);
    cluster.run(&cluster.client(), |client| async move {
        let (_handle, io) = open(&client).await;
        let block = pattern(30_000, 9);
        let records = [
            UpdateRecord::Value { key: b"mode", value: b"0644" },
            UpdateRecord::Extent { key: b"data", offset: 0, data: &block },
            UpdateRecord::Extent { key: b"data", offset: 50_000, data: b"tail" },
            UpdateRecord::Value { key: b"x:gone", value: b"soon" },
        ];
        io.update(at(0, document(1)), Epoch(1), 0, b"file", &records).await.expect("written");
        let change =
            [UpdateRecord::Punch { key: b"x:gone" }, UpdateRecord::Value { key: b"mode", value: b"0600" }];
        io.update(at(0, document(1)), Epoch(2), flags::LAST_WINS, b"file", &change).await.expect("changed");
        let wanted = [
            ReadRecord::Value { key: b"mode", room: 0 },
            ReadRecord::Extent { key: b"data", offset: 0, length: 60_000 },
            ReadRecord::Value { key: b"x:gone", room: 0 },
        ];
        for (epoch, mode) in [(1, b"0644"), (2, b"0600")] {
            let fetched =
                io.fetch(at(0, document(1)), Epoch(epoch), b"file", &wanted).await.expect("fetched");
            let got: Vec<_> = fetched.records().collect();
            assert_eq!(got[0].value, mode);
            assert_eq!(got[1].outcome, Outcome::Extent { covered: 60_000 });
            let (mut bytes, mut at) = (vec![0; 60_000], 0);
            for (piece, data) in &got[1].pieces {
                assert_eq!(piece.range.start, at);
                at = piece.range.end;
                if !data.is_empty() {
                    bytes[piece.range.start as usize..piece.range.end as usize].copy_from_slice(data);
                }
            }
            assert!(bytes[..30_000] == block && bytes[50_000..50_004] == *b"tail");
            assert_eq!(got[2].value.is_empty(), epoch == 2);
            if epoch == 2 {
                assert_eq!(got[2].outcome, Outcome::Punched(Epoch(2)));
            }
        }
        let document_keys = Some((b"file".as_slice(), b"data".as_slice()));
        let query = io.query(at(0, document(1)), Epoch(2), document_keys).await.expect("queried");
        assert_eq!((query.exists(), query.end()), (true, 50_004));
        assert_eq!(
            keys(&io, document(1), EnumerateKind::Akeys, b"file", 1).await,
            [b"data".to_vec(), b"mode".to_vec()]
        );
        io.punch(at(0, document(1)), Epoch(3), flags::DKEY, b"file", &[]).await.expect("punched");
        assert!(!io.query(at(0, document(1)), Epoch(3), None).await.expect("queried").exists());
        assert!(io.query(at(0, document(1)), Epoch(2), None).await.expect("queried").exists());
    });
}

#[test]
fn listings_come_in_pages_complete_and_in_order() {
    let cluster = Cluster::new(5);
    cluster.run(&cluster.client(), |client| async move {
        let (_handle, io) = open(&client).await;
        let mut expected = Vec::new();
        for index in 0..300 {
            // Some keys are so long that few of them fit one reply.
            let key = format!("{index:04}{}", "x".repeat(if index % 10 == 0 { 5000 } else { 20 }));
            let records = [UpdateRecord::Value { key: key.as_bytes(), value: b"v" }];
            io.update(at(0, kv(1)), Epoch(1), 0, b"", &records).await.expect("written");
            expected.push(key.into_bytes());
        }
        for page in [1, 7, 100_000] {
            assert!(keys(&io, kv(1), EnumerateKind::Keys, b"", page).await == expected, "pages of {page}");
        }
        for number in 2..50 {
            let records = [UpdateRecord::Value { key: b"k", value: b"v" }];
            io.update(at(0, kv(number)), Epoch(1), 0, b"", &records).await.expect("written");
        }
        assert_eq!(keys(&io, kv(1), EnumerateKind::Objects, b"", 10).await.len(), 49);
    });
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let cluster = Cluster::new(6);
    cluster.run(&cluster.client(), |client| async move {
        let (_handle, io) = open(&client).await;
        let status = |result: Result<(), DsmError>| result.expect_err("refused").status();
        let value = [UpdateRecord::Value { key: b"k", value: b"v" }];
        let other = [UpdateRecord::Value { key: b"k", value: b"w" }];
        io.update(at(0, kv(1)), Epoch(1), 0, b"", &value).await.expect("written");
        assert_eq!(status(io.update(at(0, kv(1)), Epoch(1), 0, b"", &other).await), Status::EPOCH_CONFLICT);
        io.update(at(0, kv(1)), Epoch(1), flags::LAST_WINS, b"", &other).await.expect("the last one wins");
        assert_eq!(status(io.update(at(0, array(1)), Epoch(1), 0, b"", &value).await), Status::INVALID);
        assert_eq!(status(io.update(at(9, kv(1)), Epoch(1), 0, b"", &value).await), Status::INVALID);
        let long = vec![0; 17 << 20];
        let too_long = [UpdateRecord::Value { key: b"k", value: &long }];
        assert_eq!(status(io.update(at(0, kv(1)), Epoch(1), 0, b"", &too_long).await), Status::INVALID);
        let long_key = vec![0; 70_000];
        let too_long = [UpdateRecord::Value { key: &long_key, value: b"" }];
        assert_eq!(status(io.update(at(0, kv(1)), Epoch(1), 0, b"", &too_long).await), Status::INVALID);
    });
}

/// Bulk data over connections that break, with a power failure after the flush: every byte is there.
#[test]
fn flushed_bulk_data_survives() {
    for seed in 0..4 {
        let cluster = Cluster::with(seed, Config { connection_loss_ppm: 5_000, ..Config::default() });
        let client = cluster.client();
        cluster.run(&client, |client| async move {
            let (handle, io) = open(&client).await;
            for target in 0..2 {
                let data = IoBuffer::copy_of(&pattern(1 << 20, target as u8));
                io.write(at(target, array(1)), Epoch(1), 0, None, 7, data).await.1.expect("written");
            }
            handle.flush(Epoch(1)).await.expect("flushed");
            handle.commit(Epoch(1)).await.expect("committed");
        });
        cluster.restart(Loss::Power);
        cluster.run(&client, |client| async move {
            let handle = client.open(OpenOptions::READ).await;
            for target in 0..2 {
                let room = IoBuffer::zeroed(1 << 20);
                let (buffer, read) =
                    handle.objects().read(at(target, array(1)), Epoch(1), None, 7, room).await;
                read.expect("read");
                assert!(buffer.as_slice() == pattern(1 << 20, target as u8));
            }
        });
    }
}

/// A listing went past keys that were removed for as long as there were any, and held the core of its target for that long: a
/// request may now look at so many, and the client goes on from there.
#[test]
fn a_listing_of_removed_keys_is_done_in_pieces_and_complete() {
    const KEYS: u32 = 12_000;
    let cluster = Cluster::new(9);
    cluster.run(&cluster.client(), |client| async move {
        let (handle, io) = open(&client).await;
        let epoch = handle.held();
        let names: Vec<[u8; 4]> = (0..KEYS).map(u32::to_be_bytes).collect();
        for some in names.chunks(64) {
            let records: Vec<_> = some.iter().map(|key| UpdateRecord::Value { key, value: b"v" }).collect();
            io.update(at(0, kv(1)), epoch, 0, b"", &records).await.expect("written");
        }
        let later = epoch.next();
        for some in names[..names.len() - 1].chunks(64) {
            let records: Vec<_> = some.iter().map(|key| UpdateRecord::Punch { key }).collect();
            io.punch(at(0, kv(1)), later, 0, b"", &records).await.expect("removed");
        }
        let (mut found, mut anchor, mut requests) = (Vec::new(), Some(Vec::new()), 0);
        while let Some(from) = anchor {
            let visit = |entry: Enumerated<'_>| {
                if let Enumerated::Key(key) = entry {
                    found.push(key.to_vec());
                }
            };
            let page = io.enumerate(at(0, kv(1)), later, EnumerateKind::Keys, (b"", b""), &from, 100, visit);
            anchor = page.await.expect("listed");
            requests += 1;
        }
        assert_eq!(found, [names[names.len() - 1].to_vec()]);
        assert!(requests > 4, "{requests} requests for {KEYS} keys");
        assert!(io.query(at(0, kv(1)), later, None).await.expect("asked").exists());
        let last = [UpdateRecord::Punch { key: &names[names.len() - 1] }];
        io.punch(at(0, kv(1)), later, 0, b"", &last).await.expect("removed");
        assert!(!io.query(at(0, kv(1)), later, None).await.expect("asked").exists());
        assert!(io.query(at(0, kv(1)), epoch, None).await.expect("asked").exists());
    });
}

/// The same, where the removed keys are all below one entry of the list: the service goes on below it, slice by slice, until it can
/// tell.
#[test]
fn a_listing_passes_by_an_object_of_removed_keys() {
    const KEYS: u32 = 12_000;
    let cluster = Cluster::new(9);
    cluster.run(&cluster.client(), |client| async move {
        let (handle, io) = open(&client).await;
        let epoch = handle.held();
        let names: Vec<[u8; 4]> = (0..KEYS).map(u32::to_be_bytes).collect();
        for some in names.chunks(64) {
            let records: Vec<_> = some.iter().map(|key| UpdateRecord::Value { key, value: b"v" }).collect();
            io.update(at(0, document(2)), epoch, 0, b"dkey", &records).await.expect("written");
        }
        for other in [1, 3] {
            let value = [UpdateRecord::Value { key: b"k", value: b"v" }];
            io.update(at(0, document(other)), epoch, 0, b"dkey", &value).await.expect("written");
            io.update(at(0, document(2)), epoch, 0, &[other as u8], &value).await.expect("written");
        }
        let later = epoch.next();
        io.punch(at(0, document(2)), later, flags::DKEY, b"dkey", &[]).await.expect("removed");
        let page = keys(&io, document(1), EnumerateKind::Objects, b"", 10).await;
        assert_eq!(page.len(), 3, "other dkeys are there");
        let mut dkeys = keys(&io, document(2), EnumerateKind::Dkeys, b"", 10).await;
        dkeys.sort();
        assert_eq!(dkeys, [vec![1], vec![3]]);
        for dkey in [[1], [3]] {
            io.punch(at(0, document(2)), later, flags::DKEY, &dkey, &[]).await.expect("removed");
        }
        for entries in [1, 10] {
            let page = keys(&io, document(1), EnumerateKind::Objects, b"", entries).await;
            let expected = [document(1), document(3)].map(|object| object.to_string().into_bytes());
            assert_eq!(page, expected);
            assert_eq!(keys(&io, document(2), EnumerateKind::Dkeys, b"", entries).await.len(), 0);
        }
        assert!(!io.query(at(0, document(2)), later, None).await.expect("asked").exists());
        assert!(io.query(at(0, document(2)), epoch, None).await.expect("asked").exists());
    });
}

/// The end of an array below very many extents that are removed one by one: the service looks for it slice by slice.
#[test]
fn the_end_of_an_array_is_below_what_was_removed() {
    const EXTENTS: u64 = 6000;
    let cluster = Cluster::new(9);
    cluster.run(&cluster.client(), |client| async move {
        let (handle, io) = open(&client).await;
        let epoch = handle.held();
        let later = epoch.next();
        let offsets: Vec<u64> = (0..EXTENTS).map(|number| number * 64).collect();
        for (object, dkey, key) in
            [(array(1), b"".as_slice(), b"".as_slice()), (document(1), b"dkey", b"akey")]
        {
            let keys = (!key.is_empty()).then_some((dkey, key));
            for some in offsets.chunks(50) {
                let extent = |&offset: &u64| UpdateRecord::Extent { key, offset, data: b"bytes" };
                let records: Vec<_> = some.iter().map(extent).collect();
                io.update(at(0, object), epoch, 0, dkey, &records).await.expect("written");
            }
            for some in offsets[1..].chunks(50) {
                let hole = |&offset: &u64| UpdateRecord::PunchExtent { key, offset, length: 64 };
                let records: Vec<_> = some.iter().map(hole).collect();
                io.punch(at(0, object), later, 0, dkey, &records).await.expect("removed");
            }
            let query = io.query(at(0, object), later, keys).await.expect("asked");
            assert_eq!((query.exists(), query.end()), (true, 5), "{object}");
            let last = [UpdateRecord::PunchExtent { key, offset: 0, length: 64 }];
            io.punch(at(0, object), later, 0, dkey, &last).await.expect("removed");
            let query = io.query(at(0, object), later, keys).await.expect("asked");
            assert_eq!((query.exists(), query.end()), (false, 0), "{object}");
            let query = io.query(at(0, object), epoch, keys).await.expect("asked");
            assert_eq!((query.exists(), query.end()), (true, (EXTENTS - 1) * 64 + 5), "{object}");
        }
    });
}

async fn overwrite(io: &ObjectIo<SimEnv>, epoch: u64, key: &str, value: &[u8]) -> Result<(), DsmError> {
    let record = [UpdateRecord::Value { key: key.as_bytes(), value }];
    io.update(at(0, kv(1)), Epoch(epoch), flags::LAST_WINS, b"", &record).await
}

/// A caller gave an attempt up that waited for room in the log, and wrote something newer in the same place. The old attempt
/// was made all the same, and when it came to it second, the newer value was gone although it had been acknowledged.
#[test]
fn an_attempt_that_was_given_up_does_not_come_after_its_successor() {
    let mut given_up = 0;
    for seed in 0..12 {
        // The log is full until a checkpoint is through, and that takes its time.
        let slow = Config {
            flush_latency_ns: (20_000_000, 60_000_000),
            write_latency_ns: (20_000_000, 60_000_000),
            ..Config::default()
        };
        let cluster = Cluster::with(seed, slow);
        given_up += cluster.run(&cluster.client(), move |client| async move {
            client.make().await;
            let handle = client.open(OpenOptions::NO_TRANSACTION).await;
            let (io, epoch) = (handle.objects(), handle.held().0);
            let impatient = ClientConfig {
                call_timeout: Duration::from_millis(30),
                ..ClientConfig::new(Identity { uid: 1000, gid: 1000 })
            };
            let caller = Caller::new(client.caller.endpoint().clone(), impatient);
            let pool =
                PoolHandle::global_to_local(caller, &handle.pool().local_to_global()).expect("the pool");
            let hasty =
                ContainerHandle::global_to_local(pool, &handle.local_to_global()).expect("the handle");
            let hasty = hasty.objects();
            let mut given_up = 0;
            for number in 0..6000u32 {
                let mut value = vec![0; 3000];
                value[..4].copy_from_slice(&number.to_le_bytes());
                let key = format!("key{}", number % 40);
                if overwrite(&hasty, epoch, &key, &value).await.is_ok() {
                    continue;
                }
                given_up += 1;
                overwrite(&io, epoch, &key, b"newer").await.expect("written");
                let clock = client.caller.env().clock();
                clock.sleep_until(clock.now() + Duration::from_secs(2)).await;
                let found = get(&io, 0, epoch, &key).await;
                assert!(found.as_deref() == Some(b"newer"), "seed {seed}: what was given up came second");
                if given_up == 10 {
                    break;
                }
            }
            given_up
        });
    }
    assert!(given_up > 10, "the log was full: {given_up}");
}
