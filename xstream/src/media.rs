//! Files and block devices, as storage engines see them: whole blocks, explicit durability, owned buffers.

use std::{future::Future, time::Duration};

use crate::{Clock, Env, IoBuffer};

/// How long [`open_alone`] waits for a file that is in use, and how often it looks. A device that takes longer for a write has failed.
const IN_USE_MAX: Duration = Duration::from_secs(60);
const IN_USE_PAUSE: Duration = Duration::from_millis(10);

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The device has taken it; a crash may lose it, or parts of it in units of sectors, until the next flush.
    Volatile,
    /// This write, *and nothing else*, survives any crash once it completes.
    Durable,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Make the file; it must not exist.
    pub create_new: bool,
    /// With `create_new`: its size in bytes, a multiple of [`crate::BLOCK_BYTES`]; reads as zeros.
    pub size: u64,
    /// With `create_new`: write the zeros, so that no later write has to allocate.
    pub preallocate: bool,
    /// Without `create_new`: refuse with [`MediaError::InUse`] while the file is open so elsewhere, in this process or another,
    /// or while a transfer of such an open file is on its way, be it of a process that is no more. See [`open_alone`].
    pub alone: bool,
}

/// Opens the file at `path` for a writer that must be the only one. A write of a process that was killed may reach the device after
/// the process is gone, and would change what was read here and built upon; so this waits, for up to a minute, until there is none.
pub async fn open_alone<E: Env>(env: &E, path: &str) -> Result<<E::Media as Media>::File, MediaError> {
    let options = OpenOptions { alone: true, ..OpenOptions::default() };
    let deadline = env.clock().now() + IN_USE_MAX;
    let mut told = false;
    loop {
        match env.media().open(path, options).await {
            Err(error @ MediaError::InUse(_)) if env.clock().now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{error}: waits for up to {IN_USE_MAX:?}");
                }
                env.clock().sleep_until(env.clock().now() + IN_USE_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// The storage of one engine: a flat or nested name space of files below one root.
pub trait Media: Clone + 'static {
    /// An open file.
    type File: MediaFile;

    /// Opens or creates the file at `path` (components separated by `/`, relative to the root). Missing folders are made
    /// with a new file. A created file is durable, with its size, when the call returns.
    fn open(&self, path: &str, options: OpenOptions) -> impl Future<Output = Result<Self::File, MediaError>>;

    /// Removes a file, or a folder with all it holds; durable on return. What is not there is no error.
    fn remove(&self, path: &str) -> impl Future<Output = Result<(), MediaError>>;

    /// Renames a file or a folder over `to` in one step; durable on return.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = Result<(), MediaError>>;

    /// Names directly below a folder, sorted; empty if the folder is not there.
    fn list(&self, path: &str) -> impl Future<Output = Result<Vec<String>, MediaError>>;
}

/// An open file of fixed size. Offsets and lengths in use are multiples of [`crate::BLOCK_BYTES`]. Clones share the file.
///
/// Calls may overlap; two that touch the same bytes have no defined order unless one was awaited first. A call goes on to
/// its end when its future is dropped.
pub trait MediaFile: Clone + 'static {
    /// Bytes.
    fn size(&self) -> u64;

    /// Fills the buffer's bytes in use from `offset`.
    fn read(
        &self,
        offset: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static;

    /// Writes the buffer's bytes in use at `offset`.
    fn write(
        &self,
        offset: u64,
        buffer: IoBuffer,
        durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static;

    /// Returns when every write that had completed before the call survives any crash.
    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static;

    /// Gives the blocks back to the device; they may read as anything until they are written again.
    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), MediaError>> + 'static;
}

/// Why media could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// There is no such file.
    #[error("{0}: no such file")]
    NotFound(String),
    /// The file was to be created and exists.
    #[error("{0}: exists already")]
    Exists(String),
    /// Somebody else has the file open alone, or a write of such a one is on its way. Nothing was opened; a retry helps when that ends.
    #[error(
        "{0}: in use: somebody else has it open, or a write of a process that has ended is still on its way"
    )]
    InUse(String),
    /// The device is full. Nothing was written.
    #[error("{0}: the device is full")]
    Full(String),
    /// The range is not in the file, or not in whole blocks. Nothing was read or written: a bug of the caller.
    #[error("range {offset}+{length} is not whole blocks within the file's {size} bytes")]
    BadRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// The device failed. For a write or a flush, what is on it is unknown: the caller must stop trusting the file.
    #[error("{0}")]
    Failed(String),
}
