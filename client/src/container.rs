//! Open containers: their objects, and the epochs in which those are written.

use std::rc::Rc;

use daos_dsm::{
    client::{ContainerHandle, DsmError},
    epochs::{EPOCH_LAST, EpochState},
};
use daos_dsp::{Fs, Options};
use daos_dsr::{
    class::{SX, class_by_name},
    client::{Anchor, Container as Objects, Epochs, Page, Ticket, enumerate_objects},
};
use daos_types::{Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType};
use daos_xstream::{Clock, Env, Rng};

use crate::{Array, Client, ClientEnv, DaosError, Document, Kv};

/// When something is written, or read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// A write takes an epoch of its own; a read sees the newest state, uncommitted writes included.
    #[default]
    Auto,
    /// In this epoch.
    Epoch(Epoch),
}

impl From<Epoch> for At {
    fn from(epoch: Epoch) -> Self {
        Self::Epoch(epoch)
    }
}

/// An open container.
///
/// Two ways to write:
///
/// * **Explicit epochs**: [`hold`](Self::hold) one, write as much as wanted `At::Epoch` of it, [`flush`](Self::flush),
///   [`commit`](Self::commit): all of it becomes visible as one, or after a crash none of it is there.
/// * **Auto**: every call takes the next epoch by itself; [`sync`](Self::sync) makes what was written so far last. Mounted
///   file systems write so too.
///
/// They may be mixed: a commit, of whatever kind, commits everything of this handle up to its epoch, and waits for the
/// automatic writes under way there.
///
/// Dropping it does not close it; [`close`](Self::close) does, and so does the end of the process. What was not
/// committed by then is gone.
pub struct Container<E: Env = ClientEnv> {
    client: Client<E>,
    pub(crate) objects: Objects<E>,
    handle: ContainerHandle<E>,
    /// Epochs of automatic writes.
    automatic: Rc<Epochs>,
}

impl<E: Env> Clone for Container<E> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            objects: self.objects.clone(),
            handle: self.handle.clone(),
            automatic: self.automatic.clone(),
        }
    }
}

impl<E: Env> Container<E> {
    /// The container that `client` has opened as `handle`.
    pub(crate) fn new(client: Client<E>, handle: ContainerHandle<E>) -> Self {
        let (objects, automatic) = (Objects::new(&handle), Epochs::new(handle.held()));
        Self { client, objects, handle, automatic }
    }

    /// The handle, for what has no call here.
    pub fn handle(&self) -> &ContainerHandle<E> {
        &self.handle
    }

    /// The world.
    pub fn env(&self) -> &E {
        self.client.env()
    }

    /// Objects as DSR serves them.
    pub fn objects(&self) -> &Objects<E> {
        &self.objects
    }

    /// A new object ID, random: of this type, in the class of this name (such as `S1`, `SX`; `None`: the container's own,
    /// or else all targets), with keys hashed.
    pub fn new_object_id(&self, object_type: ObjectType, class: Option<&str>) -> Result<ObjectId, DaosError> {
        let class = match (class, self.handle.properties().object_class) {
            (Some(name), _) => class_by_name(name)?,
            (None, 0) => SX,
            (None, class) => ObjectClass(class),
        };
        let rng = self.env().rng();
        let caller = (rng.next_u64() as u32, rng.next_u64(), rng.next_u64());
        Ok(ObjectId::new(object_type, KeyOrder::Hashed, KeyOrder::Hashed, class, caller))
    }

    /// A key-value object.
    pub fn kv(&self, id: ObjectId) -> Result<Kv<E>, DaosError> {
        Kv::open(self, id)
    }

    /// A byte array.
    pub fn array(&self, id: ObjectId) -> Result<Array<E>, DaosError> {
        Array::open(self, id)
    }

    /// A document: distribution key → attribute key → value.
    pub fn document(&self, id: ObjectId) -> Result<Document<E>, DaosError> {
        Document::open(self, id)
    }

    /// Lists the container's objects. Pages may be empty before the end.
    pub async fn list_objects(
        &self,
        at: impl Into<At>,
        anchor: &Anchor,
        objects_max: u32,
    ) -> Result<Page<ObjectId>, DaosError> {
        Ok(enumerate_objects(&self.objects, read_epoch(at.into()), anchor, objects_max).await?)
    }

    /// Mounts the container's file system for reading and writing.
    pub async fn mount(&self) -> Result<Fs<Objects<E>>, DaosError> {
        Ok(Fs::mount(&self.objects, self.fs_options()).await?)
    }

    /// Mounts the container's file system for filling it: the times of directories do not change with their entries, which
    /// saves a request for every change.
    pub async fn mount_for_copy(&self) -> Result<Fs<Objects<E>>, DaosError> {
        Ok(Fs::mount(&self.objects, Options { directory_times: false, ..self.fs_options() }).await?)
    }

    /// Mounts the container's file system as it was at an epoch, for reading.
    pub async fn mount_at(&self, epoch: Epoch) -> Result<Fs<Objects<E>>, DaosError> {
        Ok(Fs::mount(&self.objects, Options { read_at: Some(epoch), ..self.fs_options() }).await?)
    }

    /// What a mount gets from this world; with it [`Fs::mount`] can be called with other options.
    pub fn fs_options(&self) -> Options {
        let env = self.env().clone();
        Options {
            now: Rc::new(move || env.clock().wall().0),
            random: self.env().rng().next_u64(),
            directory_times: true,
            read_at: None,
            epochs: self.automatic.clone(),
        }
    }

    /// The epochs, as this handle sees them.
    pub async fn epochs(&self) -> Result<EpochState, DaosError> {
        Ok(self.handle.epoch_query().await?)
    }

    /// Holds `epoch`, or the first that can be held if that is later, and returns it: the first epoch to write in. If an
    /// earlier one was held, what was written below `epoch` and not committed is given up; file systems that were mounted
    /// before must be mounted again then.
    pub async fn hold(&self, epoch: Epoch) -> Result<Epoch, DaosError> {
        let giving_up = match self.handle.held() < epoch {
            true => Some(self.automatic.give_up().await),
            false => None,
        };
        let held = self.handle.hold(epoch).await?.lhe;
        match giving_up {
            Some(giving_up) => giving_up.done(epoch, held),
            None => self.automatic.begin_at(held),
        }
        Ok(held)
    }

    /// Returns once everything written up to `epoch` survives any crash. Waits for the automatic writes that are under way
    /// there, so that a [`commit`](Self::commit) takes none of them by half; later ones go beyond it.
    pub async fn flush(&self, epoch: Epoch) -> Result<(), DaosError> {
        self.close_epochs(epoch).await;
        self.handle.flush(epoch).await?;
        Ok(())
    }

    /// Commits everything up to `epoch`, which was flushed; the epochs after it stay held.
    pub async fn commit(&self, epoch: Epoch) -> Result<(), DaosError> {
        self.close_epochs(epoch).await;
        self.automatic.check_whole(epoch)?;
        let lhe = self.handle.commit(epoch).await?.lhe;
        self.automatic.begin_at(lhe);
        Ok(())
    }

    async fn close_epochs(&self, epoch: Epoch) {
        // Nothing can be committed beyond the last epoch, so nobody has to wait.
        if epoch <= EPOCH_LAST {
            self.automatic.close(epoch).await;
        }
    }

    /// Forgets everything that was written through this handle and not committed; it can be written again. File systems that
    /// were mounted before must be mounted again. If there were automatic writes, what is held begins after them from then on.
    pub async fn discard(&self) -> Result<(), DaosError> {
        Ok(self.discard_uncommitted().await?)
    }

    pub(crate) async fn discard_uncommitted(&self) -> Result<(), DsmError> {
        let giving_up = self.automatic.give_up().await;
        self.handle.discard(EpochRange { low: Epoch::ZERO, high: Epoch::MAX }).await?;
        // A write that nobody awaits any more may still be on its way. From here on it is refused.
        let mut held = self.handle.held();
        if held < self.automatic.reached() {
            held = self.handle.hold(self.automatic.reached()).await?.lhe;
        }
        giving_up.done(Epoch::MAX, held);
        Ok(())
    }

    /// Waits until `epoch` is committed, by whomever.
    pub async fn wait(&self, epoch: Epoch) -> Result<EpochState, DaosError> {
        Ok(self.handle.wait(epoch).await?)
    }

    /// Makes every automatic write that was complete before the call last, operations of mounted file systems too; returns
    /// the committed epoch. Waits for those under way, so that none of them is committed by half; those to come write in
    /// later epochs meanwhile. A write that was given up (its future was dropped) may be there in part; one that nobody polls
    /// holds everything up.
    pub async fn sync(&self) -> Result<Epoch, DaosError> {
        Ok(self.automatic.sync(&self.objects).await?)
    }

    /// Takes a snapshot of the newest committed epoch (or of `epoch`) and returns it.
    pub async fn snapshot_create(&self, epoch: Option<Epoch>) -> Result<Epoch, DaosError> {
        let epoch = match epoch {
            Some(epoch) => epoch,
            None => self.handle.epoch_query().await?.container_hce,
        };
        self.handle.snapshot_create(epoch).await?;
        Ok(epoch)
    }

    /// The snapshots, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<Epoch>, DaosError> {
        Ok(self.handle.snapshots().await?)
    }

    /// Gives a snapshot up.
    pub async fn snapshot_destroy(&self, epoch: Epoch) -> Result<(), DaosError> {
        self.handle.snapshot_destroy(epoch).await?;
        Ok(())
    }

    /// Closes the handle. What it did not commit is discarded.
    pub async fn close(self) -> Result<(), DaosError> {
        Ok(self.handle.close().await?)
    }

    /// Epoch of a write, which lasts as long as this is kept.
    pub(crate) async fn turn(&self, at: At) -> Result<Turn, DaosError> {
        if let At::Epoch(epoch) = at {
            return Ok(Turn::Chosen(epoch));
        }
        self.automatic.begin(&self.objects).await?;
        let ticket = self.automatic.ticket();
        // Automatic writes are ordered by when they are called, not by when they arrive.
        self.automatic.advance();
        Ok(Turn::Automatic(ticket))
    }

    /// Lets automatic writes go where they may, after a target has refused one: somebody else has committed that epoch.
    pub(crate) async fn overtaken(&self) -> Result<(), DaosError> {
        let mut held = self.handle.epoch_query().await?.lhe;
        if held == Epoch::MAX {
            held = self.handle.hold(Epoch::ZERO).await?.lhe;
        }
        self.automatic.begin_at(held);
        Ok(())
    }
}

/// The right to write into an epoch.
pub(crate) enum Turn {
    Chosen(Epoch),
    Automatic(Ticket),
}

impl Turn {
    pub(crate) fn epoch(&self) -> Epoch {
        match self {
            Self::Chosen(epoch) => *epoch,
            Self::Automatic(ticket) => ticket.epoch(),
        }
    }
}

/// Epoch of a read.
pub(crate) fn read_epoch(at: At) -> Epoch {
    match at {
        At::Epoch(epoch) => epoch,
        At::Auto => Epoch::MAX,
    }
}
