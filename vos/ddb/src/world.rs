//! The world of a tool: tasks that run to their ends one after the other, and files that can be written only if the tool
//! was made for that.

use std::{
    cell::RefCell,
    fs::{File, TryLockError},
    future::{Future, pending, ready},
    os::unix::fs::FileExt,
    path::PathBuf,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use daos_xstream::{
    Class, Clock, CoreId, Durability, Env, IoBuffer, Locals, Media, MediaError, MediaFile, NoMailbox,
    OpenOptions, Rng, Spawn, Time, WallTime,
};
use rustix::rand::{GetRandomFlags, getrandom};

mod fabric;

use fabric::NoFabric;

/// Turns that tasks get before it counts as certain that they wait for what nobody does.
const TURNS_MAX: u32 = 1_000_000;

/// Runs a future that starts no tasks. Nothing in it ever waits; if it does, something was asked that only an engine can do.
///
/// # Panics
///
/// If the future waits.
pub fn block_on<R>(future: impl Future<Output = R>) -> R {
    run(future, &Tasks::default(), 1000)
}

/// Gives `future` and all tasks turns until the future has ended.
fn run<R>(future: impl Future<Output = R>, tasks: &Tasks, turns: u32) -> R {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..turns {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        // A task may start others.
        let mut running = std::mem::take(&mut *tasks.0.borrow_mut());
        running.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        tasks.0.borrow_mut().extend(running);
    }
    panic!("a tool's task waits for what nobody does");
}

/// The world of a tool. Clones share it.
#[derive(Clone)]
pub struct ToolWorld(Rc<Inner>);

struct Inner {
    media: Files,
    tasks: Tasks,
    locals: Locals,
}

impl ToolWorld {
    /// A world whose media is the folder `root`, to be read.
    pub fn new(root: PathBuf) -> Self {
        Self::with(Files { root, writable: false })
    }

    /// A world whose media is the folder `root`, in which files may be changed.
    pub fn writing(root: PathBuf) -> Self {
        Self::with(Files { root, writable: true })
    }

    fn with(media: Files) -> Self {
        Self(Rc::new(Inner { media, tasks: Tasks::default(), locals: Locals::default() }))
    }

    /// Runs a future of this world, and with it the tasks that it starts; those that have not ended by then are dropped, and
    /// with them the files that they have open.
    ///
    /// # Panics
    ///
    /// If the future waits for what nobody does.
    pub fn block_on<R>(&self, future: impl Future<Output = R>) -> R {
        let result = run(future, &self.0.tasks, TURNS_MAX);
        drop(self.0.tasks.0.take());
        result
    }
}

impl Env for ToolWorld {
    type Clock = NoTime;
    type Rng = SystemRng;
    type Spawn = Tasks;
    type Mailbox = NoMailbox;
    type Fabric = NoFabric;
    type Media = Files;

    fn clock(&self) -> &NoTime {
        &NoTime
    }
    fn rng(&self) -> &SystemRng {
        &SystemRng
    }
    fn scheduler(&self) -> &Tasks {
        &self.0.tasks
    }
    fn mailbox(&self) -> &NoMailbox {
        &NoMailbox
    }
    fn fabric(&self) -> &NoFabric {
        &NoFabric
    }
    fn media(&self) -> &Files {
        &self.0.media
    }
    fn locals(&self) -> &Locals {
        &self.0.locals
    }
    fn core(&self) -> CoreId {
        CoreId(0)
    }
}

/// Time stands still: nothing that a tool does depends on it.
pub struct NoTime;

impl Clock for NoTime {
    fn now(&self) -> Time {
        Time(0)
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn sleep_until(&self, _: Time) -> impl Future<Output = ()> + 'static {
        pending()
    }
}

/// The system's random numbers.
pub struct SystemRng;

impl Rng for SystemRng {
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        let got = getrandom(&mut bytes, GetRandomFlags::empty());
        // Reads of up to 256 bytes are never cut short.
        assert_eq!(got, Ok(bytes.len()), "the system has no random numbers");
        u64::from_ne_bytes(bytes)
    }
}

/// The tasks of a tool that writes: a target's log and checkpoints.
#[derive(Default)]
pub struct Tasks(RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>);

impl Spawn for Tasks {
    fn spawn(&self, _: Class, _: &'static str, task: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().push(Box::pin(task));
    }
    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        ready(())
    }
    fn should_yield(&self) -> bool {
        false
    }
    fn add_progress(&self, _: &'static str, _: impl FnMut() -> usize + 'static) {}
}

/// Files below a folder.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
    writable: bool,
}

/// A file that is there.
#[derive(Clone, Debug)]
pub struct DiskFile(Rc<(File, u64)>);

fn refused() -> MediaError {
    MediaError::Failed("a tool makes and removes no files".to_owned())
}

impl Media for Files {
    type File = DiskFile;

    async fn open(&self, path: &str, options: OpenOptions) -> Result<DiskFile, MediaError> {
        if options.create_new {
            return Err(refused());
        }
        let full = self.root.join(path);
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => MediaError::NotFound(full.display().to_string()),
            _ => MediaError::Failed(format!("{}: {error}", full.display())),
        };
        let file = File::options().read(true).write(self.writable).open(&full).map_err(failed)?;
        if options.alone {
            // A tool does not wait: whoever runs it looks, and runs it again.
            file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => {
                    MediaError::Failed(MediaError::InUse(full.display().to_string()).to_string())
                }
                TryLockError::Error(error) => failed(error),
            })?;
        }
        let size = file.metadata().map_err(failed)?.len();
        Ok(DiskFile(Rc::new((file, size))))
    }

    async fn remove(&self, _: &str) -> Result<(), MediaError> {
        Err(refused())
    }

    async fn rename(&self, _: &str, _: &str) -> Result<(), MediaError> {
        Err(refused())
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, MediaError> {
        let Ok(entries) = std::fs::read_dir(self.root.join(path)) else { return Ok(Vec::new()) };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

impl DiskFile {
    fn check(&self, offset: u64, length: usize) -> Result<(), MediaError> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.0.1 => Ok(()),
            _ => Err(MediaError::BadRange { offset, length: length as u64, size: self.0.1 }),
        }
    }
}

impl MediaFile for DiskFile {
    fn size(&self) -> u64 {
        self.0.1
    }

    fn read(
        &self,
        offset: u64,
        mut buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let result = self.check(offset, buffer.len()).and_then(|()| {
            let read = self.0.0.read_exact_at(buffer.as_mut_slice(), offset);
            read.map_err(|error| MediaError::Failed(format!("reading at {offset:#x}: {error}")))
        });
        ready((buffer, result))
    }

    fn write(
        &self,
        offset: u64,
        buffer: IoBuffer,
        durability: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let file = &self.0.0;
        let result = self.check(offset, buffer.len()).and_then(|()| {
            // A file that was opened to be read refuses this by itself.
            let written = file.write_all_at(buffer.as_slice(), offset).and_then(|()| match durability {
                Durability::Durable => file.sync_data(),
                Durability::Volatile => Ok(()),
            });
            written.map_err(|error| MediaError::Failed(format!("writing at {offset:#x}: {error}")))
        });
        ready((buffer, result))
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        ready(self.0.0.sync_data().map_err(|error| MediaError::Failed(format!("flushing: {error}"))))
    }

    fn discard(&self, _: u64, _: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        ready(Err(refused()))
    }
}
