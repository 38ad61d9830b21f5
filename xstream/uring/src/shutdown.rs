//! Asking a running world to stop.

use std::{
    io, mem,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::mesh::Shared;

/// Asks the xstreams of a world to stop. Clones are the same handle; it may be used from any thread, before the world
/// starts too.
#[derive(Clone, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    requested: AtomicBool,
    world: Mutex<Option<Arc<Shared>>>,
}

impl Shutdown {
    /// A handle that no world knows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Completes [`UringEnv::stop_requested`](crate::UringEnv::stop_requested) on every xstream.
    pub fn request(&self) {
        self.inner.requested.store(true, Ordering::SeqCst);
        if let Some(world) = &*self.inner.world.lock().unwrap_or_else(PoisonError::into_inner) {
            world.stop();
        }
    }

    /// Whether a stop has been asked for.
    pub fn requested(&self) -> bool {
        self.inner.requested.load(Ordering::SeqCst)
    }

    /// Has SIGTERM and SIGINT ask for a stop as long as the result lives. To be called on the main thread before any
    /// other thread starts: the signals are blocked here, and threads inherit that.
    pub fn on_signals(&self) -> io::Result<SignalWatch> {
        SignalWatch::new(self.clone())
    }

    pub(crate) fn attach(&self, shared: &Arc<Shared>) -> Attached {
        *self.inner.world.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared.clone());
        if self.requested() {
            shared.stop();
        }
        Attached(self.clone())
    }
}

/// A world's tie to its handle, cut at the world's end.
pub(crate) struct Attached(Shutdown);

impl Drop for Attached {
    fn drop(&mut self) {
        *self.0.inner.world.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Turns SIGTERM and SIGINT into a [`Shutdown`]. Dropping it restores the signals of the thread that made it.
pub struct SignalWatch {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    mask_before: libc::sigset_t,
}

impl SignalWatch {
    fn new(shutdown: Shutdown) -> io::Result<Self> {
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (signals, mask_before) = block_signals()?;
        let watch = end.clone();
        // A thread that sleeps, rather than a handler: it may take locks, and an xstream need not look for signals.
        let thread = thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(true) = signal_came(&signals, &watch) {
                tracing::info!("a signal asks for a stop");
                shutdown.request();
            }
        })?;
        Ok(Self { end, thread: Some(thread), mask_before })
    }
}

/// Blocks the two signals and returns a descriptor that reads them, and the mask before.
fn block_signals() -> io::Result<(OwnedFd, libc::sigset_t)> {
    // SAFETY: the calls write the sets they are given and read nothing else; a zeroed set is a valid one.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        let code = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        let descriptor = libc::signalfd(-1, &set, libc::SFD_CLOEXEC);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(descriptor), before))
    }
}

/// Waits for a signal (`true`) or for the end of the watch.
fn signal_came(signals: &OwnedFd, end: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut descriptors = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !descriptors[1].revents().is_empty() {
            return Ok(false);
        }
        let mut signal = [0_u8; size_of::<libc::signalfd_siginfo>()];
        if rustix::io::read(signals, &mut signal)? == signal.len() {
            return Ok(true);
        }
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // SAFETY: the mask is the one that the system gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask_before, ptr::null_mut()) };
    }
}
