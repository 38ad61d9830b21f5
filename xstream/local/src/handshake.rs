//! The Unix socket: how a client asks for an xstream, and what it gets.
//!
//! ```text
//!   client → engine   Hello    magic u64, version u32, xstream u32
//!   engine → client   Welcome  magic u64, version u32, verdict u32, ring bytes u64, bulk bytes u64; with the memfd (SCM_RIGHTS)
//!   both              one byte: a doorbell
//!   end of file       the other process is gone
//! ```
//!
//! # Invariants
//!
//! * Sockets are `SOCK_SEQPACKET`: a message comes whole or not at all, so that nobody can stall in the middle of one.
//! * The socket is also the doorbell. An eventfd would be cheaper by half a microsecond, but its `O_NONBLOCK` belongs to the
//!   file description that both processes share: a hostile client could clear it, fill the counter, and the engine's next
//!   write would block for ever. `MSG_DONTWAIT` on a socket belongs to the call.
//! * The engine receives without room for control data: descriptors that a client sends along are closed by the kernel.

use std::{
    ffi::c_void,
    io::{IoSlice, IoSliceMut},
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use daos_xstream::{Address, Credentials, FabricError};
use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, recvmsg,
        send, sendmsg, socket_with,
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::region::Layout;

const MAGIC: u64 = u64::from_le_bytes(*b"DAOSlocl");
const VERSION: u32 = 1;

/// What a client asks for.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct HelloBytes {
    magic: u64,
    version: u32,
    xstream: u32,
}

/// What an engine answers.
#[derive(Clone, Copy, Debug, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WelcomeBytes {
    magic: u64,
    version: u32,
    verdict: Verdict,
    ring_bytes: u64,
    bulk_bytes: u64,
}

/// Whether a client is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub(crate) enum Verdict {
    /// Yes.
    Welcome = 0,
    /// The client speaks another version.
    WrongVersion = 1,
    /// There is no such xstream, or it does not serve yet or any more.
    NoSuchXstream = 2,
    /// The xstream has as many clients as it may.
    Full = 3,
    /// The engine could not make the shared memory.
    NoMemory = 4,
    /// The user has as many clients of this xstream as one user may.
    UserFull = 5,
}

/// A place that a client can connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Path of the engine's socket.
    pub path: String,
    /// Which of its xstreams.
    pub xstream: u32,
}

impl Place {
    /// Parses `local://PATH#XSTREAM`.
    pub fn parse(address: &Address) -> Result<Self, FabricError> {
        let bad = |why: &str| FabricError::BadAddress(format!("{address}: {why}"));
        if address.fabric() != "local" {
            return Err(bad("not an address of the fabric \"local\""));
        }
        let (path, xstream) =
            address.rest().rsplit_once('#').ok_or_else(|| bad("the xstream's number is missing (#N)"))?;
        let xstream = xstream.parse().map_err(|_| bad("the xstream is not a number"))?;
        socket_address(Path::new(path))?;
        Ok(Self { path: path.to_owned(), xstream })
    }

    /// The address of this place.
    pub fn address(&self) -> Address {
        format!("local://{}#{}", self.path, self.xstream).parse().expect("a fabric and a place")
    }
}

/// The kernel's form of a socket path.
pub(crate) fn socket_address(path: &Path) -> Result<SocketAddrUnix, FabricError> {
    if path.as_os_str().is_empty() {
        return Err(FabricError::BadAddress("the socket's path is empty".to_owned()));
    }
    SocketAddrUnix::new(path)
        .map_err(|error| FabricError::BadAddress(format!("{}: {error} (at most 107 bytes)", path.display())))
}

/// A new socket.
pub(crate) fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Connects and says hello; `Err(AGAIN)` if the engine's queue of new connections is full.
pub(crate) fn dial(socket: impl AsFd, place: &Place) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(Path::new(&place.path))?;
    connect(&socket, &address)?;
    let hello = HelloBytes { magic: MAGIC, version: VERSION, xstream: place.xstream };
    send(&socket, hello.as_bytes(), quiet()).map(|_| ())
}

fn quiet() -> SendFlags {
    SendFlags::DONTWAIT | SendFlags::NOSIGNAL
}

/// Reads a hello: the xstream asked for, or why not.
pub(crate) fn read_hello(socket: impl AsFd) -> Result<Result<u32, Verdict>, Errno> {
    let mut bytes = [0u8; size_of::<HelloBytes>()];
    let (_, length) = recv(socket, &mut bytes, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
    let hello = HelloBytes::read_from_bytes(&bytes).expect("as many bytes as the structure has");
    if length != bytes.len() || hello.magic != MAGIC {
        return Err(Errno::PROTO);
    }
    Ok(if hello.version == VERSION { Ok(hello.xstream) } else { Err(Verdict::WrongVersion) })
}

/// Lets a client in: sends it the shared memory.
pub(crate) fn send_welcome(socket: impl AsFd, layout: Layout, memory: impl AsFd) -> Result<(), Errno> {
    let welcome = welcome_bytes(Verdict::Welcome, layout.ring_bytes(), layout.bulk_bytes());
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [memory.as_fd()];
    let pushed = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(pushed, "there is room for one descriptor");
    sendmsg(socket, &[IoSlice::new(welcome.as_bytes())], &mut control, quiet()).map(|_| ())
}

/// Turns a client away. It may be gone already: nothing is lost then.
pub(crate) fn send_refusal(socket: impl AsFd, verdict: Verdict) {
    let _ = send(socket, welcome_bytes(verdict, 0, 0).as_bytes(), quiet());
}

fn welcome_bytes(verdict: Verdict, ring_bytes: u64, bulk_bytes: u64) -> WelcomeBytes {
    WelcomeBytes { magic: MAGIC, version: VERSION, verdict, ring_bytes, bulk_bytes }
}

/// What came of a client's hello.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Shared memory of these sizes.
    Welcome(Layout, OwnedFd),
    /// Turned away.
    Refused(Verdict),
}

/// Reads the engine's answer; `Err(AGAIN)` while there is none.
pub(crate) fn read_welcome(socket: impl AsFd) -> Result<Answer, Errno> {
    let mut bytes = [0u8; size_of::<WelcomeBytes>()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let memory = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Err(Errno::CONNRESET);
    }
    let welcome = WelcomeBytes::try_read_from_bytes(&bytes[..received.bytes]).map_err(|_| Errno::PROTO)?;
    if welcome.magic != MAGIC {
        return Err(Errno::PROTO);
    }
    match (welcome.verdict, Layout::new(welcome.ring_bytes, welcome.bulk_bytes), memory) {
        (Verdict::Welcome, Some(layout), Some(memory)) if welcome.version == VERSION => {
            Ok(Answer::Welcome(layout, memory))
        }
        (Verdict::Welcome, ..) => Err(Errno::PROTO),
        (refusal, ..) => Ok(Answer::Refused(refusal)),
    }
}

/// Rings the peer's doorbell. If its queue is full it has been rung already; if it is gone, end of file will tell.
pub(crate) fn ring_doorbell(socket: impl AsFd) {
    let _ = send(socket, &[0], quiet());
}

/// What stood at a connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// So many doorbells.
    Doorbells(u32),
    /// The peer is gone.
    EndOfFile,
}

/// Takes the doorbells that have been rung, at most a handful: what is left shows up in the next look.
pub(crate) fn listen_to_doorbells(socket: impl AsFd) -> Heard {
    const AT_ONCE: u32 = 8;
    let mut byte = [0u8; 1];
    for rung in 0..AT_ONCE {
        match recv(&socket, &mut byte, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Heard::EndOfFile,
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Doorbells(rung),
            Err(_) => return Heard::EndOfFile,
        }
    }
    Heard::Doorbells(AT_ONCE)
}

/// Who made the connection, in the kernel's words. A process outside of our PID namespace has the number 0.
pub(crate) fn peer_credentials(socket: impl AsFd) -> Result<Credentials, Errno> {
    // Not through rustix: its type holds a process ID that cannot be 0.
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and both pointers are to variables of the types and sizes that the option wants.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast::<c_void>(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(Credentials { pid: credentials.pid.cast_unsigned(), uid: credentials.uid, gid: credentials.gid })
}
