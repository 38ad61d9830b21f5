//! A null RPC in steady state allocates nothing, on either side; nor does one that has to wait for a credit, or whose
//! message the fabric would not take at once.

mod loopback;

use std::{rc::Rc, time::Duration};

use daos_xstream::{
    Env, join_all,
    rpc::{Call, Endpoint, EndpointConfig, HEADER_BYTES, Opcode, Request, Responder, RpcError, Service},
    telemetry::Registry,
};
use loopback::{Local, PEER, pair, run};

struct Echo;

impl Service<Local> for Echo {
    fn module(&self) -> u8 {
        9
    }

    fn name(&self) -> &'static str {
        "echo"
    }

    fn procedures(&self) -> &'static [(u8, &'static str)] {
        &[(0, "echo")]
    }

    fn call(&self, request: Request<'_>, responder: Responder<Local>) {
        responder.reply(&[request.body]);
    }
}

fn endpoints(config: EndpointConfig) -> (Local, Local, Endpoint<Local>, Endpoint<Local>) {
    let (client, engine) = pair();
    let (caller, server) = (Endpoint::new(&client, config.clone()), Endpoint::new(&engine, config));
    server.register(Rc::new(Echo));
    (client, engine, caller, server)
}

const ECHO: Call = Call {
    opcode: Opcode::new(9, 0),
    rank: u32::MAX,
    target: 0,
    map_version: 0,
    handle: uuid::Uuid::nil(),
    flags: 0,
    timeout: Duration::from_secs(30),
};

#[test]
fn a_call_allocates_nothing() {
    let (client, engine, caller, server) = endpoints(EndpointConfig::default());
    let registry = Registry::default();
    server.measure(&registry.scope(&[]));
    let calls = async |count: u32| {
        for _ in 0..count {
            let reply = caller.call(PEER, &ECHO, &[b"sixteen ", b"bytes..."]).await.unwrap();
            assert_eq!(reply.body(), b"sixteen bytes...");
        }
    };
    run(&[&client, &engine], calls(100));
    let one = allocation_counter::measure(|| run(&[&client, &engine], calls(1))).count_total;
    let many = allocation_counter::measure(|| run(&[&client, &engine], calls(10_000))).count_total;
    assert!(one <= 2, "only the run's own waker: {one}");
    assert_eq!(many, one, "10,000 calls allocate as much as one");
    // And all of them were measured.
    let count = "engine_operations_seconds_count{module=\"echo\",operation=\"echo\"} 10101";
    assert!(registry.render().lines().any(|line| line == count), "{}", registry.render());
}

#[test]
fn waiting_for_credits_and_for_room_allocates_nothing_more() {
    let config = EndpointConfig { calls_per_peer_max: 4, ..EndpointConfig::default() };
    let (client, engine, caller, _server) = endpoints(config);
    let round = async || {
        engine.fabric().stuck.set(true);
        let unstick = async {
            tokens(20).await;
            engine.fabric().stuck.set(false);
            None
        };
        type Boxed<'a> = std::pin::Pin<Box<dyn Future<Output = Option<RpcError>> + 'a>>;
        let mut all: Vec<Boxed<'_>> = vec![Box::pin(unstick)];
        for _ in 0..16 {
            all.push(Box::pin(async { caller.call(PEER, &ECHO, &[b"x"]).await.err() }));
        }
        assert_eq!(join_all(all).await.into_iter().flatten().count(), 0);
    };
    let allocations = || allocation_counter::measure(|| run(&[&client, &engine], round())).count_total;
    let first = allocations();
    let later: Vec<_> = (0..5).map(|_| allocations()).collect();
    assert!(later.iter().all(|count| *count <= later[0] + 2 && *count <= first), "{first}, then {later:?}");
    // One box per future and the lists of this test; nothing per call within the endpoints.
    assert!(later[0] <= 17 + 17 + 12, "{later:?}");
}

/// Lets the worlds turn `count` times.
async fn tokens(count: u32) {
    let mut left = count;
    std::future::poll_fn(move |context| {
        left -= 1;
        context.waker().wake_by_ref();
        if left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// A peer that takes none of its replies is held within bounds, then disconnected.
#[test]
fn a_peer_that_does_not_drain_is_disconnected() {
    let config =
        EndpointConfig { outbox_messages_max: 8, calls_per_peer_max: 64, ..EndpointConfig::default() };
    let (client, engine, caller, server) = endpoints(config);
    engine.fabric().stuck.set(true);
    let call = Call { timeout: Duration::from_millis(50), ..ECHO };
    let results = run(&[&client, &engine], join_all((0..20).map(|_| caller.call(PEER, &call, &[b"x"]))));
    assert!(results.iter().all(|result| matches!(result, Err(RpcError::TimedOut))), "{results:?}");
    assert!(engine.fabric().is_disconnected());
    assert_eq!(server.counters().peers_dropped_stuck.get(), 1);

    let config = EndpointConfig { drain_timeout: Duration::from_millis(20), ..EndpointConfig::default() };
    let (client, engine, caller, server) = endpoints(config);
    engine.fabric().stuck.set(true);
    let call = Call { timeout: Duration::from_millis(100), ..ECHO };
    let result = run(&[&client, &engine], caller.call(PEER, &call, &[b"x"]));
    assert!(matches!(result, Err(RpcError::TimedOut)), "{result:?}");
    assert!(engine.fabric().is_disconnected(), "it did not drain in time");
    assert_eq!(server.counters().peers_dropped_stuck.get(), 1);
}

/// A client that sent ECHO after ECHO and read no answer made the engine keep 1,024 of them before it was disconnected, each as long as
/// a message can be. A reply that waits has the place of its request now.
#[test]
fn who_does_not_read_gets_no_more_answers_than_requests_may_be_open() {
    const BYTES: usize = 1000;
    let config =
        EndpointConfig { calls_per_peer_max: 400, requests_per_peer_max: 64, ..EndpointConfig::default() };
    let (client, engine, caller, server) = endpoints(config);
    engine.fabric().stuck.set(true);
    let call = Call { timeout: Duration::from_millis(50), ..ECHO };
    let body = [7; BYTES];
    let parts: [&[u8]; 1] = [&body];
    run(&[&client, &engine], join_all((0..400).map(|_| caller.call(PEER, &call, &parts))));
    assert_eq!(server.counters().requests_refused_busy.get(), 400 - 64);
    // 64 answers, and for the rest a header that says so.
    assert_eq!(server.bytes_held().0, 400 * HEADER_BYTES + 64 * BYTES);
    engine.fabric().stuck.set(false);
    run(&[&client, &engine], tokens(20));
    assert_eq!(server.bytes_held().0, 0, "all of them are out");
    let results = run(&[&client, &engine], join_all((0..20).map(|_| caller.call(PEER, &call, &parts))));
    assert!(results.iter().all(Result::is_ok), "they have places again");
}
