//! Parts of a world that are not there: a client has neither other xstreams nor media.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
};

use crate::{
    CoreId, Durability, Env, IoBuffer, Mailbox, MailboxError, Media, MediaError, MediaFile, OpenOptions, Work,
};

/// The mailbox of a process that has one xstream and sends nothing to itself: every send is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMailbox;

impl<E: Env> Mailbox<E> for NoMailbox {
    fn cores(&self) -> u32 {
        1
    }

    fn send(&self, core: CoreId, _work: Work<E>) -> impl Future<Output = Result<(), MailboxError>> {
        ready(Err(MailboxError::NoSuchCore(core)))
    }
}

/// The media of a process without any: every file is missing, and none can be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMedia;

/// A file of [`NoMedia`]; there is none.
#[derive(Clone, Debug)]
pub struct NoFile(Infallible);

impl Media for NoMedia {
    type File = NoFile;

    fn open(&self, path: &str, options: OpenOptions) -> impl Future<Output = Result<NoFile, MediaError>> {
        ready(Err(match options.create_new {
            true => MediaError::Failed(format!("{path}: this process has no media")),
            false => MediaError::NotFound(path.to_owned()),
        }))
    }

    fn remove(&self, _path: &str) -> impl Future<Output = Result<(), MediaError>> {
        ready(Ok(()))
    }

    fn rename(&self, from: &str, _to: &str) -> impl Future<Output = Result<(), MediaError>> {
        ready(Err(MediaError::NotFound(from.to_owned())))
    }

    fn list(&self, _path: &str) -> impl Future<Output = Result<Vec<String>, MediaError>> {
        ready(Ok(Vec::new()))
    }
}

impl MediaFile for NoFile {
    fn size(&self) -> u64 {
        match self.0 {}
    }

    fn read(
        &self,
        _offset: u64,
        _buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        self.never()
    }

    fn write(
        &self,
        _offset: u64,
        _buffer: IoBuffer,
        _durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        self.never()
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        self.never()
    }

    fn discard(&self, _offset: u64, _length: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        self.never()
    }
}

impl NoFile {
    fn never<T: 'static>(&self) -> Ready<T> {
        match self.0 {}
    }
}
