//! Directories: entries by name.

use std::rc::Rc;

use daos_dsr::client::{Anchor, Array, Document, Page, Record};
use daos_types::{Epoch, ObjectId};
use daos_xstream::{both, join_all};

use crate::{
    Attributes, File, FileType, FsError, Inode, SetAttributes,
    error::shown,
    file::WHOLE_FILE_BYTES_MAX,
    fs::{DATA_INDEX, Shared, Store},
    inode::{AKEYS, akeys_without_data},
    layout::{self, akey},
    locks::Turn,
    path::{PATH_BYTES_MAX, check_name},
};

/// Where attributes are stored: a dkey of a document.
pub(crate) struct Place<T> {
    pub(crate) document: Rc<Document<T>>,
    pub(crate) dkey: Vec<u8>,
}

impl<T> Clone for Place<T> {
    fn clone(&self) -> Self {
        Self { document: self.document.clone(), dkey: self.dkey.clone() }
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its attributes. The size of a file that is being written may be more.
    pub inode: Inode,
}

/// An open directory.
pub struct Directory<T> {
    pub(crate) shared: Rc<Shared<T>>,
    pub(crate) document: Rc<Document<T>>,
    /// Where the directory's own attributes are, as long as no directory has moved since.
    place: Place<T>,
    moves: u64,
}

impl<T> Clone for Directory<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            document: self.document.clone(),
            place: self.place.clone(),
            moves: self.moves,
        }
    }
}

impl<T: Store> Directory<T> {
    pub(crate) fn new(shared: &Rc<Shared<T>>, object: ObjectId, place: Place<T>) -> Result<Self, FsError> {
        let document = Rc::new(Document::open(&shared.targets, object)?);
        Ok(Self { shared: shared.clone(), document, place, moves: shared.moves.get() })
    }

    /// The document that holds the entries.
    pub fn object(&self) -> ObjectId {
        self.document.id()
    }

    /// How many moves of directories there had been when this handle was made.
    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }

    pub(crate) fn read_epoch(&self) -> Epoch {
        self.shared.read_epoch()
    }

    /// A directory in this one.
    pub(crate) fn child(&self, name: &[u8], inode: &Inode) -> Result<Self, FsError> {
        if inode.file_type != FileType::Directory {
            return Err(FsError::NotADirectory(shown(name)));
        }
        let place = Place { document: self.document.clone(), dkey: name.to_vec() };
        Self::new(&self.shared, inode.object, place)
    }

    /// What is stored under a name.
    pub(crate) async fn inode(&self, epoch: Epoch, name: &[u8]) -> Result<Option<Inode>, FsError> {
        Inode::decode(&self.document.fetch(epoch, name, akeys_without_data()).await?)
    }

    async fn existing(&self, epoch: Epoch, name: &[u8]) -> Result<Inode, FsError> {
        self.inode(epoch, name).await?.ok_or_else(|| FsError::NotFound(shown(name)))
    }

    /// Attributes of the directory itself.
    pub async fn own_inode(&self) -> Result<Inode, FsError> {
        let fetched =
            self.place.document.fetch(self.read_epoch(), &self.place.dkey, akeys_without_data()).await?;
        Inode::decode(&fetched)?.ok_or_else(|| FsError::NotFound(shown(&self.place.dkey)))
    }

    /// The attributes, with the size that a file being written has by now.
    pub(crate) async fn exact(&self, mut inode: Inode) -> Result<Inode, FsError> {
        if inode.writing {
            let array = Array::open(&self.shared.targets, inode.object)?;
            inode.size = inode.size.max(array.size(self.read_epoch()).await?);
        }
        Ok(inode)
    }

    /// Attributes of an entry; links are not followed.
    pub async fn stat(&self, name: &[u8]) -> Result<Inode, FsError> {
        check_name(name)?;
        self.exact(self.existing(self.read_epoch(), name).await?).await
    }

    /// Opens a directory in this one.
    pub async fn open_directory(&self, name: &[u8]) -> Result<Self, FsError> {
        check_name(name)?;
        self.child(name, &self.existing(self.read_epoch(), name).await?)
    }

    /// Opens a file in this directory.
    pub async fn open(&self, name: &[u8]) -> Result<File<T>, FsError> {
        check_name(name)?;
        File::open(self, name, &self.existing(self.read_epoch(), name).await?)
    }

    /// Attributes and first block of an entry, in one request.
    pub async fn open_and_read(&self, name: &[u8]) -> Result<(Inode, Vec<u8>), FsError> {
        check_name(name)?;
        let mut fetched = self.document.fetch(self.read_epoch(), name, &AKEYS).await?;
        let inode = Inode::decode(&fetched)?.ok_or_else(|| FsError::NotFound(shown(name)))?;
        let inode = self.exact(inode).await?;
        let mut data = fetched.swap_remove(DATA_INDEX).value().unwrap_or_default();
        data.resize(inode.size.min(self.shared.first_block()) as usize, 0);
        Ok((inode, data))
    }

    /// The bytes of a file of at most [`WHOLE_FILE_BYTES_MAX`]: one request if it is small.
    pub async fn read_file(&self, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let (inode, mut data) = self.open_and_read(name).await?;
        match inode.file_type {
            FileType::Directory => return Err(FsError::IsADirectory(shown(name))),
            FileType::Symlink => return Err(FsError::Invalid(format!("{}: a symbolic link", shown(name)))),
            FileType::File => {}
        }
        if inode.size > WHOLE_FILE_BYTES_MAX {
            return Err(FsError::TooLarge(format!("{}, to be read as a whole", shown(name))));
        }
        let size = inode.size as usize;
        if size > data.len() {
            let room = daos_xstream::IoBuffer::zeroed(size - data.len());
            let array = Array::open(&self.shared.targets, inode.object)?;
            let (rest, result) = array.read(self.read_epoch(), data.len() as u64, room).await;
            result?;
            data.extend_from_slice(rest.as_slice());
        }
        Ok(data)
    }

    /// Makes an empty file; there must be nothing of this name.
    pub async fn create(&self, name: &[u8], attributes: Attributes) -> Result<File<T>, FsError> {
        self.create_with(name, attributes, &[], 0, false).await
    }

    /// Makes a file of `size` bytes that begins with `first` (at most a first block): one request. The rest of its bytes
    /// is zero until it is written. With `fresh` the caller knows that there is nothing of this name, for example because
    /// it has just made the directory, and saves the request that asks.
    pub async fn create_with(
        &self,
        name: &[u8],
        attributes: Attributes,
        first: &[u8],
        size: u64,
        fresh: bool,
    ) -> Result<File<T>, FsError> {
        let length = first.len() as u64;
        if length > self.shared.first_block() || length > size || size > crate::file::FILE_BYTES_MAX {
            return Err(FsError::TooLarge(shown(name)));
        }
        let (stamp, number) = self.shared.new_id().await?;
        let object = layout::file_object(self.shared.superblock.options.file_class, stamp, number);
        let inode = self.new_inode(FileType::File, attributes, object, size, None);
        let data: [Record<'_>; 1] = [(akey::DATA, first)];
        let extra = if first.is_empty() { &data[..0] } else { &data[..] };
        self.insert(name, &inode, extra, fresh).await?;
        File::open(self, name, &inode)
    }

    /// Makes a directory.
    pub async fn mkdir(&self, name: &[u8], attributes: Attributes) -> Result<Self, FsError> {
        let (stamp, number) = self.shared.new_id().await?;
        let object = layout::directory_object(self.shared.superblock.options.directory_class, stamp, number);
        let inode = self.new_inode(FileType::Directory, attributes, object, 0, None);
        self.insert(name, &inode, &[], false).await?;
        self.child(name, &inode)
    }

    /// Makes a symbolic link that says `target`.
    pub async fn symlink(&self, name: &[u8], target: &[u8], attributes: Attributes) -> Result<(), FsError> {
        if target.is_empty() || target.contains(&0) {
            return Err(FsError::NotFound(format!("{}: target of a link", shown(target))));
        }
        if target.len() > PATH_BYTES_MAX {
            return Err(FsError::NameTooLong(shown(&target[..80])));
        }
        let (stamp, number) = self.shared.new_id().await?;
        let object = layout::file_object(self.shared.superblock.options.file_class, stamp, number);
        let inode = self.new_inode(FileType::Symlink, attributes, object, 0, Some(target.to_vec()));
        self.insert(name, &inode, &[(akey::LINK, target)], false).await
    }

    /// What a symbolic link says.
    pub async fn readlink(&self, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let inode = self.stat(name).await?;
        inode.link.ok_or_else(|| FsError::Invalid(format!("{}: not a symbolic link", shown(name))))
    }

    fn new_inode(
        &self,
        file_type: FileType,
        attributes: Attributes,
        object: ObjectId,
        size: u64,
        link: Option<Vec<u8>>,
    ) -> Inode {
        let now = self.shared.now();
        Inode {
            file_type,
            permissions: attributes.permissions & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            size: link.as_ref().map_or(size, |link| link.len() as u64),
            accessed: attributes.accessed.unwrap_or(now),
            modified: attributes.modified.unwrap_or(now),
            changed: now,
            object,
            writing: false,
            link,
        }
    }

    async fn insert(
        &self,
        name: &[u8],
        inode: &Inode,
        extra: &[Record<'_>],
        fresh: bool,
    ) -> Result<(), FsError> {
        check_name(name)?;
        let turn = self.lock_entry(name).await?;
        self.check_alive()?;
        if !fresh && self.inode(turn.epoch(), name).await?.is_some() {
            return Err(FsError::Exists(shown(name)));
        }
        let encoded = inode.encode();
        let mut records = encoded.records();
        records.extend_from_slice(extra);
        self.change(&turn, self.document.update(turn.epoch(), name, &records)).await
    }

    /// Removes a file or link. A file that is open in this process can be read and written no more.
    pub async fn unlink(&self, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        let turn = self.lock_entry(name).await?;
        let inode = self.existing(turn.epoch(), name).await?;
        if inode.file_type == FileType::Directory {
            return Err(FsError::IsADirectory(shown(name)));
        }
        self.change(&turn, self.document.remove_dkey(turn.epoch(), name)).await?;
        self.remove_content(&turn, name, &inode).await
    }

    /// Removes the data of something that is no directory, whose entry is gone. A file that is open under that name can be
    /// read and written no more.
    pub(crate) async fn remove_content(
        &self,
        turn: &Turn,
        name: &[u8],
        inode: &Inode,
    ) -> Result<(), FsError> {
        if let Some(open) = self.shared.open_files.borrow_mut().remove(&(self.object(), name.to_vec()))
            && let Some(open) = open.upgrade()
        {
            open.forget();
        }
        if inode.writing || inode.size > self.shared.first_block() {
            Array::open(&self.shared.targets, inode.object)?.punch(turn.epoch()).await?;
        }
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        loop {
            let inode = self.existing(self.read_epoch(), name).await?;
            let child = self.child(name, &inode)?;
            let keys = vec![
                ((self.object(), None), false),
                ((self.object(), Some(name.to_vec())), true),
                ((child.object(), None), true),
            ];
            let turn = self.shared.turn(keys).await?;
            // Which directory has the name could change until the locks were held.
            if self.inode(turn.epoch(), name).await?.map(|inode| inode.object) != Some(child.object()) {
                continue;
            }
            child.check_empty(turn.epoch(), name).await?;
            self.change(&turn, self.document.remove_dkey(turn.epoch(), name)).await?;
            child.set_removed();
            return Ok(());
        }
    }

    /// Refuses a directory that has entries.
    pub(crate) async fn check_empty(&self, epoch: Epoch, name: &[u8]) -> Result<(), FsError> {
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = self.document.list_dkeys(epoch, &from, 16).await?;
            for entry in &page.items {
                if self.inode(epoch, entry).await?.is_some() {
                    return Err(FsError::NotEmpty(shown(name)));
                }
            }
            anchor = page.next;
        }
        Ok(())
    }

    /// Notes that the directory is gone.
    pub(crate) fn set_removed(&self) {
        self.shared.removed.borrow_mut().insert(self.object());
        self.shared.moves.set(self.shared.moves.get() + 1);
    }

    pub(crate) fn check_alive(&self) -> Result<(), FsError> {
        if self.shared.removed.borrow().contains(&self.object()) {
            return Err(FsError::NotFound(shown(&self.place.dkey)));
        }
        Ok(())
    }

    /// Changes attributes of an entry; links are not followed.
    pub async fn set_attributes(&self, name: &[u8], set: SetAttributes) -> Result<(), FsError> {
        check_name(name)?;
        let turn = self.lock_entry(name).await?;
        let inode = self.existing(turn.epoch(), name).await?;
        if let Some(size) = set.size {
            match inode.file_type {
                FileType::Directory => return Err(FsError::IsADirectory(shown(name))),
                FileType::Symlink => {
                    return Err(FsError::Invalid(format!("{}: a symbolic link", shown(name))));
                }
                FileType::File => crate::file::truncate(self, &turn, name, &inode, size).await?,
            }
        }
        let place = Place { document: self.document.clone(), dkey: name.to_vec() };
        self.write_attributes(turn.epoch(), &place, &inode, set).await
    }

    /// Changes attributes of the directory itself.
    pub async fn set_own_attributes(&self, set: SetAttributes) -> Result<(), FsError> {
        let ticket = self.shared.ticket()?;
        if set.size.is_some() {
            return Err(FsError::IsADirectory(shown(&self.place.dkey)));
        }
        let inode = self.own_inode().await?;
        self.write_attributes(ticket.epoch(), &self.place, &inode, set).await
    }

    async fn write_attributes(
        &self,
        epoch: Epoch,
        place: &Place<T>,
        inode: &Inode,
        set: SetAttributes,
    ) -> Result<(), FsError> {
        let now = self.shared.now();
        let mode = set.permissions.map(|bits| (inode.file_type.mode_bits() | bits & 0o7777).to_le_bytes());
        let uid = set.uid.map(u32::to_le_bytes);
        let gid = set.gid.map(u32::to_le_bytes);
        let accessed = set.accessed.map(u64::to_le_bytes);
        // Another size is another content.
        let modified = set.modified.or(set.size.map(|_| now)).map(u64::to_le_bytes);
        let changed = now.to_le_bytes();
        let mut records: Vec<Record<'_>> = vec![(akey::CTIME, &changed)];
        records.extend(mode.as_ref().map(|bytes| (akey::MODE, &bytes[..])));
        records.extend(uid.as_ref().map(|bytes| (akey::UID, &bytes[..])));
        records.extend(gid.as_ref().map(|bytes| (akey::GID, &bytes[..])));
        records.extend(accessed.as_ref().map(|bytes| (akey::ATIME, &bytes[..])));
        records.extend(modified.as_ref().map(|bytes| (akey::MTIME, &bytes[..])));
        Ok(place.document.update(epoch, &place.dkey, &records).await?)
    }

    /// Lists names in lexical order (a directory over several shards: shard after shard), at most `names_max` at once.
    pub async fn list(&self, anchor: &Anchor, names_max: u32) -> Result<Page<Vec<u8>>, FsError> {
        Ok(self.document.list_dkeys(self.read_epoch(), anchor, names_max).await?)
    }

    /// Lists entries with their attributes, which takes a request for each, all at once.
    pub async fn list_with_attributes(
        &self,
        anchor: &Anchor,
        entries_max: u32,
    ) -> Result<Page<Entry>, FsError> {
        let page = self.list(anchor, entries_max).await?;
        let epoch = self.read_epoch();
        let inodes = join_all(page.items.iter().map(|name| self.inode(epoch, name))).await;
        let mut items = Vec::with_capacity(page.items.len());
        for (name, inode) in page.items.into_iter().zip(inodes) {
            // A name that was removed meanwhile is none.
            if let Some(inode) = inode? {
                items.push(Entry { name, inode });
            }
        }
        Ok(Page { items, next: page.next })
    }

    async fn lock_entry(&self, name: &[u8]) -> Result<Turn, FsError> {
        let keys = vec![((self.object(), None), false), ((self.object(), Some(name.to_vec())), true)];
        self.shared.turn(keys).await
    }

    /// Changes an entry, and the directory's own times with it.
    pub(crate) async fn change(
        &self,
        turn: &Turn,
        change: impl Future<Output = Result<(), daos_dsr::client::DsrError>>,
    ) -> Result<(), FsError> {
        if !self.shared.options.directory_times || self.moves != self.shared.moves.get() {
            // Where the directory's attributes are now is not known any more; its next opening finds out.
            return Ok(change.await?);
        }
        let now = self.shared.now().to_le_bytes();
        let times: [Record<'_>; 2] = [(akey::MTIME, &now), (akey::CTIME, &now)];
        let touch = self.place.document.update(turn.epoch(), &self.place.dkey, &times);
        let (changed, touched) = both(change, touch).await;
        changed?;
        Ok(touched?)
    }
}
