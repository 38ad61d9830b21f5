//! The simulated network: endpoints, connections, partitions.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    rc::Rc,
};

use daos_xstream::{
    Access, Address, Credentials, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Sink, sync::oneshot,
};

use crate::{
    core::Core,
    rma::{self, Exposures, SimExposed},
    world::{Happening, World},
};

/// All endpoints that live, by node and core, and what is cut.
#[derive(Default)]
pub(crate) struct Network {
    endpoints: RefCell<BTreeMap<(u32, u32), Rc<EndpointState>>>,
    partitions: RefCell<BTreeMap<(u32, u32), u64>>,
    pub exposures: Exposures,
}

enum Incoming {
    Message(Rc<Connection>, usize, Vec<u8>),
    Closed(PeerId),
}

/// One endpoint of one life of a node.
pub(crate) struct EndpointState {
    pub node: u32,
    pub core: Rc<Core>,
    inbox: RefCell<VecDeque<Incoming>>,
    peers: RefCell<BTreeMap<PeerId, Link>>,
}

/// One end of a connection.
#[derive(Clone)]
pub(crate) struct Link {
    pub connection: Rc<Connection>,
    pub side: usize,
}

/// Two endpoints that talk. Everything that has a direction is indexed by the sending side.
pub(crate) struct Connection {
    id: u64,
    pub ends: [Rc<EndpointState>; 2],
    pub peers: [PeerId; 2],
    pub broken: Cell<bool>,
    under_way: [RefCell<VecDeque<Vec<u8>>>; 2],
    /// Messages sent and not handed up.
    unread: [Cell<usize>; 2],
    last_arrival: [Cell<u64>; 2],
    /// Arrivals that a partition holds up.
    held: [Cell<usize>; 2],
}

impl Connection {
    pub fn nodes(&self) -> (u32, u32) {
        pair(self.ends[0].node, self.ends[1].node)
    }
}

fn pair(one: u32, other: u32) -> (u32, u32) {
    (one.min(other), one.max(other))
}

impl Network {
    pub fn is_cut(&self, nodes: (u32, u32)) -> bool {
        self.partitions.borrow().contains_key(&nodes)
    }

    pub fn partitions(&self) -> Vec<(u32, u32)> {
        self.partitions.borrow().keys().copied().collect()
    }

    pub fn partition(&self, world: &Rc<World>, one: u32, other: u32) {
        let nodes = pair(one, other);
        if self.is_cut(nodes) {
            return;
        }
        world.record(Happening::Partition, u64::from(nodes.0), u64::from(nodes.1));
        let number = world.number();
        self.partitions.borrow_mut().insert(nodes, number);
        let delay = world.weather.latency(world.config.partition_breaks_ns);
        let inner = world.clone();
        world.after(delay, move || {
            if inner.network.partitions.borrow().get(&nodes) == Some(&number) {
                for connection in inner.network.connections() {
                    if connection.nodes() == nodes {
                        break_connection(&inner, &connection);
                    }
                }
            }
        });
    }

    pub fn heal(&self, world: &Rc<World>, one: u32, other: u32) {
        let nodes = pair(one, other);
        if self.partitions.borrow_mut().remove(&nodes).is_none() {
            return;
        }
        world.record(Happening::Partition, u64::from(nodes.1), u64::from(nodes.0));
        for connection in self.connections() {
            if connection.nodes() == nodes {
                for side in 0..2 {
                    for _ in 0..connection.held[side].take() {
                        schedule_arrival(world, &connection, side);
                    }
                }
            }
        }
    }

    /// All connections, each once, in the order in which they were made.
    fn connections(&self) -> Vec<Rc<Connection>> {
        let mut all = BTreeMap::new();
        for endpoint in self.endpoints.borrow().values() {
            for link in endpoint.peers.borrow().values() {
                all.insert(link.connection.id, link.connection.clone());
            }
        }
        all.into_values().collect()
    }

    pub fn node_died(&self, world: &Rc<World>, node: u32) {
        for connection in self.connections() {
            if connection.ends.iter().any(|end| end.node == node) {
                break_connection(world, &connection);
            }
        }
        let dead: Vec<_> = {
            let mut endpoints = self.endpoints.borrow_mut();
            let places: Vec<_> = endpoints.keys().filter(|(other, _)| *other == node).copied().collect();
            places.iter().filter_map(|place| endpoints.remove(place)).collect()
        };
        for endpoint in dead {
            let peers = std::mem::take(&mut *endpoint.peers.borrow_mut());
            let inbox = std::mem::take(&mut *endpoint.inbox.borrow_mut());
            drop((peers, inbox));
        }
    }
}

/// Ends a connection: what is under way is lost, and each end learns of it later.
pub(crate) fn break_connection(world: &Rc<World>, connection: &Rc<Connection>) {
    if connection.broken.replace(true) {
        return;
    }
    world.record(Happening::Break, connection.id, 0);
    for side in 0..2 {
        connection.under_way[side].borrow_mut().clear();
        let (endpoint, peer) = (connection.ends[side].clone(), connection.peers[side]);
        let delay = world.weather.latency(world.config.break_notice_ns);
        world.after(delay, move || {
            // Who has disconnected by itself is told nothing.
            let known = endpoint.peers.borrow_mut().remove(&peer);
            if known.is_some() && endpoint.core.alive.get() {
                endpoint.inbox.borrow_mut().push_back(Incoming::Closed(peer));
                endpoint.core.poke();
            }
        });
    }
}

fn schedule_arrival(world: &Rc<World>, connection: &Rc<Connection>, side: usize) {
    let last = &connection.last_arrival[side];
    let delay = world.weather.latency(world.config.network_latency_ns);
    let arrival = (world.now.get() + delay).max(last.get() + 1);
    last.set(arrival);
    let (inner, connection) = (world.clone(), connection.clone());
    world.at(arrival, move || arrive(&inner, &connection, side));
}

/// The oldest message that `side` has sent arrives.
fn arrive(world: &Rc<World>, connection: &Rc<Connection>, side: usize) {
    if connection.broken.get() {
        return;
    }
    if world.network.is_cut(connection.nodes()) {
        connection.held[side].set(connection.held[side].get() + 1);
        return;
    }
    if world.weather.chance(world.config.connection_loss_ppm) && !world.calm.get() {
        return break_connection(world, connection);
    }
    let Some(message) = connection.under_way[side].borrow_mut().pop_front() else { return };
    world.record(Happening::Message, connection.id << 1 | side as u64, u64::from(crc32c::crc32c(&message)));
    let receiver = &connection.ends[1 - side];
    receiver.inbox.borrow_mut().push_back(Incoming::Message(connection.clone(), side, message));
    receiver.core.poke();
}

/// The endpoint of one simulated xstream.
pub struct SimFabric {
    pub(crate) world: Rc<World>,
    state: Rc<EndpointState>,
}

impl SimFabric {
    pub(crate) fn new(world: &Rc<World>, core: &Rc<Core>) -> Self {
        let state = Rc::new(EndpointState {
            node: core.node,
            core: core.clone(),
            inbox: RefCell::default(),
            peers: RefCell::default(),
        });
        world.network.endpoints.borrow_mut().insert((core.node, core.number), state.clone());
        Self { world: world.clone(), state }
    }

    pub(crate) fn link(&self, peer: PeerId) -> Result<Link, FabricError> {
        self.state.peers.borrow().get(&peer).cloned().ok_or(FabricError::PeerGone)
    }

    fn parse(address: &Address) -> Result<(u32, u32), FabricError> {
        let bad = || FabricError::BadAddress(format!("{address} is not of the form sim://NODE.CORE"));
        if address.fabric() != "sim" {
            return Err(bad());
        }
        let (node, core) = address.rest().split_once('.').ok_or_else(bad)?;
        Ok((node.parse().map_err(|_| bad())?, core.parse().map_err(|_| bad())?))
    }

    async fn pause(&self, nanoseconds: u64) {
        let (sender, receiver) = oneshot();
        let core = self.state.core.clone();
        self.world.after(nanoseconds, move || {
            core.poke();
            sender.send(());
        });
        // The world ends before the event happens, or it happens.
        let _ = receiver.await;
    }

    fn open_to(&self, place: (u32, u32)) -> Option<PeerId> {
        let peers = self.state.peers.borrow();
        let mut open = peers.iter().filter(|(_, link)| !link.connection.broken.get() && link.side == 0);
        let place_of = |link: &Link| {
            let end = &link.connection.ends[1];
            (end.node, end.core.number)
        };
        open.find(|(_, link)| place_of(link) == place).map(|(peer, _)| *peer)
    }
}

impl Fabric for SimFabric {
    type Exposed = SimExposed;

    fn addresses(&self) -> Vec<Address> {
        let text = format!("sim://{}.{}", self.state.node, self.state.core.number);
        vec![text.parse().expect("the form of an address")]
    }

    async fn connect(&self, address: &Address) -> Result<PeerId, FabricError> {
        let world = &self.world;
        let place = Self::parse(address)?;
        if let Some(peer) = self.open_to(place) {
            return Ok(peer);
        }
        self.pause(world.weather.latency(world.config.network_latency_ns)).await;
        let unreachable = || FabricError::Unreachable(address.to_string());
        let deadline = world.now.get() + world.config.connect_timeout.as_nanos() as u64;
        while world.network.is_cut(pair(self.state.node, place.0)) {
            if world.now.get() >= deadline {
                return Err(unreachable());
            }
            self.pause(10_000_000).await;
        }
        // Another task may have connected meanwhile.
        if let Some(peer) = self.open_to(place) {
            return Ok(peer);
        }
        let other = world.network.endpoints.borrow().get(&place).cloned().ok_or_else(unreachable)?;
        let connection = Rc::new(Connection {
            id: world.number(),
            ends: [self.state.clone(), other.clone()],
            peers: [PeerId(world.number()), PeerId(world.number())],
            broken: Cell::new(false),
            under_way: Default::default(),
            unread: Default::default(),
            last_arrival: Default::default(),
            held: Default::default(),
        });
        for (side, end) in [&self.state, &other].into_iter().enumerate() {
            let link = Link { connection: connection.clone(), side };
            end.peers.borrow_mut().insert(connection.peers[side], link);
        }
        Ok(connection.peers[0])
    }

    fn disconnect(&self, peer: PeerId) {
        let link = self.state.peers.borrow_mut().remove(&peer);
        self.state.inbox.borrow_mut().retain(|incoming| match incoming {
            Incoming::Message(connection, side, _) => connection.peers[1 - side] != peer,
            Incoming::Closed(other) => *other != peer,
        });
        if let Some(link) = link {
            break_connection(&self.world, &link.connection);
        }
    }

    fn credentials(&self, peer: PeerId) -> Option<Credentials> {
        let link = self.link(peer).ok()?;
        let node = link.connection.ends[1 - link.side].node;
        Some(Credentials { pid: 1000 + node, uid: 1000, gid: 1000 })
    }

    fn message_bytes_max(&self) -> usize {
        self.world.config.message_bytes_max
    }

    fn send(&self, peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        let Link { connection, side } = self.link(peer)?;
        let message = parts.concat();
        let limit = self.message_bytes_max();
        if message.len() > limit {
            return Err(FabricError::TooLong { length: message.len() as u64, limit: limit as u64 });
        }
        let unread = &connection.unread[side];
        if connection.broken.get() {
            // Lost; the sender does not know yet.
            return Ok(());
        }
        if unread.get() >= self.world.config.connection_capacity {
            return Err(FabricError::Busy);
        }
        unread.set(unread.get() + 1);
        connection.under_way[side].borrow_mut().push_back(message);
        schedule_arrival(&self.world, &connection, side);
        Ok(())
    }

    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        for done in 0..limit {
            let Some(incoming) = self.state.inbox.borrow_mut().pop_front() else { return done };
            match incoming {
                Incoming::Message(connection, side, message) => {
                    connection.unread[side].set(connection.unread[side].get() - 1);
                    sink.message(connection.peers[1 - side], &message);
                }
                Incoming::Closed(peer) => sink.closed(peer),
            }
        }
        limit
    }

    fn expose(
        &self,
        peer: PeerId,
        buffer: IoBuffer,
        access: Access,
    ) -> Result<SimExposed, (IoBuffer, FabricError)> {
        match self.link(peer) {
            Ok(link) => Ok(rma::expose(&self.world, link, buffer, access)),
            Err(error) => Err((buffer, error)),
        }
    }

    fn remote(&self, exposed: &SimExposed) -> RemoteBuffer {
        exposed.remote()
    }

    fn withdraw(&self, exposed: SimExposed) -> IoBuffer {
        exposed.withdraw()
    }

    fn read(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        rma::transfer(&self.world, self.link(peer), remote, skip, buffer, Access::Read)
    }

    fn write(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        rma::transfer(&self.world, self.link(peer), remote, skip, buffer, Access::Write)
    }
}
