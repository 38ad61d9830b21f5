//! What RPC costs above the fabric: null calls between two endpoints of one thread, beside the same messages moved by the
//! bare queues in the same run. `cargo run --release -p daos-xstream --example rpc_overhead [CALLS]`

#![allow(clippy::disallowed_methods, reason = "it measures real time")]

#[path = "../tests/loopback/mod.rs"]
mod loopback;

use std::{rc::Rc, time::Instant};

use daos_xstream::{
    Env, Fabric, PeerId, Sink,
    rpc::{Call, Endpoint, EndpointConfig, HEADER_BYTES, Opcode, Request, Responder, Service},
};
use loopback::{Local, PEER, pair, run};

struct Null;

impl Service<Local> for Null {
    fn module(&self) -> u8 {
        9
    }

    fn name(&self) -> &'static str {
        "null"
    }

    fn call(&self, _request: Request<'_>, responder: Responder<Local>) {
        responder.reply(&[]);
    }
}

struct Answer<'a>(&'a Local, u64);

impl Sink for Answer<'_> {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        self.1 += 1;
        if self.1.is_multiple_of(2) {
            self.0.fabric().send(peer, &[bytes]).expect("room for one message");
        }
    }

    fn closed(&mut self, _peer: PeerId) {}
}

/// The bare queues: nanoseconds per message there and back.
fn bare(count: u32) -> f64 {
    let (client, engine) = pair();
    let message = [0; HEADER_BYTES];
    let (mut answer, mut take) = (Answer(&engine, 1), Answer(&client, 0));
    let start = Instant::now();
    for _ in 0..count {
        client.fabric().send(PEER, &[&message]).expect("room for one message");
        answer.1 = 1;
        engine.fabric().poll(64, &mut answer);
        take.1 = 0;
        client.fabric().poll(64, &mut take);
    }
    start.elapsed().as_nanos() as f64 / f64::from(count)
}

/// Null calls, one after the other: nanoseconds per call.
fn null_rpc(count: u32) -> f64 {
    let (client, engine) = pair();
    let caller = Endpoint::new(&client, EndpointConfig::default());
    Endpoint::new(&engine, EndpointConfig::default()).register(Rc::new(Null));
    let call = Call { opcode: Opcode::new(9, 0), ..Call::default() };
    let start = Instant::now();
    run(&[&client, &engine], async {
        for _ in 0..count {
            caller.call(PEER, &call, &[]).await.expect("a null call succeeds");
        }
    });
    start.elapsed().as_nanos() as f64 / f64::from(count)
}

/// What one look at this machine's clock costs; a call takes two.
fn clock(count: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        std::hint::black_box(Instant::now());
    }
    start.elapsed().as_nanos() as f64 / f64::from(count)
}

/// The best of many rounds: what the code takes when nothing else runs.
fn best(round: impl Fn(u32) -> f64, calls: u32) -> f64 {
    (0..50).map(|_| round(calls / 50)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let calls: u32 =
        std::env::args().nth(1).map_or(1_000_000, |count| count.parse().expect("a number of calls"));
    let (bare, rpc, clock) = (best(bare, calls), best(null_rpc, calls), best(clock, calls));
    println!(
        "bare queues {bare:.0} ns, null RPC {rpc:.0} ns: {:.0} ns for both sides, of which two looks at the clock {:.0} ns",
        rpc - bare,
        2.0 * clock
    );
}
