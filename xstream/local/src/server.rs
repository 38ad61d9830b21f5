//! The engine's socket: bound once per engine, accepted on by xstream 0, handed over to the xstream that the client asks for.
//!
//! # Invariants
//!
//! * A lock file beside the socket, locked for as long as the engine lives, tells a live engine from a dead one's
//!   leftover: who holds the lock may replace the socket. The lock file is never removed, so that two engines can never lock two
//!   different files of that name.
//! * What xstreams share (the inboxes) is touched when a client connects, never on an I/O path.
//! * A connection that does not say hello holds one of a bounded number of places; the oldest gives way.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fs::{File, Permissions},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use daos_xstream::{Credentials, FabricError};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
    net::{SocketFlags, accept_with, bind, listen},
};

use crate::{
    LocalFabric, LocalOptions,
    fabric::failed,
    handshake::{Place, Verdict, new_socket, peer_credentials, read_hello, send_refusal, socket_address},
    region::Layout,
};

/// Connections that the kernel holds for us before they are accepted.
const BACKLOG: i32 = 1024;
/// Connections accepted in one look.
const ACCEPTS_AT_ONCE: usize = 16;

/// The same-node side of an engine. Clones are handles of the same socket; the last one, fabrics included, removes it.
#[derive(Clone)]
pub struct LocalServer(Arc<Shared>);

pub(crate) struct Shared {
    path: String,
    options: LocalOptions,
    layout: Layout,
    listener: OwnedFd,
    inboxes: Vec<Inbox>,
    _lock: File,
}

/// Clients on their way to one xstream.
struct Inbox {
    queue: Mutex<Queue>,
    /// Readable when the queue is not empty.
    bell: OwnedFd,
}

#[derive(Default)]
struct Queue {
    /// Whether the xstream's fabric is there.
    open: bool,
    newcomers: VecDeque<Newcomer>,
}

/// A client that has said which xstream it wants.
pub(crate) struct Newcomer {
    /// Its connection.
    pub socket: OwnedFd,
    /// Who it is.
    pub credentials: Credentials,
}

impl LocalServer {
    /// Binds the engine's socket at `path` (at most 107 bytes of UTF-8) for `xstreams` xstreams.
    ///
    /// A socket that a dead engine left there is replaced. If an engine lives there, or `path` is something
    /// else than a socket, that is an error.
    pub fn bind(path: &Path, xstreams: u32, options: LocalOptions) -> Result<Self, FabricError> {
        let address = socket_address(path)?;
        let text = path.to_str().ok_or_else(|| FabricError::BadAddress(format!("{path:?} is not UTF-8")))?;
        let layout = options.layout()?;
        let lock = take_lock(path)?;
        remove_stale_socket(path)?;
        let at = |error| failed(&format!("{}: the socket cannot be made", path.display()), error);
        let listener = new_socket().map_err(at)?;
        bind(&listener, &address).map_err(at)?;
        std::fs::set_permissions(path, Permissions::from_mode(options.socket_mode)).map_err(|error| {
            FabricError::Failed(format!("{}: mode {:o}: {error}", path.display(), options.socket_mode))
        })?;
        listen(&listener, BACKLOG).map_err(at)?;
        let inboxes = (0..xstreams)
            .map(|_| {
                let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(at)?;
                Ok(Inbox { queue: Mutex::default(), bell })
            })
            .collect::<Result<_, FabricError>>()?;
        Ok(Self(Arc::new(Shared { path: text.to_owned(), options, layout, listener, inboxes, _lock: lock })))
    }

    /// The fabric of one xstream; called on its thread, once. Xstream 0's accepts the connections for all.
    pub fn fabric(&self, xstream: u32) -> Result<LocalFabric, FabricError> {
        let mut queue = self.0.queue(xstream).ok_or_else(|| no_xstream(xstream))?;
        if std::mem::replace(&mut queue.open, true) {
            return Err(FabricError::Failed(format!("xstream {xstream} has its fabric already")));
        }
        drop(queue);
        let seat = Seat { shared: self.0.clone(), xstream };
        LocalFabric::of_engine(seat)
    }
}

fn no_xstream(xstream: u32) -> FabricError {
    FabricError::Failed(format!("the engine was bound without an xstream {xstream}"))
}

fn take_lock(path: &Path) -> Result<File, FabricError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let at = |error: std::io::Error| FabricError::Failed(format!("{}: {error}", lock_path.display()));
    // For this user alone, because whoever can open a file can lock it; and not through a link.
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&lock_path)
        .map_err(at)?;
    lock.set_permissions(Permissions::from_mode(0o600)).map_err(at)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::AGAIN) => {
            Err(FabricError::Failed(format!("{}: another engine is running there", path.display())))
        }
        Err(error) => Err(at(error.into())),
    }
}

fn remove_stale_socket(path: &Path) -> Result<(), FabricError> {
    let at = |error: std::io::Error| FabricError::Failed(format!("{}: {error}", path.display()));
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(error)),
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path).map_err(at),
        Ok(_) => Err(FabricError::Failed(format!("{}: exists and is not a socket", path.display()))),
    }
}

impl Shared {
    fn queue(&self, xstream: u32) -> Option<MutexGuard<'_, Queue>> {
        let inbox = self.inboxes.get(xstream as usize)?;
        // A queue has no state that a panic could leave half done.
        Some(inbox.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Ours, because we hold the lock.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The place of one xstream at the engine's socket.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    xstream: u32,
}

impl Seat {
    /// Where this xstream can be reached.
    pub fn place(&self) -> Place {
        Place { path: self.shared.path.clone(), xstream: self.xstream }
    }

    /// What the engine was configured with.
    pub fn options(&self) -> &LocalOptions {
        &self.shared.options
    }

    /// Sizes of the memory that each client gets.
    pub fn layout(&self) -> Layout {
        self.shared.layout
    }

    /// Readable when newcomers wait.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.shared.inboxes[self.xstream as usize].bell.as_fd()
    }

    /// The listening socket, if this is the xstream that accepts.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        (self.xstream == 0).then(|| self.shared.listener.as_fd())
    }

    /// Takes clients that have come, at most `limit`. If there are more, the bell goes on ringing.
    pub fn newcomers(&self, limit: usize) -> VecDeque<Newcomer> {
        let Some(mut queue) = self.shared.queue(self.xstream) else { return VecDeque::new() };
        let taken = limit.min(queue.newcomers.len());
        let rest = queue.newcomers.split_off(taken);
        if rest.is_empty() {
            // Under the queue's lock, so that nobody rings in between. The descriptor is private to this process, so it does not block.
            let _ = rustix::io::read(self.bell(), &mut [0u8; 8]);
        }
        std::mem::replace(&mut queue.newcomers, rest)
    }

    /// Hands a client over to the xstream that it wants; false if it had to be turned away.
    fn hand_over(&self, newcomer: Newcomer, xstream: u32) -> bool {
        let Some(mut queue) = self.shared.queue(xstream).filter(|queue| queue.open) else {
            send_refusal(&newcomer.socket, Verdict::NoSuchXstream);
            return false;
        };
        if queue.newcomers.len() >= self.options().peers_max as usize {
            send_refusal(&newcomer.socket, Verdict::Full);
            return false;
        }
        queue.newcomers.push_back(newcomer);
        let _ = rustix::io::write(&self.shared.inboxes[xstream as usize].bell, &1u64.to_ne_bytes());
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(mut queue) = self.shared.queue(self.xstream) {
            *queue = Queue::default();
        }
    }
}

/// Connections that have not said hello yet; only xstream 0 has some.
pub(crate) struct Acceptor {
    pending: RefCell<VecDeque<Pending>>,
    next: Cell<u64>,
    /// A spare descriptor: given up to accept and refuse a connection when the process has none left.
    spare: RefCell<Option<OwnedFd>>,
}

struct Pending {
    number: u64,
    socket: OwnedFd,
    credentials: Credentials,
}

/// What the acceptor did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Clients handed over.
    pub handed_over: u64,
    /// Connections turned away.
    pub refused: u64,
}

impl Acceptor {
    /// Nobody waits.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { pending: RefCell::default(), next: Cell::new(0), spare: RefCell::new(Some(new_socket()?)) })
    }

    /// Accepts what stands at the socket; `watch` registers a new connection under its number.
    pub fn accept(&self, seat: &Seat, mut watch: impl FnMut(BorrowedFd<'_>, u64) -> bool) -> Accepted {
        let mut done = Accepted::default();
        let Some(listener) = seat.listener() else { return done };
        for _ in 0..ACCEPTS_AT_ONCE {
            let socket = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::MFILE | Errno::NFILE) => {
                    done.refused += u64::from(self.refuse_for_want_of_descriptors(listener));
                    break;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => break,
            };
            let Ok(credentials) = peer_credentials(&socket) else { continue };
            let number = self.next.get();
            self.next.set(number + 1);
            if !watch(socket.as_fd(), number) {
                done.refused += 1;
                continue;
            }
            let mut pending = self.pending.borrow_mut();
            if pending.len() >= seat.options().handshakes_max as usize {
                pending.pop_front();
                done.refused += 1;
            }
            pending.push_back(Pending { number, socket, credentials });
        }
        done
    }

    /// Without this, the connection would stay in the kernel's queue and wake us for ever.
    fn refuse_for_want_of_descriptors(&self, listener: BorrowedFd<'_>) -> bool {
        let mut spare = self.spare.borrow_mut();
        *spare = None;
        let refused = accept_with(listener, SocketFlags::CLOEXEC).is_ok();
        *spare = new_socket().ok();
        refused
    }

    /// Reads the hello of connection `number`; `unwatch` takes the registration back.
    pub fn hello(&self, seat: &Seat, number: u64, unwatch: impl FnOnce(BorrowedFd<'_>)) -> Accepted {
        let mut pending = self.pending.borrow_mut();
        let Some(index) = pending.iter().position(|pending| pending.number == number) else {
            return Accepted::default();
        };
        let wanted = match read_hello(&pending[index].socket) {
            Err(Errno::AGAIN | Errno::INTR) => return Accepted::default(),
            other => other,
        };
        let Some(Pending { socket, credentials, .. }) = pending.remove(index) else {
            return Accepted::default();
        };
        drop(pending);
        unwatch(socket.as_fd());
        let handed_over = match wanted {
            Ok(Ok(xstream)) => seat.hand_over(Newcomer { socket, credentials }, xstream),
            Ok(Err(verdict)) => {
                send_refusal(&socket, verdict);
                false
            }
            Err(_) => false,
        };
        Accepted { handed_over: u64::from(handed_over), refused: u64::from(!handed_over) }
    }
}
