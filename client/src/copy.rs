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
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use daos_dsp::{Fs, FsError, Options, Store};
use daos_dsr::client::DsrError;
use daos_xstream::{Env, rpc::Status};

use crate::Container;
use job::Job;

mod export;
mod import;
mod job;

/// How often a copy is begun, if the engine restarts again and again.
const ATTEMPTS_MAX: u32 = 4;

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
    let walked = import::start(&job, from, &meta, to).await;
    let progress = job.finish(walked).await?;
    import::restore_times(&job).await?;
    fs.sync().await.map_err(|error| container(from, error))?;
    Ok(progress)
}

/// Mounts the file system of `into`, which is open for writing, and [imports](import) into it. If the engine restarts
/// meanwhile, so that something of the copy may be lost, what was written through the handle is discarded and the copy
/// begins anew.
pub async fn into_container<E: Env>(
    into: &Container<E>,
    from: &Path,
    to: &[u8],
    options: CopyOptions,
    report: impl FnMut(&Progress) + 'static,
) -> Result<Progress, CopyError> {
    let report = Rc::new(RefCell::new(report));
    let mut attempts = 0;
    loop {
        let mount = Options { directory_times: false, ..into.fs_options() };
        let fs = Fs::mount(into.objects(), mount).await.map_err(|error| container(from, error))?;
        let shared = report.clone();
        let shown = move |progress: &Progress| (shared.borrow_mut())(progress);
        attempts += 1;
        match import(into.env(), &fs, from, to, options, shown).await {
            Err(CopyError::Container {
                error: FsError::Storage(DsrError::Target { status, .. }), ..
            }) if Status(status) == Status::INTERRUPTED && attempts < ATTEMPTS_MAX => {
                let discarded = into.discard_uncommitted().await;
                discarded.map_err(|error| container(from, FsError::Storage(error.into())))?;
            }
            outcome => return outcome,
        }
    }
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
    let walked = export::start(&job, from, to, &mut directories).await;
    let progress = job.finish(walked).await?;
    // Deepest first: making an entry changes the time of its directory, and permissions may forbid making it.
    for (path, inode) in directories.iter().rev() {
        export::set_local_attributes(path, inode, options).map_err(|error| local(path, error))?;
    }
    Ok(progress)
}

fn local(path: &Path, error: io::Error) -> CopyError {
    CopyError::Local { path: path.to_owned(), error }
}

fn container(path: &Path, error: FsError) -> CopyError {
    CopyError::Container { path: path.to_owned(), error }
}
