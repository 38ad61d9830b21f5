//! Media with two images: what the device shows, and what survives a crash.
//!
//! Until it is flushed (or was written durably and completed), any subset of a write's 512-byte sectors may survive a
//! crash; of a write that was on its way when the crash came, too. Everything else survives.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::{Future, poll_fn},
    rc::Rc,
    task::{Poll, Waker},
};

use daos_xstream::{Durability, IoBuffer, Media, MediaError, MediaFile, OpenOptions};

use super::Random;

const SECTOR: usize = 512;

#[derive(Clone)]
struct File {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Completed writes that no flush has covered.
    cached: Vec<(u64, Vec<u8>)>,
}

enum Kind {
    Write { offset: u64, bytes: Vec<u8>, durability: Durability },
    Flush { covered: usize },
}

struct Operation {
    id: u64,
    path: String,
    kind: Kind,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<String, File>,
    in_flight: Vec<Operation>,
    finished: BTreeMap<u64, Result<(), MediaError>>,
    next_id: u64,
    /// Writes and flushes begun.
    events: u64,
    crash_at: Option<u64>,
    fail_at: Option<u64>,
    crashed: bool,
    pub bytes_read: u64,
    /// Called at each write and flush, once it has begun.
    watcher: Option<Watcher>,
}

type Watcher = Rc<dyn Fn(&TestMedia)>;

#[derive(Clone, Default)]
pub struct TestMedia(Rc<RefCell<Disk>>);

#[derive(Clone)]
pub struct TestFile {
    media: TestMedia,
    path: String,
    size: u64,
}

impl TestMedia {
    pub fn events(&self) -> u64 {
        self.0.borrow().events
    }

    pub fn bytes_read(&self) -> u64 {
        self.0.borrow().bytes_read
    }

    pub fn crashed(&self) -> bool {
        self.0.borrow().crashed
    }

    /// Crash when this many writes and flushes have begun.
    pub fn crash_at(&self, event: u64) {
        self.0.borrow_mut().crash_at = Some(event);
    }

    /// Fail every write and flush from this one on.
    pub fn fail_at(&self, event: u64) {
        self.0.borrow_mut().fail_at = Some(event);
    }

    /// Calls `watcher` whenever a write or a flush has begun: a crash at that moment is what [`after_crash`] then gives.
    ///
    /// [`after_crash`]: Self::after_crash
    pub fn watch(&self, watcher: impl Fn(&TestMedia) + 'static) {
        self.0.borrow_mut().watcher = Some(Rc::new(watcher));
    }

    pub fn in_flight(&self) -> usize {
        self.0.borrow().in_flight.len()
    }

    /// The contents of a file, to look at and to damage.
    pub fn with_file<R>(&self, path: &str, with: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        with(&mut self.0.borrow_mut().files.get_mut(path).expect("a file").live)
    }

    /// A copy with nothing on its way.
    pub fn copy(&self) -> Self {
        let files = self.0.borrow().files.clone();
        Self(Rc::new(RefCell::new(Disk { files, ..Disk::default() })))
    }

    /// What the machine finds after it has lost power now.
    pub fn after_crash(&self, random: &Random) -> Self {
        let disk = self.0.borrow();
        let mut files = BTreeMap::new();
        for (path, file) in &disk.files {
            let mut durable = file.durable.clone();
            let lost = file.cached.iter().map(|(offset, bytes)| (*offset, bytes));
            let flying = disk.in_flight.iter().filter(|operation| &operation.path == path);
            let flying = flying.filter_map(|operation| match &operation.kind {
                Kind::Write { offset, bytes, .. } => Some((*offset, bytes)),
                Kind::Flush { .. } => None,
            });
            for (offset, bytes) in lost.chain(flying) {
                // Often all, often none, else any subset.
                let mode = random.below(4);
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    if mode == 0 || (mode > 1 && random.below(2) == 0) {
                        let place = offset as usize + index * SECTOR;
                        durable[place..place + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            files.insert(path.clone(), File { live: durable.clone(), durable, cached: Vec::new() });
        }
        Self(Rc::new(RefCell::new(Disk { files, ..Disk::default() })))
    }

    /// What the next process finds after this one was killed: what was on its way is there or not, and is not durable.
    pub fn after_kill(&self, random: &Random) -> Self {
        let disk = self.0.borrow();
        let mut files = disk.files.clone();
        for operation in &disk.in_flight {
            if let (Kind::Write { offset, bytes, .. }, true) = (&operation.kind, random.below(2) == 0) {
                let file = files.get_mut(&operation.path).expect("a file");
                file.live[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
                file.cached.push((*offset, bytes.clone()));
            }
        }
        Self(Rc::new(RefCell::new(Disk { files, ..Disk::default() })))
    }

    /// The device finishes one operation, any.
    pub fn complete_one(&self, random: &Random) {
        let mut disk = self.0.borrow_mut();
        let index = random.below(disk.in_flight.len() as u64) as usize;
        let operation = disk.in_flight.swap_remove(index);
        let failed = disk.fail_at.is_some_and(|event| disk.events >= event);
        let file = disk.files.get_mut(&operation.path).expect("a file");
        let result = if failed { Err(MediaError::Failed("the test's device failed".into())) } else { Ok(()) };
        if !failed {
            match operation.kind {
                Kind::Write { offset, bytes, durability } => {
                    let range = offset as usize..offset as usize + bytes.len();
                    file.live[range.clone()].copy_from_slice(&bytes);
                    match durability {
                        Durability::Durable => file.durable[range].copy_from_slice(&bytes),
                        Durability::Volatile => file.cached.push((offset, bytes)),
                    }
                }
                Kind::Flush { covered } => {
                    for (offset, bytes) in file.cached.drain(..covered.min(file.cached.len())) {
                        file.durable[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
        }
        disk.finished.insert(operation.id, result);
        drop(disk);
        if let Some(waker) = operation.waker {
            waker.wake();
        }
    }

    fn begin(&self, path: &str, kind: Kind) -> u64 {
        let mut disk = self.0.borrow_mut();
        disk.events += 1;
        let id = disk.next_id;
        disk.next_id += 1;
        disk.in_flight.push(Operation { id, path: path.to_owned(), kind, waker: None });
        if disk.crash_at.is_some_and(|event| disk.events > event) {
            disk.crashed = true;
        }
        let watcher = disk.watcher.clone();
        drop(disk);
        if let Some(watcher) = watcher {
            watcher(self);
        }
        id
    }

    fn wait(self, id: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        poll_fn(move |context| {
            let mut disk = self.0.borrow_mut();
            if let Some(result) = disk.finished.remove(&id) {
                return Poll::Ready(result);
            }
            let operation =
                disk.in_flight.iter_mut().find(|operation| operation.id == id).expect("in flight");
            operation.waker = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

impl Media for TestMedia {
    type File = TestFile;

    async fn open(&self, path: &str, options: OpenOptions) -> Result<TestFile, MediaError> {
        let mut disk = self.0.borrow_mut();
        match (disk.files.get(path), options.create_new) {
            (None, false) => return Err(MediaError::NotFound(path.to_owned())),
            (Some(_), true) => return Err(MediaError::Exists(path.to_owned())),
            (None, true) => {
                let zeros = vec![0; options.size as usize];
                let file = File { live: zeros.clone(), durable: zeros, cached: Vec::new() };
                disk.files.insert(path.to_owned(), file);
            }
            (Some(_), false) => {}
        }
        let size = disk.files[path].live.len() as u64;
        Ok(TestFile { media: self.clone(), path: path.to_owned(), size })
    }

    async fn remove(&self, path: &str) -> Result<(), MediaError> {
        self.0.borrow_mut().files.remove(path);
        Ok(())
    }

    async fn rename(&self, from: &str, _: &str) -> Result<(), MediaError> {
        Err(MediaError::NotFound(from.to_owned()))
    }

    async fn list(&self, _: &str) -> Result<Vec<String>, MediaError> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }
}

impl MediaFile for TestFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(
        &self,
        offset: u64,
        mut buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let mut disk = self.media.0.borrow_mut();
        disk.bytes_read += buffer.len() as u64;
        let end = offset as usize + buffer.len();
        buffer.as_mut_slice().copy_from_slice(&disk.files[&self.path].live[offset as usize..end]);
        std::future::ready((buffer, Ok(())))
    }

    fn write(
        &self,
        offset: u64,
        buffer: IoBuffer,
        durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        assert!(
            offset.is_multiple_of(4096)
                && buffer.len().is_multiple_of(4096)
                && offset + buffer.len() as u64 <= self.size
        );
        let bytes = buffer.as_slice().to_vec();
        let id = self.media.begin(&self.path, Kind::Write { offset, bytes, durability });
        let media = self.media.clone();
        async move { (buffer, media.wait(id).await) }
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        let covered = self.media.0.borrow().files[&self.path].cached.len();
        let id = self.media.begin(&self.path, Kind::Flush { covered });
        self.media.clone().wait(id)
    }

    fn discard(&self, _: u64, _: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        std::future::ready(Ok(()))
    }
}
