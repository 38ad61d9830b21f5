//! Files below one folder, through the xstream's own io_uring.
//!
//! # Invariants
//!
//! * Every path is parsed into components below the root before the kernel sees it; `..` and absolute paths do not exist.
//! * What the trait calls durable on return has been synced with the folders that name it.
//! * No call blocks the core, but for the listing of a folder (there is no asynchronous one) and the opening of the root. Locks are
//!   asked for, not waited for.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use daos_xstream::{BLOCK_BYTES, Durability, IoBuffer, Media, MediaError, MediaFile, OpenOptions};
use io_uring::{opcode, types};

use crate::{
    file::UringFile,
    ring::{Held, Ring},
};

/// How much zeroing a new file writes at once, and how many such writes are in flight.
const ZERO_BYTES: u64 = 1 << 20;
const ZERO_WRITES: usize = 4;

/// The folder of all files; opened once for all xstreams.
pub(crate) struct Root {
    folder: File,
    path: PathBuf,
    /// Whether somebody has been told that files go through the page cache.
    told: AtomicBool,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Arc<Self>> {
        let folder = File::open(path)?;
        if !folder.metadata()?.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(Arc::new(Self { folder, path: path.to_owned(), told: AtomicBool::new(false) }))
    }
}

/// The media of the real world.
#[derive(Clone)]
pub struct UringMedia {
    ring: Rc<Ring>,
    root: Arc<Root>,
}

impl UringMedia {
    pub(crate) fn new(ring: Rc<Ring>, root: Arc<Root>) -> Self {
        Self { ring, root }
    }

    /// Opens what is there. Without O_DIRECT where the file system refuses it.
    async fn open_descriptor(&self, path: &Location, flags: i32) -> Result<(Rc<OwnedFd>, bool), MediaError> {
        match self.open_with(path, flags | libc::O_DIRECT).await {
            Ok(file) => Ok((file, true)),
            Err(libc::EINVAL) => {
                // With O_CREAT the file may have come about before the flag was refused.
                if flags & libc::O_CREAT != 0 {
                    let _ = self.unlink(path, 0).await;
                }
                let file = self.open_with(path, flags).await.map_err(|errno| path.error("open", errno))?;
                if !self.root.told.swap(true, Ordering::Relaxed) {
                    let root = self.root.path.display().to_string();
                    tracing::warn!(
                        root,
                        "this file system refuses direct I/O: files go through the page cache"
                    );
                }
                Ok((file, false))
            }
            Err(errno) => Err(path.error("open", errno)),
        }
    }

    async fn open_with(&self, path: &Location, flags: i32) -> Result<Rc<OwnedFd>, i32> {
        let name = path.to_c();
        let entry = opcode::OpenAt::new(self.root_descriptor(), name.as_ptr())
            .flags(flags | libc::O_CLOEXEC)
            .mode(0o600)
            .build();
        let held = Held { paths: [Some(name), None], ..Held::default() };
        let (_, result) = self.ring.operate(entry, held).await;
        let descriptor = result?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Rc::new(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    fn root_descriptor(&self) -> types::Fd {
        types::Fd(self.root.folder.as_raw_fd())
    }

    async fn unlink(&self, path: &Location, flags: i32) -> Result<(), i32> {
        let name = path.to_c();
        let entry = opcode::UnlinkAt::new(self.root_descriptor(), name.as_ptr()).flags(flags).build();
        let held = Held { paths: [Some(name), None], ..Held::default() };
        self.ring.operate(entry, held).await.1.map(drop)
    }

    /// Makes the folder's entries durable.
    async fn sync_folder(&self, folder: &Location) -> Result<(), MediaError> {
        let failed = |errno| folder.error("sync the folder", errno);
        let opened = self.open_with(folder, libc::O_RDONLY | libc::O_DIRECTORY).await.map_err(failed)?;
        sync(&self.ring, &opened, false).await.map_err(failed)
    }

    /// Makes the folders above `path` that are not there, durably.
    async fn make_folders(&self, path: &Location) -> Result<(), MediaError> {
        let mut missing = Vec::new();
        let mut folder = path.parent();
        while let Some(at) = folder {
            match self.open_with(&at, libc::O_PATH | libc::O_DIRECTORY).await {
                Ok(_) => break,
                Err(libc::ENOENT) => {
                    folder = at.parent();
                    missing.push(at);
                }
                Err(errno) => return Err(at.error("open the folder", errno)),
            }
        }
        while let Some(at) = missing.pop() {
            let name = at.to_c();
            let entry = opcode::MkDirAt::new(self.root_descriptor(), name.as_ptr()).mode(0o700).build();
            let held = Held { paths: [Some(name), None], ..Held::default() };
            match self.ring.operate(entry, held).await.1 {
                // Another xstream may be making the same folder; whoever comes second syncs it too.
                Ok(_) | Err(libc::EEXIST) => {}
                Err(errno) => return Err(at.error("make the folder", errno)),
            }
            self.sync_folder(&at.parent().unwrap_or_default()).await?;
        }
        Ok(())
    }

    async fn create(&self, path: &Location, options: OpenOptions) -> Result<UringFile, MediaError> {
        if !options.size.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(MediaError::BadRange { offset: 0, length: options.size, size: options.size });
        }
        self.make_folders(path).await?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let (descriptor, direct) = self.open_descriptor(path, flags).await?;
        let file = UringFile::new(self.ring.clone(), descriptor, path.to_string(), options.size, direct);
        let filled = async {
            fill(&file, path, options).await?;
            sync(&self.ring, file.descriptor(), false).await.map_err(|errno| path.error("sync", errno))?;
            self.sync_folder(&path.parent().unwrap_or_default()).await
        };
        match filled.await {
            Ok(()) => Ok(file),
            Err(error) => {
                // Half a file is worse than none: the next attempt must find the name free.
                let _ = self.unlink(path, 0).await;
                Err(error)
            }
        }
    }

    async fn remove_tree(&self, path: &Location) -> Result<(), MediaError> {
        // Depth first, with the folders on a stack of this function's own.
        let mut pending = vec![(path.clone(), false)];
        while let Some((at, emptied)) = pending.pop() {
            if emptied {
                self.unlink(&at, libc::AT_REMOVEDIR)
                    .await
                    .map_err(|errno| at.error("remove the folder", errno))?;
                continue;
            }
            match self.unlink(&at, 0).await {
                Ok(()) | Err(libc::ENOENT) => {}
                Err(libc::EISDIR) => {
                    pending.push((at.clone(), true));
                    for name in self.names(&at)? {
                        pending.push((at.join(&name), false));
                    }
                }
                Err(errno) => return Err(at.error("remove", errno)),
            }
        }
        Ok(())
    }

    fn names(&self, folder: &Location) -> Result<Vec<String>, MediaError> {
        let path = self.root.path.join(&folder.0);
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| folder.io_error("list", &error))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| folder.io_error("list", &error))?.file_name();
            let name = name.into_string().map_err(|name| {
                MediaError::Failed(format!(
                    "{folder}: the name {name:?} in it is not UTF-8, so it is not ours"
                ))
            })?;
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl Media for UringMedia {
    type File = UringFile;

    async fn open(&self, path: &str, options: OpenOptions) -> Result<UringFile, MediaError> {
        let location = Location::parse(path)?;
        if options.create_new {
            return self.create(&location, options).await;
        }
        let (descriptor, direct) = self.open_descriptor(&location, libc::O_RDWR).await?;
        if options.alone {
            // The lock belongs to the open file, which lives for as long as a transfer of it is in the kernel.
            match rustix::fs::flock(&descriptor, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(MediaError::InUse(location.to_string())),
                Err(error) => return Err(location.error("lock", error.raw_os_error())),
            }
        }
        let size = size_of_file(&descriptor).map_err(|error| location.io_error("ask the size of", &error))?;
        Ok(UringFile::new(self.ring.clone(), descriptor, location.to_string(), size, direct))
    }

    async fn remove(&self, path: &str) -> Result<(), MediaError> {
        let location = Location::parse(path)?;
        self.remove_tree(&location).await?;
        match self.sync_folder(&location.parent().unwrap_or_default()).await {
            Err(MediaError::NotFound(_)) => Ok(()),
            result => result,
        }
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), MediaError> {
        let (from, to) = (Location::parse(from)?, Location::parse(to)?);
        let (old, new) = (from.to_c(), to.to_c());
        let root = self.root_descriptor();
        let entry = opcode::RenameAt::new(root, old.as_ptr(), root, new.as_ptr()).build();
        let held = Held { paths: [Some(old), Some(new)], ..Held::default() };
        self.ring.operate(entry, held).await.1.map_err(|errno| from.error("rename", errno))?;
        let (source, target) = (from.parent().unwrap_or_default(), to.parent().unwrap_or_default());
        // The new name first: after a crash between the two the file has two names rather than none.
        self.sync_folder(&target).await?;
        if source != target { self.sync_folder(&source).await } else { Ok(()) }
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, MediaError> {
        let folder = if path.is_empty() { Location::default() } else { Location::parse(path)? };
        self.names(&folder)
    }
}

/// Gives a new file its size, and its blocks if they are asked for.
async fn fill(file: &UringFile, path: &Location, options: OpenOptions) -> Result<(), MediaError> {
    if options.size == 0 {
        return Ok(());
    }
    if !options.preallocate {
        return rustix::fs::ftruncate(file.descriptor(), options.size)
            .map_err(|error| path.error("give its size to", error.raw_os_error()));
    }
    // A file system may give what it has before it says that this is not enough; others would find no space meanwhile.
    // One that counts no blocks cannot say.
    if let Ok(space) = rustix::fs::fstatvfs(file.descriptor())
        && space.f_blocks > 0
        && options.size > space.f_bavail.saturating_mul(space.f_frsize)
    {
        return Err(path.error("allocate", libc::ENOSPC));
    }
    // Asked for as one, blocks come in few extents, and a device that is too small says so before anything is written.
    // File systems that cannot do it allocate with the writes below.
    match file.allocate(options.size).await {
        Ok(()) | Err(libc::EOPNOTSUPP) => {}
        Err(errno) => return Err(path.error("allocate", errno)),
    }
    // Allocated is not written: the first write to an unwritten extent changes metadata, and a durable one then waits for
    // the file system's journal. Zeros written now move that cost here.
    let mut idle: Vec<_> = (0..ZERO_WRITES).map(|_| IoBuffer::zeroed(ZERO_BYTES as usize)).collect();
    let mut writing = std::collections::VecDeque::new();
    let mut offset = 0;
    while offset < options.size || !writing.is_empty() {
        if offset < options.size
            && let Some(mut buffer) = idle.pop()
        {
            buffer.set_len((options.size - offset).min(ZERO_BYTES) as usize);
            let length = buffer.len() as u64;
            writing.push_back(Box::pin(file.write(offset, buffer, Durability::Volatile)));
            offset += length;
        } else if let Some(write) = writing.pop_front() {
            let (buffer, result) = write.await;
            result?;
            idle.push(buffer);
        }
    }
    Ok(())
}

/// Flushes a file or folder to the device; with `data_only` without metadata that reading does not need.
pub(crate) async fn sync(ring: &Rc<Ring>, file: &Rc<OwnedFd>, data_only: bool) -> Result<(), i32> {
    let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
    let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(flags).build();
    ring.operate(entry, Held { file: Some(file.clone()), ..Held::default() }).await.1.map(drop)
}

/// Bytes of a file or block device.
fn size_of_file(descriptor: &OwnedFd) -> io::Result<u64> {
    // The end rather than the metadata: block devices have only the former.
    Ok(rustix::fs::seek(descriptor, rustix::fs::SeekFrom::End(0))?)
}

/// A path below the root. The default is the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Location(PathBuf);

impl Location {
    fn parse(path: &str) -> Result<Self, MediaError> {
        let bad = |component: &str| {
            component.is_empty() || component == "." || component == ".." || component.contains('\0')
        };
        if path.split('/').any(bad) {
            return Err(MediaError::Failed(format!("{path:?} is not a path below the media's root")));
        }
        Ok(Self(PathBuf::from(path)))
    }

    fn parent(&self) -> Option<Self> {
        self.0.parent().map(|parent| Self(parent.to_owned()))
    }

    fn join(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    fn to_c(&self) -> CString {
        let path = if self.0.as_os_str().is_empty() { Path::new(".") } else { &self.0 };
        CString::new(path.as_os_str().as_bytes()).expect("a parsed path has no zero byte")
    }

    fn error(&self, action: &str, errno: i32) -> MediaError {
        media_error(&self.to_string(), action, errno)
    }

    fn io_error(&self, action: &str, error: &io::Error) -> MediaError {
        self.error(action, error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.to_string_lossy())
    }
}

/// What an error number means to media.
pub(crate) fn media_error(path: &str, action: &str, errno: i32) -> MediaError {
    match errno {
        libc::ENOENT => MediaError::NotFound(path.into()),
        libc::EEXIST => MediaError::Exists(path.into()),
        libc::ENOSPC | libc::EDQUOT => MediaError::Full(path.into()),
        errno => {
            MediaError::Failed(format!("{path}: cannot {action}: {}", io::Error::from_raw_os_error(errno)))
        }
    }
}
