//! An open file of the media.

use std::{
    future::Future,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
};

use daos_xstream::{BLOCK_BYTES, Durability, IoBuffer, MediaError, MediaFile};
use io_uring::{opcode, types};

use crate::{
    media::{media_error, sync},
    ring::{Held, Ring, Transfer},
};

/// An open file, or block device, of the real world.
#[derive(Clone)]
pub struct UringFile {
    inner: Rc<Inner>,
}

struct Inner {
    ring: Rc<Ring>,
    descriptor: Rc<OwnedFd>,
    path: String,
    size: u64,
    direct: bool,
}

impl UringFile {
    pub(crate) fn new(
        ring: Rc<Ring>,
        descriptor: Rc<OwnedFd>,
        path: String,
        size: u64,
        direct: bool,
    ) -> Self {
        Self { inner: Rc::new(Inner { ring, descriptor, path, size, direct }) }
    }

    /// Whether transfers bypass the page cache. Where the file system refuses that, they go through it; durability is the
    /// same, as it comes from flushes.
    pub fn is_direct(&self) -> bool {
        self.inner.direct
    }

    pub(crate) fn descriptor(&self) -> &Rc<OwnedFd> {
        &self.inner.descriptor
    }

    /// Has the file system set blocks aside from the start to `size`, which becomes the file's.
    pub(crate) async fn allocate(&self, size: u64) -> Result<(), i32> {
        self.fallocate(0, 0, size).await
    }

    fn fallocate(
        &self,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = Result<(), i32>> + 'static {
        let descriptor = self.descriptor().clone();
        let entry = opcode::Fallocate::new(types::Fd(descriptor.as_raw_fd()), length)
            .offset(offset)
            .mode(mode)
            .build();
        let done = self.inner.ring.operate(entry, Held { file: Some(descriptor), ..Held::default() });
        async move { done.await.1.map(drop) }
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), MediaError> {
        let (block, size) = (BLOCK_BYTES as u64, self.inner.size);
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if inside && offset.is_multiple_of(block) && length.is_multiple_of(block) {
            Ok(())
        } else {
            Err(MediaError::BadRange { offset, length, size })
        }
    }

    /// Starts at once: the transfer goes on, and its buffer lives, whatever becomes of the future.
    fn transfer(
        &self,
        write: bool,
        durable: bool,
        offset: u64,
        mut buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let started = match self.check(offset, buffer.len() as u64) {
            // Nothing to move is no work for the device.
            Ok(()) if buffer.is_empty() => Err((buffer, Ok(()))),
            Ok(()) => {
                let inner = self.inner.clone();
                let descriptor = inner.descriptor.clone();
                let transfer = Transfer::new(write, durable, descriptor.as_raw_fd(), offset, &mut buffer);
                let held = Held { buffer: Some(buffer), file: Some(descriptor), ..Held::default() };
                let done = inner.ring.transfer(transfer, held);
                Ok((inner, done))
            }
            Err(error) => Err((buffer, Err(error))),
        };
        async move {
            match started {
                Err(finished) => finished,
                Ok((inner, done)) => {
                    let (held, result) = done.await;
                    let buffer = held.buffer.expect("a transfer holds its buffer");
                    let action = if write { "write" } else { "read" };
                    (buffer, result.map(drop).map_err(|errno| media_error(&inner.path, action, errno)))
                }
            }
        }
    }
}

impl MediaFile for UringFile {
    fn size(&self) -> u64 {
        self.inner.size
    }

    fn read(
        &self,
        offset: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        self.transfer(false, false, offset, buffer)
    }

    fn write(
        &self,
        offset: u64,
        buffer: IoBuffer,
        durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        self.transfer(true, durability == Durability::Durable, offset, buffer)
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        let inner = self.inner.clone();
        async move {
            let result = sync(&inner.ring, &inner.descriptor, true).await;
            result.map_err(|errno| media_error(&inner.path, "flush", errno))
        }
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let inner = self.inner.clone();
        let started = match self.check(offset, length) {
            Ok(()) if length == 0 => Err(Ok(())),
            Ok(()) => Ok(self.fallocate(PUNCH, offset, length)),
            Err(error) => Err(Err(error)),
        };
        async move {
            match started {
                Err(finished) => finished,
                Ok(done) => match done.await {
                    // To give blocks back is a kindness to the device; not every one can take it.
                    Ok(()) | Err(libc::EOPNOTSUPP) => Ok(()),
                    Err(errno) => Err(media_error(&inner.path, "discard", errno)),
                },
            }
        }
    }
}
