//! Store and services against the reference that the tests of the layers above stand on: random operations, many of them
//! to the same thing in the same epoch, give the same answers in both.

mod common;

use common::{Cluster, open};
use daos::{Epoch, IoBuffer, KeyOrder, ObjectId, ObjectType};
use daos_dsr::{
    client::{ContainerEpochs, Enumeration, Listing, Punch, TargetObjects, TargetRef},
    memory::MemoryTargets,
    placement::hash::mix,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = mix(self.0.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.0 % bound
    }
}

const SPAN: u64 = 20_000;

/// Everything that can be seen of an object at an epoch.
async fn view<T: TargetObjects>(targets: &T, at: TargetRef, epoch: Epoch) -> String {
    let mut seen = String::new();
    let list = async |listing: Listing<'_>| {
        let mut keys = Vec::new();
        let mut anchor = Vec::new();
        loop {
            let enumeration = Enumeration { listing, anchor: &anchor, keys_max: 3 };
            let page = match targets.enumerate(at, epoch, enumeration).await {
                Ok(page) => page,
                // Kept with the rest, so that the history is shown.
                Err(error) => return vec![format!("{listing:?}: {error}").into_bytes()],
            };
            keys.extend(page.keys);
            match page.next {
                Some(next) => anchor = next,
                None => break,
            }
        }
        keys.sort();
        keys
    };
    match at.object.object_type() {
        ObjectType::Array => {
            let (room, extents) = targets.read(at, epoch, 0, IoBuffer::zeroed(SPAN as usize)).await;
            // How a store cuts what is of one kind into pieces is its own affair.
            let mut kinds: Vec<(std::ops::Range<u64>, String)> = Vec::new();
            for extent in extents.expect("read") {
                let kind = format!("{:?}", extent.kind);
                match kinds.last_mut() {
                    Some(last) if last.1 == kind => last.0.end = extent.range.end,
                    _ => kinds.push((extent.range, kind)),
                }
            }
            let query = targets.query(at, epoch).await.expect("query");
            seen += &format!(
                "{kinds:?} {} {}",
                query.size,
                room.as_slice().iter().fold(0, |sum, byte| { mix(sum + u64::from(*byte)) })
            );
        }
        ObjectType::KeyValue => {
            let keys = list(Listing::Keys).await;
            let asked: Vec<Vec<u8>> = (0..5u8).map(|key| vec![key]).collect();
            let asked: Vec<&[u8]> = asked.iter().map(Vec::as_slice).collect();
            seen += &format!("{keys:?} {:?}", targets.fetch(at, epoch, None, &asked).await.expect("fetch"));
        }
        ObjectType::Document => {
            seen += &format!("{:?}", list(Listing::Dkeys).await);
            for dkey in 0..3u8 {
                let akeys: [&[u8]; 3] = [b"x", b"y", b"z"];
                let fetched = targets.fetch(at, epoch, Some(&[dkey]), &akeys).await.expect("fetch");
                seen += &format!(" {dkey}: {:?} {fetched:?}", list(Listing::Akeys(&[dkey])).await);
            }
        }
    }
    seen
}

async fn change<T: TargetObjects>(targets: &T, at: TargetRef, epoch: Epoch, random: &mut Random) -> String {
    let value = random.below(1000).to_le_bytes();
    let (key, dkey) = ([random.below(5) as u8], [random.below(3) as u8]);
    let akey: &[u8] = [b"x", b"y", b"z"][random.below(3) as usize];
    let whole = random.below(40) == 0;
    let removes = random.below(3) == 0;
    let (start, length) = (random.below(SPAN - 1), 1 + random.below(if whole { 9000 } else { 300 }));
    let end = (start + length).min(SPAN);
    let (result, what) = match at.object.object_type() {
        _ if whole && removes => (targets.punch(at, epoch, Punch::Object).await, "punch all".to_owned()),
        ObjectType::KeyValue if removes => {
            (targets.punch(at, epoch, Punch::Keys(&[&key])).await, format!("punch {key:?}"))
        }
        ObjectType::KeyValue => {
            (targets.update(at, epoch, None, &[(&key, &value)]).await, format!("put {key:?}"))
        }
        ObjectType::Document if removes && random.below(2) == 0 => {
            (targets.punch(at, epoch, Punch::Dkey(&dkey)).await, format!("punch dkey {dkey:?}"))
        }
        ObjectType::Document if removes => {
            (targets.punch(at, epoch, Punch::Akeys(&dkey, &[akey])).await, format!("punch {dkey:?} {akey:?}"))
        }
        ObjectType::Document => {
            let records: [(&[u8], &[u8]); 1] = [(akey, &value)];
            (targets.update(at, epoch, Some(&dkey), &records).await, format!("update {dkey:?} {akey:?}"))
        }
        ObjectType::Array if removes => {
            (targets.punch(at, epoch, Punch::Range(start, end)).await, format!("punch {start}..{end}"))
        }
        ObjectType::Array => {
            let mut data = IoBuffer::zeroed((end - start) as usize);
            data.as_mut_slice().fill(value[0] | 1);
            (targets.write(at, epoch, start, data).await.1, format!("write {start}..{end}"))
        }
    };
    result.unwrap_or_else(|error| panic!("{what} at {epoch}: {error}"));
    format!("{what} at {epoch}")
}

#[test]
fn the_store_answers_as_the_reference_does() {
    let cluster = Cluster::new(5);
    cluster.make();
    let seeds = std::env::var("SEEDS").map_or(6, |seeds| seeds.parse().expect("a number"));
    cluster.run(move |client| async move {
        let container = open(&client, "box").await;
        let store = container.objects().clone();
        let held = container.hold(Epoch::ZERO).await.expect("hold");
        for seed in 0..seeds {
            for object_type in [ObjectType::KeyValue, ObjectType::Document, ObjectType::Array] {
                let object = ObjectId::new(
                    object_type,
                    KeyOrder::Lexical,
                    KeyOrder::Lexical,
                    daos::ObjectClass(1),
                    (0, 0, seed + 1),
                );
                let reference = MemoryTargets::new(1, seed);
                reference.hold(held).await.expect("hold");
                let here = TargetRef { ordinal: 0, map_version: 1, object };
                let there = TargetRef { ordinal: 1, map_version: store.placement().map_version(), object };
                let (mut ours, mut theirs) = (Random(seed), Random(seed));
                let mut epochs = Random(seed + 1000);
                let mut history = Vec::new();
                for _ in 0..80 {
                    // Few epochs, in any order, so that many changes meet.
                    let epoch = Epoch(held.0 + epochs.below(6));
                    let did = change(&reference, here, epoch, &mut theirs).await;
                    assert_eq!(change(&store, there, epoch, &mut ours).await, did);
                    history.push(did);
                    let seen_at = Epoch(held.0 + epochs.below(7));
                    let wanted = view(&reference, here, seen_at).await;
                    let found = view(&store, there, seen_at).await;
                    assert!(
                        found == wanted,
                        "seed {seed}, {object_type:?} at {seen_at}:\n{found}, the reference\n{wanted}\n{history:#?}"
                    );
                }
            }
        }
    });
}
