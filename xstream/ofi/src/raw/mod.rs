//! libfabric objects with owners: the lowest layer, where almost all of this crate's unsafe code is.
//!
//! # Invariants
//!
//! * A [`Port`] owns one fabric, domain, completion queue, address vector and RDM endpoint, and closes them in the reverse
//!   order; the endpoint is closed before any memory that was lent to it is freed.
//! * Objects are used by one thread only (`Port` holds raw pointers, so it is neither `Send` nor `Sync`), which is what
//!   `FI_THREAD_DOMAIN` promises to libfabric.
//! * An operation's context is a number, never an address, so a completion with a wrong one cannot be followed anywhere.

mod memory;
mod open;
pub(crate) mod sockets;

use std::{
    ffi::{CStr, c_void},
    mem::MaybeUninit,
    os::fd::RawFd,
    ptr::{self, NonNull},
    rc::Rc,
};

use daos_xstream::FabricError;
use libfabric_sys as fi;

pub(crate) use memory::Pieces;
pub(crate) use open::PortSpec;

/// An address in the address vector of a port.
pub(crate) type Destination = fi::fi_addr_t;

/// What a provider says about memory that is exposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryRules {
    /// The provider chooses keys.
    provider_keys: bool,
    /// Remote offsets are virtual addresses.
    virtual_addresses: bool,
    /// Regions must be bound to the endpoint and enabled.
    bind_to_endpoint: bool,
}

/// One open RDM endpoint with everything that belongs to it.
pub(crate) struct Port {
    endpoint: NonNull<fi::fid_ep>,
    addresses: NonNull<fi::fid_av>,
    queue: NonNull<fi::fid_cq>,
    domain: NonNull<fi::fid_domain>,
    fabric: NonNull<fi::fid_fabric>,
    wait_descriptor: Option<RawFd>,
    inject_bytes_max: usize,
    memory_rules: MemoryRules,
    closes_busy_connections: bool,
}

/// One thing that the completion queue reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// What the operation was started with.
    pub(crate) context: u64,
    /// Bytes received; meaningless for other operations.
    pub(crate) length: usize,
}

/// What a look at the completion queue brought.
pub(crate) enum Completions {
    /// This many were stored.
    Some(usize),
    /// Nothing has completed.
    None,
    /// An operation failed.
    Failed {
        /// What the operation was started with; 0 if libfabric does not say.
        context: u64,
        /// A positive libfabric error number.
        error: i32,
    },
}

/// Completions taken from libfabric at once.
pub(crate) const BATCH: usize = 16;

impl Port {
    /// The address that others use for this endpoint, in the provider's format.
    pub(crate) fn name(&self) -> Result<Vec<u8>, FabricError> {
        let mut bytes = vec![0_u8; 256];
        let mut length = bytes.len();
        // SAFETY: the endpoint is open; libfabric writes at most `length` bytes and stores how many it has.
        let code = unsafe {
            fi::fi_getname(&raw mut (*self.endpoint.as_ptr()).fid, bytes.as_mut_ptr().cast(), &mut length)
        };
        check(code, "fi_getname")?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Bytes up to which [`Port::inject`] works.
    pub(crate) fn inject_bytes_max(&self) -> usize {
        self.inject_bytes_max
    }

    /// Enters a peer's address. `bytes` must be one address of the length of [`Port::name`], unless the provider's
    /// addresses are text, which ends with a zero byte.
    pub(crate) fn insert(&self, bytes: &[u8]) -> Result<Destination, FabricError> {
        // Longer than any provider's address, so that a provider that expects more than it got reads zeros of ours.
        let mut padded = [0_u8; 256];
        let room =
            padded.get_mut(..bytes.len()).ok_or_else(|| FabricError::BadAddress("too long".to_owned()))?;
        room.copy_from_slice(bytes);
        let mut destination = fi::FI_ADDR_UNSPEC;
        // SAFETY: the address vector is open; libfabric reads one address from `padded`, which is longer than any, and
        // writes one number.
        let inserted = unsafe {
            fi::fi_av_insert(
                self.addresses.as_ptr(),
                padded.as_ptr().cast(),
                1,
                &mut destination,
                0,
                ptr::null_mut(),
            )
        };
        match inserted {
            1 if destination != fi::FI_ADDR_UNSPEC => Ok(destination),
            code if code < 0 => Err(failed(-code, "fi_av_insert")),
            _ => Err(FabricError::BadAddress("libfabric does not take the peer's address".to_owned())),
        }
    }

    /// Whether an address may be [removed](Self::remove) while operations with it are under way; they then complete as
    /// cancelled. Where `ofi_rxm` keeps records of its own it may follow a null pointer.
    pub(crate) fn closes_busy_connections(&self) -> bool {
        self.closes_busy_connections
    }

    /// Forgets a peer's address and closes the connection to it.
    pub(crate) fn remove(&self, destination: Destination) {
        let mut destination = destination;
        // SAFETY: the address vector is open and the number came from `insert`; libfabric reads one number.
        let code = unsafe { fi::fi_av_remove(self.addresses.as_ptr(), &mut destination, 1, 0) };
        if code != 0 {
            tracing::warn!(error = %failed(-code, "fi_av_remove"), "a peer's address could not be removed");
        }
    }

    /// Sends a short message; libfabric has copied it when this returns. The error is a positive libfabric number.
    pub(crate) fn inject(&self, bytes: &[u8], to: Destination) -> Result<(), i32> {
        debug_assert!(bytes.len() <= self.inject_bytes_max);
        // SAFETY: the endpoint is open; the bytes are only read, and only during the call.
        outcome(unsafe { fi::fi_inject(self.endpoint.as_ptr(), bytes.as_ptr().cast(), bytes.len(), to) })
    }

    /// Sends `length` bytes at `bytes`.
    ///
    /// # Safety
    ///
    /// The bytes stay valid and unchanged until the completion with `context`, or until the port is dropped.
    pub(crate) unsafe fn send(
        &self,
        bytes: *const u8,
        length: usize,
        to: Destination,
        context: u64,
    ) -> Result<(), i32> {
        // SAFETY: the endpoint is open; the caller keeps the bytes.
        outcome(unsafe {
            fi::fi_send(self.endpoint.as_ptr(), bytes.cast(), length, ptr::null_mut(), to, number(context))
        })
    }

    /// Lends `length` bytes at `bytes` for one incoming message.
    ///
    /// # Safety
    ///
    /// The bytes stay valid, and nobody reads or writes them, until the completion with `context`, or until the port is
    /// dropped.
    pub(crate) unsafe fn post_receive(&self, bytes: *mut u8, length: usize, context: u64) -> Result<(), i32> {
        // SAFETY: the endpoint is open; the caller lends the bytes.
        outcome(unsafe {
            fi::fi_recv(
                self.endpoint.as_ptr(),
                bytes.cast(),
                length,
                ptr::null_mut(),
                fi::FI_ADDR_UNSPEC,
                number(context),
            )
        })
    }

    /// Fills `length` bytes at `bytes` from a peer's exposed memory.
    ///
    /// # Safety
    ///
    /// As for [`Port::post_receive`].
    pub(crate) unsafe fn read(
        &self,
        bytes: *mut u8,
        length: usize,
        from: Destination,
        remote: (u64, u64),
        context: u64,
    ) -> Result<(), i32> {
        let (offset, key) = remote;
        // SAFETY: the endpoint is open; the caller lends the bytes. Offset and key mean something to the peer only.
        outcome(unsafe {
            fi::fi_read(
                self.endpoint.as_ptr(),
                bytes.cast(),
                length,
                ptr::null_mut(),
                from,
                offset,
                key,
                number(context),
            )
        })
    }

    /// Writes `length` bytes at `bytes` to a peer's exposed memory.
    ///
    /// # Safety
    ///
    /// As for [`Port::send`].
    pub(crate) unsafe fn write(
        &self,
        bytes: *const u8,
        length: usize,
        to: Destination,
        remote: (u64, u64),
        context: u64,
    ) -> Result<(), i32> {
        let (offset, key) = remote;
        let local = fi::iovec { iov_base: bytes.cast_mut().cast(), iov_len: length };
        let target = fi::fi_rma_iov { addr: offset, len: length, key };
        let message = fi::fi_msg_rma {
            msg_iov: &local,
            desc: ptr::null_mut(),
            iov_count: 1,
            addr: to,
            rma_iov: &target,
            rma_iov_count: 1,
            context: number(context),
            data: 0,
        };
        // Delivered, not just on its way: a connection that breaks in between is mended without a word, and an answer sent
        // over the new one would then vouch for bytes that never arrived. It also tells of keys that the peer refuses.
        let flags = u64::from(fi::FI_COMPLETION | fi::FI_DELIVERY_COMPLETE);
        // SAFETY: the endpoint is open; the caller keeps the bytes, and the descriptions are only read during the call.
        // Offset and key mean something to the peer only.
        outcome(unsafe { fi::fi_writemsg(self.endpoint.as_ptr(), &message, flags) })
    }

    /// Moves libfabric forward and takes what has completed, at most `limit` entries.
    pub(crate) fn completions(&self, limit: usize, found: &mut [Completion; BATCH]) -> Completions {
        let mut entries = [const { MaybeUninit::<fi::fi_cq_msg_entry>::uninit() }; BATCH];
        // Where a connection ends before it has said anything the tcp provider looks at `errno`, which nobody has set then: an
        // EAGAIN left from earlier means that it never closes the descriptor. (By its source; not seen to happen.)
        // SAFETY: the location is this thread's own.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the queue is open with the format whose entries these are, and has room for the number asked for.
        let read =
            unsafe { fi::fi_cq_read(self.queue.as_ptr(), entries.as_mut_ptr().cast(), limit.min(BATCH)) };
        if read > 0 {
            let count = read as usize;
            for (entry, place) in entries.iter().zip(found.iter_mut()).take(count) {
                // SAFETY: libfabric has filled the first `count` entries.
                let entry = unsafe { entry.assume_init_ref() };
                *place = Completion { context: entry.op_context as u64, length: entry.len };
            }
            return Completions::Some(count);
        }
        match -read as i32 {
            0 => Completions::None,
            code if code == fi::FI_EAGAIN as i32 => Completions::None,
            code if code == fi::FI_EAVAIL as i32 => self.failed_operation(),
            error => Completions::Failed { context: 0, error },
        }
    }

    fn failed_operation(&self) -> Completions {
        let mut entry = fi::fi_cq_err_entry::default();
        // SAFETY: the queue is open; libfabric fills one entry. No buffer for provider data is offered (it is null and of
        // size zero), so none is written.
        let read = unsafe { fi::fi_cq_readerr(self.queue.as_ptr(), &mut entry, 0) };
        match read {
            1.. => Completions::Failed { context: entry.op_context as u64, error: entry.err },
            0 => Completions::None,
            code if -code == fi::FI_EAGAIN as isize => Completions::None,
            code => Completions::Failed { context: 0, error: -code as i32 },
        }
    }

    /// The descriptor that becomes readable when there may be something to do; `None` if the provider has none.
    pub(crate) fn wait_descriptor(&self) -> Option<RawFd> {
        self.wait_descriptor
    }

    /// Whether nothing is left to do, so that the wait descriptor will tell of the next thing. Without a descriptor there
    /// is no such promise.
    pub(crate) fn try_wait(&self) -> bool {
        if self.wait_descriptor.is_none() {
            return false;
        }
        // SAFETY: fabric and queue are open; libfabric reads one pointer from the array of one.
        unsafe {
            let mut objects = [&raw mut (*self.queue.as_ptr()).fid];
            fi::fi_trywait(self.fabric.as_ptr(), objects.as_mut_ptr(), 1) == 0
        }
    }

    /// Lets peers read, or write, `length` bytes at `bytes` by `key`.
    ///
    /// # Safety
    ///
    /// The bytes stay valid as long as the region lives, and until the peer has finished what it had begun before.
    pub(crate) unsafe fn register(
        self: &Rc<Self>,
        bytes: *mut u8,
        length: usize,
        peer_writes: bool,
        key: u64,
    ) -> Result<Region, FabricError> {
        let access = u64::from(if peer_writes { fi::FI_REMOTE_WRITE } else { fi::FI_REMOTE_READ });
        let mut region = ptr::null_mut();
        // SAFETY: the domain is open; the caller lends the bytes; one pointer is written.
        let code = unsafe {
            fi::fi_mr_reg(
                self.domain.as_ptr(),
                bytes.cast_const().cast(),
                length,
                access,
                0,
                key,
                0,
                &mut region,
                ptr::null_mut(),
            )
        };
        check(code, "fi_mr_reg")?;
        let region =
            NonNull::new(region).ok_or_else(|| FabricError::Failed("fi_mr_reg gave nothing".to_owned()))?;
        let mut registered = Region { region, _port: Rc::clone(self), key, offset: 0 };
        if self.memory_rules.bind_to_endpoint {
            // SAFETY: region and endpoint are open and of the same domain.
            let code = unsafe { fi::fi_mr_bind(region.as_ptr(), &raw mut (*self.endpoint.as_ptr()).fid, 0) };
            check(code, "fi_mr_bind")?;
            // SAFETY: the region is open and bound.
            check(unsafe { fi::fi_mr_enable(region.as_ptr()) }, "fi_mr_enable")?;
        }
        if self.memory_rules.provider_keys {
            // SAFETY: the region is open.
            registered.key = unsafe { fi::fi_mr_key(region.as_ptr()) };
        }
        if self.memory_rules.virtual_addresses {
            registered.offset = bytes as u64;
        }
        Ok(registered)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // SAFETY: each object is open and closed once, users before what they use; nothing uses them afterwards.
        unsafe {
            close(&raw mut (*self.endpoint.as_ptr()).fid, "endpoint");
            close(&raw mut (*self.addresses.as_ptr()).fid, "address vector");
            close(&raw mut (*self.queue.as_ptr()).fid, "completion queue");
            close(&raw mut (*self.domain.as_ptr()).fid, "domain");
            close(&raw mut (*self.fabric.as_ptr()).fid, "fabric");
        }
    }
}

/// Memory that peers may access; dropping it revokes the key.
pub(crate) struct Region {
    region: NonNull<fi::fid_mr>,
    key: u64,
    offset: u64,
    // The domain must outlive its regions.
    _port: Rc<Port>,
}

impl Region {
    /// What a peer names it by.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Where it starts, as peers count.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is open, closed only here, and its domain is still open.
        unsafe { close(&raw mut (*self.region.as_ptr()).fid, "memory region") }
    }
}

/// Closes an object.
///
/// # Safety
///
/// It is open, nothing open depends on it, and it is not used afterwards.
unsafe fn close(object: *mut fi::fid, what: &str) {
    // SAFETY: as the caller promises.
    let code = unsafe { fi::fi_close(object) };
    if code != 0 {
        tracing::warn!(error = %failed(-code, "fi_close"), what, "a libfabric object did not close");
    }
}

/// An operation's number in the place where libfabric carries a pointer.
fn number(context: u64) -> *mut c_void {
    ptr::without_provenance_mut(context as usize)
}

fn outcome(code: isize) -> Result<(), i32> {
    if code == 0 { Ok(()) } else { Err(-code as i32) }
}

fn check(code: i32, call: &str) -> Result<(), FabricError> {
    if code == 0 { Ok(()) } else { Err(failed(-code, call)) }
}

/// The error `code` of libfabric, in words.
pub(crate) fn failed(code: i32, call: &str) -> FabricError {
    FabricError::Failed(format!("{call}: {}", describe(code)))
}

/// libfabric's words for an error number.
pub(crate) fn describe(code: i32) -> String {
    // SAFETY: libfabric answers any number with a static text.
    unsafe { CStr::from_ptr(fi::fi_strerror(code)) }.to_string_lossy().into_owned()
}
