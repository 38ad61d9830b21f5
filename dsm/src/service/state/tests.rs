//! What it costs to open a pool, and to destroy one of its containers.

use daos_types::{Cookie, Epoch};
use daos_vos::{MediaKind, PoolOptions};
use daos_xstream_sim::{Config, SimEnv, Simulation};

use super::*;
use crate::{access::Identity, epochs::ContainerHce, pool_map::NewTarget, pool_map::TargetId};

/// Handles and snapshots of every container.
const HANDLES: u64 = 1;
const SNAPSHOTS: u64 = 2;
/// Records of every container: itself, its HCE, and those.
const RECORDS: u64 = 2 + HANDLES + SNAPSHOTS;

fn container(number: u64) -> Uuid {
    // In no order, as real ones are.
    Uuid::from_u128(u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn handle(number: u64) -> Uuid {
    Uuid::from_u128(container(number).as_u128() ^ 1)
}

/// Containers that are being destroyed have the label of the next one, as if that had been made since.
fn label(number: u64) -> Label {
    let number = number + u64::from(is_destroyed(number));
    format!("c{number}").parse().expect("a label")
}

fn is_destroyed(number: u64) -> bool {
    number.is_multiple_of(10)
}

/// Fills the metadata store of a pool with containers, each with handles and snapshots, every tenth marked to be destroyed.
async fn vpool_of(env: &SimEnv, containers: u64) -> Pool<SimEnv> {
    let options = PoolOptions {
        uuid: Uuid::from_u128(1),
        media: MediaKind::Wal,
        heap_bytes: 64 << 20,
        log_bytes: 16 << 20,
        block_bytes: 0,
    };
    let vpool = Pool::create(env, "pool", options).await.expect("a vpool");
    let rdb = Rdb::create(&vpool).expect("a store");
    let owner = Identity { uid: 1, gid: 1 };
    let ownership = crate::access::Ownership { owner, acl: crate::access::Acl::initial() };
    let target = NewTarget {
        id: TargetId { rank: 0, index: 0 },
        fault_domain: "node0".to_owned(),
        addresses: Vec::new(),
    };
    let map = PoolMap::new(Uuid::from_u128(1), &[target]).expect("a map");
    let mut batch = Batch::default();
    let record = PoolRecord { label: None, ownership: ownership.clone(), bytes: 1 };
    batch.put(Table::Main, records::POOL.to_vec(), records::encode(&record));
    batch.put(Table::Main, records::MAP.to_vec(), records::encode(&map));
    let pool_handle = PoolHandleRecord { identity: owner, capabilities: Capabilities::ALL };
    let key = records::key(Kind::PoolHandle, &[Uuid::max().as_bytes()]);
    batch.put(Table::Main, key, records::encode(&pool_handle));
    rdb.submit(&batch).expect("stored");
    for number in 0..containers {
        let uuid = container(number);
        let name = [uuid.as_bytes().as_slice()];
        let record = ContainerRecord {
            label: Some(label(number)),
            ownership: ownership.clone(),
            properties: Default::default(),
        };
        let mut epochs = ContainerEpochs::load(ContainerHce::default(), [], []);
        epochs.open(handle(number), Cookie(number + 2));
        let mut batch = Batch::default();
        batch.put(Table::Main, records::key(Kind::Container, &name), records::encode(&record));
        batch.put(Table::Main, records::key(Kind::Hce, &name), records::encode(&epochs.record()));
        let record = HandleRecord {
            pool_handle: Uuid::max(),
            capabilities: Capabilities::READ,
            shared: true,
            epochs: *epochs.handle(handle(number)).expect("open"),
        };
        let key = records::key(Kind::Handle, &[uuid.as_bytes(), handle(number).as_bytes()]);
        batch.put(Table::Main, key, records::encode(&record));
        for snapshot in 0..SNAPSHOTS {
            batch.put(Table::Main, records::snapshot_key(uuid, Epoch(number + snapshot)), Vec::new());
        }
        if is_destroyed(number) {
            batch.put(Table::Main, records::key(Kind::Destroying, &name), Vec::new());
        }
        rdb.submit(&batch).expect("stored");
        vpool.log_space().await.expect("room");
    }
    rdb.settled().await.expect("settled");
    vpool
}

/// Opening a pool read all its records twice for each of its containers: 10,000 containers took 4·10^8 visits, and the limit
/// of 131,072 some hours. Now each record is visited once.
#[test]
fn a_pool_is_opened_in_one_pass() {
    for containers in [100, 2000] {
        let sim = Simulation::new(containers, Config::default());
        let node = sim.add_node(1);
        let run = sim.block_on(&node, move |env| async move {
            let vpool = vpool_of(&env, containers).await;
            let state = PoolState::load(Uuid::from_u128(1), &vpool, Time(0)).await.expect("loaded");
            let (visited, records) = (state.rdb.visited(), containers * RECORDS + containers / 10 + 3);
            // At the end of each kind, up to one slice of the next is looked at.
            let most = records + 6 * 128;
            assert!(visited <= most, "{visited} visits for {records} records");
            let mut tables = state.tables.borrow_mut();
            assert_eq!(tables.containers.len() as u64, containers);
            assert_eq!(tables.destroying.len() as u64, containers / 10);
            assert_eq!(tables.opened_with(Uuid::max()).count() as u64, containers * HANDLES);
            for number in 0..containers {
                let uuid = container(number);
                assert_eq!(tables.container_of.get(&handle(number)), Some(&uuid));
                let state = tables.container(uuid).expect("loaded");
                assert_eq!(state.record.label, Some(label(number)));
                assert_eq!(state.handles.keys().copied().collect::<Vec<_>>(), [handle(number)]);
                let epochs = state.epochs.handle(handle(number)).expect("open");
                assert_eq!(epochs.cookie, Cookie(number + 2));
                let snapshots: Vec<_> = state.epochs.snapshots().collect();
                assert_eq!(snapshots, [Epoch(number), Epoch(number + 1)]);
                let named = container(number + u64::from(is_destroyed(number)));
                assert_eq!(tables.container_named(&Name::Label(label(number))), Some(named));
            }
            drop(tables);
            let before = state.rdb.visited();
            let below = state.records_below(container(7)).expect("listed");
            assert_eq!((below.len() as u64, state.rdb.visited() - before), (SNAPSHOTS, 0));
        });
        run.expect("ends");
    }
}
