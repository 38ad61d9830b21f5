//! The seam's media over a simulated disk.

use std::{
    future::Future,
    rc::{Rc, Weak},
};

use daos_xstream::{
    BLOCK_BYTES, Durability, IoBuffer, Media, MediaError, MediaFile, OpenOptions,
    sync::{Receiver, oneshot},
};

use crate::{
    core::Core,
    disk::{DiskState, FileImage},
    world::{Happening, World},
};

/// The files of a simulated node.
#[derive(Clone)]
pub struct SimMedia {
    world: Rc<World>,
    disk: Rc<DiskState>,
    core: Rc<Core>,
}

/// An open file of a simulated node.
#[derive(Clone)]
pub struct SimFile {
    media: SimMedia,
    number: u64,
    size: u64,
    path: Rc<str>,
    /// Kept while the file is open alone, or a write to it is on its way.
    alone: Option<Rc<()>>,
}

impl SimMedia {
    pub(crate) fn new(world: &Rc<World>, disk: &Rc<DiskState>, core: &Rc<Core>) -> Self {
        Self { world: world.clone(), disk: disk.clone(), core: core.clone() }
    }

    /// Has `work` happen after `delay` and its result returned, unless the node dies before.
    fn later<T: 'static>(&self, delay: u64, work: impl FnOnce(&SimMedia) -> T + 'static) -> Receiver<T> {
        let (sender, receiver) = oneshot();
        let (media, life) = (self.clone(), self.disk.life.get());
        self.world.after(delay, move || {
            if media.disk.life.get() == life {
                let result = work(&media);
                media.core.poke();
                sender.send(result);
            }
        });
        receiver
    }

    /// Changes the name space: once, at the beginning or at the end of the call.
    async fn change<T: 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&SimMedia) -> Result<T, MediaError> + 'static,
    ) -> Result<T, MediaError> {
        self.check_failed(path)?;
        let delay = self.world.decay.latency(self.world.config.flush_latency_ns);
        self.world.record(Happening::MediaName, self.core.id, delay);
        let result = if self.world.decay.below(2) == 0 {
            let result = work(self);
            self.later(delay, move |_| result).await
        } else {
            self.later(delay, work).await
        };
        result.unwrap_or_else(|_| gone(path))
    }

    /// What says that a file is open alone, unless something says so already in this life of the node.
    fn claim(&self, number: u64) -> Option<Rc<()>> {
        let (life, claim) = (self.disk.life.get(), Rc::new(()));
        let mut claims = self.disk.claims.borrow_mut();
        let taken = |(since, claim): &(u64, Weak<()>)| *since == life && claim.strong_count() > 0;
        if claims.get(&number).is_some_and(taken) {
            return None;
        }
        claims.insert(number, (life, Rc::downgrade(&claim)));
        Some(claim)
    }

    fn check_failed(&self, path: &str) -> Result<(), MediaError> {
        match self.disk.failed.get() || self.world.decay.chance(self.disk.failure_ppm.get()) {
            true => Err(MediaError::Failed(format!("{path}: the device has failed"))),
            false => Ok(()),
        }
    }
}

/// The node died during the call. Nobody is left to see this.
fn gone<T>(path: &str) -> Result<T, MediaError> {
    Err(MediaError::Failed(format!("{path}: the node is gone")))
}

/// Whether `name` is `path` or lies below it.
fn is_below(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// Paths in one form: no empty components.
fn clean(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

impl Media for SimMedia {
    type File = SimFile;

    async fn open(&self, path: &str, options: OpenOptions) -> Result<SimFile, MediaError> {
        let path = clean(path);
        let name = path.clone();
        let opened = self.change(&path, move |media| {
            let mut names = media.disk.names.borrow_mut();
            match (names.get(&name).copied(), options.create_new) {
                (Some(_), true) => Err(MediaError::Exists(name)),
                (None, false) => Err(MediaError::NotFound(name)),
                (Some(number), false) => Ok((number, media.disk.files.borrow()[&number].size)),
                (None, true) => {
                    if !options.size.is_multiple_of(BLOCK_BYTES as u64) {
                        return Err(MediaError::BadRange {
                            offset: 0,
                            length: options.size,
                            size: options.size,
                        });
                    }
                    if options.preallocate && !media.disk.has_room(options.size) {
                        return Err(MediaError::Full(name));
                    }
                    let number = media.world.number();
                    let image = FileImage::new(options.size, options.preallocate);
                    media.disk.files.borrow_mut().insert(number, image);
                    names.insert(name, number);
                    Ok((number, options.size))
                }
            }
        });
        let (number, size) = opened.await?;
        let alone = options.alone.then(|| self.claim(number).ok_or(MediaError::InUse(path.clone())));
        Ok(SimFile { media: self.clone(), number, size, path: path.into(), alone: alone.transpose()? })
    }

    async fn remove(&self, path: &str) -> Result<(), MediaError> {
        let path = clean(path);
        let name = path.clone();
        // Files stay until the node's next life: who has one open may go on.
        let remove = move |media: &SimMedia| {
            media.disk.names.borrow_mut().retain(|other, _| !is_below(other, &name));
            Ok(())
        };
        self.change(&path, remove).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), MediaError> {
        let (path, to) = (clean(from), clean(to));
        let from = path.clone();
        let rename = move |media: &SimMedia| {
            let mut names = media.disk.names.borrow_mut();
            let moved: Vec<_> = names.keys().filter(|name| is_below(name, &from)).cloned().collect();
            if moved.is_empty() {
                return Err(MediaError::NotFound(from));
            }
            names.retain(|name, _| is_below(name, &from) || !is_below(name, &to));
            for name in moved {
                let number = names.remove(&name).expect("the name was listed");
                names.insert(format!("{to}{}", &name[from.len()..]), number);
            }
            Ok(())
        };
        self.change(&path, rename).await
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, MediaError> {
        self.check_failed(path)?;
        let path = clean(path);
        let names = self.disk.names.borrow();
        let mut below: Vec<String> = names
            .keys()
            .filter(|name| is_below(name, &path) && name.len() > path.len())
            .filter_map(|name| name[path.len()..].split('/').find(|part| !part.is_empty()).map(str::to_owned))
            .collect();
        below.dedup();
        Ok(below)
    }
}

impl SimFile {
    fn check(&self, offset: u64, length: u64) -> Result<(), MediaError> {
        let block = BLOCK_BYTES as u64;
        let within = offset.checked_add(length).is_some_and(|end| end <= self.size);
        match within && offset.is_multiple_of(block) && length.is_multiple_of(block) {
            true => Ok(()),
            false => Err(MediaError::BadRange { offset, length, size: self.size }),
        }
    }
}

impl MediaFile for SimFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(
        &self,
        offset: u64,
        mut buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let (world, path, number) = (&self.media.world, self.path.clone(), self.number);
        let checked = self.check(offset, buffer.len() as u64);
        let delay = world.decay.latency(world.config.read_latency_ns);
        let read = self.media.later(delay, move |media| {
            let result = checked.and_then(|()| media.check_failed(&path)).and_then(|()| {
                media.world.record(Happening::MediaRead, number, offset);
                let mut files = media.disk.files.borrow_mut();
                let file = files.get_mut(&number).ok_or_else(|| MediaError::NotFound(path.to_string()))?;
                let calm = media.world.calm.get();
                let loss = if calm { 0 } else { media.world.config.sector_loss_ppm };
                match file.read(offset, buffer.as_mut_slice(), &media.world.decay, loss) {
                    true => Ok(()),
                    false => {
                        Err(MediaError::Failed(format!("{path}: a sector near {offset} cannot be read")))
                    }
                }
            });
            (buffer, result)
        });
        let path = self.path.clone();
        async move { read.await.unwrap_or_else(|_| (IoBuffer::zeroed(0), gone(&path))) }
    }

    fn write(
        &self,
        offset: u64,
        buffer: IoBuffer,
        durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let (world, disk, path, number) =
            (&self.media.world, &self.media.disk, self.path.clone(), self.number);
        let durable = durability == Durability::Durable;
        let mut delay = world.decay.latency(world.config.write_latency_ns);
        if durable {
            delay += world.decay.latency(world.config.flush_latency_ns);
        }
        let write = world.number();
        let data: Rc<[u8]> = buffer.as_slice().into();
        let begun = self
            .check(offset, data.len() as u64)
            .and_then(|()| self.media.check_failed(&path))
            .and_then(|()| match disk.has_room_for_write(number, offset, data.len()) {
                true => Ok(()),
                false => Err(MediaError::Full(path.to_string())),
            });
        if begun.is_ok()
            && let Some(file) = disk.files.borrow_mut().get_mut(&number)
        {
            file.begin_write(write, offset, &data);
        }
        let alone = self.alone.clone();
        let written = self.media.later(delay, move |media| {
            drop(alone);
            let result = begun.and_then(|()| media.check_failed(&path)).and_then(|()| {
                media.world.record(Happening::MediaWrite, offset, u64::from(crc32c::crc32c(&data)));
                let mut files = media.disk.files.borrow_mut();
                let file = files.get_mut(&number).ok_or_else(|| MediaError::NotFound(path.to_string()))?;
                let order = media.disk.order.get() + 1;
                media.disk.order.set(order);
                file.finish_write(write, order, offset, &data, durable && !media.disk.lies.get());
                Ok(())
            });
            (buffer, result)
        });
        let path = self.path.clone();
        async move { written.await.unwrap_or_else(|_| (IoBuffer::zeroed(0), gone(&path))) }
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        let (world, path, number) = (&self.media.world, self.path.clone(), self.number);
        let order = self.media.disk.order.get();
        let delay = world.decay.latency(world.config.flush_latency_ns);
        let flushed = self.media.later(delay, move |media| {
            media.check_failed(&path)?;
            media.world.record(Happening::MediaFlush, number, order);
            let honest = !media.disk.lies.get();
            if let Some(file) = media.disk.files.borrow_mut().get_mut(&number)
                && honest
            {
                file.flush(order);
            }
            Ok(())
        });
        let path = self.path.clone();
        async move { flushed.await.unwrap_or_else(|_| gone(&path)) }
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        let (world, path, number) = (&self.media.world, self.path.clone(), self.number);
        let checked = self.check(offset, length);
        let delay = world.decay.latency(world.config.write_latency_ns);
        // Zeros, or anything else.
        let fill = if world.decay.below(2) == 0 { 0 } else { 0xdd };
        let alone = self.alone.clone();
        let discarded = self.media.later(delay, move |media| {
            drop(alone);
            checked?;
            media.check_failed(&path)?;
            media.world.record(Happening::MediaWrite, offset, length);
            if let Some(file) = media.disk.files.borrow_mut().get_mut(&number) {
                file.discard(offset, length, fill);
            }
            Ok(())
        });
        let path = self.path.clone();
        async move { discarded.await.unwrap_or_else(|_| gone(&path)) }
    }
}
