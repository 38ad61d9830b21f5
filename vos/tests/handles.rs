//! Several handles of one container.

use daos_types::{
    Checksum, Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind,
};
use daos_vos::{
    Conflict, Container, Error, FetchRequest, Fetched, KeyUpdate, MediaKind, Pool, PoolOptions, Update, Value,
};
use daos_xstream_sim::{Config, SimEnv, Simulation};
use uuid::Uuid;

const CONTAINER: Uuid = Uuid::from_u128(7);
const COOKIE: Cookie = Cookie(9);

fn object() -> ObjectId {
    ObjectId::new(ObjectType::KeyValue, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, 1))
}

fn put(container: &Container<SimEnv>, key: &[u8]) -> Result<(), Error> {
    let writer = Writer { cookie: COOKIE, map_version: 1, kind: WriterKind::Application };
    let value = Value::Inline(b"value", Checksum(crc32c::crc32c(b"value")));
    let update = Update::KeyValue(&[KeyUpdate { key, value: Some(value) }]);
    container.update(object(), Epoch(2), writer, Conflict::LastWins, &update).map(|_| ())
}

fn is_there(container: &Container<SimEnv>, key: &[u8]) -> bool {
    let request = FetchRequest { object: object(), dkey: key, akey: None };
    container.fetch(&request, Epoch::MAX, |found| matches!(found, Fetched::Value(_))).expect("fetched")
}

/// Each handle once remembered the group of its last change. A discard through another handle removed the group, and the
/// next change of the first noted itself in memory that was free or somebody else's: the next discard missed it, and what
/// lay there was overwritten. Found by the cluster simulator, where targets write through one handle and discard
/// through another.
#[test]
fn a_discard_through_one_handle_is_seen_by_the_others() {
    let sim = Simulation::new(1, Config::default());
    let node = sim.add_node(1);
    let run = sim.block_on(&node, |env| async move {
        let options = PoolOptions {
            uuid: Uuid::from_u128(1),
            media: MediaKind::Wal,
            heap_bytes: 4 << 20,
            log_bytes: 1 << 20,
            block_bytes: 0,
        };
        let pool = Pool::create(&env, "pool", options).await.expect("a pool");
        let _ = pool.container_create(CONTAINER).expect("a container");
        let writer = pool.container_open(CONTAINER).expect("a handle");
        for key in [b"one", b"two"] {
            put(&writer, key).expect("written");
            assert!(is_there(&writer, key));
            let other = pool.container_open(CONTAINER).expect("another handle");
            let _ = other.discard(COOKIE, EpochRange::ALL).await.expect("discarded");
            assert!(!is_there(&writer, key), "the discard missed a change");
        }
    });
    run.expect("it ends");
}
