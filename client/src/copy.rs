//! Bulk copy between a local directory tree and a file system in a container.
//!
//! # Invariants
//!
//! * Many files are in flight at once and a large file in many chunks, so that a copy waits for the network as little as
//!   possible; both are bounded, and so is the memory.
//! * A small file is one request each way. Data goes from the local file into the buffer that the engine reads, and back
//!   the same way: one copy, the kernel's.
//! * A copy into a container is whole epochs: all of it is committed by one sync at its end. One that fails has committed
//!   nothing; what it wrote is discarded when the container is closed.
//! * Bytes, types, permissions, modification times and links' targets are preserved; owners too if asked for. Devices,
//!   pipes and sockets are skipped and counted.

use std::{
    cell::RefCell,
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use daos_dsp::{Attributes, Directory, File, FileType, Fs, FsError, Inode, SetAttributes, Store};
use daos_dsr::client::Anchor;
use daos_xstream::{Class, Env, IoBuffer, Spawn, join_all, sync::Semaphore};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// Files that are copied at the same time.
    pub files_in_flight: usize,
    /// Bytes of a large file that are copied by one request.
    pub chunk_bytes: usize,
    /// Chunks of all files that are under way at the same time.
    pub chunks_in_flight: usize,
    /// Whether owners and groups are preserved; local ones can be only by root. Otherwise copies belong to the caller.
    pub owners: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { files_in_flight: 64, chunk_bytes: 1 << 20, chunks_in_flight: 16, owners: true }
    }
}

/// What has been copied so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices, pipes and sockets that were left out.
    pub skipped: u64,
}

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The local side failed.
    #[error("{path}: {error}")]
    Local {
        /// What was being copied.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// The container's side failed.
    #[error("{path}: {error}")]
    Container {
        /// What was being copied.
        path: PathBuf,
        /// How it failed.
        error: FsError,
    },
    /// A local file became shorter while it was copied.
    #[error("{0}: changed while it was copied")]
    Changed(PathBuf),
}

impl CopyError {
    /// An errno that says the same.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Local { error, .. } => error.raw_os_error().unwrap_or(5),
            Self::Container { error, .. } => error.errno(),
            Self::Changed(_) => 5,
        }
    }
}

/// What all tasks of one copy share.
struct Job<E, T> {
    env: E,
    fs: Fs<T>,
    options: CopyOptions,
    files: Rc<Semaphore>,
    chunks: Rc<Semaphore>,
    state: RefCell<State<T>>,
}

struct State<T> {
    progress: Progress,
    report: Box<dyn FnMut(&Progress)>,
    failed: Option<CopyError>,
    /// Buffers of a chunk's size, for the next chunk.
    buffers: Vec<IoBuffer>,
    /// Directories that were made in the container, with what they shall be like once everything is in them.
    made: Vec<(PathBuf, Directory<T>, Attributes)>,
}

/// Copies the local file or tree at `from` to `to` in the container, and commits it. `to` must not be there, unless both
/// are directories: then what is in `from` goes into it, over files of the same names. `report` is called after every
/// file.
pub async fn import<E: Env, T: Store>(
    env: &E,
    fs: &Fs<T>,
    from: &Path,
    to: &[u8],
    options: CopyOptions,
    report: impl FnMut(&Progress) + 'static,
) -> Result<Progress, CopyError> {
    let job = Job::new(env, fs, options, Box::new(report));
    let meta = fs::symlink_metadata(from).map_err(|error| local(from, error))?;
    let walked = start_import(&job, from, &meta, to).await;
    let progress = job.finish(walked).await?;
    restore_times(&job).await?;
    fs.sync().await.map_err(|error| container(from, error))?;
    Ok(progress)
}

/// Copies the file or tree at `from` in the container to the local path `to`, which must not be there, unless both are
/// directories. `report` is called after every file. What was copied is not flushed to the local disk.
pub async fn export<E: Env, T: Store>(
    env: &E,
    fs: &Fs<T>,
    from: &[u8],
    to: &Path,
    options: CopyOptions,
    report: impl FnMut(&Progress) + 'static,
) -> Result<Progress, CopyError> {
    let job = Job::new(env, fs, options, Box::new(report));
    let mut directories = Vec::new();
    let walked = start_export(&job, from, to, &mut directories).await;
    let progress = job.finish(walked).await?;
    // Deepest first: making an entry changes the time of its directory, and permissions may forbid making it.
    for (path, inode) in directories.iter().rev() {
        set_local_attributes(path, inode, options).map_err(|error| local(path, error))?;
    }
    Ok(progress)
}

fn local(path: &Path, error: io::Error) -> CopyError {
    CopyError::Local { path: path.to_owned(), error }
}

fn container(path: &Path, error: FsError) -> CopyError {
    CopyError::Container { path: path.to_owned(), error }
}

impl<E: Env, T: Store> Job<E, T> {
    fn new(env: &E, fs: &Fs<T>, options: CopyOptions, report: Box<dyn FnMut(&Progress)>) -> Rc<Self> {
        Rc::new(Self {
            env: env.clone(),
            fs: fs.clone(),
            options,
            files: Semaphore::new(options.files_in_flight.max(1)),
            chunks: Semaphore::new(options.chunks_in_flight.max(1)),
            state: RefCell::new(State {
                progress: Progress::default(),
                report,
                failed: None,
                buffers: Vec::new(),
                made: Vec::new(),
            }),
        })
    }

    /// Starts the copy of one file once there is room for it. After a failure nothing is started any more.
    async fn start(self: &Rc<Self>, copy: impl Future<Output = Result<(), CopyError>> + 'static) {
        let permit = self.files.acquire().await;
        if self.has_failed() {
            return;
        }
        let job = self.clone();
        self.env.scheduler().spawn(Class::Foreground, "copy of a file", async move {
            let result = copy.await;
            job.note(result);
            drop(permit);
        });
    }

    fn note(&self, result: Result<(), CopyError>) {
        if let Err(error) = result {
            self.state.borrow_mut().failed.get_or_insert(error);
        }
    }

    fn has_failed(&self) -> bool {
        self.state.borrow().failed.is_some()
    }

    /// Waits for the files under way.
    async fn finish(self: &Rc<Self>, walked: Result<(), CopyError>) -> Result<Progress, CopyError> {
        self.note(walked);
        let all = (0..self.options.files_in_flight.max(1)).map(|_| self.files.acquire());
        let _permits = join_all(all).await;
        let state = &mut *self.state.borrow_mut();
        match state.failed.take() {
            Some(error) => Err(error),
            None => Ok(state.progress),
        }
    }

    fn done(&self, add: impl FnOnce(&mut Progress)) {
        let state = &mut *self.state.borrow_mut();
        add(&mut state.progress);
        (state.report)(&state.progress);
    }

    fn buffer(&self, length: usize) -> IoBuffer {
        let kept = self.state.borrow_mut().buffers.pop();
        let mut buffer = match kept {
            Some(buffer) if buffer.capacity() >= length => buffer,
            _ => IoBuffer::zeroed(length.max(self.options.chunk_bytes)),
        };
        buffer.set_len(length);
        buffer
    }

    fn give_back(&self, buffer: IoBuffer) {
        self.state.borrow_mut().buffers.push(buffer);
    }

    fn attributes(&self, meta: &fs::Metadata) -> Attributes {
        let (uid, gid) = match self.options.owners {
            true => (meta.uid(), meta.gid()),
            false => (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        };
        Attributes {
            permissions: meta.mode() & 0o7777,
            uid,
            gid,
            accessed: Some(nanoseconds(meta.atime(), meta.atime_nsec())),
            modified: Some(nanoseconds(meta.mtime(), meta.mtime_nsec())),
        }
    }

    fn first_block(&self) -> u64 {
        u64::from(self.fs.superblock().options.first_block_bytes)
    }

    /// Ranges of the chunks of a file beyond its first block: they end at multiples of their size, so that none crosses a
    /// cell.
    fn chunks_of(&self, size: u64) -> impl Iterator<Item = (u64, usize)> + use<E, T> {
        let chunk_bytes = self.options.chunk_bytes as u64;
        let mut start = self.first_block();
        std::iter::from_fn(move || {
            if start >= size {
                return None;
            }
            let end = ((start / chunk_bytes + 1) * chunk_bytes).min(size);
            let chunk = (start, (end - start) as usize);
            start = end;
            Some(chunk)
        })
    }
}

/// Gives the directories that were made their times again, where the mount has changed them with every entry.
async fn restore_times<E: Env, T: Store>(job: &Rc<Job<E, T>>) -> Result<(), CopyError> {
    let made = std::mem::take(&mut job.state.borrow_mut().made);
    if !job.fs.has_directory_times() {
        return Ok(());
    }
    for some in made.chunks(job.options.files_in_flight.max(1)) {
        let restored = some.iter().map(|(path, directory, attributes)| async move {
            let set = SetAttributes {
                accessed: attributes.accessed,
                modified: attributes.modified,
                ..SetAttributes::default()
            };
            directory.set_own_attributes(set).await.map_err(|error| container(path, error))
        });
        join_all(restored).await.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

/// Times before 1970 are kept as two's complement.
fn nanoseconds(seconds: i64, nanoseconds: i64) -> u64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds) as u64
}

async fn start_import<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: &Path,
    meta: &fs::Metadata,
    to: &[u8],
) -> Result<(), CopyError> {
    let failed = |error| container(from, error);
    let attributes = job.attributes(meta);
    if meta.is_dir() {
        let (directory, fresh) = match job.fs.mkdir(to, attributes).await {
            Ok(directory) => {
                job.state.borrow_mut().made.push((from.to_owned(), directory.clone(), attributes));
                (directory, true)
            }
            Err(FsError::Exists(_)) => (job.fs.open_directory(to).await.map_err(failed)?, false),
            Err(error) => return Err(failed(error)),
        };
        return import_tree(job, from, directory, fresh).await;
    }
    let to = to.strip_suffix(b"/").unwrap_or(to);
    let (parent, name) = match to.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&to[..slash + 1], &to[slash + 1..]),
        None => (&b"/"[..], to),
    };
    let parent = job.fs.open_directory(parent).await.map_err(failed)?;
    import_entry(job, from.to_owned(), meta.clone(), parent, name.to_vec(), false).await
}

/// Copies a tree, directory by directory; files are started and not waited for.
async fn import_tree<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: &Path,
    directory: Directory<T>,
    fresh: bool,
) -> Result<(), CopyError> {
    let mut pending = vec![(from.to_owned(), directory, fresh)];
    while let Some((path, directory, fresh)) = pending.pop() {
        job.done(|progress| progress.directories += 1);
        for entry in fs::read_dir(&path).map_err(|error| local(&path, error))? {
            let entry = entry.map_err(|error| local(&path, error))?;
            let (from, name) = (entry.path(), entry.file_name().as_bytes().to_vec());
            let kind = entry.file_type().map_err(|error| local(&from, error))?;
            if kind.is_dir() {
                let meta = entry.metadata().map_err(|error| local(&from, error))?;
                let attributes = job.attributes(&meta);
                let (child, fresh) = match directory.mkdir(&name, attributes).await {
                    Ok(child) => {
                        job.state.borrow_mut().made.push((from.clone(), child.clone(), attributes));
                        (child, true)
                    }
                    Err(FsError::Exists(_)) => (
                        directory.open_directory(&name).await.map_err(|error| container(&from, error))?,
                        false,
                    ),
                    Err(error) => return Err(container(&from, error)),
                };
                pending.push((from, child, fresh));
                continue;
            }
            let (task, parent) = (job.clone(), directory.clone());
            job.start(async move {
                let meta = entry.metadata().map_err(|error| local(&from, error))?;
                import_entry(&task, from, meta, parent, name, fresh).await
            })
            .await;
            if job.has_failed() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Copies what is no directory.
async fn import_entry<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: PathBuf,
    meta: fs::Metadata,
    parent: Directory<T>,
    name: Vec<u8>,
    fresh: bool,
) -> Result<(), CopyError> {
    let attributes = job.attributes(&meta);
    if meta.is_symlink() {
        let target = fs::read_link(&from).map_err(|error| local(&from, error))?;
        let target = target.as_os_str().as_bytes();
        let mut made = parent.symlink(&name, target, attributes).await;
        if let Err(FsError::Exists(_)) = made {
            parent.unlink(&name).await.map_err(|error| container(&from, error))?;
            made = parent.symlink(&name, target, attributes).await;
        }
        made.map_err(|error| container(&from, error))?;
        job.done(|progress| progress.links += 1);
        return Ok(());
    }
    if !meta.is_file() {
        job.done(|progress| progress.skipped += 1);
        return Ok(());
    }
    let size = meta.len();
    let mut source = fs::File::open(&from).map_err(|error| local(&from, error))?;
    let mut first = vec![0; size.min(job.first_block()) as usize];
    source.read_exact(&mut first).map_err(|error| short(&from, error))?;
    let mut made = parent.create_with(&name, attributes, &first, size, fresh).await;
    if let Err(FsError::Exists(_)) = made {
        parent.unlink(&name).await.map_err(|error| container(&from, error))?;
        made = parent.create_with(&name, attributes, &first, size, fresh).await;
    }
    let file = made.map_err(|error| container(&from, error))?;
    if size > first.len() as u64 {
        import_chunks(job, &from, source, &file, size).await?;
    }
    job.done(|progress| {
        progress.files += 1;
        progress.bytes += size;
    });
    Ok(())
}

fn short(path: &Path, error: io::Error) -> CopyError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CopyError::Changed(path.to_owned()),
        _ => local(path, error),
    }
}

async fn import_chunks<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    path: &Path,
    source: fs::File,
    file: &File<T>,
    size: u64,
) -> Result<(), CopyError> {
    let pipe = Pipe::new();
    for (offset, length) in job.chunks_of(size) {
        let permit = job.chunks.acquire().await;
        if pipe.has_failed() || job.has_failed() {
            break;
        }
        let mut buffer = job.buffer(length);
        source.read_exact_at(buffer.as_mut_slice(), offset).map_err(|error| short(path, error))?;
        let (job, file, path) = (job.clone(), file.clone(), path.to_owned());
        pipe.start(&job.env.clone(), async move {
            let (buffer, result) = file.write_chunk(offset, buffer).await;
            job.give_back(buffer);
            drop(permit);
            result.map_err(|error| container(&path, error))
        });
    }
    pipe.finish().await
}

/// Chunks of one file that are under way.
struct Pipe(Rc<PipeState>);

struct PipeState {
    open: std::cell::Cell<usize>,
    failed: RefCell<Option<CopyError>>,
    ended: daos_xstream::sync::Notify,
}

impl Pipe {
    fn new() -> Self {
        Self(Rc::new(PipeState {
            open: std::cell::Cell::new(0),
            failed: RefCell::new(None),
            ended: daos_xstream::sync::Notify::new(),
        }))
    }

    fn has_failed(&self) -> bool {
        self.0.failed.borrow().is_some()
    }

    fn start<E: Env>(&self, env: &E, chunk: impl Future<Output = Result<(), CopyError>> + 'static) {
        self.0.open.set(self.0.open.get() + 1);
        let state = self.0.clone();
        env.scheduler().spawn(Class::Foreground, "copy of a chunk", async move {
            if let Err(error) = chunk.await {
                state.failed.borrow_mut().get_or_insert(error);
            }
            state.open.set(state.open.get() - 1);
            state.ended.notify_one();
        });
    }

    async fn finish(self) -> Result<(), CopyError> {
        while self.0.open.get() > 0 {
            self.0.ended.notified().await;
        }
        match self.0.failed.borrow_mut().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

async fn start_export<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    from: &[u8],
    to: &Path,
    directories: &mut Vec<(PathBuf, Inode)>,
) -> Result<(), CopyError> {
    let failed = |error| container(to, error);
    let inode = job.fs.stat(from).await.map_err(failed)?;
    if inode.file_type == FileType::Directory {
        let directory = job.fs.open_directory(from).await.map_err(failed)?;
        make_local_directory(to)?;
        directories.push((to.to_owned(), inode));
        return export_tree(job, directory, to, directories).await;
    }
    let from = from.strip_suffix(b"/").unwrap_or(from);
    let (parent, name) = match from.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&from[..slash + 1], &from[slash + 1..]),
        None => (&b"/"[..], from),
    };
    let parent = job.fs.open_directory(parent).await.map_err(failed)?;
    export_entry(job, parent, name.to_vec(), to.to_owned()).await.map(drop)
}

fn make_local_directory(path: &Path) -> Result<(), CopyError> {
    // Writable for us until its attributes are set at the end.
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.map_err(|error| local(path, error)),
    }
}

/// What an export has found to be a directory.
type Found<T> = Rc<RefCell<Vec<(Directory<T>, PathBuf, Inode)>>>;

/// Copies a tree. Whether a name is a file or a directory shows only when it is fetched, so every name is a task, and
/// directories that turn up are gone through once the page of their parent is done.
async fn export_tree<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    directory: Directory<T>,
    to: &Path,
    directories: &mut Vec<(PathBuf, Inode)>,
) -> Result<(), CopyError> {
    let found: Found<T> = Rc::default();
    let mut pending = vec![(directory, to.to_owned())];
    loop {
        let Some((directory, path)) = pending.pop() else {
            // Names under way may still turn out to be directories.
            let _permits =
                join_all((0..job.options.files_in_flight.max(1)).map(|_| job.files.acquire())).await;
            let more: Vec<_> = found.borrow_mut().drain(..).collect();
            if more.is_empty() || job.has_failed() {
                return Ok(());
            }
            for (directory, path, inode) in more {
                make_local_directory(&path)?;
                directories.push((path.clone(), inode));
                pending.push((directory, path));
            }
            continue;
        };
        job.done(|progress| progress.directories += 1);
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = directory.list(&from, 512).await.map_err(|error| container(&path, error))?;
            for name in page.items {
                let to = path.join(OsStr::from_bytes(&name));
                let (task, parent, found) = (job.clone(), directory.clone(), found.clone());
                job.start(async move {
                    if let Some(inode) = export_entry(&task, parent.clone(), name.clone(), to.clone()).await?
                    {
                        let child =
                            parent.open_directory(&name).await.map_err(|error| container(&to, error))?;
                        found.borrow_mut().push((child, to, inode));
                    }
                    Ok(())
                })
                .await;
                if job.has_failed() {
                    return Ok(());
                }
            }
            anchor = page.next;
        }
    }
}

/// Copies a file or link; of a directory, returns its attributes.
async fn export_entry<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    parent: Directory<T>,
    name: Vec<u8>,
    to: PathBuf,
) -> Result<Option<Inode>, CopyError> {
    let (inode, first) = parent.open_and_read(&name).await.map_err(|error| container(&to, error))?;
    match inode.file_type {
        FileType::Directory => return Ok(Some(inode)),
        FileType::Symlink => {
            let target = parent.readlink(&name).await.map_err(|error| container(&to, error))?;
            match fs::symlink_metadata(&to) {
                Ok(meta) if !meta.is_dir() => fs::remove_file(&to).map_err(|error| local(&to, error))?,
                _ => {}
            }
            std::os::unix::fs::symlink(OsStr::from_bytes(&target), &to).map_err(|error| local(&to, error))?;
            set_local_attributes(&to, &inode, job.options).map_err(|error| local(&to, error))?;
            job.done(|progress| progress.links += 1);
        }
        FileType::File => {
            let target = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&to)
                .map_err(|error| local(&to, error))?;
            target.write_all_at(&first, 0).map_err(|error| local(&to, error))?;
            let size = inode.size;
            if size > first.len() as u64 {
                let file = parent.open(&name).await.map_err(|error| container(&to, error))?;
                export_chunks(job, &file, Rc::new(target), &to, size).await?;
            }
            set_local_attributes(&to, &inode, job.options).map_err(|error| local(&to, error))?;
            job.done(|progress| {
                progress.files += 1;
                progress.bytes += size;
            });
        }
    }
    Ok(None)
}

async fn export_chunks<E: Env, T: Store>(
    job: &Rc<Job<E, T>>,
    file: &File<T>,
    target: Rc<fs::File>,
    path: &Path,
    size: u64,
) -> Result<(), CopyError> {
    let pipe = Pipe::new();
    for (offset, length) in job.chunks_of(size) {
        let permit = job.chunks.acquire().await;
        if pipe.has_failed() || job.has_failed() {
            break;
        }
        let buffer = job.buffer(length);
        let (job, file, target, path) = (job.clone(), file.clone(), target.clone(), path.to_owned());
        pipe.start(&job.env.clone(), async move {
            let (buffer, result) = file.read_chunk(offset, buffer).await;
            let result = match result {
                Ok(()) => target.write_all_at(buffer.as_slice(), offset).map_err(|error| local(&path, error)),
                Err(error) => Err(container(&path, error)),
            };
            job.give_back(buffer);
            drop(permit);
            result
        });
    }
    pipe.finish().await
}

/// Gives a local file, link or directory the attributes of its original.
fn set_local_attributes(path: &Path, inode: &Inode, options: CopyOptions) -> io::Result<()> {
    if options.owners && rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(inode.uid), Some(inode.gid))?;
    }
    if inode.file_type != FileType::Symlink {
        // After the owner: a change of owner clears bits of the mode.
        fs::set_permissions(path, fs::Permissions::from_mode(inode.permissions))?;
    }
    let time = |nanoseconds: u64| {
        let nanoseconds = nanoseconds as i64;
        Timespec {
            tv_sec: nanoseconds.div_euclid(1_000_000_000),
            tv_nsec: nanoseconds.rem_euclid(1_000_000_000) as _,
        }
    };
    let times = Timestamps { last_access: time(inode.accessed), last_modification: time(inode.modified) };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
