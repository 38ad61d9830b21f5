//! Targets in memory: what VOS and DSM promise, written as plainly as possible. A reference for tests of the layers
//! above; not for storing anything.
//!
//! # Invariants
//!
//! * Near-epoch reads: per key, or per byte of an array, the newest change at or before the epoch asked for counts.
//! * Of changes in one epoch the last to arrive wins; removing something takes what was written in the same epoch away.
//! * Every call suspends a number of times that follows from the seed, so that calls made together overlap in many orders.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

use daos_types::{Epoch, ObjectId};
use daos_xstream::IoBuffer;

use crate::{
    client::{
        ContainerEpochs, DsrError, EnumeratePage, Enumeration, Extent, ExtentKind, Fetched, Listing,
        ObjectQuery, Punch, Record, TargetObjects, TargetRef,
    },
    placement::{PlacedTarget, Placement, Standing, hash},
};

type Key = (Vec<u8>, Vec<u8>);

/// One write or punch of an array's range.
#[derive(Clone, Debug)]
struct Stroke {
    epoch: Epoch,
    start: u64,
    end: u64,
    data: Option<Vec<u8>>,
}

#[derive(Clone, Debug, Default)]
struct Stored {
    /// (dkey, akey), or (empty, key) of a KV, with its history; `None` is a punch.
    values: BTreeMap<Key, BTreeMap<Epoch, Option<Vec<u8>>>>,
    dkey_punches: BTreeMap<Vec<u8>, BTreeSet<Epoch>>,
    punches: BTreeSet<Epoch>,
    /// In the order of arrival.
    strokes: Vec<Stroke>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<(u32, ObjectId), Stored>,
}

/// Targets in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct MemoryTargets {
    state: Rc<RefCell<State>>,
    placement: Rc<RefCell<Rc<Placement>>>,
    requests: Rc<Cell<u64>>,
    seed: Rc<Cell<u64>>,
    committed: Rc<Cell<Epoch>>,
    full: Rc<Cell<bool>>,
}

impl MemoryTargets {
    /// So many targets of one engine.
    pub fn new(targets: u32, seed: u64) -> Self {
        let place = |target| PlacedTarget { rank: 0, target, domain: 0, standing: Standing::Serving };
        Self {
            state: Rc::default(),
            placement: Rc::new(RefCell::new(Rc::new(Placement::new(1, (0..targets).map(place).collect())))),
            requests: Rc::default(),
            seed: Rc::new(Cell::new(seed)),
            committed: Rc::default(),
            full: Rc::default(),
        }
    }

    /// Whether updates find no space; what removes something has a reserve.
    pub fn set_full(&self, full: bool) {
        self.full.set(full);
    }

    /// Gives the pool another map.
    pub fn set_placement(&self, placement: Placement) {
        *self.placement.borrow_mut() = Rc::new(placement);
    }

    /// How many requests the targets have served.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// The highest committed epoch.
    pub fn committed(&self) -> Epoch {
        self.committed.get()
    }

    /// Forgets what is not committed, as when a client dies.
    pub fn discard_uncommitted(&self) {
        let epoch = self.committed.get();
        let mut state = self.state.borrow_mut();
        for stored in state.objects.values_mut() {
            stored.values.values_mut().for_each(|history| history.retain(|at, _| *at <= epoch));
            stored.dkey_punches.values_mut().for_each(|punches| punches.retain(|at| *at <= epoch));
            stored.punches.retain(|at| *at <= epoch);
            stored.strokes.retain(|stroke| stroke.epoch <= epoch);
        }
    }

    async fn begin(&self, at: TargetRef) -> Result<(), DsrError> {
        self.requests.set(self.requests.get() + 1);
        self.seed.set(hash::mix(self.seed.get().wrapping_add(1)));
        let mut turns = self.seed.get() % 4;
        poll_fn(|context| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        let current = self.placement.borrow().map_version();
        if at.map_version != current {
            let message = format!("map version {} is not {current}", at.map_version);
            return Err(DsrError::Target { status: 1, message, in_doubt: false });
        }
        Ok(())
    }

    async fn begin_change(&self, at: TargetRef, epoch: Epoch) -> Result<(), DsrError> {
        self.begin(at).await?;
        if epoch <= self.committed.get() {
            let message = format!("epoch {epoch} is committed and cannot be written");
            return Err(DsrError::Target { status: 1, message, in_doubt: false });
        }
        Ok(())
    }

    fn with<R>(&self, at: TargetRef, work: impl FnOnce(&mut Stored) -> R) -> R {
        work(self.state.borrow_mut().objects.entry((at.ordinal, at.object)).or_default())
    }
}

impl Stored {
    fn fetch(&self, epoch: Epoch, key: &Key) -> Fetched {
        let newest = |epochs: &BTreeSet<Epoch>| epochs.range(..=epoch).next_back().copied();
        let punched = newest(&self.punches).max(self.dkey_punches.get(&key.0).and_then(newest));
        let version = self.values.get(key).and_then(|history| history.range(..=epoch).next_back());
        match (version, punched) {
            (Some((at, _)), Some(punched)) if *at < punched => Fetched::Punched,
            (Some((_, Some(value))), _) => Fetched::Value(value.clone()),
            (Some((_, None)), _) | (None, Some(_)) => Fetched::Punched,
            (None, None) => Fetched::Miss,
        }
    }

    fn visible(&self, epoch: Epoch, key: &Key) -> bool {
        matches!(self.fetch(epoch, key), Fetched::Value(_))
    }

    /// Data of every byte of a range, by painting the strokes in the order of (epoch, arrival).
    fn paint(&self, epoch: Epoch, start: u64, length: usize) -> Vec<(ExtentKind, u8)> {
        let mut canvas = vec![(ExtentKind::Miss, 0); length];
        let end = start + length as u64;
        let mut strokes: Vec<&Stroke> = self.strokes.iter().filter(|stroke| stroke.epoch <= epoch).collect();
        strokes.sort_by_key(|stroke| stroke.epoch);
        for stroke in strokes {
            for offset in stroke.start.max(start)..stroke.end.min(end) {
                canvas[(offset - start) as usize] = match &stroke.data {
                    Some(data) => (ExtentKind::Data, data[(offset - stroke.start) as usize]),
                    None => (ExtentKind::Punched, 0),
                };
            }
        }
        canvas
    }

    fn size(&self, epoch: Epoch) -> u64 {
        // The last byte that holds data is the last of a write, or the last before a punch.
        let last = |stroke: &Stroke| if stroke.data.is_some() { stroke.end } else { stroke.start };
        let mut ends: Vec<u64> = self.strokes.iter().map(last).filter(|end| *end > 0).collect();
        ends.sort_unstable();
        let holds_data = |end: &&u64| self.paint(epoch, **end - 1, 1)[0].0 == ExtentKind::Data;
        ends.iter().rev().find(holds_data).copied().unwrap_or(0)
    }

    fn punch(&mut self, epoch: Epoch, punch: Punch<'_>) {
        match punch {
            Punch::Object => {
                self.values.values_mut().for_each(|history| history.retain(|at, _| *at != epoch));
                self.dkey_punches.values_mut().for_each(|punches| punches.retain(|at| *at != epoch));
                self.punches.insert(epoch);
                self.strokes.push(Stroke { epoch, start: 0, end: u64::MAX, data: None });
            }
            Punch::Dkey(dkey) => {
                for (_, history) in self.values.iter_mut().filter(|(key, _)| key.0 == dkey) {
                    history.remove(&epoch);
                }
                self.dkey_punches.entry(dkey.to_vec()).or_default().insert(epoch);
            }
            Punch::Keys(keys) => self.punch_keys(epoch, &[], keys),
            Punch::Akeys(dkey, akeys) => self.punch_keys(epoch, dkey, akeys),
            Punch::Range(start, end) => self.strokes.push(Stroke { epoch, start, end, data: None }),
        }
    }

    fn punch_keys(&mut self, epoch: Epoch, dkey: &[u8], keys: &[&[u8]]) {
        for key in keys {
            self.values.entry((dkey.to_vec(), key.to_vec())).or_default().insert(epoch, None);
        }
    }
}

impl ContainerEpochs for MemoryTargets {
    async fn hold(&self, epoch: Epoch) -> Result<Epoch, DsrError> {
        Ok(epoch.max(self.committed.get().next()))
    }

    async fn flush(&self, _epoch: Epoch) -> Result<(), DsrError> {
        Ok(())
    }

    async fn commit(&self, epoch: Epoch) -> Result<(), DsrError> {
        self.committed.set(self.committed.get().max(epoch));
        Ok(())
    }
}

impl TargetObjects for MemoryTargets {
    fn placement(&self) -> Rc<Placement> {
        self.placement.borrow().clone()
    }

    async fn update(
        &self,
        at: TargetRef,
        epoch: Epoch,
        dkey: Option<&[u8]>,
        records: &[Record<'_>],
    ) -> Result<(), DsrError> {
        self.begin_change(at, epoch).await?;
        if self.full.get() {
            let status = daos_xstream::rpc::Status::NO_SPACE.0;
            return Err(DsrError::Target { status, message: "no space".to_owned(), in_doubt: false });
        }
        let dkey = dkey.unwrap_or_default();
        self.with(at, |stored| {
            for (key, value) in records {
                let history = stored.values.entry((dkey.to_vec(), key.to_vec())).or_default();
                history.insert(epoch, Some(value.to_vec()));
            }
        });
        Ok(())
    }

    async fn fetch(
        &self,
        at: TargetRef,
        epoch: Epoch,
        dkey: Option<&[u8]>,
        keys: &[&[u8]],
    ) -> Result<Vec<Fetched>, DsrError> {
        self.begin(at).await?;
        let dkey = dkey.unwrap_or_default().to_vec();
        Ok(self.with(at, |stored| {
            keys.iter().map(|key| stored.fetch(epoch, &(dkey.clone(), key.to_vec()))).collect()
        }))
    }

    async fn write(
        &self,
        at: TargetRef,
        epoch: Epoch,
        offset: u64,
        data: IoBuffer,
    ) -> (IoBuffer, Result<(), DsrError>) {
        if let Err(error) = self.begin_change(at, epoch).await {
            return (data, Err(error));
        }
        let stroke = Stroke {
            epoch,
            start: offset,
            end: offset + data.len() as u64,
            data: Some(data.as_slice().to_vec()),
        };
        self.with(at, |stored| stored.strokes.push(stroke));
        (data, Ok(()))
    }

    async fn read(
        &self,
        at: TargetRef,
        epoch: Epoch,
        offset: u64,
        mut room: IoBuffer,
    ) -> (IoBuffer, Result<Vec<Extent>, DsrError>) {
        if let Err(error) = self.begin(at).await {
            return (room, Err(error));
        }
        let canvas = self.with(at, |stored| stored.paint(epoch, offset, room.len()));
        let mut extents: Vec<Extent> = Vec::new();
        for ((byte, place), at) in canvas.iter().zip(room.as_mut_slice()).zip(offset..) {
            *place = byte.1;
            match extents.last_mut() {
                Some(last) if last.kind == byte.0 => last.range.end = at + 1,
                _ => extents.push(Extent { range: at..at + 1, kind: byte.0 }),
            }
        }
        (room, Ok(extents))
    }

    async fn punch(&self, at: TargetRef, epoch: Epoch, punch: Punch<'_>) -> Result<(), DsrError> {
        self.begin_change(at, epoch).await?;
        self.with(at, |stored| stored.punch(epoch, punch));
        Ok(())
    }

    async fn enumerate(
        &self,
        at: TargetRef,
        epoch: Epoch,
        enumeration: Enumeration<'_>,
    ) -> Result<EnumeratePage, DsrError> {
        self.begin(at).await?;
        // An anchor is a zero byte and the last key that was listed.
        let after = enumeration.anchor.split_first().map(|(_, key)| key.to_vec());
        let mut keys: BTreeSet<Vec<u8>> = self.with(at, |stored| {
            let visible = stored.values.keys().filter(|key| stored.visible(epoch, key));
            match enumeration.listing {
                Listing::Keys => visible.map(|key| key.1.clone()).collect(),
                Listing::Dkeys => visible.map(|key| key.0.clone()).collect(),
                Listing::Akeys(dkey) => {
                    visible.filter(|key| key.0 == dkey).map(|key| key.1.clone()).collect()
                }
            }
        });
        keys.retain(|key| after.as_ref().is_none_or(|after| key > after));
        let more = keys.len() > enumeration.keys_max as usize;
        let keys: Vec<Vec<u8>> = keys.into_iter().take(enumeration.keys_max as usize).collect();
        let next = keys.last().filter(|_| more).map(|last| [&[0], last.as_slice()].concat());
        Ok(EnumeratePage { keys, next })
    }

    async fn query(&self, at: TargetRef, epoch: Epoch) -> Result<ObjectQuery, DsrError> {
        self.begin(at).await?;
        Ok(self.with(at, |stored| {
            let size = stored.size(epoch);
            let exists = size > 0 || stored.values.keys().any(|key| stored.visible(epoch, key));
            ObjectQuery { exists, size }
        }))
    }

    async fn enumerate_objects(
        &self,
        ordinal: u32,
        epoch: Epoch,
        anchor: &[u8],
        objects_max: u32,
    ) -> Result<(Vec<ObjectId>, Option<Vec<u8>>), DsrError> {
        let skip = anchor.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let state = self.state.borrow();
        let visible: Vec<ObjectId> = state
            .objects
            .iter()
            .filter(|((holder, _), stored)| {
                *holder == ordinal
                    && (stored.size(epoch) > 0 || stored.values.keys().any(|key| stored.visible(epoch, key)))
            })
            .map(|((_, object), _)| *object)
            .collect();
        let page: Vec<ObjectId> =
            visible.iter().skip(skip as usize).take(objects_max as usize).copied().collect();
        let end = skip + page.len() as u32;
        Ok((page, (end < visible.len() as u32).then(|| end.to_le_bytes().to_vec())))
    }
}
