//! The suite that every fabric, and every world, has to pass: RPC and bulk between two endpoints.
//!
//! One side [serves](register), the other one [drives](drive); they may be two xstreams of a simulation, two threads or
//! two processes. The serving side is an engine, the driving side a client: only that one exposes memory. A fabric without a
//! world of its own is put through it by [`serve`] and [`call`].
//!
//! ```text
//! serving: Endpoint::new(&env, config); conformance::register(&endpoint);   … runs until drive() has sent STOP
//! driving: Endpoint::new(&env, config); conformance::drive(&endpoint, &address_of_the_serving_side).await
//! ```

mod cases;
mod runner;
mod world;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    Class, Clock, Env, FabricError, IoBuffer, PeerId, RemoteBuffer, Spawn,
    rpc::{Endpoint, Opcode, Request, Responder, Service, Status, module},
    sync::Notify,
};

pub use cases::{Failure, drive};
pub use runner::run_tests;
pub use world::{call, serve};

const ECHO: Opcode = Opcode::new(module::CONFORMANCE, 0);
const SEQUENCE: Opcode = Opcode::new(module::CONFORMANCE, 1);
const PULL: Opcode = Opcode::new(module::CONFORMANCE, 2);
const PUSH: Opcode = Opcode::new(module::CONFORMANCE, 3);
const LATER: Opcode = Opcode::new(module::CONFORMANCE, 4);
const UNANSWERED: Opcode = Opcode::new(module::CONFORMANCE, 5);
const LARGE: Opcode = Opcode::new(module::CONFORMANCE, 6);
const RECEIVED: Opcode = Opcode::new(module::CONFORMANCE, 7);
const STOP: Opcode = Opcode::new(module::CONFORMANCE, 8);

/// Body of `PULL` and `PUSH`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Transfer {
    key: U64,
    offset: U64,
    length: U64,
    /// Bytes to skip in the exposed memory.
    skip: U64,
    /// Bytes to move.
    bytes: U64,
    /// Wait before moving them.
    delay_us: U64,
    /// Chooses what `PUSH` writes.
    seed: U64,
}

/// Body of the answer to `PULL` and `PUSH`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Moved {
    /// 0: moved; 1: not exposed; 2: the peer is gone; 3: another error.
    code: U32,
    /// CRC32C of what was moved.
    checksum: U32,
}

/// Byte `at` of the pattern `seed`.
fn pattern(seed: u64, at: u64) -> u8 {
    ((seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd1b5_4a32_d192_ed03) >> 56) as u8
}

fn pattern_of(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| pattern(seed, at)).collect()
}

/// The serving half.
pub struct Conformance<E: Env> {
    env: E,
    stopped: Cell<bool>,
    stop: Notify,
    /// Per peer, the next number of its sequence, and whether one was out of order.
    sequences: RefCell<BTreeMap<PeerId, (u64, bool)>>,
}

/// Registers the serving half. Await [`Conformance::stopped`] to learn that the driver is done.
pub fn register<E: Env>(endpoint: &Endpoint<E>) -> Rc<Conformance<E>> {
    let service = Rc::new(Conformance {
        env: endpoint.env().clone(),
        stopped: Cell::new(false),
        stop: Notify::new(),
        sequences: RefCell::default(),
    });
    endpoint.register(service.clone());
    service
}

impl<E: Env> Conformance<E> {
    /// Completes when a driver has ended its run, and its last reply had time to leave.
    pub async fn stopped(&self) {
        while !self.stopped.get() {
            self.stop.notified().await;
        }
        let clock = self.env.clock();
        clock.sleep_until(clock.now() + Duration::from_millis(100)).await;
    }

    fn transfer(&self, push: bool, request: Request<'_>, responder: Responder<E>) {
        let Ok(transfer) = Transfer::read_from_bytes(request.body) else {
            return responder.fail(Status::INVALID, "not a transfer");
        };
        let env = self.env.clone();
        self.env.scheduler().spawn(Class::Foreground, "conformance transfer", async move {
            if transfer.delay_us.get() > 0 {
                let delay = Duration::from_micros(transfer.delay_us.get());
                env.clock().sleep_until(env.clock().now() + delay).await;
            }
            let remote = RemoteBuffer {
                key: transfer.key.get(),
                offset: transfer.offset.get(),
                length: transfer.length.get(),
            };
            let skip = transfer.skip.get();
            let mut buffer = IoBuffer::zeroed(transfer.bytes.get() as usize);
            let (buffer, result) = if push {
                buffer
                    .as_mut_slice()
                    .copy_from_slice(&pattern_of(transfer.seed.get(), transfer.bytes.get() as usize));
                responder.push(remote, skip, buffer).await
            } else {
                responder.pull(remote, skip, buffer).await
            };
            let code = match result {
                Ok(()) => 0,
                Err(FabricError::NotExposed) => 1,
                Err(FabricError::PeerGone) => 2,
                Err(_) => 3,
            };
            let checksum = crc32c::crc32c(buffer.as_slice());
            responder.reply(&[Moved { code: U32::new(code), checksum: U32::new(checksum) }.as_bytes()]);
        });
    }
}

impl<E: Env> Service<E> for Conformance<E> {
    fn module(&self) -> u8 {
        module::CONFORMANCE
    }

    fn name(&self) -> &'static str {
        "conformance"
    }

    fn call(&self, request: Request<'_>, responder: Responder<E>) {
        let number = || U64::read_from_bytes(request.body).map(U64::get);
        match request.header.opcode() {
            ECHO => responder.reply(&[request.body]),
            SEQUENCE => {
                let mut sequences = self.sequences.borrow_mut();
                let (next, broken) = sequences.entry(request.peer).or_default();
                *broken |= number().ok() != Some(*next);
                *next += 1;
                drop(sequences);
                responder.reply(&[]);
            }
            RECEIVED => {
                let sequences = self.sequences.borrow();
                let (count, broken) = sequences.get(&request.peer).copied().unwrap_or_default();
                drop(sequences);
                responder.reply(&[&count.to_le_bytes(), &[u8::from(broken)]]);
            }
            PULL => self.transfer(false, request, responder),
            PUSH => self.transfer(true, request, responder),
            LATER => {
                let Ok(delay_us) = number() else { return responder.fail(Status::INVALID, "not a number") };
                let env = self.env.clone();
                self.env.scheduler().spawn(Class::Foreground, "conformance later", async move {
                    env.clock().sleep_until(env.clock().now() + Duration::from_micros(delay_us)).await;
                    responder.reply(&[]);
                });
            }
            UNANSWERED => drop(responder),
            LARGE => {
                let Ok(length) = number() else { return responder.fail(Status::INVALID, "not a number") };
                responder.reply(&[&pattern_of(length, length as usize)]);
            }
            STOP => {
                responder.reply(&[]);
                self.stopped.set(true);
                self.stop.notify_all();
            }
            _ => responder.fail(Status::NO_SUCH_PROCEDURE, "no such procedure"),
        }
    }

    fn closed(&self, peer: PeerId) {
        self.sequences.borrow_mut().remove(&peer);
    }
}
