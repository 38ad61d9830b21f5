//! The io_uring of one xstream: media operations, and the descriptors that wake a parked core.
//!
//! # Invariants
//!
//! * Memory that the kernel may touch (buffers, paths) and descriptors that it uses belong to the operation's slot, and
//!   the slot lives until the completion has been seen, whatever became of the future. The ring's drop waits for all.
//! * A busy core learns of completions by reading the completion queue: no system call. A core that parks waits for one
//!   entry in it, whatever it is: everything that wakes a core ends up here.
//! * Submissions are gathered and enter the kernel once per progress round; an operation that finds nothing in flight
//!   enters at once, so that a lone write never waits for a round to end.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    ffi::CString,
    future::Future,
    io,
    os::fd::{OwnedFd, RawFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use daos_xstream::IoBuffer;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

#[cfg(test)]
mod tests;

/// Marks the user data of a poll on a descriptor; the rest is its index.
const DESCRIPTOR: u64 = 1 << 63;

/// The index of the doorbell among the watched descriptors.
const DOORBELL: usize = 0;

/// Marks the user data of the flush that follows a durable write; the rest is the operation's key.
const FLUSH: u64 = 1 << 62;

/// What an operation keeps alive while the kernel works on it, and gives back at its end.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) buffer: Option<IoBuffer>,
    #[expect(dead_code, reason = "held for the kernel, which reads it")]
    pub(crate) paths: [Option<CString>; 2],
    #[expect(dead_code, reason = "held so that the descriptor stays open")]
    pub(crate) file: Option<Rc<OwnedFd>>,
}

/// A transfer between a buffer and a file: the only operation that the kernel may do in part.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) write: bool,
    pub(crate) durable: bool,
    pub(crate) file: RawFd,
    pub(crate) offset: u64,
    address: *mut u8,
    length: u32,
    done: u32,
}

impl Transfer {
    /// The whole of `buffer`, to or from `offset`.
    pub(crate) fn new(write: bool, durable: bool, file: RawFd, offset: u64, buffer: &mut IoBuffer) -> Self {
        let bytes = buffer.as_mut_slice();
        let length = u32::try_from(bytes.len()).expect("an I/O buffer of less than 4 GiB");
        Self { write, durable, file, offset, address: bytes.as_mut_ptr(), length, done: 0 }
    }

    fn entry(&self) -> squeue::Entry {
        let file = types::Fd(self.file);
        // SAFETY: `done <= length`, and `address` starts `length` bytes of the buffer that the slot holds.
        let address = unsafe { self.address.add(self.done as usize) };
        let (length, offset) = (self.length - self.done, self.offset + u64::from(self.done));
        if !self.write {
            return opcode::Read::new(file, address, length).offset(offset).build();
        }
        let write = opcode::Write::new(file, address, length).offset(offset).build();
        if self.durable { write.flags(squeue::Flags::IO_LINK) } else { write }
    }

    /// The flush that a durable write is linked with: the kernel starts it when the write is done, and cancels it when
    /// the write was not done in full.
    fn flush(&self) -> squeue::Entry {
        opcode::Fsync::new(types::Fd(self.file)).flags(types::FsyncFlags::DATASYNC).build()
    }
}

enum State {
    Waiting(Option<Waker>),
    Done(i32),
    /// Nobody waits for the end any more.
    Abandoned,
}

struct Operation {
    state: State,
    held: Held,
    transfer: Option<Transfer>,
    /// Entries that have not completed: two for a durable write.
    entries: u8,
    /// What the kernel answered to the operation, and to the flush linked with it.
    result: i32,
    flushed: i32,
}

/// Entries that enter the kernel together: a link does not reach from one submission into the next.
struct Queued {
    first: squeue::Entry,
    second: Option<squeue::Entry>,
}

impl Queued {
    fn one(entry: squeue::Entry, key: usize) -> Self {
        Self { first: entry.user_data(key as u64), second: None }
    }

    /// A transfer, or what is left of it.
    fn transfer(transfer: &Transfer, key: usize) -> Self {
        let flush = transfer.durable.then(|| transfer.flush().user_data(key as u64 | FLUSH));
        Self { first: transfer.entry().user_data(key as u64), second: flush }
    }

    fn entries(&self) -> u8 {
        1 + u8::from(self.second.is_some())
    }
}

/// What has happened on the ring since the xstream started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Operations handed in.
    pub operations: u64,
    /// Times the kernel was entered to submit.
    pub submissions: u64,
}

struct Watched {
    descriptor: RawFd,
    armed: bool,
}

pub(crate) struct Ring {
    uring: RefCell<IoUring>,
    operations: RefCell<Slab<Operation>>,
    /// Entries that wait for a round to end, or for room.
    queued: RefCell<VecDeque<Queued>>,
    /// The doorbell, then the fabric's.
    watched: RefCell<Vec<Watched>>,
    /// The doorbell was seen to be readable.
    rung: Cell<bool>,
    /// The kernel did not take what it was offered: it is to be offered again.
    left_behind: Cell<bool>,
    /// Operations that the kernel has and has not completed.
    in_flight: Cell<u32>,
    in_flight_max: u32,
    counters: Cell<RingCounters>,
    /// How often the kernel is short of something from now on: no test can make it so.
    #[cfg(test)]
    shortages: Cell<u32>,
}

impl Ring {
    /// A ring whose [`wait`](Self::wait) also ends when the doorbell or one of the descriptors in `watch` is readable. They
    /// stay open as long as the ring.
    pub(crate) fn new(depth: u32, doorbell: RawFd, watch: &[RawFd]) -> io::Result<Self> {
        let watch = [&[doorbell], watch].concat();
        let depth = depth.clamp(8, 4096).next_power_of_two();
        let in_flight_max = depth * 4;
        // Room for a completion of every operation and every descriptor: the queue cannot overflow.
        let completions = (in_flight_max + watch.len() as u32).next_power_of_two();
        let uring = IoUring::builder().setup_cqsize(completions).setup_clamp().build(depth)?;
        Ok(Self {
            uring: RefCell::new(uring),
            operations: RefCell::default(),
            queued: RefCell::default(),
            watched: RefCell::new(
                watch.iter().map(|&descriptor| Watched { descriptor, armed: false }).collect(),
            ),
            rung: Cell::new(false),
            left_behind: Cell::new(false),
            in_flight: Cell::new(0),
            in_flight_max,
            counters: Cell::default(),
            #[cfg(test)]
            shortages: Cell::default(),
        })
    }

    pub(crate) fn counters(&self) -> RingCounters {
        self.counters.get()
    }

    /// Whether the doorbell was seen to be readable since the last question: what was rung wants to be heard.
    pub(crate) fn take_rung(&self) -> bool {
        self.rung.replace(false)
    }

    /// Whether nothing is queued or in the kernel's hands.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0 && self.queued.borrow().is_empty()
    }

    /// Reads or writes the buffer of `held`.
    pub(crate) fn transfer(self: &Rc<Self>, transfer: Transfer, held: Held) -> Completion {
        self.start(held, Some(transfer), |key| Queued::transfer(&transfer, key))
    }

    /// Starts an operation. What `entry` points to must be owned by `held`, on the heap.
    pub(crate) fn operate(self: &Rc<Self>, entry: squeue::Entry, held: Held) -> Completion {
        self.start(held, None, |key| Queued::one(entry, key))
    }

    fn start(
        self: &Rc<Self>,
        held: Held,
        transfer: Option<Transfer>,
        queued: impl FnOnce(usize) -> Queued,
    ) -> Completion {
        let state = State::Waiting(None);
        let operation = Operation { state, held, transfer, entries: 0, result: 0, flushed: 0 };
        let key = self.operations.borrow_mut().insert(operation);
        let queued = queued(key);
        self.operations.borrow_mut()[key].entries = queued.entries();
        self.count(|counters| counters.operations += 1);
        let alone = self.is_idle();
        self.queued.borrow_mut().push_back(queued);
        if alone {
            self.submit();
        }
        Completion { ring: self.clone(), key: Some(key) }
    }

    /// Enters the kernel if there is something to submit.
    pub(crate) fn submit(&self) {
        let mut queued = self.queued.borrow_mut();
        if queued.is_empty() && !self.left_behind.get() {
            return;
        }
        let mut uring = self.uring.borrow_mut();
        loop {
            let mut pushed = 0;
            {
                let mut submission = uring.submission();
                while self.in_flight.get() + pushed + 2 <= self.in_flight_max
                    && submission.capacity() - submission.len() >= 2
                    && let Some(Queued { first, second }) = queued.pop_front()
                {
                    for entry in [Some(first), second].into_iter().flatten() {
                        // SAFETY: the slot named by the entry's user data owns all that the entry points to, and stays
                        // until the completion is reaped.
                        unsafe { submission.push(&entry) }.expect("room for two was seen");
                        pushed += 1;
                    }
                }
            }
            self.in_flight.set(self.in_flight.get() + pushed);
            self.enter(&uring);
            if pushed == 0 || queued.is_empty() {
                return;
            }
        }
    }

    fn enter(&self, uring: &IoUring) {
        self.count(|counters| counters.submissions += 1);
        match self.offer(|| uring.submit()) {
            Ok(_) => self.left_behind.set(false),
            Err(error) if is_temporary(&error) => self.left_behind.set(true),
            Err(error) => panic!("io_uring does not take submissions any more: {error}"),
        }
    }

    /// Enters the kernel, which takes what stands in the submission queue, or nothing.
    fn offer(&self, enter: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(left) = self.shortages.get().checked_sub(1) {
            self.shortages.set(left);
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        enter()
    }

    /// Takes what has completed, without a system call. Returns how many operations ended.
    pub(crate) fn reap(&self) -> usize {
        let mut ended = 0;
        loop {
            let completion = self.uring.borrow_mut().completion().next();
            let Some(completion) = completion else { return ended };
            let user_data = completion.user_data();
            if user_data & DESCRIPTOR != 0 {
                let index = (user_data & !DESCRIPTOR) as usize;
                self.watched.borrow_mut()[index].armed = false;
                self.rung.set(self.rung.get() || index == DOORBELL);
            } else {
                self.in_flight.set(self.in_flight.get() - 1);
                self.complete((user_data & !FLUSH) as usize, user_data & FLUSH != 0, completion.result());
            }
            ended += 1;
        }
    }

    fn complete(&self, key: usize, is_flush: bool, result: i32) {
        let mut operations = self.operations.borrow_mut();
        let operation = &mut operations[key];
        *(if is_flush { &mut operation.flushed } else { &mut operation.result }) = result;
        operation.entries -= 1;
        if operation.entries > 0 {
            return;
        }
        let result = match next_step(operation, key) {
            Step::Again(queued) => {
                operation.entries = queued.entries();
                self.queued.borrow_mut().push_back(queued);
                return;
            }
            Step::Ended(result) => result,
        };
        match std::mem::replace(&mut operation.state, State::Done(result)) {
            State::Waiting(waker) => {
                drop(operations);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Abandoned => {
                let ended = operations.remove(key);
                drop(operations);
                drop(ended);
            }
            State::Done(_) => unreachable!("an operation completes once"),
        }
    }

    /// Blocks the thread until an operation completes, a watched descriptor is or becomes readable, or `timeout` passes. It
    /// may also return for no reason.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        self.submit();
        let mut uring = self.uring.borrow_mut();
        for (index, watched) in self.watched.borrow_mut().iter_mut().enumerate().filter(|(_, w)| !w.armed) {
            // One shot, and armed anew for every wait: arming looks at the level, so that a descriptor which stayed
            // readable since the last time is not missed.
            let entry = opcode::PollAdd::new(types::Fd(watched.descriptor), libc::POLLIN as u32)
                .build()
                .user_data(DESCRIPTOR | index as u64);
            // SAFETY: a poll points to no memory; the descriptor outlives the ring's use of it (`Park::descriptors`).
            if unsafe { uring.submission().push(&entry) }.is_err() {
                self.enter(&uring);
                // SAFETY: as above.
                if unsafe { uring.submission().push(&entry) }.is_err() {
                    // The kernel has left everything behind: nobody would wake the core, so it does not sleep.
                    return;
                }
            }
            watched.armed = true;
        }
        let timespec = timeout.map(types::Timespec::from);
        let mut arguments = types::SubmitArgs::new();
        if let Some(timespec) = &timespec {
            arguments = arguments.timespec(timespec);
        }
        match self.offer(|| uring.submitter().submit_with_args(1, &arguments)) {
            Ok(_) => {}
            Err(error) if is_temporary(&error) || error.raw_os_error() == Some(libc::ETIME) => {}
            Err(error) => panic!("io_uring does not let the core sleep any more: {error}"),
        }
    }

    /// Waits, blocking, until the kernel has given everything back.
    pub(crate) fn drain(&self) {
        self.reap();
        while !self.is_idle() {
            self.submit();
            if self.in_flight.get() > 0 {
                match self.offer(|| self.uring.borrow().submitter().submit_and_wait(1)) {
                    Err(error) if !is_temporary(&error) => {
                        panic!("io_uring does not give completions any more: {error}")
                    }
                    _ => {}
                }
            }
            self.reap();
        }
    }

    fn count(&self, change: impl FnOnce(&mut RingCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

enum Step {
    Again(Queued),
    Ended(i32),
}

/// What follows once the kernel has answered all entries of an operation.
fn next_step(operation: &mut Operation, key: usize) -> Step {
    let Some(transfer) = &mut operation.transfer else { return Step::Ended(operation.result) };
    match operation.result {
        // Nothing moved, and the kernel says that it would work now or later.
        code if may_repeat(code) => return Step::Again(Queued::transfer(transfer, key)),
        code if code < 0 => return Step::Ended(code),
        // The end of the file lies inside the transfer (a file that somebody cut), or the device takes no more.
        0 if transfer.done < transfer.length => {
            return Step::Ended(if transfer.write { -libc::ENOSPC } else { -libc::EIO });
        }
        moved => transfer.done += moved as u32,
    }
    operation.result = 0;
    if transfer.done < transfer.length {
        return Step::Again(Queued::transfer(transfer, key));
    }
    match operation.flushed {
        // The bytes are there; only the flush is to be had again.
        code if may_repeat(code) || code == -libc::ECANCELED => {
            Step::Again(Queued::one(transfer.flush(), key | FLUSH as usize))
        }
        code => Step::Ended(code.min(0)),
    }
}

/// Whether the kernel was only interrupted, or is short of memory or of completion slots for now. What it was offered stands in
/// the submission queue still.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR))
}

fn may_repeat(code: i32) -> bool {
    code == -libc::EAGAIN || code == -libc::EINTR
}

/// The end of an operation. Dropping it leaves the operation going on.
pub(crate) struct Completion {
    ring: Rc<Ring>,
    key: Option<usize>,
}

impl Future for Completion {
    type Output = (Held, Result<i32, i32>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("polled after its end");
        let mut operations = self.ring.operations.borrow_mut();
        match &mut operations[key].state {
            State::Done(result) => {
                let result = if *result < 0 { Err(-*result) } else { Ok(*result) };
                let held = operations.remove(key).held;
                drop(operations);
                self.key = None;
                Poll::Ready((held, result))
            }
            State::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            State::Abandoned => unreachable!("only a dropped future abandons its operation"),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut operations = self.ring.operations.borrow_mut();
        if matches!(operations[key].state, State::Done(_)) {
            let ended = operations.remove(key);
            drop(operations);
            drop(ended);
        } else {
            operations[key].state = State::Abandoned;
        }
    }
}
