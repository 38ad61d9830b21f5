//! The limit to compare with: a ping-pong straight over libfabric, with nothing of this crate's protocol around it.
//!
//! One process calls [`Server::open`] and [`Server::serve`], the other [`measure`]; both [`pin_to_core`] first. `shm` may be
//! measured too: it is the limit that the same-node fabric is compared with, and nothing else here uses it.

use std::time::{Duration, Instant};

use daos_xstream::{Address, FabricError};

use crate::{
    OfiConfig, address,
    inner::Operation,
    raw::{BATCH, Completion, Completions, Destination, Pieces, Port, PortSpec},
};

/// Longest message that can be measured, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

const PIECE_BYTES: usize = MESSAGE_BYTES_MAX + 128;
const RECEIVES: usize = 4;
/// How long one message may take before the other side counts as dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// Binds the calling thread to a core.
pub fn pin_to_core(core: usize) -> std::io::Result<()> {
    // SAFETY: the set is a plain bit mask, zeroed and then written by libc's own macro function, which ignores numbers
    // beyond it; the call reads it.
    let code = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The side that answers.
pub struct Server {
    side: Side,
}

impl Server {
    /// Opens the endpoint. For a provider with socket addresses `place` says where to listen; others choose themselves.
    pub fn open(provider: &str, place: Option<&Address>) -> Result<Self, FabricError> {
        let config = place.map(|place| OfiConfig::server(place.clone()).with_provider(provider));
        Ok(Self { side: Side::open(provider, config)? })
    }

    /// What to hand to [`measure`] in the other process: the endpoint's name in hexadecimal digits.
    pub fn name(&self) -> String {
        self.side.name.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Answers one client's messages until it has sent as many as it announced. Between messages it polls, or if `parks` is set
    /// sleeps on the endpoint's wait descriptor whenever there is nothing to do.
    pub fn serve(mut self, parks: bool) -> Result<(), FabricError> {
        self.side.parks = parks;
        let (piece, length) = self.side.next_message()?;
        let first = self.side.bytes(piece, length).to_vec();
        let announcement = Announcement::parse(&first)
            .ok_or_else(|| FabricError::Failed("the client's first message is none".to_owned()))?;
        self.side.post(piece)?;
        let client = self.side.port.insert(announcement.name)?;
        self.side.send(client, 8)?;
        for _ in 0..announcement.messages {
            let (piece, length) = self.side.next_message()?;
            self.side.post(piece)?;
            self.side.send(client, length)?;
        }
        // The last answer has left when the client closes the connection; without progress it might not leave at all.
        self.side.linger(Duration::from_millis(100));
        Ok(())
    }
}

struct Announcement<'a> {
    messages: u64,
    name: &'a [u8],
}

impl<'a> Announcement<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (messages, name) = bytes.split_first_chunk()?;
        (!name.is_empty() && name.len() <= 256)
            .then(|| Self { messages: u64::from_le_bytes(*messages), name })
    }
}

/// How a measurement proceeds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds at the start that do not count.
    pub warm_up: usize,
    /// Rounds that count.
    pub rounds: usize,
    /// How long this side sleeps before each round.
    pub pause: Duration,
}

/// Sends messages of `message_bytes` bytes, one after the other's answer, to the server of this name. Returns the round-trip
/// times of the rounds that count.
pub fn measure(
    provider: &str,
    place: Option<&Address>,
    server: &str,
    message_bytes: usize,
    Pace { warm_up, rounds, pause }: Pace,
) -> Result<Vec<Duration>, FabricError> {
    assert!((8..=MESSAGE_BYTES_MAX).contains(&message_bytes), "messages of 8 bytes to 1 MiB");
    let config = place.map(|place| OfiConfig::client_of(place.clone()).with_provider(provider));
    let mut side = Side::open(provider, config)?;
    let name = hexadecimal(server).ok_or_else(|| FabricError::BadAddress(server.to_owned()))?;
    let server = side.port.insert(&name)?;

    let mut announcement = ((warm_up + rounds) as u64).to_le_bytes().to_vec();
    announcement.extend(&side.name);
    side.fill(&announcement);
    side.send(server, announcement.len())?;
    let (piece, _) = side.next_message()?;
    side.post(piece)?;

    let mut times = Vec::with_capacity(rounds);
    for round in 0..warm_up + rounds {
        if !pause.is_zero() {
            #[allow(clippy::disallowed_methods, reason = "a thread of its own that is to be idle")]
            std::thread::sleep(pause);
        }
        let begun = now();
        side.send(server, message_bytes)?;
        let (piece, length) = side.next_message()?;
        let ended = now();
        if length != message_bytes {
            return Err(FabricError::Failed(format!("{length} bytes came back instead of {message_bytes}")));
        }
        side.post(piece)?;
        if round >= warm_up {
            times.push(ended - begun);
        }
    }
    Ok(times)
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(digits).collect()
}

#[allow(clippy::disallowed_methods, reason = "a measurement of the real world")]
fn now() -> Instant {
    Instant::now()
}

struct Side {
    // First, so that the endpoint is closed before the memory lent to it is freed.
    port: Port,
    name: Vec<u8>,
    receive: Pieces,
    transmit: Pieces,
    arrived: Vec<(usize, usize)>,
    sends_done: usize,
    /// Whether to sleep while there is nothing to do.
    parks: bool,
}

impl Side {
    fn open(provider: &str, config: Option<OfiConfig>) -> Result<Self, FabricError> {
        let bind = config.as_ref().map(OfiConfig::bind).transpose()?.flatten();
        let port = Port::open(&PortSpec {
            provider,
            bind,
            service: None,
            transmit_queue: 64,
            receive_queue: 64,
            inject_bytes: crate::wire::CONTROL_BYTES_MAX,
        })?;
        let name = port.name()?;
        debug_assert!(bind.is_none() || address::from_bytes(&name).is_some());
        let side = Self {
            port,
            name,
            receive: Pieces::new(RECEIVES, PIECE_BYTES),
            transmit: Pieces::new(1, PIECE_BYTES),
            arrived: Vec::new(),
            sends_done: 0,
            parks: false,
        };
        for piece in 0..RECEIVES {
            side.post(piece)?;
        }
        Ok(side)
    }

    fn post(&self, piece: usize) -> Result<(), FabricError> {
        let context = Operation::Receive(piece).to_context();
        // SAFETY: the piece is freed after the port is closed, and looked at only between completion and this call.
        unsafe { self.port.post_receive(self.receive.piece(piece), PIECE_BYTES, context) }
            .map_err(|code| crate::raw::failed(code, "fi_recv"))
    }

    /// What arrived in a piece that has not been posted again.
    fn bytes(&self, piece: usize, length: usize) -> &[u8] {
        assert!(length <= PIECE_BYTES);
        // SAFETY: libfabric has completed the receive into this piece; the length is within it. The borrow of `self` ends
        // before the piece is posted again, in every caller of this module.
        unsafe { std::slice::from_raw_parts(self.receive.piece(piece), length) }
    }

    /// Puts bytes at the start of what is sent.
    fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= PIECE_BYTES);
        // SAFETY: no send is under way (each waits for its completion); the length is within the piece.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.transmit.piece(0), bytes.len()) }
    }

    fn send(&mut self, to: Destination, length: usize) -> Result<(), FabricError> {
        let start = self.transmit.piece(0);
        let give_up = now() + PATIENCE;
        let inject = length <= self.port.inject_bytes_max();
        loop {
            let outcome = if inject {
                // SAFETY: the piece is at least as long, and nobody writes to it meanwhile.
                let bytes = unsafe { std::slice::from_raw_parts(start, length) };
                self.port.inject(bytes, to)
            } else {
                // SAFETY: nothing else is in the piece until the completion, which is awaited below.
                unsafe { self.port.send(start, length, to, Operation::Send(0).to_context()) }
            };
            match outcome {
                Ok(()) => break,
                Err(crate::transmit::AGAIN) if now() < give_up => self.progress()?,
                Err(code) => return Err(crate::raw::failed(code, "fi_send")),
            }
        }
        let before = self.sends_done;
        while !inject && self.sends_done == before {
            self.progress()?;
        }
        Ok(())
    }

    fn next_message(&mut self) -> Result<(usize, usize), FabricError> {
        let mut polls = 0_u32;
        let mut give_up = None;
        loop {
            if !self.arrived.is_empty() {
                return Ok(self.arrived.remove(0));
            }
            self.progress()?;
            if self.parks && self.arrived.is_empty() {
                self.park()?;
            }
            polls += 1;
            if polls.is_multiple_of(1 << 16) && now() > *give_up.get_or_insert_with(|| now() + PATIENCE) {
                return Err(FabricError::PeerGone);
            }
        }
    }

    fn progress(&mut self) -> Result<(), FabricError> {
        let mut found = [Completion { context: 0, length: 0 }; BATCH];
        match self.port.completions(1, &mut found) {
            Completions::None => {}
            Completions::Failed { error, .. } => return Err(crate::raw::failed(error, "ping-pong")),
            Completions::Some(count) => {
                for completion in &found[..count] {
                    match Operation::from_context(completion.context) {
                        Some(Operation::Receive(piece)) => self.arrived.push((piece, completion.length)),
                        Some(Operation::Send(_)) => self.sends_done += 1,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Sleeps until the endpoint has something to do.
    fn park(&self) -> Result<(), FabricError> {
        let Some(descriptor) = self.port.wait_descriptor() else { return Ok(()) };
        if !self.port.try_wait() {
            return Ok(());
        }
        let mut wanted = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
        // SAFETY: the one entry lives until the call returns.
        match unsafe { libc::poll(&mut wanted, 1, PATIENCE.as_millis() as i32) } {
            0 => Err(FabricError::PeerGone),
            _ => Ok(()),
        }
    }

    fn linger(&mut self, time: Duration) {
        let end = now() + time;
        while now() < end && self.progress().is_ok() {}
    }
}
