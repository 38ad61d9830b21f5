//! A mounted file system: making one, mounting, syncing, and calls by path.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
};

use daos_dsr::client::{Anchor, ContainerEpochs, Document, Epochs, Page, TargetObjects, Ticket};
use daos_types::{Epoch, ObjectId};

use crate::{
    Attributes, Directory, Entry, File, FileType, FsError, Inode, SetAttributes, Superblock,
    directory::Place,
    error::shown,
    file::OpenFile,
    ids::{FIRST_NUMBER, IdAllocator},
    inode::AKEYS,
    layout,
    locks::{LockKey, Locks, Turn},
    path::{Last, Walked, walk},
    superblock::{FormatOptions, NEXT_NUMBER, PARAMETERS},
};

/// What a file system needs of the layers below: objects, and epochs of the container handle.
pub trait Store: TargetObjects + ContainerEpochs {}

impl<T: TargetObjects + ContainerEpochs> Store for T {}

/// What a mount gets from its world, and how it behaves.
#[derive(Clone)]
pub struct Options {
    /// Nanoseconds since 1970.
    pub now: Rc<dyn Fn() -> u64>,
    /// 64 random bits, different for every mount.
    pub random: u64,
    /// Whether a directory's times change with its entries, which costs a request for every change.
    pub directory_times: bool,
    /// Read the tree as it was at this epoch, and change nothing. `None` mounts for reading and writing.
    pub read_at: Option<Epoch>,
    /// The epochs of the container handle, shared with whoever else writes and syncs through it without choosing epochs:
    /// other mounts too.
    pub epochs: Rc<Epochs>,
}

/// Open files by directory and name.
type OpenFiles<T> = BTreeMap<(ObjectId, Vec<u8>), Weak<OpenFile<T>>>;

/// What all handles of one mount share.
pub(crate) struct Shared<T> {
    pub(crate) targets: T,
    pub(crate) superblock_document: Rc<Document<T>>,
    pub(crate) superblock: Superblock,
    pub(crate) options: Options,
    /// What [`Epochs::given_up`] said when this was mounted: what a mount remembers of its writes is wrong after a change.
    given_up: u64,
    pub(crate) locks: Locks,
    pub(crate) ids: IdAllocator<T>,
    /// Changes whenever a directory is moved or removed, so that a handle can tell that its place may be another.
    pub(crate) moves: Cell<u64>,
    /// Directories that were removed while this mount lasts: nothing may be made in them any more.
    pub(crate) removed: RefCell<BTreeSet<ObjectId>>,
    pub(crate) open_files: RefCell<OpenFiles<T>>,
}

impl<T: Store> Shared<T> {
    /// The epoch at which to read.
    pub(crate) fn read_epoch(&self) -> Epoch {
        self.options.read_at.unwrap_or_else(|| self.options.epochs.current())
    }

    /// Whether anything may be changed.
    pub(crate) fn check_writable(&self) -> Result<(), FsError> {
        if self.options.read_at.is_some() {
            return Err(FsError::ReadOnly);
        }
        if self.options.epochs.given_up() != self.given_up {
            return Err(FsError::GivenUp);
        }
        Ok(self.options.epochs.check_whole(Epoch::MAX)?)
    }

    /// The right to change something that needs no lock.
    pub(crate) fn ticket(&self) -> Result<Ticket, FsError> {
        self.check_writable()?;
        Ok(self.options.epochs.ticket())
    }

    /// The right to change what is locked by `keys`.
    pub(crate) async fn turn(&self, keys: Vec<(LockKey, bool)>) -> Result<Turn, FsError> {
        self.check_writable()?;
        let guards = self.locks.take_all(keys).await;
        Ok(Turn::new(self.ticket()?, guards))
    }

    /// Stamp and number of a new object.
    pub(crate) async fn new_id(&self) -> Result<(u64, u64), FsError> {
        // What is allocated in an epoch may be used in later ones.
        let ticket = self.ticket()?;
        self.ids.allocate(ticket.epoch(), self.options.epochs.first_open()).await
    }

    pub(crate) fn now(&self) -> u64 {
        (self.options.now)()
    }

    /// Bytes of a file that are stored with its entry.
    pub(crate) fn first_block(&self) -> u64 {
        u64::from(self.superblock.options.first_block_bytes)
    }
}

/// A mounted file system. Clones share the mount.
pub struct Fs<T>(pub(crate) Rc<Shared<T>>);

impl<T> Clone for Fs<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Store> Fs<T> {
    /// Makes an empty file system in a container that holds none, and commits it. `root` are the attributes of its root
    /// directory.
    pub async fn format(
        targets: &T,
        format: FormatOptions,
        root: Attributes,
        options: &Options,
    ) -> Result<(), FsError> {
        format.check()?;
        let document = Document::open(targets, layout::superblock_object())?;
        options.epochs.begin(targets).await?;
        let ticket = options.epochs.ticket();
        let epoch = ticket.epoch();
        let there = document.fetch(epoch, layout::SUPERBLOCK_DKEY, &[PARAMETERS]).await?;
        if there.into_iter().any(|fetched| fetched.value().is_some()) {
            return Err(FsError::Exists("a file system".to_owned()));
        }
        let now = (options.now)();
        let inode = Inode {
            file_type: FileType::Directory,
            permissions: root.permissions & 0o7777,
            uid: root.uid,
            gid: root.gid,
            size: 0,
            accessed: root.accessed.unwrap_or(now),
            modified: root.modified.unwrap_or(now),
            changed: now,
            object: layout::root_object(format.directory_class),
            writing: false,
            link: None,
        };
        document.update(epoch, layout::ROOT_DKEY, &inode.encode().records()).await?;
        let superblock = Superblock { options: format, created: now }.encode();
        let next = FIRST_NUMBER.to_le_bytes();
        let records: [(&[u8], &[u8]); 2] = [(PARAMETERS, &superblock), (NEXT_NUMBER, &next)];
        document.update(epoch, layout::SUPERBLOCK_DKEY, &records).await?;
        drop(ticket);
        options.epochs.sync(targets).await?;
        Ok(())
    }

    /// Mounts the file system that a container holds. For writing, the next epoch is held unless one is.
    pub async fn mount(targets: &T, options: Options) -> Result<Self, FsError> {
        let given_up = options.epochs.given_up();
        let epoch = match options.read_at {
            Some(epoch) => epoch,
            None => {
                options.epochs.begin(targets).await?;
                options.epochs.current()
            }
        };
        let document = Rc::new(Document::open(targets, layout::superblock_object())?);
        let fetched = document.fetch(epoch, layout::SUPERBLOCK_DKEY, &[PARAMETERS, NEXT_NUMBER]).await?;
        let mut values = fetched.into_iter().map(daos_dsr::client::Fetched::value);
        let parameters = values.next().flatten();
        let parameters = parameters.ok_or_else(|| {
            FsError::NotMountable(
                "the container holds no file system: it was not made with type POSIX".to_owned(),
            )
        })?;
        let superblock = Superblock::decode(&parameters)?;
        let next = values.next().flatten().and_then(|bytes| bytes.try_into().ok().map(u64::from_le_bytes));
        let next =
            next.ok_or_else(|| FsError::NotMountable("the allocator's counter is not there".to_owned()))?;
        Ok(Self(Rc::new(Shared {
            targets: targets.clone(),
            ids: IdAllocator::new(document.clone(), options.random, next),
            superblock_document: document,
            superblock,
            options,
            given_up,
            locks: Locks::default(),
            moves: Cell::new(0),
            removed: RefCell::default(),
            open_files: RefCell::default(),
        })))
    }

    /// What the file system is like.
    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }

    /// Whether a directory's times change with its entries.
    pub fn has_directory_times(&self) -> bool {
        self.0.options.directory_times
    }

    /// The epoch into which changes go at the moment.
    pub fn epoch(&self) -> Epoch {
        self.0.read_epoch()
    }

    /// Makes every change that was complete before the call last: waits for the operations under way, flushes and commits
    /// their epoch. New operations go on meanwhile, in the next epoch. Returns the committed epoch. What else was written
    /// through the container handle without choosing an epoch is committed with it.
    pub async fn sync(&self) -> Result<Epoch, FsError> {
        self.0.check_writable()?;
        let open: Vec<_> = self.0.open_files.borrow().values().filter_map(Weak::upgrade).collect();
        for file in open {
            file.store_size(false).await?;
        }
        self.0.check_writable()?;
        Ok(self.0.options.epochs.sync(&self.0.targets).await?)
    }

    /// The root directory.
    pub fn root(&self) -> Directory<T> {
        let place = Place { document: self.0.superblock_document.clone(), dkey: layout::ROOT_DKEY.to_vec() };
        let object = layout::root_object(self.0.superblock.options.directory_class);
        Directory::new(&self.0, object, place).expect("the root's class was checked by the mount")
    }

    async fn walk(&self, path: &[u8], last: Last) -> Result<Walked<T>, FsError> {
        walk(self.root(), path, last).await
    }

    /// Attributes of a file or directory; links are followed.
    pub async fn stat(&self, path: impl AsRef<[u8]>) -> Result<Inode, FsError> {
        self.walk(path.as_ref(), Last::Follow).await?.stat().await
    }

    /// Attributes of a file, directory or link; a link at the end is not followed.
    pub async fn lstat(&self, path: impl AsRef<[u8]>) -> Result<Inode, FsError> {
        self.walk(path.as_ref(), Last::Keep).await?.stat().await
    }

    /// Opens a directory.
    pub async fn open_directory(&self, path: impl AsRef<[u8]>) -> Result<Directory<T>, FsError> {
        self.walk(path.as_ref(), Last::Follow).await?.directory()
    }

    /// Opens a file.
    pub async fn open(&self, path: impl AsRef<[u8]>) -> Result<File<T>, FsError> {
        let (parent, name, inode) = self.walk(path.as_ref(), Last::Follow).await?.existing()?;
        File::open(&parent, &name, &inode)
    }

    /// Makes a file; there must be none of this name.
    pub async fn create(&self, path: impl AsRef<[u8]>, attributes: Attributes) -> Result<File<T>, FsError> {
        let walked = self.walk(path.as_ref(), Last::Entry).await?;
        if walked.slash && walked.name.is_some() {
            return Err(FsError::IsADirectory(shown(path.as_ref())));
        }
        let (parent, name) = walked.absent()?;
        parent.create(&name, attributes).await
    }

    /// The bytes of a file: one request beyond the path if it is small.
    pub async fn read_file(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>, FsError> {
        let (parent, name, _) = self.walk(path.as_ref(), Last::Follow).await?.existing()?;
        parent.read_file(&name).await
    }

    /// Makes a directory.
    pub async fn mkdir(
        &self,
        path: impl AsRef<[u8]>,
        attributes: Attributes,
    ) -> Result<Directory<T>, FsError> {
        let (parent, name) = self.walk(path.as_ref(), Last::Entry).await?.absent()?;
        parent.mkdir(&name, attributes).await
    }

    /// Makes a symbolic link that says `target`.
    pub async fn symlink(
        &self,
        target: impl AsRef<[u8]>,
        path: impl AsRef<[u8]>,
        attributes: Attributes,
    ) -> Result<(), FsError> {
        let (parent, name) = self.walk(path.as_ref(), Last::Entry).await?.absent_file()?;
        parent.symlink(&name, target.as_ref(), attributes).await
    }

    /// What a symbolic link says.
    pub async fn readlink(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>, FsError> {
        let inode = self.walk(path.as_ref(), Last::Keep).await?.stat().await?;
        inode.link.ok_or_else(|| FsError::Invalid(format!("{}: not a symbolic link", shown(path.as_ref()))))
    }

    /// Removes a file or link.
    pub async fn unlink(&self, path: impl AsRef<[u8]>) -> Result<(), FsError> {
        let walked = self.walk(path.as_ref(), Last::Entry).await?;
        let Some(name) = walked.name.clone() else {
            return Err(FsError::IsADirectory(shown(path.as_ref())));
        };
        if let Some(found) = walked.found.filter(|_| walked.slash)
            && found.file_type != FileType::Directory
        {
            return Err(FsError::NotADirectory(shown(&name)));
        }
        walked.parent.unlink(&name).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<(), FsError> {
        let walked = self.walk(path.as_ref(), Last::Entry).await?;
        let Some(name) = walked.name.clone() else {
            let shown = shown(path.as_ref());
            return Err(match shown.trim_end_matches('/') {
                path if path.ends_with("..") => FsError::NotEmpty(shown),
                path if path.ends_with('.') => FsError::Invalid(format!("{shown}: cannot be removed")),
                _ => FsError::Busy(shown),
            });
        };
        walked.parent.rmdir(&name).await
    }

    /// Moves a file, link or directory, over what is at `to` if that is of the same kind (and empty).
    ///
    /// Entries are cloned and unlinked in one epoch: other clients that read uncommitted epochs may see both names or the
    /// new one without the rest; after a crash it has happened, or it has not.
    pub async fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<(), FsError> {
        loop {
            let source = self.walk(from.as_ref(), Last::Entry).await?;
            let target = self.walk(to.as_ref(), Last::Entry).await?;
            if crate::rename::rename(source, target).await? {
                return Ok(());
            }
        }
    }

    /// Changes attributes; links are followed.
    pub async fn set_attributes(&self, path: impl AsRef<[u8]>, set: SetAttributes) -> Result<(), FsError> {
        let walked = self.walk(path.as_ref(), Last::Follow).await?;
        match &walked.name {
            Some(name) => walked.parent.set_attributes(name, set).await,
            None => walked.parent.set_own_attributes(set).await,
        }
    }

    /// Cuts or extends a file to `size` bytes; what is new reads as zeros.
    pub async fn truncate(&self, path: impl AsRef<[u8]>, size: u64) -> Result<(), FsError> {
        self.set_attributes(path, SetAttributes { size: Some(size), ..SetAttributes::default() }).await
    }

    /// Lists names in a directory, with attributes.
    pub async fn list(
        &self,
        path: impl AsRef<[u8]>,
        anchor: &Anchor,
        entries_max: u32,
    ) -> Result<Page<Entry>, FsError> {
        self.open_directory(path).await?.list_with_attributes(anchor, entries_max).await
    }
}

/// The number of akeys of an entry without its data, for those who fetch both ways.
pub(crate) const DATA_INDEX: usize = AKEYS.len() - 1;
