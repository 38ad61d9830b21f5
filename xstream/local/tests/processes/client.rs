//! What the client processes do. A test starts its own program again and says which of these it is to be.

use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use daos_xstream::{Access, Fabric, FabricError, IoBuffer, PeerId, Sink};
use daos_xstream_local::LocalFabric;
use zerocopy::IntoBytes;

use crate::engine::{ECHO, PULL, PUSH, park};

const ROLE: &str = "DAOS_LOCAL_TEST_ROLE";
const SOCKET: &str = "DAOS_LOCAL_TEST_SOCKET";
const SEED: &str = "DAOS_LOCAL_TEST_SEED";

/// Starts a client process.
pub fn start(role: &str, socket: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env(SOCKET, socket)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Plays the part that the environment names. False if it names none.
pub fn play() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let socket = PathBuf::from(std::env::var(SOCKET).unwrap());
    let mut dice = Dice(std::env::var(SEED).unwrap().parse::<u64>().unwrap() * 2 + 1);
    match role.as_str() {
        "honest" => honest(&socket, &mut dice, Duration::from_secs(4)),
        "victim" => honest(&socket, &mut dice, Duration::from_secs(600)),
        "deaf" => deaf(&socket),
        "scribbler" => scribble(&socket, &mut dice),
        other => panic!("no part for {other}"),
    }
    true
}

/// A small generator of numbers that nobody needs to fear (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

#[derive(Default)]
struct Answers {
    messages: Vec<Vec<u8>>,
    closed: bool,
}

impl Sink for Answers {
    fn message(&mut self, _peer: PeerId, bytes: &[u8]) {
        self.messages.push(bytes.to_vec());
    }

    fn closed(&mut self, _peer: PeerId) {
        self.closed = true;
    }
}

/// Connects to xstream 0, polling.
pub fn connect(fabric: &LocalFabric, socket: &Path) -> Result<PeerId, FabricError> {
    let address = format!("local://{}#0", socket.display()).parse().unwrap();
    let mut connecting = pin!(fabric.connect(&address));
    loop {
        if let Poll::Ready(connected) = connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return connected;
        }
        fabric.poll(1, &mut Answers::default());
    }
}

fn ask(fabric: &LocalFabric, peer: PeerId, request: &[&[u8]]) -> Vec<u8> {
    let mut answers = Answers::default();
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = fabric.send(peer, request) {
        assert_eq!(error, FabricError::Busy);
        fabric.poll(1, &mut answers);
    }
    let mut idle = 0;
    while answers.messages.is_empty() {
        idle = if fabric.poll(1, &mut answers) == 0 { idle + 1 } else { 0 };
        assert!(!answers.closed, "an honest client was disconnected");
        assert!(Instant::now() < deadline, "no answer");
        if idle > 500 {
            park(fabric, Duration::from_millis(900));
        }
    }
    assert_eq!(answers.messages.len(), 1);
    answers.messages.remove(0)
}

/// Asks for echoes, pulls and pushes of all sizes and checks every byte that comes back.
fn honest(socket: &Path, dice: &mut Dice, time: Duration) {
    let fabric = LocalFabric::client().unwrap();
    let peer = connect(&fabric, socket).unwrap();
    let end = Instant::now() + time;
    let mut steps = 0u64;
    while Instant::now() < end {
        steps += 1;
        match dice.below(4) {
            0 => pull(&fabric, peer, dice),
            1 => push(&fabric, peer, dice),
            _ => echo(&fabric, peer, dice),
        }
        if dice.below(200) == 0 {
            // Long enough for both sides to fall asleep.
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    assert!(steps > 20, "only {steps} steps");
}

fn echo(fabric: &LocalFabric, peer: PeerId, dice: &mut Dice) {
    let length = 1 + dice.below(fabric.message_bytes_max() as u64) as usize;
    let mut message: Vec<u8> = (0..length).map(|_| dice.roll() as u8).collect();
    message[0] = ECHO;
    let (first, second) = message.split_at(length / 3);
    assert_eq!(ask(fabric, peer, &[first, second]), message, "an echo came back wrong");
}

fn pull(fabric: &LocalFabric, peer: PeerId, dice: &mut Dice) {
    let data: Vec<u8> = (0..dice.below(300_000)).map(|n| (n ^ dice.0) as u8).collect();
    let exposed = fabric.expose(peer, IoBuffer::copy_of(&data), Access::Read).unwrap();
    let answer = ask(fabric, peer, &[&[PULL; 8], fabric.remote(&exposed).as_bytes()]);
    let sum = data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    assert_eq!(answer, sum.to_le_bytes(), "the engine read something else");
    assert_eq!(fabric.withdraw(exposed).as_slice(), data);
}

fn push(fabric: &LocalFabric, peer: PeerId, dice: &mut Dice) {
    let byte = dice.roll() as u8;
    let buffer = IoBuffer::copy_of(&vec![!byte; dice.below(300_000) as usize]);
    let exposed = fabric.expose(peer, buffer, Access::Write).unwrap();
    ask(fabric, peer, &[&[PUSH, byte, 0, 0, 0, 0, 0, 0], fabric.remote(&exposed).as_bytes()]);
    assert!(
        fabric.withdraw(exposed).as_slice().iter().all(|b| *b == byte),
        "the engine wrote something else"
    );
}

/// Asks without ever listening, until both rings are full, and then some.
fn deaf(socket: &Path) {
    let fabric = LocalFabric::client().unwrap();
    let peer = connect(&fabric, socket).unwrap();
    loop {
        if fabric.send(peer, &[&[ECHO; 3000]]) == Err(FabricError::Busy) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes random words all over the memory that it shares with the engine, and comes back when it is thrown out.
fn scribble(socket: &Path, dice: &mut Dice) {
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let fabric = LocalFabric::client().unwrap();
        let Ok(peer) = connect(&fabric, socket) else { continue };
        let (start, length) = own_mapping();
        let mut answers = Answers::default();
        for _ in 0..1 + dice.below(2000) {
            let _ = fabric.send(peer, &[&[ECHO; 100][..1 + dice.below(99) as usize]]);
            let _ = fabric.send(
                peer,
                &[
                    &[PULL; 8],
                    &dice.roll().to_le_bytes(),
                    &(dice.below(5) << 12).to_le_bytes(),
                    &dice.below(1 << 21).to_le_bytes(),
                ],
            );
            scribble_once(start, length, dice);
            if dice.below(300) == 0 {
                ring_without_reason();
            }
            // Seldom, because our own side finds the nonsense too and hangs up.
            if dice.below(16) == 0 {
                fabric.poll(4, &mut answers);
            }
            if answers.closed {
                break;
            }
        }
    }
}

fn scribble_once(start: usize, length: usize, dice: &mut Dice) {
    const TABLE_AT: u64 = 4096 + 2 * (256 << 10);
    // Published positions, fresh records, the table of exposures; or anything.
    let at = match dice.below(8) {
        0 => dice.below(4) * 128,
        1 => 4096 + dice.below(4096) / 8 * 8,
        2 => TABLE_AT + dice.below(512) * 8,
        3 => dice.below(length as u64) / 8 * 8,
        4 => 0,
        _ => return,
    };
    let value = match dice.below(3) {
        0 => dice.roll(),
        1 => dice.below(4096),
        _ => dice.below(1 << 20) * 8,
    };
    // SAFETY: within the mapping, which lives as long as the connection of the caller; aligned to a word.
    unsafe { ((start + at as usize) as *mut u64).write_volatile(value) };
}

/// Rings the engine's doorbell more often than any announcement could ask for.
fn ring_without_reason() {
    let is_socket = |path: &PathBuf| {
        std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let mut descriptors = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let Some(socket) = descriptors.find(is_socket) else { return };
    let number = socket.file_name().unwrap().to_str().unwrap().parse().unwrap();
    // SAFETY: nobody closes it meanwhile: this process has one thread that uses it, which is here.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    for _ in 0..3000 {
        let flags = rustix::net::SendFlags::NOSIGNAL;
        if rustix::net::send(socket, &[0], flags).is_err_and(|error| error != rustix::io::Errno::AGAIN) {
            return;
        }
    }
}

/// Where this process has mapped what it shares with the engine.
fn own_mapping() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains("memfd:daos-local")).expect("connected");
    let (start, rest) = line.split_once('-').unwrap();
    let end = rest.split_once(' ').unwrap().0;
    let parse = |text| usize::from_str_radix(text, 16).unwrap();
    (parse(start), parse(end) - parse(start))
}
