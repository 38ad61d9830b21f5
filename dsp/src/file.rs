//! Files: the first block with the entry, the rest in an array at the file's own offsets.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use daos_dsr::client::{ARRAY_BYTES_MAX, Array, Document, Fetched, Record};
use daos_types::ObjectId;
use daos_xstream::{IoBuffer, both, sync::Semaphore};

use crate::{
    Directory, FileType, FsError, Inode,
    directory::Place,
    error::shown,
    fs::{Shared, Store},
    layout::{WRITING, akey},
    locks::Turn,
};

/// Most bytes of a file.
pub const FILE_BYTES_MAX: u64 = ARRAY_BYTES_MAX >> 1;
/// Largest file that is read as a whole, in bytes: a file may state any size, and hold next to nothing.
pub const WHOLE_FILE_BYTES_MAX: u64 = 1 << 30;
/// Most bytes that a file system may store with an entry.
pub(crate) const FIRST_BLOCK_BYTES_MAX: u32 = 64 << 10;

/// An open file. Clones, and files opened again under the same name, share their state.
pub struct File<T>(Rc<OpenFile<T>>);

impl<T> Clone for File<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What the handles of one open file share.
pub(crate) struct OpenFile<T> {
    shared: Rc<Shared<T>>,
    object: ObjectId,
    array: Array<T>,
    /// Directory and name; `None` once the file is unlinked.
    place: RefCell<Option<Place<T>>>,
    /// Whether this process has written into the entry that the array may reach beyond the stored size.
    writing: Cell<bool>,
    /// Writes to the array that are under way.
    writes: Cell<usize>,
    /// One more than the highest offset written to the array through this handle and not yet stored as size.
    end: Cell<u64>,
    /// Who appends, does it alone: he must know where the file ends until he has written there.
    appending: Rc<Semaphore>,
}

/// A write to the array, from before it looks at [`OpenFile::writing`] until it has noted how far it reached.
struct ArrayWrite<'a>(&'a Cell<usize>);

impl<'a> ArrayWrite<'a> {
    fn begin(writes: &'a Cell<usize>) -> Self {
        writes.set(writes.get() + 1);
        Self(writes)
    }
}

impl Drop for ArrayWrite<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What an entry says about the bytes of its file.
struct Content {
    size: u64,
    writing: bool,
    first: Vec<u8>,
}

const CONTENT: [&[u8]; 4] = [akey::MODE, akey::SIZE, akey::FLAGS, akey::DATA];

fn decode_content(mut fetched: Vec<Fetched>) -> Option<Content> {
    let first = fetched.pop()?.value().unwrap_or_default();
    let flags = fetched.pop()?.value();
    let size = fetched.pop()?.value();
    fetched.pop()?.value()?;
    let size = size.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let flags = flags.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    Some(Content { size, writing: flags & WRITING != 0, first })
}

impl<T: Store> File<T> {
    pub(crate) fn open(parent: &Directory<T>, name: &[u8], inode: &Inode) -> Result<Self, FsError> {
        match inode.file_type {
            FileType::Directory => return Err(FsError::IsADirectory(shown(name))),
            FileType::Symlink => return Err(FsError::Loop(shown(name))),
            FileType::File => {}
        }
        let key = (parent.object(), name.to_vec());
        let shared = &parent.shared;
        let open = shared.open_files.borrow().get(&key).and_then(Weak::upgrade);
        if let Some(open) = open.filter(|open| open.object == inode.object) {
            return Ok(Self(open));
        }
        let open = Rc::new(OpenFile {
            shared: shared.clone(),
            object: inode.object,
            array: Array::open(&shared.targets, inode.object)?,
            place: RefCell::new(Some(Place { document: parent.document.clone(), dkey: name.to_vec() })),
            writing: Cell::new(false),
            writes: Cell::new(0),
            end: Cell::new(0),
            appending: Semaphore::new(1),
        });
        shared.open_files.borrow_mut().insert(key, Rc::downgrade(&open));
        Ok(Self(open))
    }

    /// The array that holds what does not fit into the first block.
    pub fn object(&self) -> ObjectId {
        self.0.object
    }

    /// Bytes of the file, as written so far.
    pub async fn size(&self) -> Result<u64, FsError> {
        let place = self.0.place()?;
        let content = self.0.content(&place, self.0.shared.read_epoch(), &CONTENT[..3]).await?;
        self.0.exact_size(&content).await
    }

    /// Fills the buffer's bytes in use from `offset`; returns how many of them lie within the file. Bytes that do not, and
    /// gaps, become zero.
    pub async fn read(&self, offset: u64, room: IoBuffer) -> (IoBuffer, Result<usize, FsError>) {
        let first_block = self.0.shared.first_block();
        let epoch = self.0.shared.read_epoch();
        let place = match self.0.place() {
            Ok(place) => place,
            Err(error) => return (room, Err(error)),
        };
        if offset > FILE_BYTES_MAX - room.len() as u64 {
            return (room, Err(FsError::TooLarge(shown(&place.dkey))));
        }
        let akeys = if offset < first_block { &CONTENT[..] } else { &CONTENT[..3] };
        let content = self.0.content(&place, epoch, akeys);
        // The array's part is read at the same time; it needs a buffer of its own if it does not begin with the room.
        let head = first_block.saturating_sub(offset).min(room.len() as u64) as usize;
        let (mut room, content) = if head == 0 {
            let ((room, read), content) = both(self.0.array.read(epoch, offset, room), content).await;
            (room, read.map_err(FsError::from).and(content))
        } else if head < room.len() {
            let tail = IoBuffer::zeroed(room.len() - head);
            let ((tail, read), content) = both(self.0.array.read(epoch, first_block, tail), content).await;
            let mut room = room;
            room.as_mut_slice()[head..].copy_from_slice(tail.as_slice());
            (room, read.map_err(FsError::from).and(content))
        } else {
            (room, content.await)
        };
        let content = match content {
            Ok(content) => content,
            Err(error) => return (room, Err(error)),
        };
        if head > 0 {
            let stored = content.first.get(offset as usize..).unwrap_or_default();
            let stored = &stored[..stored.len().min(head)];
            room.as_mut_slice()[..stored.len()].copy_from_slice(stored);
            room.as_mut_slice()[stored.len()..head].fill(0);
        }
        match self.0.exact_size(&content).await {
            Ok(size) => {
                let within = size.saturating_sub(offset).min(room.len() as u64) as usize;
                room.as_mut_slice()[within..].fill(0);
                (room, Ok(within))
            }
            Err(error) => (room, Err(error)),
        }
    }

    /// Fills the buffer from `offset`, a place beyond the first block that the caller knows to lie within the file: one
    /// request per cell, and nothing is asked about the size.
    pub async fn read_chunk(&self, offset: u64, room: IoBuffer) -> (IoBuffer, Result<(), FsError>) {
        debug_assert!(offset >= self.0.shared.first_block(), "the first block is not in the array");
        let (room, result) = self.0.array.read(self.0.shared.read_epoch(), offset, room).await;
        (room, result.map(drop).map_err(FsError::from))
    }

    /// Writes the buffer's bytes in use at `offset` and gives the buffer back.
    pub async fn write(&self, offset: u64, data: IoBuffer) -> (IoBuffer, Result<(), FsError>) {
        match self.write_parts(offset, data).await {
            Ok(data) => (data, Ok(())),
            Err((data, error)) => (data, Err(error)),
        }
    }

    /// Writes bytes at `offset`.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), FsError> {
        self.write(offset, IoBuffer::copy_of(data)).await.1
    }

    async fn write_parts(&self, offset: u64, data: IoBuffer) -> Result<IoBuffer, (IoBuffer, FsError)> {
        let file = &self.0;
        let place = match file.place().and_then(|place| file.shared.check_writable().map(|()| place)) {
            Ok(place) => place,
            Err(error) => return Err((data, error)),
        };
        if data.is_empty() {
            return Ok(data);
        }
        let Some(end) = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX) else {
            return Err((data, FsError::TooLarge(shown(&place.dkey))));
        };
        let first_block = file.shared.first_block();
        if offset >= first_block {
            let _write = ArrayWrite::begin(&file.writes);
            // The entry first: in no epoch does the array reach beyond what the entry admits.
            let ticket = match file.begin_writing().await.and_then(|()| file.shared.ticket()) {
                Ok(ticket) => ticket,
                Err(error) => return Err((data, error)),
            };
            let (data, result) = file.array.write(ticket.epoch(), offset, data).await;
            return match result {
                Ok(()) => {
                    file.end.set(file.end.get().max(end));
                    Ok(data)
                }
                Err(error) => Err((data, error.into())),
            };
        }
        let head = (first_block - offset).min(data.len() as u64) as usize;
        let (place, turn) = match file.lock().await {
            Ok(locked) => locked,
            Err(error) => return Err((data, error)),
        };
        if head < data.len() {
            let tail = IoBuffer::copy_of(&data.as_slice()[head..]);
            let (_, result) = file.array.write(turn.epoch(), first_block, tail).await;
            if let Err(error) = result {
                return Err((data, error.into()));
            }
        }
        match file.write_first(&place, &turn, offset as usize, &data.as_slice()[..head], end).await {
            Ok(()) => Ok(data),
            Err(error) => Err((data, error)),
        }
    }

    /// Writes the buffer's bytes in use where the file ends, gives the buffer back, and tells where that was. No two appends of
    /// one mount write to the same place, whichever handles of the file they use; if one fails, the next may leave a gap.
    pub async fn append(&self, data: IoBuffer) -> (IoBuffer, Result<u64, FsError>) {
        let _one = self.0.appending.acquire().await;
        let offset = match self.size().await {
            Ok(offset) => offset,
            Err(error) => return (data, Err(error)),
        };
        let (data, written) = self.write(offset, data).await;
        (data, written.map(|()| offset))
    }

    /// Writes beyond the first block of a file that was made with its final size: nothing is noted about the size.
    pub async fn write_chunk(&self, offset: u64, data: IoBuffer) -> (IoBuffer, Result<(), FsError>) {
        debug_assert!(offset >= self.0.shared.first_block(), "the first block is not in the array");
        let ticket = match self.0.shared.ticket() {
            Ok(ticket) => ticket,
            Err(error) => return (data, Err(error)),
        };
        let (data, result) = self.0.array.write(ticket.epoch(), offset, data).await;
        (data, result.map_err(FsError::from))
    }

    /// Stores the size that the file has reached, so that others see it without asking the array.
    pub async fn close(self) -> Result<(), FsError> {
        let last = Rc::strong_count(&self.0) == 1;
        self.0.store_size(last).await
    }
}

impl<T> OpenFile<T> {
    /// The file is unlinked.
    pub(crate) fn forget(&self) {
        *self.place.borrow_mut() = None;
    }

    /// The file has another name.
    pub(crate) fn move_to(&self, parent: &Directory<T>, name: &[u8]) {
        *self.place.borrow_mut() = Some(Place { document: parent.document.clone(), dkey: name.to_vec() });
    }

    fn place(&self) -> Result<Place<T>, FsError> {
        let place = self.place.borrow().clone();
        place.ok_or_else(|| FsError::NotFound("the file was removed".to_owned()))
    }
}

impl<T: Store> OpenFile<T> {
    async fn content(
        &self,
        place: &Place<T>,
        epoch: daos_types::Epoch,
        akeys: &[&[u8]],
    ) -> Result<Content, FsError> {
        let mut fetched = place.document.fetch(epoch, &place.dkey, akeys).await?;
        fetched.resize(CONTENT.len(), Fetched::Miss);
        let content = decode_content(fetched).ok_or_else(|| FsError::NotFound(shown(&place.dkey)))?;
        if content.size > FILE_BYTES_MAX {
            return Err(FsError::Corrupt(format!(
                "{}: no file can have the stored size",
                shown(&place.dkey)
            )));
        }
        Ok(content)
    }

    async fn exact_size(&self, content: &Content) -> Result<u64, FsError> {
        if content.writing {
            return Ok(content.size.max(self.array.size(self.shared.read_epoch()).await?));
        }
        Ok(content.size)
    }

    /// Notes in the entry that the array may reach beyond the stored size.
    async fn begin_writing(&self) -> Result<(), FsError> {
        if self.writing.get() {
            return Ok(());
        }
        let (place, turn) = self.lock().await?;
        if !self.writing.get() {
            let records: [Record<'_>; 1] = [(akey::FLAGS, &WRITING.to_le_bytes())];
            place.document.update(turn.epoch(), &place.dkey, &records).await?;
            self.writing.set(true);
        }
        Ok(())
    }

    /// Replaces a part of the first block and raises the size to `end`.
    async fn write_first(
        &self,
        place: &Place<T>,
        turn: &Turn,
        offset: usize,
        data: &[u8],
        end: u64,
    ) -> Result<(), FsError> {
        let mut content = self.content(place, turn.epoch(), &CONTENT).await?;
        let first = &mut content.first;
        if first.len() < offset + data.len() {
            first.resize(offset + data.len(), 0);
        }
        first[offset..offset + data.len()].copy_from_slice(data);
        let size = content.size.max(end).to_le_bytes();
        let now = self.shared.now().to_le_bytes();
        let records: [Record<'_>; 4] =
            [(akey::DATA, first), (akey::SIZE, &size), (akey::MTIME, &now), (akey::CTIME, &now)];
        Ok(place.document.update(turn.epoch(), &place.dkey, &records).await?)
    }

    /// Stores the size that was reached; if `last`, also that nobody writes any more, unless somebody has begun to.
    pub(crate) async fn store_size(self: &Rc<Self>, last: bool) -> Result<(), FsError> {
        let stores = self.end.get() > 0 || last && self.writing.get();
        if !stores || self.place.borrow().is_none() {
            return Ok(());
        }
        let (place, turn) = self.lock().await?;
        // The file may have been opened again until the lock was held. Who begins to write from here on finds the mark
        // taken back, and waits for the lock to set it again.
        let last = last && self.writes.get() == 0 && Rc::strong_count(self) == 1;
        if last {
            self.writing.set(false);
        }
        // If this fails the mark may still stand in the entry: readers ask the array then, which is right too.
        self.store_size_in(&place, &turn, last).await
    }

    async fn store_size_in(&self, place: &Place<T>, turn: &Turn, last: bool) -> Result<(), FsError> {
        let end = self.end.get();
        let content = self.content(place, turn.epoch(), &CONTENT[..3]).await?;
        // Somebody else may have written before this handle was opened, and died.
        let reached = if content.writing { self.exact_size(&content).await? } else { content.size };
        let size = reached.max(end).to_le_bytes();
        let now = self.shared.now().to_le_bytes();
        let flags = 0u32.to_le_bytes();
        let records: [Record<'_>; 4] =
            [(akey::SIZE, &size), (akey::MTIME, &now), (akey::CTIME, &now), (akey::FLAGS, &flags)];
        let records = if last { &records[..] } else { &records[..3] };
        place.document.update(turn.epoch(), &place.dkey, records).await?;
        // A write that has ended meanwhile is stored next time.
        if self.end.get() == end {
            self.end.set(0);
        }
        Ok(())
    }

    async fn lock(&self) -> Result<(Place<T>, Turn), FsError> {
        loop {
            let place = self.place()?;
            let key = (place.document.id(), Some(place.dkey.clone()));
            let turn = self.shared.turn(vec![(key, true)]).await?;
            // The file may have moved until the lock was held.
            let now = self.place()?;
            if now.document.id() == place.document.id() && now.dkey == place.dkey {
                return Ok((place, turn));
            }
        }
    }
}

/// Cuts or extends a file; the caller holds the lock of its name.
pub(crate) async fn truncate<T: Store>(
    parent: &Directory<T>,
    turn: &Turn,
    name: &[u8],
    inode: &Inode,
    size: u64,
) -> Result<(), FsError> {
    if size > FILE_BYTES_MAX {
        return Err(FsError::TooLarge(shown(name)));
    }
    let shared = &parent.shared;
    let document: &Document<T> = &parent.document;
    let first_block = shared.first_block();
    let current = parent.exact(inode.clone()).await?.size;
    let cuts_array = size < current && (inode.writing || current > first_block);
    let stored = document.fetch(turn.epoch(), name, &[akey::DATA]).await?;
    let mut first = stored.into_iter().next().and_then(Fetched::value).unwrap_or_default();
    let bytes = size.to_le_bytes();
    let mut records: Vec<Record<'_>> = vec![(akey::SIZE, &bytes)];
    if size < first.len() as u64 {
        first.truncate(size as usize);
        records.push((akey::DATA, &first));
    }
    // Writing comes first, because it may find no space; removing may use what is kept in reserve.
    let array = cuts_array.then(|| Array::open(&shared.targets, inode.object)).transpose()?;
    let steps = cuts_array.then(|| turn.begin_steps(format!("truncating {}", shown(name))));
    if let Err(error) = document.update(turn.epoch(), name, &records).await {
        if let Some(steps) = steps
            && error.nothing_changed()
        {
            steps.end();
        }
        return Err(error.into());
    }
    if let (Some(steps), Some(array)) = (steps, array) {
        array.punch_range(turn.epoch(), size.max(first_block), ARRAY_BYTES_MAX).await?;
        steps.end();
    }
    let open = shared.open_files.borrow().get(&(parent.object(), name.to_vec())).and_then(Weak::upgrade);
    if let Some(open) = open {
        open.end.set(open.end.get().min(size));
    }
    Ok(())
}
