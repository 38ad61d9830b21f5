//! Random operations, applied to the store and to the reference, and comparisons of the two.

use std::{collections::BTreeSet, ops::Range};

use daos_types::{
    Checksum, Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind,
};
use daos_vos::{
    AkeyData, AkeyUpdate, Anchor, Checksums, Conflict, Container, Data, EndSearch, Error, ExtentData,
    ExtentUpdate, FetchRequest, Fetched, KeyUpdate, Punch, Update, Value,
};
use daos_xstream::Env;

use super::{
    Random,
    reference::{Answer, By, Name, Reference},
};

pub const EPOCHS: u64 = 24;
const ARRAY_BYTES: u64 = 2500;

pub fn objects() -> Vec<ObjectId> {
    let id = |kind, dkey, akey, number| ObjectId::new(kind, dkey, akey, ObjectClass(1), (0, 0, number));
    use KeyOrder::{Hashed, Integer, Lexical};
    use ObjectType::{Array, Document, KeyValue};
    vec![
        id(KeyValue, Hashed, Hashed, 1),
        id(KeyValue, Lexical, Hashed, 1),
        id(Document, Hashed, Hashed, 1),
        id(Document, Integer, Lexical, 2),
        id(Array, Hashed, Hashed, 1),
        id(Array, Hashed, Hashed, 2),
    ]
}

/// What may be read after aggregations: `from` and later, and the snapshots.
#[derive(Clone, Debug, Default)]
pub struct Readable {
    pub from: u64,
    pub snapshots: BTreeSet<u64>,
}

fn key(random: &mut Random, order: KeyOrder) -> Vec<u8> {
    let number = random.below(5);
    match order {
        KeyOrder::Integer => (number * 7).to_le_bytes().to_vec(),
        _ if number == 0 => Vec::new(),
        _ => format!("a key with more than sixteen bytes {number}").as_bytes()[..12 + number as usize * 5]
            .to_vec(),
    }
}

/// Akeys that begin with `x` hold arrays.
fn akey(random: &mut Random, order: KeyOrder, array: bool) -> Vec<u8> {
    let number = random.below(2) + if array { 2 } else { 0 };
    match order {
        KeyOrder::Integer => number.to_le_bytes().to_vec(),
        _ => format!("{}{number}", if array { 'x' } else { 's' }).into_bytes(),
    }
}

fn value(random: &mut Random) -> Vec<u8> {
    let length = match random.below(4) {
        0 => 0,
        1 => 700 + random.below(900),
        _ => random.below(90),
    };
    let seed = random.next();
    (0..length).map(|index| (seed >> (index % 8 * 8)) as u8 ^ index as u8).collect()
}

fn range(random: &mut Random) -> Range<u64> {
    let length = if random.one_in(3) { 1 + random.below(1500) } else { 1 + random.below(40) };
    let start = random.below(ARRAY_BYTES - length);
    start..start + length
}

pub fn crc(bytes: &[u8]) -> Checksum {
    Checksum(crc32c::crc32c(bytes))
}

/// The checksums of an extent by the definition.
pub fn chunks(range: &Range<u64>, bytes: &[u8], chunk_bytes: u64) -> Vec<Checksum> {
    (range.start / chunk_bytes..=(range.end - 1) / chunk_bytes)
        .map(|chunk| {
            let start = (chunk * chunk_bytes).max(range.start);
            let end = ((chunk + 1) * chunk_bytes).min(range.end);
            crc(&bytes[(start - range.start) as usize..(end - range.start) as usize])
        })
        .collect()
}

fn by(random: &mut Random, readable: &Readable) -> By {
    let epoch = readable.from + 1 + random.below(EPOCHS);
    let cookie = if random.one_in(6) { random.below(3) } else { epoch % 3 };
    let conflict = if random.one_in(3) { Conflict::Refuse } else { Conflict::LastWins };
    By { epoch, cookie, rebuild: random.one_in(7), conflict }
}

fn writer(by: By) -> Writer {
    let kind = if by.rebuild { WriterKind::Rebuild } else { WriterKind::Application };
    Writer { cookie: Cookie(by.cookie), map_version: 1, kind }
}

/// A change that the reference is to make too: told apart from the making, because the reference is asked only once the
/// store has answered.
type Apply = Box<dyn FnOnce(&mut Reference) -> Result<(), ()>>;

/// One random change of both; they must agree on whether it is allowed.
pub fn change<E: Env>(
    random: &mut Random,
    container: &Container<E>,
    reference: &mut Reference,
    readable: &Readable,
) {
    let ids = objects();
    let object = random.below(ids.len() as u64) as usize;
    let id = ids[object];
    let by = by(random, readable);
    let (real, apply): (Result<daos_vos::Sealed, Error>, Apply) = match id.object_type() {
        _ if random.one_in(25) => (
            container.punch(id, Epoch(by.epoch), writer(by), by.conflict, &Punch::Object),
            Box::new(move |changed| changed.punch_above(object, None, by)),
        ),
        ObjectType::KeyValue => {
            let key = key(random, id.dkey_order());
            let value = if random.one_in(4) { None } else { Some(value(random)) };
            let update = Update::KeyValue(&[KeyUpdate {
                key: &key,
                value: value.as_ref().map(|bytes| Value::Inline(bytes, crc(bytes))),
            }]);
            let real = container.update(id, Epoch(by.epoch), writer(by), by.conflict, &update);
            (real, Box::new(move |changed| changed.put(&(object, key, Vec::new()), by, value)))
        }
        ObjectType::Document => {
            let dkey = key(random, id.dkey_order());
            if random.one_in(15) {
                let real = container.punch(id, Epoch(by.epoch), writer(by), by.conflict, &Punch::Dkey(&dkey));
                (real, Box::new(move |changed| changed.punch_above(object, Some(dkey), by)))
            } else {
                change_document(random, container, (object, id), &dkey, by)
            }
        }
        ObjectType::Array => {
            let name = (object, Vec::new(), Vec::new());
            let range = range(random);
            if random.one_in(5) {
                let punch = Punch::Extent(range.clone());
                let real = container.punch(id, Epoch(by.epoch), writer(by), by.conflict, &punch);
                (real, Box::new(move |changed| changed.write(&name, by, range, None)))
            } else {
                let bytes: Vec<u8> = range.clone().map(|_| random.next() as u8).collect();
                let sums = chunks(&range, &bytes, 512);
                let data = ExtentData::Inline(&bytes, Checksums { chunk_bytes: 512, chunks: &sums });
                let update = Update::Array(&[ExtentUpdate { offset: range.start, data }]);
                let real = container.update(id, Epoch(by.epoch), writer(by), by.conflict, &update);
                (real, Box::new(move |changed| changed.write(&name, by, range, Some(bytes))))
            }
        }
    };
    match real {
        Ok(_) => {
            let wanted = apply(reference);
            assert_eq!(wanted, Ok(()), "object {object} {by:?}: the store did what the reference refuses");
        }
        // Only of what was refused may the reference have done a part.
        Err(Error::EpochConflict { .. }) => {
            let wanted = apply(&mut reference.only(object));
            assert_eq!(wanted, Err(()), "object {object} {by:?}: the store refuses what the reference does");
        }
        Err(error) => panic!("object {object} {by:?}: {error}"),
    }
}

type Outcome = (Result<daos_vos::Sealed, Error>, Apply);

/// Changes several akeys of one dkey at once.
fn change_document<E: Env>(
    random: &mut Random,
    container: &Container<E>,
    (object, id): (usize, ObjectId),
    dkey: &[u8],
    by: By,
) -> Outcome {
    let order = id.akey_order();
    if random.one_in(6) {
        let (akey, range) = (akey(random, order, true), range(random));
        let name = (object, dkey.to_vec(), akey.clone());
        let punch = Punch::AkeyExtent { dkey, akey: &akey, range: range.clone() };
        let real = container.punch(id, Epoch(by.epoch), writer(by), by.conflict, &punch);
        return (real, Box::new(move |changed| changed.write(&name, by, range, None)));
    }
    let single = akey(random, order, false);
    let array = akey(random, order, true);
    let value = if random.one_in(4) { None } else { Some(value(random)) };
    let range = range(random);
    let bytes: Vec<u8> = range.clone().map(|_| random.next() as u8).collect();
    let sums = chunks(&range, &bytes, 1024);
    let extent = ExtentUpdate {
        offset: range.start,
        data: ExtentData::Inline(&bytes, Checksums { chunk_bytes: 1024, chunks: &sums }),
    };
    let extents = [extent];
    let akeys = [
        AkeyUpdate {
            akey: &single,
            data: AkeyData::Single(value.as_ref().map(|bytes| Value::Inline(bytes, crc(bytes)))),
        },
        AkeyUpdate { akey: &array, data: AkeyData::Extents(&extents) },
    ];
    let which = match random.below(3) {
        0 => &akeys[..1],
        1 => &akeys[1..],
        _ => &akeys[..],
    };
    let update = Update::Document { dkey, akeys: which };
    let real = container.update(id, Epoch(by.epoch), writer(by), by.conflict, &update);
    let names: Vec<(Name, bool)> = which
        .iter()
        .map(|update| {
            let name = (object, dkey.to_vec(), update.akey.to_vec());
            (name, matches!(update.data, AkeyData::Single(_)))
        })
        .collect();
    let apply = move |changed: &mut Reference| {
        let mut wanted = Ok(());
        for (name, single) in names {
            let one = match single {
                true => changed.put(&name, by, value.clone()),
                false => changed.write(&name, by, range.clone(), Some(bytes.clone())),
            };
            wanted = wanted.and(one);
        }
        wanted
    };
    (real, Box::new(apply))
}

/// Whether an answer is the one wanted; a punch that was aggregated may be forgotten.
fn agrees<T: PartialEq>(real: &Answer<T>, wanted: &Answer<T>, readable: &Readable) -> bool {
    real == wanted
        || matches!((real, wanted), (Answer::Miss, Answer::Punched(at)) if *at <= readable.from)
        || matches!((real, wanted), (Answer::Punched(one), Answer::Punched(other))
            if *one < *other && *other <= readable.from)
}

/// Compares everything at `epoch`; says what differs.
pub fn compare<E: Env>(
    container: &Container<E>,
    reference: &Reference,
    readable: &Readable,
    epoch: u64,
) -> Result<(), String> {
    let ids = objects();
    let mut visible: BTreeSet<Name> = BTreeSet::new();
    let at = Epoch(epoch);
    for name in reference.values.keys() {
        let id = ids[name.0];
        let akey = (id.object_type() == ObjectType::Document).then_some(name.2.as_slice());
        let request = FetchRequest { object: id, dkey: &name.1, akey };
        let real = container.fetch(&request, at, |answer| match answer {
            Fetched::Value(value) => match value.data {
                Data::Inline(bytes) => Answer::Value(bytes.to_vec()),
                Data::Stored(_) => panic!("nothing was stored"),
            },
            Fetched::Punched(at) => Answer::Punched(at.0),
            Fetched::Miss => Answer::Miss,
        });
        let real = real.map_err(|error| format!("{name:?} at {epoch}: {error}"))?;
        let wanted = reference.get(name, epoch);
        if !agrees(&real, &wanted, readable) {
            return Err(format!("{name:?} at {epoch}: {real:?}, not {wanted:?}"));
        }
        if matches!(real, Answer::Value(_)) {
            visible.insert(name.clone());
        }
    }
    for name in reference.arrays.keys() {
        let id = ids[name.0];
        let keys =
            (id.object_type() == ObjectType::Document).then_some((name.1.as_slice(), name.2.as_slice()));
        let wanted = reference.bytes(name, 0..ARRAY_BYTES, epoch);
        let start = epoch * 37 % 500;
        let mut position = start;
        let mut differs = None;
        let read = container.fetch_array(id, keys, start..ARRAY_BYTES, at, |piece| {
            assert_eq!(piece.range.start, position, "pieces without gaps");
            position = piece.range.end;
            for offset in piece.range.clone() {
                let real = match &piece.content {
                    Fetched::Value(data) => match &data.data {
                        Data::Inline(bytes) => Answer::Value(bytes[(offset - piece.range.start) as usize]),
                        Data::Stored(_) => panic!("nothing was stored"),
                    },
                    Fetched::Punched(at) => Answer::Punched(at.0),
                    Fetched::Miss => Answer::Miss,
                };
                if !agrees(&real, &wanted[offset as usize], readable) {
                    differs.get_or_insert((offset, real, wanted[offset as usize].clone()));
                }
            }
        });
        read.map_err(|error| format!("{name:?} at {epoch}: {error}"))?;
        if let Some(differs) = differs {
            return Err(format!("{name:?} at {epoch}: {differs:?}"));
        }
        if position != ARRAY_BYTES {
            return Err(format!("{name:?} at {epoch}: the pieces end at {position}"));
        }
        let end = wanted.iter().rposition(|byte| matches!(byte, Answer::Value(_))).map_or(0, |last| last + 1);
        let mut search = EndSearch::default();
        let real = container.array_end(id, keys, at, &mut search).map_err(|error| error.to_string())?;
        // Less is written than a call looks at.
        let real = real.ok_or("the end of a short array was not found")?;
        if real != end as u64 {
            return Err(format!("{name:?} at {epoch}: it ends at {real}, not {end}"));
        }
        if end > 0 {
            visible.insert(name.clone());
        }
    }
    compare_lists(container, &visible, at)
}

/// Compares what is listed with what is visible.
fn compare_lists<E: Env>(
    container: &Container<E>,
    visible: &BTreeSet<Name>,
    at: Epoch,
) -> Result<(), String> {
    let text = |error: Error| error.to_string();
    let mut listed = BTreeSet::new();
    let mut anchor = Anchor::default();
    while !anchor.at_end() {
        anchor = Anchor::from_bytes(&anchor.to_bytes()).expect("an anchor");
        container.enumerate_objects(at, &mut anchor, 2, |id| assert!(listed.insert(id))).map_err(text)?;
    }
    let ids = objects();
    let wanted: BTreeSet<_> = visible.iter().map(|name| ids[name.0]).collect();
    if listed != wanted {
        return Err(format!("at {at}: objects {listed:?}, not {wanted:?}"));
    }
    for (object, id) in ids.iter().enumerate().filter(|(_, id)| id.object_type() != ObjectType::Array) {
        let mut listed = Vec::new();
        let mut anchor = Anchor::default();
        while !anchor.at_end() {
            container
                .enumerate_keys(*id, at, &mut anchor, 2, |key| listed.push(key.to_vec()))
                .map_err(text)?;
        }
        if id.dkey_order() == KeyOrder::Lexical && !listed.is_sorted() {
            return Err(format!("at {at}: keys out of order: {listed:?}"));
        }
        let count = listed.len();
        let listed: BTreeSet<_> = listed.into_iter().collect();
        let wanted: BTreeSet<_> =
            visible.iter().filter(|name| name.0 == object).map(|name| name.1.clone()).collect();
        if listed != wanted || count != listed.len() {
            return Err(format!("at {at}: keys of {id} {listed:?}, not {wanted:?}"));
        }
        if id.object_type() == ObjectType::KeyValue {
            continue;
        }
        for dkey in &wanted {
            let mut akeys = BTreeSet::new();
            let mut anchor = Anchor::default();
            while !anchor.at_end() {
                container
                    .enumerate_akeys(*id, dkey, at, &mut anchor, 1, |key| assert!(akeys.insert(key.to_vec())))
                    .map_err(text)?;
            }
            let wanted: BTreeSet<_> = visible
                .iter()
                .filter(|name| name.0 == object && name.1 == *dkey)
                .map(|name| name.2.clone())
                .collect();
            if akeys != wanted {
                return Err(format!("at {at}: akeys of {id} {dkey:?}: {akeys:?}, not {wanted:?}"));
            }
        }
    }
    Ok(())
}

/// Compares at all epochs that may be read.
pub fn compare_all<E: Env>(
    container: &Container<E>,
    reference: &Reference,
    readable: &Readable,
) -> Result<(), String> {
    for epoch in readable.snapshots.iter().copied().chain(readable.from..=readable.from + EPOCHS + 1) {
        compare(container, reference, readable, epoch)?;
    }
    Ok(())
}

/// Something that happens to whole epochs.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Cookie, first and last epoch.
    Discard(u64, u64, u64),
    /// First and last epoch.
    Aggregate(u64, u64),
}

impl Plan {
    pub fn discard(random: &mut Random, readable: &Readable) -> Self {
        let low = readable.from + 1 + random.below(EPOCHS);
        Plan::Discard(random.below(3), low, low + random.below(EPOCHS / 2))
    }

    pub fn aggregate(random: &mut Random, readable: &Readable) -> Self {
        let high = readable.from + 1 + random.below(EPOCHS / 2);
        Plan::Aggregate(if random.one_in(2) { 1 } else { readable.from + 1 }, high)
    }

    /// What it does to the reference.
    pub fn apply(self, reference: &mut Reference, readable: &mut Readable) {
        match self {
            Plan::Discard(cookie, low, high) => reference.discard(cookie, low..high + 1),
            Plan::Aggregate(low, high) => {
                if low == 1 {
                    readable.snapshots.clear();
                } else if readable.from > 0 {
                    readable.snapshots.insert(readable.from);
                }
                readable.from = high;
            }
        }
    }

    pub async fn run<E: Env>(self, container: &Container<E>) -> Result<daos_vos::Sealed, Error> {
        match self {
            Plan::Discard(cookie, low, high) => {
                let range = EpochRange { low: Epoch(low), high: Epoch(high) };
                container.discard(Cookie(cookie), range).await
            }
            Plan::Aggregate(low, high) => {
                container.aggregate(EpochRange { low: Epoch(low), high: Epoch(high) }).await
            }
        }
    }
}

/// A random operation: mostly a change, now and then a discard or an aggregation.
pub async fn operate<E: Env>(
    random: &mut Random,
    container: &Container<E>,
    reference: &mut Reference,
    readable: &mut Readable,
) {
    let plan = if random.one_in(60) {
        Plan::discard(random, readable)
    } else if random.one_in(150) {
        Plan::aggregate(random, readable)
    } else {
        return change(random, container, reference, readable);
    };
    let _ = plan.run(container).await.expect("a plan for whole epochs");
    plan.apply(reference, readable);
    if let Plan::Aggregate(1, high) = plan {
        let (found, most) = (container.usage().expect("usage").records, reference.records_after(high));
        assert!(found <= most as u64, "{plan:?} left {found} records, {most} are needed");
        reference.forget_hidden(high);
    }
}

/// Verifies the whole pool.
pub async fn verify<E: Env>(pool: &daos_vos::Pool<E>) -> Result<(), String> {
    let report = pool.verify().await.map_err(|error| error.to_string())?;
    match report.faults.first() {
        None => Ok(()),
        Some(fault) => Err(format!("{} faults, the first: {fault}", report.faults.len())),
    }
}
