//! A heap together with its media: what makes sealed transactions durable.

mod error;

pub use error::StoreError;

use std::{
    cell::{Ref, RefCell, RefMut},
    future::Future,
    path::{Path, PathBuf},
    rc::Rc,
};

use daos_xstream::{Env, Rng};
use uuid::Uuid;

use crate::{Heap, Inspection, Persisted, Sealed, pmem, wal, wal::Wal};

/// Where a heap lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// In plain memory, gone with the process. Every sealed transaction counts as persisted.
    Heap,
    /// In memory, with a log and a checkpoint file (`log`, `heap`) in the store's directory.
    Wal,
    /// In this file on persistent memory. A transaction is persisted when it is sealed.
    Pmem {
        /// The file; its folder is made if it is not there.
        file: PathBuf,
    },
}

/// How to make a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Identifies the heap; in every structure on media.
    pub uuid: Uuid,
    /// Where it lives.
    pub media: MediaKind,
    /// Bytes of the heap file, bookkeeping included; a multiple of 4 KiB, at least 512 KiB.
    pub heap_bytes: u64,
    /// Bytes of the log; a multiple of 4 KiB, at least 256 KiB. One transaction may change an eighth of it. `wal` only.
    pub log_bytes: u64,
}

/// What the media of a store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes to the log, each of which was durable.
    pub log_writes: u64,
    /// Bytes of them.
    pub log_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Blocks that they wrote (each of them twice).
    pub checkpoint_blocks: u64,
}

/// A heap and its media. Clones share it. When the last one is dropped, everything that is not persisted is lost, as in a
/// crash; [`Store::close`] avoids that.
///
/// Its files are locked while it is open. What a dropped store, or a process that was killed, has on its way is waited for when it is
/// opened again.
///
/// **Never hold what [`Store::heap`] or [`Store::heap_mut`] returns across an await**: the tasks that write the log and the
/// checkpoints need it too, and panic if they cannot have it.
pub struct Store<E: Env>(Rc<Handle<E>>);

struct Handle<E: Env> {
    heap: Rc<RefCell<Heap>>,
    wal: Option<Rc<Wal<E>>>,
    uuid: Option<Uuid>,
}

impl<E: Env> Drop for Handle<E> {
    fn drop(&mut self) {
        if let Some(wal) = &self.wal {
            wal.end();
        }
    }
}

impl<E: Env> Clone for Store<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> Store<E> {
    /// Makes a store in `directory` (of the world's media) and opens it. If it fails half way, what is there is no heap;
    /// remove the directory before the next try.
    pub async fn create(env: &E, directory: &str, options: StoreOptions) -> Result<Self, StoreError> {
        match options.media {
            MediaKind::Heap => Ok(Self::in_memory(Heap::volatile(options.heap_bytes)?, options.uuid)),
            MediaKind::Pmem { file } => {
                let (arena, persistence) = pmem::create_file(&file, options.heap_bytes)?;
                let heap = pmem::create(arena, Box::new(persistence), options.uuid, env.rng().next_u64())?;
                Ok(Self::in_memory(heap, options.uuid))
            }
            MediaKind::Wal => {
                wal::create(env, directory, options.uuid, options.heap_bytes, options.log_bytes).await?;
                Self::open(env, directory).await
            }
        }
    }

    /// Opens the store in `directory`: loads the checkpoint, replays the log.
    pub async fn open(env: &E, directory: &str) -> Result<Self, StoreError> {
        let wal = wal::open(env, directory).await?;
        Ok(Self(Rc::new(Handle { heap: wal.heap.clone(), uuid: Some(wal.uuid), wal: Some(wal) })))
    }

    /// Reads the store in `directory` into memory, as opening it would find it, without writing to its files. Changes to it
    /// are changes in memory.
    pub async fn inspect(env: &E, directory: &str) -> Result<(Self, Inspection), StoreError> {
        let (heap, inspection) = wal::inspect(env, directory).await?;
        Ok((Self::in_memory(heap, inspection.uuid), inspection))
    }

    /// Opens the store in a file on persistent memory; what was not sealed is undone.
    pub fn open_pmem(env: &E, file: &Path) -> Result<Self, StoreError> {
        let (arena, persistence) = pmem::open_file(file)?;
        let (secret, name) = (env.rng().next_u64(), file.display().to_string());
        let (heap, uuid) = pmem::open(arena, Box::new(persistence), secret, &name)?;
        Ok(Self::in_memory(heap, uuid))
    }

    /// Reads the store in a file on persistent memory into memory, as opening it would find it, without writing to the
    /// file. Changes to it are changes in memory.
    pub fn inspect_pmem(file: &Path) -> Result<(Self, Inspection), StoreError> {
        let (heap, inspection) = pmem::inspect(pmem::read_file(file)?, &file.display().to_string())?;
        Ok((Self::in_memory(heap, inspection.uuid), inspection))
    }

    /// A heap of which nothing is left to do once a transaction is sealed.
    fn in_memory(heap: Heap, uuid: Uuid) -> Self {
        Self(Rc::new(Handle { heap: Rc::new(RefCell::new(heap)), wal: None, uuid: Some(uuid) }))
    }

    /// The heap, to read.
    #[inline]
    pub fn heap(&self) -> Ref<'_, Heap> {
        self.0.heap.borrow()
    }

    /// The heap, to begin a transaction.
    #[inline]
    pub fn heap_mut(&self) -> RefMut<'_, Heap> {
        self.0.heap.borrow_mut()
    }

    /// The heap's identity.
    pub fn uuid(&self) -> Option<Uuid> {
        self.0.uuid
    }

    /// Waits until `sealed`, and everything before it, survives any crash.
    pub fn persisted(&self, sealed: Sealed) -> impl Future<Output = Result<Persisted, StoreError>> + 'static {
        let wal = self.0.wal.clone();
        async move {
            match wal {
                Some(wal) => wal.persisted(sealed.0).await.map(|()| Persisted(())),
                None => Ok(Persisted(())),
            }
        }
    }

    /// The proof for `sealed` if it is persisted already; starts nothing.
    pub fn is_persisted(&self, sealed: Sealed) -> Option<Persisted> {
        match &self.0.wal {
            Some(wal) if wal.persisted.get() < sealed.0 => None,
            _ => Some(Persisted(())),
        }
    }

    /// The newest position that is persisted.
    pub fn persisted_position(&self) -> Sealed {
        match &self.0.wal {
            Some(wal) => Sealed(wal.persisted.get()),
            None => self.heap().sealed(),
        }
    }

    /// Waits until everything sealed so far is persisted.
    pub async fn flush(&self) -> Result<Persisted, StoreError> {
        let sealed = self.heap().sealed();
        self.persisted(sealed).await
    }

    /// Waits until the log has room for any transaction. Await it before a transaction begins; between its completion
    /// and the seal must lie no other await. Cheap while there is room.
    pub async fn log_space(&self) -> Result<(), StoreError> {
        match &self.0.wal {
            Some(wal) => wal.log_space().await,
            None => Ok(()),
        }
    }

    /// Whether [`Store::log_space`] would complete at once, and the store can be written.
    pub fn has_log_space(&self) -> bool {
        match &self.0.wal {
            Some(wal) => wal.check().is_ok() && wal.with_log(|log| log.has_room()),
            None => true,
        }
    }

    /// Writes all changes to the heap file and lets the log go. Runs by itself when the log is half full.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        match &self.0.wal {
            Some(wal) => wal.checkpoint().await,
            None => Ok(()),
        }
    }

    /// Makes everything durable, checkpoints, and ends the store's tasks. Afterwards the heap can only be read.
    pub async fn close(&self) -> Result<(), StoreError> {
        let _ = self.flush().await?;
        self.checkpoint().await?;
        if let Some(wal) = &self.0.wal {
            wal.with_log(|log| log.fail());
            wal.end();
        }
        Ok(())
    }

    /// Why the store cannot be written, if it cannot: the device failed, or it was closed.
    pub fn failure(&self) -> Option<StoreError> {
        self.0.wal.as_ref().and_then(|wal| wal.check().err())
    }

    /// What the media has done.
    pub fn counters(&self) -> Counters {
        self.0.wal.as_ref().map(|wal| wal.counters.get()).unwrap_or_default()
    }

    /// Makes the heap read-only because media that belong to it, though not to this layer, are in an unknown state: nothing
    /// that is not durable yet becomes so. Without a log nothing waits to become durable, and this does nothing.
    pub fn fail(&self, reason: &str) {
        if let Some(wal) = &self.0.wal {
            wal.fail(&reason);
        }
    }

    /// (bytes of the log in use, bytes of the log, dirty pages).
    pub fn log_usage(&self) -> (u64, u64, u64) {
        match &self.0.wal {
            Some(wal) => wal.with_log(|log| (log.used(), log.bytes(), log.dirty.count())),
            None => (0, 0, 0),
        }
    }
}
