//! Remote memory access: buffers that a client exposes, and transfers that an engine drives.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    ops::Range,
    rc::Rc,
};

use daos_xstream::{
    Access, FabricError, IoBuffer, RemoteBuffer,
    sync::{Sender, oneshot},
};

use crate::{
    network::Link,
    world::{Happening, World},
};

/// How often a transfer looks whether a partition has ended.
const HELD_UP_NS: u64 = 10_000_000;

/// What is exposed in the whole world, by key.
#[derive(Default)]
pub(crate) struct Exposures(RefCell<BTreeMap<u64, Rc<Exposure>>>);

struct Exposure {
    link: Link,
    access: Access,
    buffer: RefCell<Option<IoBuffer>>,
}

/// Memory exposed to one peer; dropping it revokes the key.
pub struct SimExposed {
    world: Rc<World>,
    key: u64,
    length: u64,
    exposure: Rc<Exposure>,
}

impl SimExposed {
    pub(crate) fn remote(&self) -> RemoteBuffer {
        RemoteBuffer { key: self.key, offset: 0, length: self.length }
    }

    pub(crate) fn withdraw(self) -> IoBuffer {
        self.exposure.buffer.borrow_mut().take().expect("the buffer is there until it is withdrawn")
    }
}

impl Drop for SimExposed {
    fn drop(&mut self) {
        let revoked = self.world.network.exposures.0.borrow_mut().remove(&self.key);
        drop(revoked);
    }
}

pub(crate) fn expose(world: &Rc<World>, link: Link, buffer: IoBuffer, access: Access) -> SimExposed {
    let length = buffer.len() as u64;
    let exposure = Rc::new(Exposure { link, access, buffer: RefCell::new(Some(buffer)) });
    let key = world.weather.next();
    world.network.exposures.0.borrow_mut().insert(key, exposure.clone());
    SimExposed { world: world.clone(), key, length, exposure }
}

/// A transfer under way. It goes on when nobody waits for it any more, and when its engine has died.
struct Transfer {
    world: Rc<World>,
    link: Link,
    remote: RemoteBuffer,
    skip: u64,
    access: Access,
    buffer: IoBuffer,
    /// Bytes moved.
    moved: Cell<usize>,
    sender: Sender<(IoBuffer, Result<(), FabricError>)>,
}

pub(crate) fn transfer(
    world: &Rc<World>,
    link: Result<Link, FabricError>,
    remote: RemoteBuffer,
    skip: u64,
    buffer: IoBuffer,
    access: Access,
) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
    let (sender, receiver) = oneshot();
    match link {
        Err(error) => sender.send((buffer, Err(error))),
        Ok(link) => {
            let moved = Cell::new(0);
            let transfer =
                Transfer { world: world.clone(), link, remote, skip, access, buffer, moved, sender };
            let delay = world.weather.latency(world.config.network_latency_ns);
            world.after(delay, move || transfer.go_on());
        }
    }
    async move { receiver.await.unwrap_or_else(|_| (IoBuffer::zeroed(0), Err(FabricError::PeerGone))) }
}

impl Transfer {
    /// Moves the next part; the last one completes.
    fn go_on(mut self) {
        let world = self.world.clone();
        if self.link.connection.broken.get() {
            // What was on its way may land all the same; nobody will be told.
            if world.weather.below(2) == 0 {
                let rest = self.buffer.len() - self.moved.get();
                let _ = self.move_part(rest);
            }
            return self.complete(Err(FabricError::PeerGone));
        }
        if world.network.is_cut(self.link.connection.nodes()) {
            world.after(HELD_UP_NS, move || self.go_on());
            return;
        }
        world.record(Happening::Rma, self.remote.key, self.moved.get() as u64);
        let rest = self.buffer.len() - self.moved.get();
        // Parts of any size: who looks at the memory too early sees it torn.
        let part = if rest <= 1 { rest } else { 1 + world.weather.below(rest as u64) as usize };
        match self.move_part(part) {
            Err(error) => self.complete(Err(error)),
            Ok(()) if part == rest => self.complete(Ok(())),
            Ok(()) => {
                let delay = world.weather.latency(world.config.network_latency_ns) / 4;
                world.after(delay, move || self.go_on());
            }
        }
    }

    /// Moves `part` bytes if the memory is still there, and there for this.
    fn move_part(&mut self, part: usize) -> Result<(), FabricError> {
        let exposure = self.world.network.exposures.0.borrow().get(&self.remote.key).cloned();
        let exposure = exposure.ok_or(FabricError::NotExposed)?;
        let same_connection = Rc::ptr_eq(&exposure.link.connection, &self.link.connection);
        if !same_connection || exposure.link.side == self.link.side || exposure.access != self.access {
            return Err(FabricError::NotExposed);
        }
        let mut memory = exposure.buffer.borrow_mut();
        let memory = memory.as_mut().ok_or(FabricError::NotExposed)?;
        let theirs = self.range(memory.len()).ok_or(FabricError::NotExposed)?;
        let moved = self.moved.get();
        let (theirs, ours) = (theirs.start + moved..theirs.start + moved + part, moved..moved + part);
        match self.access {
            Access::Read => self.buffer.as_mut_slice()[ours].copy_from_slice(&memory.as_slice()[theirs]),
            Access::Write => memory.as_mut_slice()[theirs].copy_from_slice(&self.buffer.as_slice()[ours]),
        }
        self.moved.set(moved + part);
        Ok(())
    }

    /// Where in the exposed memory the whole transfer goes, if it lies within.
    fn range(&self, length: usize) -> Option<Range<usize>> {
        let start = self.remote.offset.checked_add(self.skip)?;
        let end = start.checked_add(self.buffer.len() as u64)?;
        let within = end <= length as u64 && self.skip + self.buffer.len() as u64 <= self.remote.length;
        within.then_some(start as usize..end as usize)
    }

    fn complete(self, result: Result<(), FabricError>) {
        let delay = self.world.weather.latency(self.world.config.network_latency_ns);
        let world = self.world.clone();
        let core = self.link.connection.ends[self.link.side].core.clone();
        world.after(delay, move || {
            core.poke();
            self.sender.send((self.buffer, result));
        });
    }
}
