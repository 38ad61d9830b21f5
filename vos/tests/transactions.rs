//! Several changes in one transaction: all of them, or none.

mod support;

use daos_types::{Checksum, Cookie, Epoch, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    AkeyData, AkeyUpdate, Checksums, Conflict, Error, ExtentData, ExtentUpdate, KeyUpdate, Update, Value,
};
use support::{
    arrays,
    pool::{self, is_there},
};

const EPOCH: Epoch = Epoch(2);
const WRITER: Writer = Writer { cookie: Cookie(9), map_version: 1, kind: WriterKind::Application };

fn object(kind: ObjectType) -> ObjectId {
    arrays::object(kind, 1)
}

fn value(bytes: &[u8], checksum: u32) -> Value<'_> {
    Value::Inline(bytes, Checksum(checksum))
}

/// Bytes are compared with their checksums after a place for them was made, so a refused change has changed something
/// that must be taken back even if whoever batches changes goes on after an error.
#[test]
fn a_change_that_fails_takes_the_others_with_it_even_if_its_error_is_dropped() {
    pool::run(|env| async move {
        let (pool, container) = pool::create(&env, pool::heap(4 << 20, 0)).await;
        let good = [KeyUpdate { key: b"good", value: Some(value(b"value", crc32c::crc32c(b"value"))) }];
        let bad_value = value(b"value", 1);
        let bad_key = [KeyUpdate { key: b"bad", value: Some(bad_value) }];
        let bad_akey = [AkeyUpdate { akey: b"a", data: AkeyData::Single(Some(bad_value)) }];
        let checksums = [Checksum(1)];
        let bad_data = ExtentData::Inline(&[1; 64], Checksums { chunk_bytes: 4096, chunks: &checksums });
        let bad_extent = [ExtentUpdate { offset: 0, data: bad_data }];
        let free = pool.usage().expect("usage").arena_bytes_free;
        for (kind, bad) in [
            (ObjectType::KeyValue, Update::KeyValue(&bad_key)),
            (ObjectType::Document, Update::Document { dkey: b"d", akeys: &bad_akey }),
            (ObjectType::Array, Update::Array(&bad_extent)),
        ] {
            let alone = container.update(object(kind), EPOCH, WRITER, Conflict::LastWins, &bad);
            assert!(matches!(alone, Err(Error::BadChecksum { .. })), "{kind:?}: {alone:?}");
            let done = container.transaction(|batch| {
                let good = Update::KeyValue(&good);
                batch.update(object(ObjectType::KeyValue), EPOCH, WRITER, Conflict::LastWins, &good)?;
                let refused = batch.update(object(kind), EPOCH, WRITER, Conflict::LastWins, &bad);
                assert!(matches!(refused, Err(Error::BadChecksum { .. })), "{kind:?}: {refused:?}");
                Ok::<(), Error>(())
            });
            assert!(matches!(done, Err(Error::Invalid(_))), "{kind:?}: {done:?}");
            assert!(
                !is_there(&container, object(ObjectType::KeyValue), b"good"),
                "{kind:?}: half of a transaction"
            );
            assert_eq!(pool.usage().expect("usage").arena_bytes_free, free, "{kind:?}: something was left");
        }
        let _ = container
            .update(object(ObjectType::KeyValue), EPOCH, WRITER, Conflict::LastWins, &Update::KeyValue(&good))
            .expect("a good one alone");
        assert!(is_there(&container, object(ObjectType::KeyValue), b"good"));
    });
}
