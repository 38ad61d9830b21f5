//! Sleeping on descriptors, for clients that have no executor.

use std::{os::fd::RawFd, time::Duration};

/// Waits until one of `descriptors` is readable, a signal arrives, or `timeout` is over. A number that is no open
/// descriptor ends the wait at once, as does an error: the caller polls again either way.
pub fn wait_readable(descriptors: &[RawFd], timeout: Duration) {
    let mut polled: Vec<libc::pollfd> =
        descriptors.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: the array and the time are valid for the whole call and as long as stated; the kernel writes to `revents`
    // only, and takes any number for a descriptor.
    unsafe {
        libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &timeout, std::ptr::null());
    }
}
