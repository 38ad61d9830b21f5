use daos_types::{Checksum, KeyOrder, ObjectClass};
use proptest::prelude::*;

use super::*;

fn object(object_type: ObjectType) -> ObjectId {
    ObjectId::new(object_type, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (1, 2, 3))
}

fn update(object_type: ObjectType, dkey: &[u8], records: &[UpdateRecord<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    encode_update(&mut body, object(object_type), Epoch(5), flags::LAST_WINS, dkey, records, None);
    body
}

#[test]
fn a_document_update_comes_back_as_it_was_written() {
    let long = vec![7u8; 100_000];
    let records = [
        UpdateRecord::Value { key: b"mode", value: b"0644" },
        UpdateRecord::Extent { key: b"data", offset: 30_000, data: &long },
        UpdateRecord::Extent { key: b"data", offset: 500_000, data: b"x" },
        UpdateRecord::Punch { key: b"x:user" },
        UpdateRecord::Value { key: b"", value: b"" },
    ];
    let body = update(ObjectType::Document, b"name", &records);
    let request = ObjectRequest::parse(Procedure::Update, &body).expect("parses");
    assert_eq!((request.object(), request.epoch()), (object(ObjectType::Document), Epoch(5)));
    assert_eq!((request.dkey(), request.data_length()), (b"name".as_slice(), 100_005));
    assert!(request.has(flags::LAST_WINS) && !request.has(flags::DURABLE) && !request.is_bulk());
    let got: Vec<_> = request.records().collect();
    assert_eq!(got.len(), records.len());
    let keys: Vec<_> = got.iter().map(|record| record.key).collect();
    assert_eq!(keys, [b"mode".as_slice(), b"data", b"data", b"x:user", b""]);
    for (got, record) in got.iter().zip(&records) {
        assert_eq!(got.data, record.data());
    }
    assert_eq!((got[1].offset, got[1].length, got[1].data_offset), (30_000, 100_000, 4));
    // Chunks end at 32 KiB, 64 KiB, 96 KiB, 128 KiB.
    assert_eq!(got[1].checksums.len(), 4);
    assert_eq!(got[1].checksums[0].get(), crc32c::crc32c(&long[..2768]));
    assert_eq!(got[4].checksums[0].get(), crc32c::crc32c(b""));
    assert_eq!(got[3].kind, RecordKind::Punch);
}

#[test]
fn bulk_updates_leave_the_data_out_and_need_a_buffer_that_is_long_enough() {
    let records = [UpdateRecord::Extent { key: b"", offset: 0, data: &[1; 1000] }];
    let encode = |length| {
        let mut body = Vec::new();
        let remote = RemoteBuffer { key: 9, offset: 8, length };
        encode_update(&mut body, object(ObjectType::Array), Epoch(1), 0, b"", &records, Some(remote));
        body
    };
    let body = encode(1000);
    let request = ObjectRequest::parse(Procedure::Update, &body).expect("parses");
    assert_eq!(request.remote(), RemoteBuffer { key: 9, offset: 8, length: 1000 });
    let record = request.records().next().expect("a record");
    assert_eq!((record.data, record.length, record.checksums.len()), (b"".as_slice(), 1000, 1));
    let body = encode(999);
    assert!(ObjectRequest::parse(Procedure::Update, &body).is_err());
}

#[test]
fn what_does_not_belong_together_is_refused() {
    use UpdateRecord::{Extent, Punch, PunchExtent, Value};
    let value = Value { key: b"k", value: b"v" };
    let extent = Extent { key: b"", offset: 0, data: b"v" };
    let refused = |object_type, dkey: &[u8], record| {
        ObjectRequest::parse(Procedure::Update, &update(object_type, dkey, &[record])).is_err()
    };
    assert!(!refused(ObjectType::KeyValue, b"", value));
    assert!(!refused(ObjectType::Array, b"", extent));
    assert!(refused(ObjectType::Array, b"", value));
    assert!(refused(ObjectType::KeyValue, b"", extent));
    assert!(refused(ObjectType::KeyValue, b"d", value));
    assert!(refused(ObjectType::Array, b"", Extent { key: b"k", offset: 0, data: b"v" }));
    assert!(refused(ObjectType::Array, b"", Extent { key: b"", offset: 0, data: b"" }));
    assert!(refused(ObjectType::Array, b"", Extent { key: b"", offset: ARRAY_BYTES_MAX, data: b"v" }));
    assert!(refused(ObjectType::Array, b"", Extent { key: b"", offset: u64::MAX, data: b"v" }));
    assert!(refused(ObjectType::Array, b"", PunchExtent { key: b"", offset: 0, length: 1 }));
    assert!(refused(ObjectType::KeyValue, b"", Value { key: &[0; KEY_BYTES_MAX + 1], value: b"" }));

    let punch = |flags, dkey: &[u8], records: &[UpdateRecord<'_>]| {
        let mut body = Vec::new();
        encode_punch(&mut body, object(ObjectType::Document), Epoch(1), flags, dkey, records);
        ObjectRequest::parse(Procedure::Punch, &body).map(drop)
    };
    assert_eq!(punch(flags::OBJECT, b"", &[]), Ok(()));
    assert_eq!(punch(flags::DKEY, b"d", &[]), Ok(()));
    assert_eq!(punch(0, b"d", &[Punch { key: b"k" }]), Ok(()));
    assert_eq!(punch(0, b"d", &[PunchExtent { key: b"k", offset: 3, length: 4 }]), Ok(()));
    assert!(punch(0, b"d", &[]).is_err());
    assert!(punch(flags::DKEY | flags::OBJECT, b"d", &[]).is_err());
    assert!(punch(flags::DKEY, b"d", &[Punch { key: b"k" }]).is_err());
    assert!(punch(0, b"d", &[value]).is_err());
    assert!(punch(flags::BULK, b"d", &[Punch { key: b"k" }]).is_err());
    for epoch in [0, u64::MAX - 1, u64::MAX] {
        let mut body = Vec::new();
        encode_update(&mut body, object(ObjectType::KeyValue), Epoch(epoch), 0, b"", &[value], None);
        assert!(ObjectRequest::parse(Procedure::Update, &body).is_err(), "epoch {epoch} was taken");
    }
}

#[test]
fn every_truncation_and_extension_of_an_update_is_refused() {
    let records = [UpdateRecord::Value { key: b"key", value: b"value" }];
    let body = update(ObjectType::KeyValue, b"", &records);
    for length in 0..body.len() {
        assert!(
            ObjectRequest::parse(Procedure::Update, &body[..length]).is_err(),
            "{length} bytes were taken"
        );
    }
    let longer = [body.as_slice(), b"x"].concat();
    assert!(ObjectRequest::parse(Procedure::Update, &longer).is_err());
}

#[test]
fn a_fetch_reply_comes_back_as_it_was_written() {
    let records = [
        FetchedRecord::new(Outcome::Value { epoch: Epoch(3), checksum: Checksum(9), length: 4 }, 0),
        FetchedRecord::new(Outcome::Miss, 0),
        FetchedRecord::new(Outcome::Extent { covered: 10 }, 3),
        FetchedRecord::new(Outcome::Punched(Epoch(2)), 0),
        FetchedRecord::new(Outcome::TooLong { length: 1 << 40 }, 0),
    ];
    let pieces = [
        FetchedPiece::new(PieceKind::Data(Checksum(1)), Epoch(1), 3),
        FetchedPiece::new(PieceKind::Miss, Epoch::ZERO, 5),
        FetchedPiece::new(PieceKind::Data(Checksum(2)), Epoch(2), 2),
    ];
    let header = FetchHeader::new(0, 5, 3, 9);
    let body = [header.as_bytes(), records.as_bytes(), pieces.as_bytes(), b"valuedata"].concat();
    let reply = FetchReply::parse(&body).expect("parses");
    let got: Vec<_> = reply.records().collect();
    assert_eq!((got[0].data, got[2].data, got[2].pieces.len()), (b"valu".as_slice(), b"edata".as_slice(), 3));
    assert_eq!(
        (got[3].outcome, got[4].outcome),
        (Outcome::Punched(Epoch(2)), Outcome::TooLong { length: 1 << 40 })
    );
    for length in 0..body.len() {
        assert!(FetchReply::parse(&body[..length]).is_err());
    }
    let short = FetchedPiece::new(PieceKind::Miss, Epoch::ZERO, 4);
    let bad =
        [header.as_bytes(), records.as_bytes(), &pieces.as_bytes()[..24], short.as_bytes(), b""].concat();
    assert!(FetchReply::parse(&bad).is_err());
}

#[test]
fn enumerations_come_back_as_they_were_written() {
    let request = Enumerate {
        object: Some(object(ObjectType::Document)),
        epoch: Epoch(4),
        kind: EnumerateKind::Akeys,
        entries_max: 10,
        dkey: b"dkey",
        akey: b"",
        anchor: b"anchor",
    };
    let mut body = Vec::new();
    encode_enumerate(&mut body, &request);
    let parsed = Enumerate::parse(&body).expect("parses");
    assert_eq!((parsed.dkey, parsed.anchor, parsed.kind), (request.dkey, request.anchor, request.kind));
    assert!(Enumerate::parse(&body[..body.len() - 1]).is_err());

    let mut entries = Vec::new();
    let extent = Enumerated::Extent { low: 1, high: 5, epoch: Epoch(2), punched: true };
    extent.encode(&mut entries);
    assert_eq!(entries.len(), extent.encoded_bytes());
    let body = [EnumerateReply::new(1, 2, false).as_bytes(), b"an", &entries].concat();
    let mut got = Vec::new();
    let next = parse_enumerated(EnumerateKind::Extents, &body, |entry| got.push(entry));
    assert_eq!((next, got), (Ok(Some(b"an".as_slice())), vec![extent]));
    let mut entries = Vec::new();
    Enumerated::Object(object(ObjectType::Array)).encode(&mut entries);
    let body = [EnumerateReply::new(1, 0, true).as_bytes(), &entries].concat();
    let mut got = Vec::new();
    let next = parse_enumerated(EnumerateKind::Objects, &body, |entry| got.push(entry));
    assert_eq!((next, got), (Ok(None), vec![Enumerated::Object(object(ObjectType::Array))]));
}

/// Everything that a request offers is looked at, so that a length that was not checked shows as a panic.
fn walk(body: &[u8]) {
    for procedure in [Procedure::Update, Procedure::Fetch, Procedure::Punch, Procedure::Query] {
        if let Ok(request) = ObjectRequest::parse(procedure, body) {
            let mut data = 0;
            for record in request.records() {
                data += record.data.len() as u64;
            }
            assert_eq!(request.records().count(), request.record_count());
            assert!(request.is_bulk() || data == request.data_length());
        }
    }
    if let Ok(reply) = FetchReply::parse(body) {
        assert_eq!(reply.records().count(), reply.record_count());
    }
    let _ = Enumerate::parse(body);
    for kind in [EnumerateKind::Keys, EnumerateKind::Objects, EnumerateKind::Extents] {
        let _ = parse_enumerated(kind, body, drop);
    }
}

proptest! {
    #[test]
    fn bytes_from_outside_never_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        walk(&body);
    }

    /// A valid body with some bytes changed gets further than noise.
    #[test]
    fn damaged_requests_never_panic(changes in proptest::collection::vec((0usize..260, any::<u8>()), 1..6)) {
        let records = [
            UpdateRecord::Value { key: b"mode", value: b"0644" },
            UpdateRecord::Extent { key: b"data", offset: 30_000, data: &[3; 40] },
            UpdateRecord::Extent { key: b"data", offset: 500_000, data: b"x" },
            UpdateRecord::Punch { key: b"x" },
        ];
        let mut body = update(ObjectType::Document, b"name", &records);
        for (position, byte) in changes {
            if let Some(place) = body.get_mut(position) {
                *place = byte;
            }
        }
        walk(&body);
    }
}
