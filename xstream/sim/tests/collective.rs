//! A broadcast over RPC, in a world where members are dead or die on the way.

use std::{cell::Cell, collections::BTreeSet, rc::Rc, time::Duration};

use daos_xstream::{
    Class, Clock, Env, Spawn, Time,
    collective::{Aggregate, Merge, Span, drive},
    rpc::{Call, Endpoint, EndpointConfig, Opcode, Request, Responder, Service, Status},
};
use daos_xstream_sim::{Config, Loss, SimEnv, Simulation};

const COUNT: u32 = 40;
const ARITY: u32 = 3;
const BROADCAST: Opcode = Opcode::new(10, 0);

/// Sum of the members' numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sum(u64);

impl Merge for Sum {
    fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// Words on the wire, little-endian: the sum, how many are done, and the spans that failed.
fn encode(aggregate: &Aggregate<Sum>) -> Vec<u8> {
    let sum = aggregate.value.as_ref().map_or(0, |sum| sum.0);
    let spans = aggregate.failed.iter().flat_map(|span| [u64::from(span.first), u64::from(span.end)]);
    [sum, u64::from(aggregate.done)].into_iter().chain(spans).flat_map(u64::to_le_bytes).collect()
}

fn decode(bytes: &[u8]) -> Option<Aggregate<Sum>> {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let words: Vec<u64> = words.collect();
    let (sum, done) = (*words.first()?, u32::try_from(*words.get(1)?).ok()?);
    let span = |pair: &[u64]| Span::new(u32::try_from(pair[0]).ok()?, u32::try_from(pair[1]).ok()?);
    let failed = words[2..].chunks_exact(2).map(span).collect::<Option<_>>()?;
    Some(Aggregate { value: (done > 0).then_some(Sum(sum)), done, failed })
}

#[derive(Clone)]
struct Member {
    env: SimEnv,
    number: u32,
    executed: Rc<Cell<u32>>,
}

impl Member {
    async fn broadcast(self, span: Span, deadline: Time) -> Aggregate<Sum> {
        let endpoint = Endpoint::of(&self.env).expect("every member has its endpoint");
        let execute = async {
            self.executed.set(self.executed.get() + 1);
            Some(Sum(u64::from(self.number)))
        };
        let ask = |part: Span, deadline: Time| {
            let (endpoint, env) = (endpoint.clone(), self.env.clone());
            async move {
                let address = format!("sim://{}.0", part.first).parse().expect("the form of an address");
                let peer = endpoint.connect(&address).await.ok()?;
                let timeout = deadline.since(env.clock().now());
                let call = Call { opcode: BROADCAST, timeout, ..Call::default() };
                let span = [part.first.to_le_bytes(), part.end.to_le_bytes()].concat();
                decode(endpoint.call(peer, &call, &[&span]).await.ok()?.body())
            }
        };
        drive(self.env.clock(), (span, ARITY, deadline), execute, ask).await
    }
}

impl Service<SimEnv> for Member {
    fn module(&self) -> u8 {
        BROADCAST.module()
    }

    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn call(&self, request: Request<'_>, responder: Responder<SimEnv>) {
        let span = request.body.split_at_checked(4).and_then(|(first, end)| {
            let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
            Span::new(number(first)?, number(end)?)
        });
        let Some(span) = span.filter(|span| span.first == self.number && span.end <= COUNT) else {
            return responder.fail(Status::INVALID, "not a span that begins here");
        };
        let member = self.clone();
        self.env.scheduler().spawn(Class::Service, "broadcast", async move {
            let aggregate = member.broadcast(span, responder.deadline()).await;
            responder.reply(&[&encode(&aggregate)]);
        });
    }
}

#[test]
fn a_broadcast_reaches_every_member_that_lives_and_names_the_others() {
    let mut repeated = 0;
    for seed in 0..60 {
        let sim = Simulation::new(seed, Config::default());
        let nodes: Vec<_> = (0..COUNT).map(|_| sim.add_node(1)).collect();
        let start = |number: u32| {
            let env = nodes[number as usize].env(0);
            let member = Member { env: env.clone(), number, executed: Rc::default() };
            Endpoint::new(&env, EndpointConfig::default()).register(Rc::new(member.clone()));
            member
        };
        let members: Vec<_> = (0..COUNT).map(start).collect();
        let mut dead = BTreeSet::new();
        for _ in 0..sim.choose(8) {
            let number = 1 + sim.choose(u64::from(COUNT) - 1) as u32;
            nodes[number as usize].kill(Loss::Power);
            dead.insert(number);
        }
        // One more dies while the broadcast is under way: it may be done or not.
        let victim = 1 + sim.choose(u64::from(COUNT) - 1) as u32;
        let (node, delay) = (nodes[victim as usize].clone(), sim.choose(1_500_000));
        let root = members[0].clone();
        let aggregate = sim
            .block_on(&nodes[0], |env| async move {
                let killer = env.clone();
                env.scheduler().spawn(Class::Service, "killer", async move {
                    killer.clock().sleep_until(killer.clock().now() + Duration::from_nanos(delay)).await;
                    node.kill(Loss::Power);
                });
                let deadline = env.clock().now() + Duration::from_secs(60);
                root.broadcast(Span { first: 0, end: COUNT }, deadline).await
            })
            .unwrap();
        let failed: BTreeSet<u32> = aggregate.failed.iter().flat_map(|span| span.first..span.end).collect();
        let mut allowed = dead.clone();
        allowed.insert(victim);
        assert!(
            dead.is_subset(&failed) && failed.is_subset(&allowed),
            "seed {seed}: {failed:?}, dead {dead:?}"
        );
        assert_eq!(aggregate.done as usize + failed.len(), COUNT as usize);
        let done = (0..COUNT).filter(|number| !failed.contains(number));
        let sum: u64 = done.clone().map(u64::from).sum();
        assert_eq!(aggregate.value, Some(Sum(sum)), "seed {seed}");
        for number in done {
            let times = members[number as usize].executed.get();
            assert!(times >= 1, "seed {seed}: member {number} counts as done");
            repeated += u32::from(times > 1);
        }
    }
    assert!(repeated > 0, "some were asked again by a grandparent: requests must be idempotent");
}
