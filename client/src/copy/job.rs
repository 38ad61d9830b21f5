//! What the tasks of one copy share: its bounds, its progress, its first failure.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    rc::Rc,
};

use daos_dsp::{Attributes, Directory, Fs, Store};
use daos_xstream::{
    Class, Env, IoBuffer, Spawn, join_all,
    sync::{Notify, Semaphore},
};

use super::{CopyError, CopyOptions, Progress};

/// What all tasks of one copy share.
pub(super) struct Job<E, T> {
    pub(super) env: E,
    pub(super) fs: Fs<T>,
    pub(super) options: CopyOptions,
    pub(super) files: Rc<Semaphore>,
    pub(super) chunks: Rc<Semaphore>,
    pub(super) state: RefCell<State<T>>,
}

pub(super) struct State<T> {
    pub(super) progress: Progress,
    pub(super) report: Box<dyn FnMut(&Progress)>,
    pub(super) failed: Option<CopyError>,
    /// Buffers of a chunk's size, for the next chunk.
    pub(super) buffers: Vec<IoBuffer>,
    /// Directories that were made in the container, with what they shall be like once everything is in them.
    pub(super) made: Vec<(PathBuf, Directory<T>, Attributes)>,
}

impl<E: Env, T: Store> Job<E, T> {
    pub(super) fn new(
        env: &E,
        fs: &Fs<T>,
        options: CopyOptions,
        report: Box<dyn FnMut(&Progress)>,
    ) -> Rc<Self> {
        Rc::new(Self {
            env: env.clone(),
            fs: fs.clone(),
            options,
            files: Semaphore::new(options.files_in_flight.max(1)),
            chunks: Semaphore::new(options.chunks_in_flight.max(1)),
            state: RefCell::new(State {
                progress: Progress::default(),
                report,
                failed: None,
                buffers: Vec::new(),
                made: Vec::new(),
            }),
        })
    }

    /// Starts the copy of one file once there is room for it. After a failure nothing is started any more.
    pub(super) async fn start(self: &Rc<Self>, copy: impl Future<Output = Result<(), CopyError>> + 'static) {
        let permit = self.files.acquire().await;
        if self.has_failed() {
            return;
        }
        let job = self.clone();
        self.env.scheduler().spawn(Class::Foreground, "copy of a file", async move {
            let result = copy.await;
            job.note(result);
            drop(permit);
        });
    }

    pub(super) fn note(&self, result: Result<(), CopyError>) {
        if let Err(error) = result {
            self.state.borrow_mut().failed.get_or_insert(error);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state.borrow().failed.is_some()
    }

    /// Waits for the files under way.
    pub(super) async fn finish(
        self: &Rc<Self>,
        walked: Result<(), CopyError>,
    ) -> Result<Progress, CopyError> {
        self.note(walked);
        let all = (0..self.options.files_in_flight.max(1)).map(|_| self.files.acquire());
        let _permits = join_all(all).await;
        let state = &mut *self.state.borrow_mut();
        match state.failed.take() {
            Some(error) => Err(error),
            None => Ok(state.progress),
        }
    }

    pub(super) fn done(&self, add: impl FnOnce(&mut Progress)) {
        let state = &mut *self.state.borrow_mut();
        add(&mut state.progress);
        (state.report)(&state.progress);
    }

    pub(super) fn buffer(&self, length: usize) -> IoBuffer {
        let kept = self.state.borrow_mut().buffers.pop();
        let mut buffer = match kept {
            Some(buffer) if buffer.capacity() >= length => buffer,
            _ => IoBuffer::zeroed(length.max(self.options.chunk_bytes)),
        };
        buffer.set_len(length);
        buffer
    }

    pub(super) fn give_back(&self, buffer: IoBuffer) {
        self.state.borrow_mut().buffers.push(buffer);
    }

    pub(super) fn attributes(&self, meta: &fs::Metadata) -> Attributes {
        let (uid, gid) = match self.options.owners {
            true => (meta.uid(), meta.gid()),
            false => (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        };
        Attributes {
            permissions: meta.mode() & 0o7777,
            uid,
            gid,
            accessed: Some(nanoseconds(meta.atime(), meta.atime_nsec())),
            modified: Some(nanoseconds(meta.mtime(), meta.mtime_nsec())),
        }
    }

    pub(super) fn first_block(&self) -> u64 {
        u64::from(self.fs.superblock().options.first_block_bytes)
    }

    /// Ranges of the chunks of a file beyond its first block: they end at multiples of their size, so that none crosses a
    /// cell.
    pub(super) fn chunks_of(&self, size: u64) -> impl Iterator<Item = (u64, usize)> + use<E, T> {
        let chunk_bytes = self.options.chunk_bytes as u64;
        let mut start = self.first_block();
        std::iter::from_fn(move || {
            if start >= size {
                return None;
            }
            let end = ((start / chunk_bytes + 1) * chunk_bytes).min(size);
            let chunk = (start, (end - start) as usize);
            start = end;
            Some(chunk)
        })
    }
}

/// Times before 1970 are kept as two's complement.
fn nanoseconds(seconds: i64, nanoseconds: i64) -> u64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds) as u64
}

/// Chunks of one file that are under way.
pub(super) struct Pipe(Rc<PipeState>);

struct PipeState {
    open: Cell<usize>,
    failed: RefCell<Option<CopyError>>,
    ended: Notify,
}

impl Pipe {
    pub(super) fn new() -> Self {
        Self(Rc::new(PipeState { open: Cell::new(0), failed: RefCell::new(None), ended: Notify::new() }))
    }

    pub(super) fn has_failed(&self) -> bool {
        self.0.failed.borrow().is_some()
    }

    pub(super) fn start<E: Env>(
        &self,
        env: &E,
        chunk: impl Future<Output = Result<(), CopyError>> + 'static,
    ) {
        self.0.open.set(self.0.open.get() + 1);
        let state = self.0.clone();
        env.scheduler().spawn(Class::Foreground, "copy of a chunk", async move {
            if let Err(error) = chunk.await {
                state.failed.borrow_mut().get_or_insert(error);
            }
            state.open.set(state.open.get() - 1);
            state.ended.notify_one();
        });
    }

    pub(super) async fn finish(self) -> Result<(), CopyError> {
        while self.0.open.get() > 0 {
            self.0.ended.notified().await;
        }
        match self.0.failed.borrow_mut().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
