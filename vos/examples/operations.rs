//! One kind of operation again and again on heap media, for tools that count: `operations CASE RECORDS ROUNDS`.
//!
//! The difference between two runs whose ROUNDS differ by one is what RECORDS operations cost: of instructions (callgrind), of
//! system calls (strace). `bench/report.sh` does that. Cases are those of `vos_perf`.

use daos_types::{Checksum, Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    AkeyData, AkeyUpdate, Checksums, Conflict, Container, Data, ExtentData, ExtentUpdate, FetchRequest,
    Fetched, KeyUpdate, MediaKind, Pool, PoolOptions, Update, Value,
};
use daos_xstream_sim::{Config, SimEnv, Simulation};
use uuid::Uuid;

const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };
const BLOCK: u64 = 4096;
const BATCH: usize = 16;

fn key(number: u64) -> [u8; 16] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn scattered(number: u64, count: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count
}

struct Work {
    container: Container<SimEnv>,
    kind: ObjectType,
    count: u64,
    block: Vec<u8>,
    checksum: [Checksum; 1],
}

impl Work {
    fn object(&self, number: u64) -> ObjectId {
        ObjectId::new(self.kind, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
    }

    fn update(&self, object: ObjectId, number: u64, fill: u8) {
        let (key, bytes) = (key(number), [fill; 64]);
        let value = Value::Inline(&bytes, Checksum(crc32c::crc32c(&bytes)));
        let akeys = [AkeyUpdate { akey: b"v", data: AkeyData::Single(Some(value)) }];
        let keys = [KeyUpdate { key: &key, value: Some(value) }];
        let offset = scattered(number, self.count) * BLOCK;
        let data =
            ExtentData::Inline(&self.block, Checksums { chunk_bytes: BLOCK as u32, chunks: &self.checksum });
        let extents = [ExtentUpdate { offset, data }];
        let update = match self.kind {
            ObjectType::Document => Update::Document { dkey: &key, akeys: &akeys },
            ObjectType::Array => Update::Array(&extents),
            ObjectType::KeyValue => Update::KeyValue(&keys),
        };
        let done = self.container.update(object, Epoch(1), WRITER, Conflict::LastWins, &update);
        let _ = done.expect("an update");
    }

    fn request<'k>(&self, key: &'k [u8]) -> FetchRequest<'k> {
        let akey = (self.kind == ObjectType::Document).then_some(&b"v"[..]);
        FetchRequest { object: self.object(0), dkey: key, akey }
    }

    fn fetch(&self, number: u64) {
        let key = key(number);
        let found = self.container.fetch(&self.request(&key), Epoch(9), is_value);
        assert!(found.expect("a fetch"));
    }

    fn fetch_batch(&self, first: u64) {
        let keys: [_; BATCH] = std::array::from_fn(|at| key(scattered(first + at as u64, self.count)));
        let requests: [_; BATCH] = std::array::from_fn(|at| self.request(&keys[at]));
        let fetched = self.container.fetch_batch(&requests, Epoch(9), |_, answer| {
            assert!(answer.is_ok_and(is_value));
        });
        fetched.expect("a batch");
    }

    fn read(&self, number: u64) {
        let from = scattered(number, self.count) * BLOCK;
        let mut bytes = 0;
        let read = self.container.fetch_array(self.object(0), None, from..from + BLOCK, Epoch(9), |piece| {
            if let Fetched::Value(data) = piece.content
                && let Data::Inline(found) = data.data
            {
                bytes += found.len();
            }
        });
        read.expect("a read");
        assert_eq!(bytes as u64, BLOCK);
    }

    /// One round of `operation` over all records.
    fn round(&self, operation: &str, round: u64) {
        let numbers = 0..self.count;
        match operation {
            "update" => numbers.for_each(|number| self.update(self.object(round), number, 1)),
            "update-existing" => numbers
                .for_each(|number| self.update(self.object(0), scattered(number, self.count), round as u8)),
            "fetch" => numbers.for_each(|number| self.fetch(scattered(number, self.count))),
            "fetch-batch" => numbers.step_by(BATCH).for_each(|first| self.fetch_batch(first)),
            "read" => numbers.for_each(|number| self.read(number)),
            other => panic!("no operation {other}"),
        }
    }
}

fn is_value(answer: Fetched<daos_vos::ValueRef<'_>>) -> bool {
    matches!(answer, Fetched::Value(value) if matches!(value.data, Data::Inline(bytes) if bytes.len() == 64))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [case, count, rounds] = words.as_slice() else { panic!("operations CASE RECORDS ROUNDS") };
    let (kind, operation) = case.split_once('-').expect("a case such as kv-fetch");
    let kind = match kind {
        "kv" => ObjectType::KeyValue,
        "doc" => ObjectType::Document,
        "array" => ObjectType::Array,
        other => panic!("no objects {other}"),
    };
    let (count, rounds): (u64, u64) = (count.parse().expect("records"), rounds.parse().expect("rounds"));
    let operation = operation.to_owned();
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        let record_bytes = if kind == ObjectType::Array { 5000 } else { 512 };
        let options = PoolOptions {
            uuid: Uuid::from_u128(1),
            media: MediaKind::Heap,
            heap_bytes: ((64 << 20) + count * record_bytes * (rounds + 1)).next_multiple_of(1 << 20),
            log_bytes: 0,
            block_bytes: 0,
        };
        let pool = Pool::create(&env, "pool", options).await.expect("a pool");
        let uuid = Uuid::from_u128(2);
        let _ = pool.container_create(uuid).expect("a container");
        let container = pool.container_open(uuid).expect("the container");
        let block = vec![0x5a; BLOCK as usize];
        let checksum = [Checksum(crc32c::crc32c(&block))];
        let work = Work { container, kind, count, block, checksum };
        work.round("update", 0);
        (1..=rounds).for_each(|round| work.round(&operation, round));
    });
    ended.expect("the run ends");
}
