//! The scrubber: compares everything with its checksums in the background, slowly.
//!
//! # Invariants
//!
//! * Between two slices everybody else may run, and change what they like. A slice looks at few records and few bytes,
//!   however many containers, punches or bytes of one value there are.
//! * No pause is taken while blocks are pinned.
//! * A fault is counted, told and passed by; nothing is changed. Who has another replica mends it.

use std::{cell::Cell, ops::ControlFlow, time::Duration};

use daos_types::{Checksum, EpochRange};
use daos_xstream::{Clock, Env, Spawn, Time};
use uuid::Uuid;

use crate::{
    BlockRef, Error, Fault, INLINE_BYTES_MAX, Pool,
    extents::{self, ExtentSource, Holder},
    memory,
    records::{
        ArrayHead, ContainerRecord, Containers, Extent, Extents, KeyRecord, Kind, PUNCHED, STORED, Version,
        Versions, key_verified,
    },
    sweep::{Candidate, Sweep},
    tree::{self, Bound, Probe},
    versions,
};

/// Records of one slice.
const SLICE_RECORDS: usize = 16;
/// Bytes of a slice after which it takes no more records: those of the last may come on top, in memory 1 MiB and two keys
/// at most. Blocks that a slice refers to cannot be handed out again until it is done, so it must not take long.
const SLICE_BYTES: u64 = 256 << 10;
/// What has been read without a pause may take as long as this at the rate asked for.
const BURST: Duration = Duration::from_millis(10);
/// Reads that fail in a row after which the device counts as gone.
const UNREADABLE_MAX: u32 = 16;

/// How fast the scrubber may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubRate {
    /// Bytes (of keys, values and extents, wherever they are) per second. A record counts as [`Self::RECORD_BYTES`] at
    /// least: finding it takes time too.
    pub bytes_per_second: u64,
}

impl ScrubRate {
    /// Bytes that a record counts as, if it has fewer.
    pub const RECORD_BYTES: u64 = 1024;
}

/// What scrubbers of a pool have done. Shared: read it at any time.
#[derive(Debug, Default)]
pub struct ScrubCounters {
    /// Passes over all containers that came to their end.
    pub passes: Cell<u64>,
    /// Records looked at.
    pub records: Cell<u64>,
    /// Bytes compared with their checksums.
    pub bytes: Cell<u64>,
    /// Faults found.
    pub faults: Cell<u64>,
}

fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get() + more);
}

/// What a slice found and what is left to read.
#[derive(Default)]
struct Slice {
    records: u64,
    bytes: u64,
    faults: Vec<String>,
    loads: Vec<BlockRef>,
}

impl Slice {
    /// Bytes that it has compared, or refers to.
    fn taken(&self) -> u64 {
        self.loads.iter().fold(self.bytes, |bytes, place| bytes + place.len())
    }
}

/// Keeps to a rate.
struct Pace<'e, E: Env> {
    env: &'e E,
    rate: ScrubRate,
    /// When everything so far may have been read.
    due: Time,
}

impl<'e, E: Env> Pace<'e, E> {
    fn new(env: &'e E, rate: ScrubRate) -> Self {
        Self { env, rate, due: env.clock().now() }
    }

    /// Lets others run, and waits if this much, read since `began`, comes too early.
    async fn spend(&mut self, began: Time, bytes: u64) {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.bytes_per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.due = self.due.max(began) + cost;
        self.env.scheduler().yield_now().await;
        if self.due > self.env.clock().now() + BURST {
            self.settle().await;
        }
    }

    /// Waits until everything so far may have been read.
    async fn settle(&self) {
        self.env.clock().sleep_until(self.due).await;
    }
}

impl<E: Env> Pool<E> {
    /// Compares every key, value and extent that is there all the while with its checksum, once, at `rate`; tells
    /// `on_fault` what is wrong. An error means that the pass was given up: media failed. Dropping the future ends the
    /// pass.
    pub async fn scrub(
        &self,
        rate: ScrubRate,
        counters: &ScrubCounters,
        mut on_fault: impl FnMut(&Fault),
    ) -> Result<(), Error> {
        let mut pace = Pace::new(&self.0.env, rate);
        let (mut after, mut unreadable) = (None, 0);
        while let Some(container) = self.next_container(after)? {
            after = Some(container);
            let mut tell = |what: String| {
                add(&counters.faults, 1);
                on_fault(&Fault { place: format!("container {container}"), what });
            };
            let mut at = Some(Sweep::new(EpochRange::ALL));
            while let Some(from) = at.take() {
                let began = self.0.env.clock().now();
                let (slice, next) = match self.scrub_slice(container, &from) {
                    Ok(done) => done,
                    // It has been destroyed meanwhile.
                    Err(Error::NotFound(_)) => Default::default(),
                    Err(error) => {
                        // What cannot be walked is a fault of its own; the rest of the container cannot be reached.
                        tell(error.to_string());
                        Default::default()
                    }
                };
                at = next;
                let asked = slice.taken();
                let Slice { records, mut bytes, faults, loads } = slice;
                faults.into_iter().for_each(&mut tell);
                for place in loads {
                    let outcome = self.verify_stored(&place).await;
                    let readable = match &outcome {
                        Ok(()) | Err(Error::BadChecksum { .. } | Error::Corrupt { .. }) => true,
                        Err(_) => false,
                    };
                    (bytes, unreadable) = match readable {
                        true => (bytes + place.len(), 0),
                        false => (bytes, unreadable + 1),
                    };
                    if let Err(error) = outcome {
                        tell(error.to_string());
                        if unreadable > UNREADABLE_MAX {
                            return Err(error);
                        }
                    }
                }
                add(&counters.records, records);
                add(&counters.bytes, bytes);
                // Reading what is damaged takes the device as long, and looking for nothing takes time too.
                pace.spend(began, asked.max(records.max(1) * ScrubRate::RECORD_BYTES)).await;
            }
        }
        pace.settle().await;
        add(&counters.passes, 1);
        Ok(())
    }

    /// The first container after this one.
    fn next_container(&self, after: Option<Uuid>) -> Result<Option<Uuid>, Error> {
        let heap = self.0.store.heap();
        let root: u64 = *memory::read(&heap, self.containers_place())?;
        let probe = after.map(|uuid| Probe::number(uuid.as_u128()));
        let bound = probe.as_ref().map_or(Bound::First, Bound::After);
        let mut found = None;
        let _ = tree::scan(&heap, Containers, root, bound, &mut |record| {
            found = Some(Uuid::from_bytes(memory::read::<ContainerRecord>(&heap, record)?.uuid));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// Looks at some of a container's records; gives where the next slice begins, if there is one.
    fn scrub_slice(&self, container: Uuid, from: &Sweep) -> Result<(Slice, Option<Sweep>), Error> {
        let heap = self.0.store.heap();
        let place = self.find_container(&heap, container)?.ok_or(Error::NotFound("container"))?;
        let record: &ContainerRecord = memory::read(&heap, place)?;
        if record.destroying != 0 {
            return Err(Error::NotFound("container"));
        }
        let look = |limit| from.look(&heap, self.0.seed, record.objects, limit);
        let (candidates, mut at) = look(SLICE_RECORDS)?;
        let mut slice = Slice::default();
        let count = candidates.len();
        for (candidate, number) in candidates.into_iter().zip(1..) {
            slice.records += 1;
            if let Err(error) = self.scrub_record(&heap, candidate, &mut slice) {
                slice.faults.push(error.to_string());
            }
            if number < count && slice.taken() >= SLICE_BYTES {
                // The next slice goes on after this record.
                (_, at) = look(number)?;
                break;
            }
        }
        Ok((slice, at))
    }

    fn scrub_record(
        &self,
        heap: &daos_umem::Heap,
        record: Candidate,
        slice: &mut Slice,
    ) -> Result<(), Error> {
        let refer = |position, chunks: Vec<(u32, Checksum)>| {
            let length = chunks.iter().map(|&(length, _)| u64::from(length)).sum();
            BlockRef::new((&self.0.pins, heap.sealed()), (position, 0, length), chunks)
        };
        match record {
            Candidate::Version(key, epoch) => {
                slice.bytes += scrub_key(heap, key)?;
                let root = memory::read::<KeyRecord>(heap, key)?.root;
                let found = tree::get(heap, Versions, root, &Probe::number(epoch.into()))?;
                let Some(place) = found else { return Ok(()) };
                let version: &Version = memory::read(heap, place)?;
                if version.flags & STORED != 0 {
                    let position = versions::stored_position(heap, place)?;
                    slice.loads.push(refer(position, vec![(version.length, Checksum(version.checksum))]));
                } else if version.flags & PUNCHED == 0 {
                    slice.bytes += u64::from(version.length);
                    if crc32c::crc32c(versions::inline_bytes(heap, place)?) != version.checksum {
                        return Err(Error::BadChecksum { place: "value", position: place });
                    }
                }
            }
            Candidate::Extent(holder, block, epoch) => {
                if let Holder::Akey(key) = holder {
                    slice.bytes += scrub_key(heap, key)?;
                }
                let head: u64 = *memory::read(heap, holder.head_place())?;
                let root = memory::read::<ArrayHead>(heap, head)?.extents;
                let probe = extents::key_of(block, epoch);
                let Some(place) = tree::get(heap, Extents, root, &probe)? else { return Ok(()) };
                let extent: &Extent = memory::read(heap, place)?;
                if extent.flags & (PUNCHED | STORED) == 0 {
                    // A damaged record may say anything; the checksums of its bytes are compared below.
                    slice.bytes += extent.end.saturating_sub(extent.start).min(INLINE_BYTES_MAX as u64);
                }
                match extents::locate(heap, place, extent.start..extent.end)? {
                    ExtentSource::Punched | ExtentSource::Inline(_) => {}
                    ExtentSource::Stored { position, covering, checksums: (chunk, checksums), .. } => {
                        let mut start = covering.0;
                        let chunks = checksums.iter().map(|&checksum| {
                            let end = ((start / u64::from(chunk) + 1) * u64::from(chunk)).min(covering.1);
                            let length = (end - start) as u32;
                            start = end;
                            (length, Checksum(checksum))
                        });
                        slice.loads.push(refer(position, chunks.collect()));
                    }
                }
            }
            Candidate::DkeyPunch(key, _) => slice.bytes += scrub_key(heap, key)?,
            Candidate::ObjectPunch(..) => {}
        }
        Ok(())
    }
}

/// Verifies a key, and for an akey its dkey; gives their bytes.
fn scrub_key(heap: &daos_umem::Heap, key: u64) -> Result<u64, Error> {
    let mut bytes = key_verified(heap, key)?.len() as u64;
    let record: &KeyRecord = memory::read(heap, key)?;
    if matches!(record.kind(), Kind::Single | Kind::Array) {
        bytes += key_verified(heap, record.parent)?.len() as u64;
    }
    Ok(bytes)
}
