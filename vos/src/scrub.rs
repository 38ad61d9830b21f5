//! The scrubber: compares everything with its checksums in the background, slowly.
//!
//! # Invariants
//!
//! * Between two slices everybody else may run, and change what they like. A slice looks at few records.
//! * A fault is counted, told and passed by; nothing is changed. Who has another replica mends it.

use std::{cell::Cell, mem::offset_of, rc::Rc, time::Duration};

use daos_types::{Checksum, EpochRange};
use daos_xstream::{Clock, Env, Spawn};
use uuid::Uuid;

use crate::{
    BlockRef, Error, Fault, Pool,
    extents::{self, ExtentSource, Holder},
    memory,
    records::{
        ArrayHead, ContainerRecord, Extent, Extents, KeyRecord, Kind, PUNCHED, STORED, Version, Versions,
        key_verified,
    },
    sweep::{Candidate, Sweep},
    tree::{self, Probe},
    versions,
};

/// Records of one slice.
const SLICE_RECORDS: usize = 16;

/// How fast the scrubber may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubRate {
    /// Bytes (of keys, values and extents, wherever they are) per second.
    pub bytes_per_second: u64,
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

impl<E: Env> Pool<E> {
    /// Compares every key, value and extent that is there all the while with its checksum, once, at `rate`; tells
    /// `on_fault` what is wrong. An error means that the pass was given up: media failed.
    pub async fn scrub(
        &self,
        rate: ScrubRate,
        counters: &Rc<ScrubCounters>,
        mut on_fault: impl FnMut(&Fault),
    ) -> Result<(), Error> {
        for container in self.containers()? {
            let mut at = Some(Sweep::new(EpochRange::ALL));
            while let Some(from) = at.take() {
                let slice;
                (slice, at) = match self.scrub_slice(container, &from) {
                    Ok(done) => done,
                    // It has been destroyed meanwhile.
                    Err(Error::NotFound(_)) => break,
                    Err(error) => {
                        // What cannot be walked is a fault of its own; the rest of the container cannot be reached.
                        add(&counters.faults, 1);
                        on_fault(&Fault { place: format!("container {container}"), what: error.to_string() });
                        break;
                    }
                };
                let Slice { records, mut bytes, mut faults, loads } = slice;
                for place in loads {
                    match self.load(&place).await {
                        Ok(_) => bytes += place.len(),
                        Err(error @ (Error::BadChecksum { .. } | Error::Corrupt { .. })) => {
                            faults.push(error.to_string());
                        }
                        Err(error) => return Err(error),
                    }
                }
                add(&counters.records, records);
                add(&counters.bytes, bytes);
                add(&counters.faults, faults.len() as u64);
                for what in faults {
                    on_fault(&Fault { place: format!("container {container}"), what });
                }
                self.pause(bytes, rate).await;
            }
        }
        add(&counters.passes, 1);
        Ok(())
    }

    /// Waits as long as reading `bytes` may take.
    async fn pause(&self, bytes: u64, rate: ScrubRate) {
        let world = &self.0.env;
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.bytes_per_second.max(1));
        if nanoseconds > 0 {
            let pause = Duration::from_nanos(nanoseconds.min(u128::from(u64::MAX)) as u64);
            world.clock().sleep_until(world.clock().now() + pause).await;
        } else {
            world.scheduler().yield_now().await;
        }
    }

    fn scrub_slice(&self, container: Uuid, from: &Sweep) -> Result<(Slice, Option<Sweep>), Error> {
        let found = self.container_records()?.into_iter().find(|(uuid, _)| *uuid == container);
        let (_, place) = found.ok_or(Error::NotFound("container"))?;
        let heap = self.0.store.heap();
        let objects: u64 = *memory::read(&heap, place + offset_of!(ContainerRecord, objects) as u64)?;
        let (records, at) = from.look(&heap, self.0.seed, objects, SLICE_RECORDS)?;
        let mut slice = Slice::default();
        for record in records {
            slice.records += 1;
            if let Err(error) = self.scrub_record(&heap, record, &mut slice) {
                slice.faults.push(error.to_string());
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
                let probe = Probe::number(u128::from(block) << 64 | u128::from(epoch));
                let Some(place) = tree::get(heap, Extents, root, &probe)? else { return Ok(()) };
                let extent: &Extent = memory::read(heap, place)?;
                match extents::locate(heap, place, extent.start..extent.end)? {
                    ExtentSource::Punched => {}
                    ExtentSource::Inline(bytes) => slice.bytes += bytes.len() as u64,
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
