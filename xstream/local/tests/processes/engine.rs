//! An engine on a thread of the test: answers echoes, pulls and pushes until it is told to stop.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use daos_xstream::{Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Sink};
use daos_xstream_local::{LocalCounters, LocalFabric, LocalOptions, LocalServer};
use zerocopy::FromBytes;

/// First byte of a request.
pub const ECHO: u8 = 1;
/// The engine reads the exposed memory and answers with the sum of its bytes.
pub const PULL: u8 = 2;
/// The engine writes the byte at index 1 all over the exposed memory.
pub const PUSH: u8 = 3;

/// Runs `future`, which never waits for anything but its own next slice.
pub fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

/// Blocks until there is something to poll for.
pub fn park(fabric: &LocalFabric, at_most: Duration) {
    if fabric.prepare_to_park() {
        let descriptor = fabric.wait_descriptor();
        let mut wanted = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: at_most.as_nanos() as i64 };
        let _ = rustix::event::poll(&mut wanted, Some(&timeout));
    }
}

struct Services {
    fabric: LocalFabric,
    closed: u64,
}

impl Services {
    fn answer(&self, peer: PeerId, bytes: &[u8]) -> Result<(), FabricError> {
        let remote = || RemoteBuffer::read_from_bytes(bytes.get(8..32)?).ok();
        match (bytes.first(), remote()) {
            (Some(&ECHO), _) => self.fabric.send(peer, &[bytes]),
            (Some(&PULL), Some(remote)) => {
                let buffer = IoBuffer::zeroed(remote.length.min(1 << 20) as usize);
                let (buffer, result) = finish(self.fabric.read(peer, remote, 0, buffer));
                result?;
                let sum = buffer.as_slice().iter().map(|byte| u64::from(*byte)).sum::<u64>();
                self.fabric.send(peer, &[&sum.to_le_bytes()])
            }
            (Some(&PUSH), Some(remote)) => {
                let mut buffer = IoBuffer::zeroed(remote.length.min(1 << 20) as usize);
                buffer.as_mut_slice().fill(bytes[1]);
                finish(self.fabric.write(peer, remote, 0, buffer)).1?;
                self.fabric.send(peer, &[&bytes[..8]])
            }
            _ => self.fabric.send(peer, &[b"what?"]),
        }
    }
}

impl Sink for Services {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        // A full ring or a bad exposure costs the client its answer and the engine nothing.
        let _ = self.answer(peer, bytes);
    }

    fn closed(&mut self, _peer: PeerId) {
        self.closed += 1;
    }
}

/// The engine, seen from the test.
pub struct Engine {
    /// Its socket.
    pub path: PathBuf,
    stop: Arc<AtomicBool>,
    counters: Arc<Mutex<LocalCounters>>,
    thread: Option<JoinHandle<(u64, LocalCounters)>>,
}

impl Engine {
    /// Starts one with a single xstream.
    pub fn start(folder: &Path, options: LocalOptions) -> Self {
        let path = folder.join("engine.sock");
        let server = LocalServer::bind(&path, 1, options).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(Mutex::new(LocalCounters::default()));
        let (theirs, publish) = (stop.clone(), counters.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let fabric = server.fabric(0).unwrap();
            ready.send(()).unwrap();
            let mut services = Services { fabric: fabric.clone(), closed: 0 };
            let mut idle = 0;
            while !theirs.load(Ordering::Relaxed) {
                idle = if fabric.poll(64, &mut services) == 0 { idle + 1 } else { 0 };
                if idle > 2000 {
                    *publish.lock().unwrap() = fabric.counters();
                    park(&fabric, Duration::from_millis(20));
                    idle = 0;
                }
            }
            (services.closed, fabric.counters())
        });
        is_ready.recv().unwrap();
        Self { path, stop, counters, thread: Some(thread) }
    }

    /// Waits until the engine, when idle, satisfies `condition`.
    pub fn wait_until(&self, condition: impl Fn(&LocalCounters) -> bool) -> LocalCounters {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let counters = *self.counters.lock().unwrap();
            if condition(&counters) {
                return counters;
            }
            assert!(Instant::now() < deadline, "the engine never came to rest: {counters:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it; returns how many peers were reported as closed, and what it had counted then.
    pub fn stop(mut self) -> (u64, LocalCounters) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}
