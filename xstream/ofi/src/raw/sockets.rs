//! What the kernel tells about sockets of this process that libfabric has made and does not name.

use std::{
    mem::{MaybeUninit, offset_of, size_of},
    net::SocketAddr,
    os::fd::RawFd,
    time::Duration,
};

use crate::address;

/// A connection that was accepted at a certain address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Bytes that have come over it.
    pub(crate) received: u64,
    /// Since when nothing has come.
    pub(crate) silent: Duration,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// Not open.
    Closed,
    /// Open, and not what is looked for.
    Other,
    /// An established connection, accepted at the address that was asked about.
    Accepted(Accepted),
}

/// `TCP_ESTABLISHED` of the kernel.
const ESTABLISHED: u8 = 1;

/// Runs `work` and leaves `errno` as it was: libfabric looks at what earlier calls have left there.
pub(crate) fn keeping_errno<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the location is this thread's own.
    let before = unsafe { *libc::__errno_location() };
    let value = work();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = before };
    value
}

/// Looks at a descriptor of this process, whoever made it and whatever it is, and changes nothing.
pub(crate) fn look_at(descriptor: RawFd, own: SocketAddr) -> Descriptor {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, for which there is room; of what kind the descriptor is, and whether
    // it is one, the kernel checks.
    if unsafe { libc::getsockname(descriptor, storage.as_mut_ptr().cast(), &raw mut length) } != 0 {
        let closed = std::io::Error::last_os_error().raw_os_error() == Some(libc::EBADF);
        return if closed { Descriptor::Closed } else { Descriptor::Other };
    }
    let length = (length as usize).min(size_of::<libc::sockaddr_storage>());
    // SAFETY: the storage was zeroed, so all of its bytes have values.
    let bytes = unsafe { std::slice::from_raw_parts(storage.as_ptr().cast::<u8>(), length) };
    let local = address::from_bytes(bytes);
    if local.is_none_or(|local| local.port() != own.port() || local.ip() != own.ip()) {
        return Descriptor::Other;
    }
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: as above; `tcp_info` consists of integers, so zeroes are values, too.
    let status = unsafe {
        libc::getsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // An old kernel fills less; what it does not tell must not be taken for "nothing".
    let needed = offset_of!(libc::tcp_info, tcpi_bytes_received) + size_of::<u64>();
    if status != 0 || (length as usize) < needed {
        return Descriptor::Other;
    }
    // SAFETY: zeroed, then filled by the kernel.
    let info = unsafe { info.assume_init() };
    if info.tcpi_state != ESTABLISHED {
        return Descriptor::Other;
    }
    Descriptor::Accepted(Accepted {
        received: info.tcpi_bytes_received,
        silent: Duration::from_millis(u64::from(info.tcpi_last_data_recv)),
    })
}

/// Ends a connection without closing its descriptor, which belongs to whoever made it: he reads an end of file.
pub(crate) fn end(descriptor: RawFd) {
    // SAFETY: no memory is involved. The caller has just found the descriptor to be a connection to an address at which
    // nobody but the owner of this thread accepts, so nobody closes or reuses it meanwhile.
    unsafe { libc::shutdown(descriptor, libc::SHUT_RDWR) };
}

/// One more than the highest descriptor that this process can have open without growing its table.
pub(crate) fn descriptor_slots() -> RawFd {
    const ASSUMED: RawFd = 1024;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    line.and_then(|slots| slots.trim().parse().ok()).unwrap_or(ASSUMED)
}

/// How many descriptors this process may have open.
pub(crate) fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one structure, to a place of that type.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}
