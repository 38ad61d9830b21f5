//! What an endpoint does with bytes that no endpoint would send, and with more than it can take.

use std::{cell::RefCell, rc::Rc, time::Duration};

use daos_xstream::{
    Class, Clock, Env, Fabric, PeerId, Sink, Spawn, join_all,
    rpc::{
        Call, Endpoint, EndpointConfig, HEADER_BYTES, Header, Kind, Opcode, PROTOCOL_VERSION, Request,
        Responder, RpcError, Service, Status,
    },
    timeout,
};
use daos_xstream_sim::{Config, Node, SimEnv, Simulation};

const ECHO: Opcode = Opcode::new(9, 0);

/// Procedure 0 echoes, 1 answers after 10 ms.
struct Echo {
    env: SimEnv,
    closed: Rc<RefCell<Vec<PeerId>>>,
}

impl Service<SimEnv> for Echo {
    fn module(&self) -> u8 {
        9
    }

    fn name(&self) -> &'static str {
        "echo"
    }

    fn call(&self, request: Request<'_>, responder: Responder<SimEnv>) {
        match request.procedure() {
            0 => responder.reply(&[request.body]),
            _ => {
                let clock = self.env.clock();
                let sleep = clock.sleep_until(clock.now() + Duration::from_millis(10));
                self.env.scheduler().spawn(Class::Foreground, "slow echo", async move {
                    sleep.await;
                    responder.set_map_version(77);
                    responder.reply(&[]);
                });
            }
        }
    }

    fn closed(&self, peer: PeerId) {
        self.closed.borrow_mut().push(peer);
    }
}

/// A request, byte by byte as documented.
fn request(opcode: u16, id: u64, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; HEADER_BYTES];
    message[0..4].copy_from_slice(&[0x05, 0xda, PROTOCOL_VERSION, 1]);
    message[4..6].copy_from_slice(&opcode.to_le_bytes());
    message[8..16].copy_from_slice(&id.to_le_bytes());
    message[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    message[52..56].copy_from_slice(&(body.len() as u32).to_le_bytes());
    message[56..60].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    message.extend_from_slice(body);
    seal(message)
}

fn seal(mut message: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&message[..60]);
    message[60..64].copy_from_slice(&checksum.to_le_bytes());
    message
}

/// A peer without an endpoint: it sends any bytes, and keeps what comes.
struct Raw {
    env: SimEnv,
    seen: Rc<RefCell<Seen>>,
}

#[derive(Default)]
struct Seen {
    replies: Vec<(u64, Status, String)>,
    closed: bool,
}

struct Keep(Rc<RefCell<Seen>>);

impl Sink for Keep {
    fn message(&mut self, _peer: PeerId, bytes: &[u8]) {
        let (header, body) = Header::parse(bytes).expect("an endpoint sends well-formed messages");
        assert_eq!(header.kind(), Kind::Reply);
        let text = String::from_utf8_lossy(body).into_owned();
        self.0.borrow_mut().replies.push((header.request_id(), header.status(), text));
    }

    fn closed(&mut self, _peer: PeerId) {
        self.0.borrow_mut().closed = true;
    }
}

impl Raw {
    fn new(env: &SimEnv) -> Self {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let (mut sink, inner) = (Keep(seen.clone()), env.clone());
        env.scheduler().add_progress("raw", move || inner.fabric().poll(16, &mut sink));
        Self { env: env.clone(), seen }
    }

    /// Sends and returns what has come after a while.
    async fn exchange(&self, peer: PeerId, message: &[u8]) -> Vec<(u64, Status, String)> {
        let _ = self.env.fabric().send(peer, &[message]);
        self.env.clock().sleep_until(self.env.clock().now() + Duration::from_millis(200)).await;
        std::mem::take(&mut self.seen.borrow_mut().replies)
    }
}

struct World {
    sim: Simulation,
    engine: Node,
    client: Node,
    endpoint: Endpoint<SimEnv>,
    closed: Rc<RefCell<Vec<PeerId>>>,
}

fn world(seed: u64, config: EndpointConfig) -> World {
    let sim = Simulation::new(seed, Config::default());
    let (engine, client) = (sim.add_node(1), sim.add_node(1));
    let env = engine.env(0);
    let endpoint = Endpoint::new(&env, config);
    let closed = Rc::new(RefCell::default());
    endpoint.register(Rc::new(Echo { env, closed: Rc::clone(&closed) }));
    World { sim, engine, client, endpoint, closed }
}

#[test]
fn every_defect_is_counted_and_answered_if_it_can_be_known_to_whom() {
    let World { sim, engine, client, endpoint, .. } = world(1, EndpointConfig::default());
    let address = engine.address(0);
    let inner = endpoint.clone();
    sim.block_on(&client, |env| async move {
        let raw = Raw::new(&env);
        let peer = env.fabric().connect(&address).await.unwrap();
        let counters = inner.counters();
        let answer = async |message: &[u8]| {
            let mut replies = raw.exchange(peer, message).await;
            assert!(replies.len() <= 1);
            replies.pop()
        };
        let good = request(9 << 8, 5, b"hello");
        assert_eq!(answer(&good).await, Some((5, Status::OK, "hello".to_owned())));

        assert_eq!(answer(&good[..63]).await, None);
        assert_eq!(counters.malformed_truncated.get(), 1);

        let mut message = good.clone();
        message[0] ^= 0xff;
        assert_eq!(answer(&message).await, None);
        assert_eq!(counters.malformed_magic.get(), 1);

        let mut message = good.clone();
        message[8] ^= 1;
        assert_eq!(answer(&message).await, None);
        assert_eq!(counters.malformed_header_checksum.get(), 1);

        let mut message = good.clone();
        message[2] = 9;
        let (id, status, text) = answer(&seal(message)).await.expect("the id does not depend on the version");
        assert_eq!((id, status), (5, Status::BAD_PROTOCOL));
        assert!(text.contains("version 9"), "{text}");
        assert_eq!(counters.malformed_version.get(), 1);

        let mut message = good.clone();
        message[3] = 7;
        assert_eq!(answer(&seal(message)).await, None);
        assert_eq!(counters.malformed_kind.get(), 1);

        let (id, status, _) = answer(&good[..66]).await.unwrap();
        assert_eq!((id, status), (5, Status::BAD_PROTOCOL));
        assert_eq!(counters.malformed_body_length.get(), 1);

        let mut message = good.clone();
        message[66] ^= 1;
        let (id, status, _) = answer(&message).await.unwrap();
        assert_eq!((id, status), (5, Status::BAD_CHECKSUM));
        assert_eq!(counters.malformed_body_checksum.get(), 1);

        let (id, status, _) = answer(&request(200 << 8, 6, b"")).await.unwrap();
        assert_eq!((id, status), (6, Status::NO_SUCH_PROCEDURE));
        assert_eq!(counters.requests_unknown_module.get(), 1);

        // A reply to nobody, and a malformed one, are not answered: two endpoints would never stop.
        let mut message = good.clone();
        message[3] = 2;
        assert_eq!(answer(&seal(message.clone())).await, None);
        assert_eq!(counters.replies_unexpected.get(), 1);
        message[2] = 9;
        assert_eq!(answer(&seal(message)).await, None);
        assert!(raw.seen.borrow().closed, "that was the eighth within a few messages");
    })
    .unwrap();
    assert_eq!(endpoint.counters().peers_dropped_malformed.get(), 1);
    assert_eq!(endpoint.load(), (0, 0, 0));
}

#[test]
fn who_persists_is_disconnected_and_others_are_served() {
    let World { sim, engine, client, endpoint, closed } = world(2, EndpointConfig::default());
    let other = sim.add_node(1);
    let address = engine.address(0);
    let good_address = address.clone();
    sim.block_on(&client, |env| async move {
        let raw = Raw::new(&env);
        let peer = env.fabric().connect(&address).await.unwrap();
        // Now and then a bad one among many good ones is bad luck, not malice.
        for round in 0..20 {
            raw.exchange(peer, b"garbage").await;
            for number in 0..20 {
                let id = round * 100 + number;
                assert_eq!(raw.exchange(peer, &request(9 << 8, id, b"")).await.len(), 1);
            }
        }
        assert!(!raw.seen.borrow().closed);
        for _ in 0..8 {
            let _ = env.fabric().send(peer, &[b"garbage"]);
        }
        raw.exchange(peer, b"garbage").await;
        assert!(raw.seen.borrow().closed);
    })
    .unwrap();
    assert_eq!(endpoint.counters().peers_dropped_malformed.get(), 1);
    assert_eq!(closed.borrow().len(), 1, "services are told");
    sim.block_on(&other, |env| async move {
        let endpoint = Endpoint::new(&env, EndpointConfig::default());
        let peer = endpoint.connect(&good_address).await.unwrap();
        let call = Call { opcode: ECHO, ..Call::default() };
        assert_eq!(endpoint.call(peer, &call, &[b"fine"]).await.unwrap().body(), b"fine");
    })
    .unwrap();
}

#[test]
fn random_bytes_do_no_harm() {
    for seed in 0..30 {
        let World { sim, engine, client, endpoint, .. } = world(seed, EndpointConfig::default());
        let address = engine.address(0);
        let chooser = sim.clone();
        sim.block_on(&client, |env| async move {
            let raw = Raw::new(&env);
            for round in 0..200_u64 {
                let Ok(peer) = env.fabric().connect(&address).await else { continue };
                let mut message = request((9 << 8) + chooser.choose(3) as u16, round, &[7; 40]);
                for _ in 0..chooser.choose(4) {
                    let bit = chooser.choose(message.len() as u64 * 8) as usize;
                    message[bit / 8] ^= 1 << (bit % 8);
                }
                if chooser.choose(2) == 0 {
                    message = seal(message);
                }
                message.truncate(chooser.choose(110) as usize + 1);
                let _ = env.fabric().send(peer, &[&message]);
                env.clock().sleep_until(env.clock().now() + Duration::from_millis(1)).await;
            }
            env.clock().sleep_until(env.clock().now() + Duration::from_secs(1)).await;
            drop(raw);
        })
        .unwrap();
        assert_eq!(endpoint.load().2, 0, "no request is left");
    }
}

#[test]
fn too_much_is_refused_as_busy_and_credits_hold_a_caller_back() {
    let limits = EndpointConfig { requests_per_peer_max: 4, ..EndpointConfig::default() };
    let World { sim, engine, client, endpoint, .. } = world(4, limits);
    let address = engine.address(0);
    let slow = Call { opcode: Opcode::new(9, 1), ..Call::default() };
    sim.block_on(&client, |env| async move {
        let eager =
            Endpoint::new(&env, EndpointConfig { calls_per_peer_max: 10, ..EndpointConfig::default() });
        let peer = eager.connect(&address).await.unwrap();
        let results = join_all((0..10).map(|_| eager.call(peer, &slow, &[]))).await;
        let served = results.iter().flatten().inspect(|reply| assert_eq!(reply.map_version(), 77)).count();
        let busy = |error: &RpcError| matches!(error, RpcError::Refused { status: Status::BUSY, .. });
        assert_eq!(served, 4);
        assert_eq!(
            results.iter().filter_map(|result| result.as_ref().err()).filter(|error| busy(error)).count(),
            6
        );
    })
    .unwrap();
    assert_eq!(endpoint.counters().requests_refused_busy.get(), 6);

    let other = sim.add_node(1);
    let address = engine.address(0);
    sim.block_on(&other, |env| async move {
        let patient =
            Endpoint::new(&env, EndpointConfig { calls_per_peer_max: 4, ..EndpointConfig::default() });
        let peer = patient.connect(&address).await.unwrap();
        for result in join_all((0..40).map(|_| patient.call(peer, &slow, &[]))).await {
            result.expect("whoever waits for a credit is served");
        }
        // At its deadline a call gives its credit back.
        for _ in 0..4 {
            let hasty = Call { timeout: Duration::from_millis(2), ..slow };
            let results = join_all((0..8).map(|_| patient.call(peer, &hasty, &[]))).await;
            assert!(results.iter().all(|result| matches!(result, Err(RpcError::TimedOut))), "{results:?}");
            env.clock().sleep_until(env.clock().now() + Duration::from_millis(20)).await;
        }
        // A caller that gives up earlier leaves its credit out until the answer comes: the engine is still at work.
        let start = env.clock().now();
        for _ in 0..4 {
            let soon = env.clock().now() + Duration::from_micros(100);
            timeout(env.clock(), soon, patient.call(peer, &slow, &[])).await.expect_err("it takes 10 ms");
        }
        patient.call(peer, &Call { opcode: ECHO, ..Call::default() }, &[]).await.unwrap();
        assert!(env.clock().now().since(start) > Duration::from_millis(9));
        env.clock().sleep_until(env.clock().now() + Duration::from_millis(50)).await;
        patient.call(peer, &slow, &[]).await.expect("all credits are back");
        assert_eq!(patient.load().1, 0);
    })
    .unwrap();
}

/// What was kept for peers that did not read had no bound but the number of peers. Where there would be too much in all, the one
/// for which most is kept goes, and the others stay.
#[test]
fn what_is_kept_for_all_peers_is_bounded() {
    const BYTES: usize = 4000;
    let limits = EndpointConfig { outbox_bytes_max: 40 * BYTES, ..EndpointConfig::default() };
    let World { sim, engine, client, endpoint, closed } = world(4, limits);
    let (address, moderate) = (engine.address(0), sim.add_node(1));
    // Both read nothing at all; one asks for more.
    let flood = |node: &Node, requests: u64| {
        let address = address.clone();
        sim.block_on(node, move |env| async move {
            let peer = env.fabric().connect(&address).await.unwrap();
            for number in 0..requests {
                let message = request(9 << 8, number, &[7; BYTES]);
                while env.fabric().send(peer, &[&message]) == Err(daos_xstream::FabricError::Busy) {
                    env.clock().sleep_until(env.clock().now() + Duration::from_millis(1)).await;
                }
            }
            env.clock().sleep_until(env.clock().now() + Duration::from_millis(50)).await;
        })
        .unwrap();
    };
    flood(&moderate, 74);
    let held = endpoint.bytes_held().0;
    assert_eq!(held, 10 * (BYTES + HEADER_BYTES), "what the connection does not take");
    flood(&client, 120);
    assert_eq!(endpoint.counters().peers_dropped_stuck.get(), 1, "the one with most");
    assert_eq!(endpoint.bytes_held().0, held, "what is kept for the other one is kept");
    assert_eq!(closed.borrow().len(), 1);
}

#[test]
fn a_request_for_another_rank_is_refused() {
    let World { sim, engine, client, endpoint, .. } = world(5, EndpointConfig::default());
    endpoint.set_rank(3);
    let address = engine.address(0);
    sim.block_on(&client, |env| async move {
        let endpoint = Endpoint::new(&env, EndpointConfig::default());
        let peer = endpoint.connect(&address).await.unwrap();
        let call = |rank| Call { opcode: ECHO, rank, ..Call::default() };
        endpoint.call(peer, &call(3), &[]).await.unwrap();
        let refused = endpoint.call(peer, &call(4), &[]).await.unwrap_err();
        assert_eq!(refused.status(), Status::WRONG_RANK);
    })
    .unwrap();
}
