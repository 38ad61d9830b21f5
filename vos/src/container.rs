//! A container: objects, their history, and what happens to whole epochs.

use std::{
    cell::{Cell, RefCell},
    mem::offset_of,
    ops::Range,
    rc::Rc,
};

use daos_types::{Cookie, Epoch, EpochRange, ObjectId, Writer};
use daos_umem::{Heap, Sealed};
use daos_xstream::Env;
use uuid::Uuid;

use crate::{
    Anchor, Change, Conflict, ContainerUsage, Error, Fetched, Piece, Pool, Punch, RecordedExtent, Update,
    ValueRef,
    blocks::{Pins, Reservation},
    destroy,
    editor::Editor,
    epochs::{self, SliceSize},
    error::from_heap,
    extents::{EndSearch, Scratch},
    memory,
    read::{FetchRequest, View, objects_place},
    records::{ContainerRecord, Counts},
    sweep::Sweep,
    write::{self, Terms},
};

/// Dkey and akey of a document's array; `None` for an array object.
pub type ArrayKeys<'a> = Option<(&'a [u8], &'a [u8])>;

/// A container. A handle: clones share it.
///
/// Everything here is synchronous on memory: a change is visible when the call returns, and durable when
/// [`Pool::persisted`] has confirmed the position it returned. A visitor that is handed borrowed data must not call back
/// into the pool to change it (that panics); reading is fine.
pub struct Container<E: Env>(Rc<Inner<E>>);

struct Inner<E: Env> {
    pool: Pool<E>,
    uuid: Uuid,
    record: u64,
    /// Value of the pool's generation when `record` was last known to be there.
    generation: Cell<u64>,
    scratch: RefCell<Scratch>,
}

impl<E: Env> Clone for Container<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Container<E> {
    pub(crate) fn new(pool: Pool<E>, uuid: Uuid, record: u64) -> Self {
        let generation = Cell::new(pool.0.generation.get());
        Self(Rc::new(Inner { pool, uuid, record, generation, scratch: RefCell::default() }))
    }

    /// Identifies it.
    pub fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    /// The pool it is in.
    pub fn pool(&self) -> &Pool<E> {
        &self.0.pool
    }

    /// Refuses a handle of a container that was destroyed.
    #[inline]
    fn check(&self) -> Result<(), Error> {
        let generation = self.0.pool.0.generation.get();
        if self.0.generation.get() == generation {
            return Ok(());
        }
        // Some container was destroyed since; see whether it was this one.
        self.0.pool.container_open(self.0.uuid)?;
        self.0.generation.set(generation);
        Ok(())
    }

    /// Makes one atomic change of one object at `epoch`.
    pub fn update(
        &self,
        object: ObjectId,
        epoch: Epoch,
        writer: Writer,
        conflict: Conflict,
        update: &Update<'_>,
    ) -> Result<Sealed, Error> {
        self.check()?;
        let terms = Terms { epoch, writer, conflict };
        self.edit(|editor| write::update(editor, object, terms, update)).map(|((), sealed)| sealed)
    }

    /// Makes a negative entry at `epoch`.
    pub fn punch(
        &self,
        object: ObjectId,
        epoch: Epoch,
        writer: Writer,
        conflict: Conflict,
        punch: &Punch<'_>,
    ) -> Result<Sealed, Error> {
        self.check()?;
        let terms = Terms { epoch, writer, conflict };
        self.edit_reserved(|editor| write::punch(editor, object, terms, punch)).map(|((), sealed)| sealed)
    }

    /// Sets the upper layer's metadata of an object that exists: at most 64 bytes, not versioned, gone with the object.
    pub fn set_metadata(&self, object: ObjectId, bytes: &[u8]) -> Result<Sealed, Error> {
        self.check()?;
        self.edit(|editor| write::set_metadata(editor, object, bytes)).map(|((), sealed)| sealed)
    }

    /// Makes several changes, of any objects, in one transaction: all of them, or (if `change` or one of them fails) none.
    pub fn transaction<R, X: From<Error>>(
        &self,
        change: impl FnOnce(&mut Batch<'_, '_, '_>) -> Result<R, X>,
    ) -> Result<(R, Sealed), X> {
        self.batch(false, change)
    }

    /// As [`transaction`](Self::transaction), for changes without which nothing can be given back, such as removals: they may
    /// use the heap's reserve.
    pub fn reserved_transaction<R, X: From<Error>>(
        &self,
        change: impl FnOnce(&mut Batch<'_, '_, '_>) -> Result<R, X>,
    ) -> Result<(R, Sealed), X> {
        self.batch(true, change)
    }

    fn batch<R, X: From<Error>>(
        &self,
        reserved: bool,
        change: impl FnOnce(&mut Batch<'_, '_, '_>) -> Result<R, X>,
    ) -> Result<(R, Sealed), X> {
        self.check()?;
        let mut failure = None;
        let (scratch, pins) = (&self.0.scratch, &self.0.pool.0.pins);
        let result = self.edit(|editor| {
            if reserved {
                editor.tx.use_reserve();
            }
            let mut batch = Batch { editor, scratch, pins, failed: false };
            let done = change(&mut batch).map_err(|error| {
                failure = Some(error);
                Error::Invalid("the transaction was abandoned")
            })?;
            if batch.failed {
                return Err(Error::Invalid(
                    "a change of the transaction has failed, so none of them is made",
                ));
            }
            Ok(done)
        });
        result.map_err(|error| failure.take().unwrap_or_else(|| error.into()))
    }

    /// As [`edit`](Self::edit), for changes that give space back in the end: they may use the heap's reserve.
    fn edit_reserved<R>(
        &self,
        change: impl FnOnce(&mut Editor<'_, '_>) -> Result<R, Error>,
    ) -> Result<(R, Sealed), Error> {
        self.edit(|editor| {
            editor.tx.use_reserve();
            change(editor)
        })
    }

    /// One transaction of the heap over this container: undone if `change` fails.
    fn edit<R>(
        &self,
        change: impl FnOnce(&mut Editor<'_, '_>) -> Result<R, Error>,
    ) -> Result<(R, Sealed), Error> {
        let pool = &self.0.pool.0;
        let mut heap = pool.store.heap_mut();
        let mut cache = pool.cache.borrow_mut();
        let space = pool.blocks.as_ref().map(|blocks| blocks.space.borrow());
        let mut tx = heap.begin();
        let mut editor = Editor::new(&mut tx, self.0.record, pool.seed, &mut cache, space.as_deref());
        let result = change(&mut editor).and_then(|result| editor.finish().map(|()| result));
        let (published, freed) = (std::mem::take(&mut editor.published), std::mem::take(&mut editor.freed));
        drop(editor);
        let sealed = result.and_then(|result| tx.seal().map(|sealed| (result, sealed)).map_err(from_heap));
        drop(space);
        match &sealed {
            Ok((_, sealed)) => {
                published.iter().for_each(Reservation::published);
                if let (false, Some(blocks)) = (freed.is_empty(), &pool.blocks) {
                    let mut space = blocks.space.borrow_mut();
                    freed.into_iter().for_each(|freed| space.settle(freed, *sealed));
                }
            }
            // The group that it remembers may have been made by what was undone.
            Err(_) => cache.group = None,
        }
        sealed
    }

    /// The container as a reader sees it.
    #[inline]
    fn view<R>(&self, read: impl FnOnce(View<'_>) -> Result<R, Error>) -> Result<R, Error> {
        self.check()?;
        let pool = &self.0.pool.0;
        let heap = pool.store.heap();
        read(view_of(&heap, self.0.record, pool.seed, &pool.pins)?)
    }

    /// Fetches a single value: the newest change at or before `epoch`.
    #[inline]
    pub fn fetch<R>(
        &self,
        request: &FetchRequest<'_>,
        epoch: Epoch,
        visit: impl FnOnce(Fetched<ValueRef<'_>>) -> R,
    ) -> Result<R, Error> {
        self.view(|view| view.fetch(request, epoch).map(visit))
    }

    /// Fetches several single values faster than one by one, since their cache misses overlap. Calls `visit` with the
    /// index of each request.
    pub fn fetch_batch(
        &self,
        requests: &[FetchRequest<'_>],
        epoch: Epoch,
        mut visit: impl FnMut(usize, Result<Fetched<ValueRef<'_>>, Error>),
    ) -> Result<(), Error> {
        self.view(|view| {
            view.fetch_batch(requests, epoch, &mut |index, answer| visit(index, answer));
            Ok(())
        })
    }

    /// Reads `range` of an array as it is at `epoch`. The pieces cover it exactly, in order.
    pub fn fetch_array(
        &self,
        object: ObjectId,
        keys: ArrayKeys<'_>,
        range: Range<u64>,
        epoch: Epoch,
        mut visit: impl FnMut(Piece<'_>),
    ) -> Result<(), Error> {
        self.view(|view| {
            let mut scratch = self.0.scratch.borrow_mut();
            view.fetch_array(object, keys, range, epoch, &mut scratch, &mut |piece| {
                visit(piece);
                Ok(())
            })
        })
    }

    /// The end of the last byte of data of an array at `epoch`; 0 if there is none. `None` where very many extents are removed: the call
    /// has looked at as many as fit into a slice of time, and the next one goes on with the same search. What is written or discarded at
    /// or before that epoch between two calls, above the place that they have come to, is not seen: an array whose data moves up
    /// meanwhile may be found empty. In a committed epoch nothing changes.
    pub fn array_end(
        &self,
        object: ObjectId,
        keys: ArrayKeys<'_>,
        epoch: Epoch,
        search: &mut EndSearch,
    ) -> Result<Option<u64>, Error> {
        self.view(|view| view.array_end(object, keys, epoch, search, &mut self.0.scratch.borrow_mut()))
    }

    /// The upper layer's metadata of an object.
    pub fn metadata<R>(&self, object: ObjectId, visit: impl FnOnce(&[u8]) -> R) -> Result<R, Error> {
        self.view(|view| view.metadata(object).map(visit))
    }

    /// Lists up to `limit` objects with something visible at `epoch`, after `anchor`. As of all listings here: there may be
    /// fewer, and none at all, where much is invisible at that epoch; only [`Anchor::at_end`] tells the end.
    pub fn enumerate_objects(
        &self,
        epoch: Epoch,
        anchor: &mut Anchor,
        limit: usize,
        mut visit: impl FnMut(ObjectId),
    ) -> Result<(), Error> {
        self.view(|view| {
            let mut scratch = self.0.scratch.borrow_mut();
            view.objects(epoch, anchor, limit, &mut scratch, &mut |id| visit(id))
        })
    }

    /// Lists up to `limit` keys of a KV, or dkeys of a document, with something visible at `epoch`, after `anchor`; in the
    /// order of the object's type.
    pub fn enumerate_keys(
        &self,
        object: ObjectId,
        epoch: Epoch,
        anchor: &mut Anchor,
        limit: usize,
        mut visit: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.view(|view| {
            let mut scratch = self.0.scratch.borrow_mut();
            view.keys(object, None, epoch, anchor, limit, &mut scratch, &mut |key| visit(key))
        })
    }

    /// Lists up to `limit` akeys of a dkey with something visible at `epoch`, after `anchor`.
    pub fn enumerate_akeys(
        &self,
        object: ObjectId,
        dkey: &[u8],
        epoch: Epoch,
        anchor: &mut Anchor,
        limit: usize,
        mut visit: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.view(|view| {
            let mut scratch = self.0.scratch.borrow_mut();
            view.keys(object, Some(dkey), epoch, anchor, limit, &mut scratch, &mut |key| visit(key))
        })
    }

    /// Lists up to `limit` extents of an array that were recorded in `epochs` and meet `range`, after `anchor`. The order
    /// is that of the tree of extents, not of offsets.
    pub fn enumerate_extents(
        &self,
        object: ObjectId,
        keys: ArrayKeys<'_>,
        range: Range<u64>,
        epochs: EpochRange,
        anchor: &mut Anchor,
        limit: usize,
        mut visit: impl FnMut(RecordedExtent<'_>),
    ) -> Result<(), Error> {
        self.view(|view| {
            view.extents(object, keys, (range, epochs), anchor, limit, &mut |extent| visit(extent))
        })
    }

    /// Lists up to `limit` changes made in `epochs`, oldest epoch first, after `anchor`. Epochs that were aggregated have
    /// no changes any more.
    pub fn changes(
        &self,
        epochs: EpochRange,
        anchor: &mut Anchor,
        limit: usize,
        mut visit: impl FnMut(Change<'_>),
    ) -> Result<(), Error> {
        self.view(|view| {
            let by_epoch = self.0.record + offset_of!(ContainerRecord, by_epoch) as u64;
            let by_epoch: u64 = *memory::read(view.heap, by_epoch)?;
            view.changes(by_epoch, epochs, anchor, limit, &mut |change| visit(change))
        })
    }

    /// What the container holds.
    pub fn usage(&self) -> Result<ContainerUsage, Error> {
        self.view(|view| {
            let record: &ContainerRecord = memory::read(view.heap, self.0.record)?;
            let Counts { objects, records, data_bytes } = record.counts;
            Ok(ContainerUsage { objects, records, data_bytes })
        })
    }

    /// Forgets every change that `cookie` made in `range`: what they hid is visible again. Atomic across a crash: once the
    /// first slice is durable the rest is done when the pool is opened. Durable changes of others are not touched.
    pub async fn discard(&self, cookie: Cookie, range: EpochRange) -> Result<Sealed, Error> {
        self.check()?;
        let (found, sealed) = self.edit_reserved(|editor| epochs::begin_discard(editor, cookie, range))?;
        if !found {
            return Ok(sealed);
        }
        self.finish_discards().await
    }

    pub(crate) async fn finish_discards(&self) -> Result<Sealed, Error> {
        loop {
            self.0.pool.between_slices().await?;
            self.check()?;
            let (more, sealed) = self.edit_slice(epochs::discard_slice)?;
            if !more {
                return Ok(sealed);
            }
        }
    }

    /// Keeps, of what was changed in `range`, only what is visible at its end. The caller picks ranges that no snapshot
    /// and no reader needs. Resumable: after a crash, call it again.
    pub async fn aggregate(&self, range: EpochRange) -> Result<Sealed, Error> {
        self.check()?;
        let (sweep, mut sealed) = self.edit_reserved(|editor| {
            epochs::begin_aggregation(editor, range)?;
            epochs::needs_sweep(editor, range)
        })?;
        let mut more = true;
        while more {
            self.0.pool.between_slices().await?;
            self.check()?;
            let mut scratch = self.0.scratch.borrow_mut();
            (more, sealed) =
                self.edit_slice(|editor, size| epochs::aggregate_slice(editor, range, size, &mut scratch))?;
        }
        let mut sweep = sweep.then(|| Sweep::new(range));
        while let Some(at) = sweep.take() {
            self.0.pool.between_slices().await?;
            self.check()?;
            let mut scratch = self.0.scratch.borrow_mut();
            (sweep, sealed) = self.edit_slice(|editor, size| at.slice(editor, size, &mut scratch))?;
        }
        let ((), last) = self.edit_reserved(|editor| epochs::end_aggregation(editor, range))?;
        Ok(last.max(sealed))
    }

    /// One transaction of long work, made smaller until log and arena take it.
    fn edit_slice<R>(
        &self,
        mut slice: impl FnMut(&mut Editor<'_, '_>, SliceSize) -> Result<R, Error>,
    ) -> Result<(R, Sealed), Error> {
        let mut size = self.0.pool.0.slices.size();
        loop {
            match self.edit_reserved(|editor| slice(editor, size)) {
                Err(error) => size = size.smaller(&error).ok_or(error)?,
                done => return done,
            }
        }
    }

    /// Removes everything, in slices, for as long as `is_there` says that the container's record is still its own.
    pub(crate) async fn empty(&self, is_there: impl Fn() -> Result<bool, Error>) -> Result<(), Error> {
        let mut more = true;
        while more {
            self.0.pool.between_slices().await?;
            more = is_there()? && self.edit_slice(destroy::slice)?.0;
        }
        Ok(())
    }
}

#[inline]
fn view_of<'h>(heap: &'h Heap, record: u64, seed: u64, pins: &'h Rc<Pins>) -> Result<View<'h>, Error> {
    Ok(View { heap, objects: *memory::read(heap, objects_place(record))?, seed, pins })
}

/// The changes of one transaction: see [`Container::transaction`]. None of them is made if one fails.
pub struct Batch<'b, 't, 'h> {
    editor: &'b mut Editor<'t, 'h>,
    scratch: &'b RefCell<Scratch>,
    pins: &'b Rc<Pins>,
    /// A change was refused, or has failed half-way.
    failed: bool,
}

impl Batch<'_, '_, '_> {
    /// As [`Container::update`].
    pub fn update(
        &mut self,
        object: ObjectId,
        epoch: Epoch,
        writer: Writer,
        conflict: Conflict,
        update: &Update<'_>,
    ) -> Result<(), Error> {
        let done = write::update(self.editor, object, Terms { epoch, writer, conflict }, update);
        self.failed |= done.is_err();
        done
    }

    /// As [`Container::punch`].
    pub fn punch(
        &mut self,
        object: ObjectId,
        epoch: Epoch,
        writer: Writer,
        conflict: Conflict,
        punch: &Punch<'_>,
    ) -> Result<(), Error> {
        let done = write::punch(self.editor, object, Terms { epoch, writer, conflict }, punch);
        self.failed |= done.is_err();
        done
    }

    /// As [`Container::set_metadata`].
    pub fn set_metadata(&mut self, object: ObjectId, bytes: &[u8]) -> Result<(), Error> {
        let done = write::set_metadata(self.editor, object, bytes);
        self.failed |= done.is_err();
        done
    }

    /// As [`Container::fetch`], with the changes of this transaction.
    pub fn fetch<R>(
        &self,
        request: &FetchRequest<'_>,
        epoch: Epoch,
        visit: impl FnOnce(Fetched<ValueRef<'_>>) -> R,
    ) -> Result<R, Error> {
        self.view()?.fetch(request, epoch).map(visit)
    }

    /// As [`Container::enumerate_keys`], with the changes of this transaction.
    pub fn enumerate_keys(
        &self,
        object: ObjectId,
        epoch: Epoch,
        anchor: &mut Anchor,
        limit: usize,
        mut visit: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let mut scratch = self.scratch.borrow_mut();
        self.view()?.keys(object, None, epoch, anchor, limit, &mut scratch, &mut |key| visit(key))
    }

    fn view(&self) -> Result<View<'_>, Error> {
        view_of(self.editor.heap(), self.editor.container, self.editor.seed, self.pins)
    }
}
