//! Several handles of one container.

mod support;

use daos_types::{Checksum, Cookie, Epoch, EpochRange, ObjectId, ObjectType};
use daos_vos::{Conflict, Container, Error, KeyUpdate, Update, Value};
use daos_xstream_sim::SimEnv;
use support::{
    arrays::{self, writer},
    pool::{self, CONTAINER, is_there},
};

const COOKIE: Cookie = Cookie(9);

fn object() -> ObjectId {
    arrays::object(ObjectType::KeyValue, 1)
}

fn put(container: &Container<SimEnv>, key: &[u8]) -> Result<(), Error> {
    let value = Value::Inline(b"value", Checksum(crc32c::crc32c(b"value")));
    let update = Update::KeyValue(&[KeyUpdate { key, value: Some(value) }]);
    container.update(object(), Epoch(2), writer(COOKIE.0), Conflict::LastWins, &update).map(|_| ())
}

/// Each handle once remembered the group of its last change. A discard through another handle removed the group, and the
/// next change of the first noted itself in memory that was free or somebody else's: the next discard missed it, and what
/// lay there was overwritten. Found by the cluster simulator, where targets write through one handle and discard
/// through another.
#[test]
fn a_discard_through_one_handle_is_seen_by_the_others() {
    pool::run(|env| async move {
        let (pool, writer) = pool::create(&env, pool::wal(4 << 20, 1 << 20, 0)).await;
        for key in [b"one", b"two"] {
            put(&writer, key).expect("written");
            assert!(is_there(&writer, object(), key));
            let other = pool.container_open(CONTAINER).expect("another handle");
            let _ = other.discard(COOKIE, EpochRange::ALL).await.expect("discarded");
            assert!(!is_there(&writer, object(), key), "the discard missed a change");
        }
    });
}
