//! The world of a tool: one task that runs to its end, and files that can only be read.

use std::{
    fs::File,
    future::{Future, pending, ready},
    os::unix::fs::FileExt,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use daos_xstream::{
    Class, Clock, CoreId, Durability, Env, IoBuffer, Locals, Media, MediaError, MediaFile, NoMailbox,
    OpenOptions, Rng, Spawn, Time, WallTime,
};

mod fabric;

use fabric::NoFabric;

/// Runs a future of this world. Nothing in it ever waits; if it does, something was asked that only an engine can do.
///
/// # Panics
///
/// If the future waits.
pub fn block_on<R>(future: impl Future<Output = R>) -> R {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
    panic!("a tool's task waits for what nobody does");
}

/// The world of a tool. Clones share it.
#[derive(Clone)]
pub struct ToolWorld(Rc<Inner>);

struct Inner {
    media: Files,
    locals: Locals,
}

impl ToolWorld {
    /// A world whose media is the folder `root`.
    pub fn new(root: PathBuf) -> Self {
        Self(Rc::new(Inner { media: Files { root }, locals: Locals::default() }))
    }
}

impl Env for ToolWorld {
    type Clock = NoTime;
    type Rng = NoChance;
    type Spawn = OneTask;
    type Mailbox = NoMailbox;
    type Fabric = NoFabric;
    type Media = Files;

    fn clock(&self) -> &NoTime {
        &NoTime
    }
    fn rng(&self) -> &NoChance {
        &NoChance
    }
    fn scheduler(&self) -> &OneTask {
        &OneTask
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

/// Nothing is left to chance: identities are made where something is written.
pub struct NoChance;

impl Rng for NoChance {
    fn next_u64(&self) -> u64 {
        0
    }
}

/// There is one task. Others write logs and checkpoints, which a tool does not.
pub struct OneTask;

impl Spawn for OneTask {
    fn spawn(&self, _: Class, _: &'static str, _: impl Future<Output = ()> + 'static) {}
    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        ready(())
    }
    fn should_yield(&self) -> bool {
        false
    }
    fn add_progress(&self, _: &'static str, _: impl FnMut() -> usize + 'static) {}
}

/// Files below a folder, to be read.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

/// A file that can be read.
#[derive(Clone, Debug)]
pub struct ReadOnly(Rc<(File, u64)>);

fn refused() -> MediaError {
    MediaError::Failed("a tool reads only".to_owned())
}

impl Media for Files {
    type File = ReadOnly;

    async fn open(&self, path: &str, options: OpenOptions) -> Result<ReadOnly, MediaError> {
        if options.create_new {
            return Err(refused());
        }
        let full = self.root.join(path);
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => MediaError::NotFound(full.display().to_string()),
            _ => MediaError::Failed(format!("{}: {error}", full.display())),
        };
        let file = File::open(&full).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(ReadOnly(Rc::new((file, size))))
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

impl MediaFile for ReadOnly {
    fn size(&self) -> u64 {
        self.0.1
    }

    fn read(
        &self,
        offset: u64,
        mut buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.0.1);
        let result = match end {
            None => Err(MediaError::BadRange { offset, length: buffer.len() as u64, size: self.0.1 }),
            Some(_) => self
                .0
                .0
                .read_exact_at(buffer.as_mut_slice(), offset)
                .map_err(|error| MediaError::Failed(format!("reading at {offset:#x}: {error}"))),
        };
        ready((buffer, result))
    }

    fn write(
        &self,
        _: u64,
        buffer: IoBuffer,
        _: Durability,
    ) -> impl Future<Output = (IoBuffer, Result<(), MediaError>)> + 'static {
        ready((buffer, Err(refused())))
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> + 'static {
        ready(Err(refused()))
    }

    fn discard(&self, _: u64, _: u64) -> impl Future<Output = Result<(), MediaError>> + 'static {
        ready(Err(refused()))
    }
}
