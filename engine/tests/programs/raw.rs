//! Messages that no client of ours would send.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use daos_xstream::{
    Address, Fabric, PeerId, Sink,
    rpc::{HEADER_BYTES, Header, Opcode, RANK_ANY, Status, system},
};
use daos_xstream_local::LocalFabric;
use daos_xstream_ofi::{OfiConfig, OfiFabric};
use daos_xstream_uring::UringRng;

use crate::engine::wait_for;

/// The same bytes every time, without meaning (xorshift64*, Marsaglia 2003, Vigna 2016).
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ length as u64;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A request of a peer that speaks `version`, with checksums that hold.
pub fn request(version: u8, opcode: Opcode, id: u64, body: &[u8]) -> Vec<u8> {
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&0xda05u16.to_le_bytes());
    header[2] = version;
    header[3] = 1;
    header[4..6].copy_from_slice(&opcode.0.to_le_bytes());
    header[8..16].copy_from_slice(&id.to_le_bytes());
    header[16..20].copy_from_slice(&RANK_ANY.to_le_bytes());
    header[52..56].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[56..60].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let checksum = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    [&header, body].concat()
}

/// The request that does nothing.
pub fn null_request(version: u8, id: u64) -> Vec<u8> {
    request(version, system::NULL, id, b"")
}

enum Way {
    Local(LocalFabric),
    Network(Box<OfiFabric>),
}

/// A connection below the RPC layer.
pub struct Wire {
    way: Way,
    peer: PeerId,
    inbox: Inbox,
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<Vec<u8>>,
    closed: bool,
}

impl Sink for Inbox {
    fn message(&mut self, _: PeerId, bytes: &[u8]) {
        self.messages.push_back(bytes.to_vec());
    }

    fn closed(&mut self, _: PeerId) {
        self.closed = true;
    }
}

/// Polls the future, and the fabric with it, to its end.
fn drive<F: Fabric, T>(fabric: &F, inbox: &RefCell<Inbox>, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    wait_for("connection", || {
        fabric.poll(64, &mut *inbox.borrow_mut());
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    })
}

impl Wire {
    pub fn connect(address: &Address) -> Self {
        let inbox = RefCell::new(Inbox::default());
        let (way, peer) = if address.fabric() == "local" {
            let fabric = LocalFabric::client().expect("a client");
            let peer = drive(&fabric, &inbox, fabric.connect(address)).expect("connected");
            (Way::Local(fabric), peer)
        } else {
            let random = UringRng::from_system().expect("randomness");
            let config = OfiConfig::client_of(address.clone());
            let fabric = OfiFabric::open(config, daos_xstream_uring::now, random).expect("a client");
            let peer = drive(&fabric, &inbox, fabric.connect(address)).expect("connected");
            (Way::Network(Box::new(fabric)), peer)
        };
        Self { way, peer, inbox: inbox.into_inner() }
    }

    fn poll(&mut self) {
        match &self.way {
            Way::Local(fabric) => fabric.poll(64, &mut self.inbox),
            Way::Network(fabric) => fabric.poll(64, &mut self.inbox),
        };
    }

    /// Sends a message, unless the other side has hung up.
    pub fn send(&mut self, message: &[u8]) {
        wait_for("room for a message", || {
            self.poll();
            let sent = match &self.way {
                Way::Local(fabric) => fabric.send(self.peer, &[message]),
                Way::Network(fabric) => fabric.send(self.peer, &[message]),
            };
            (self.inbox.closed || sent != Err(daos_xstream::FabricError::Busy)).then_some(())
        });
    }

    /// Sends a request and returns the status and text of the answer to it.
    pub fn ask(&mut self, message: &[u8]) -> (Status, String) {
        self.inbox.messages.clear();
        self.send(message);
        let reply = wait_for("answer", || {
            self.poll();
            assert!(!self.inbox.closed, "hung up without an answer");
            self.inbox.messages.pop_front()
        });
        let (header, body) = Header::parse(&reply).map_err(|_| "malformed").expect("a reply of ours");
        (header.status(), String::from_utf8_lossy(body).into_owned())
    }

    /// Whether the other side has hung up.
    pub fn is_closed(&mut self) -> bool {
        self.poll();
        self.inbox.closed
    }
}
