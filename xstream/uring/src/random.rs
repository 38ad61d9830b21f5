//! Randomness of one xstream: a ChaCha generator seeded by the operating system.
//!
//! Twelve rounds keep the stream unpredictable to peers who see part of it (keys, request IDs), at a few nanoseconds a
//! number and without a system call.

use std::{cell::RefCell, io};

use daos_xstream::Rng;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use rustix::rand::{GetRandomFlags, getrandom};

/// Randomness of the real world.
pub struct UringRng(RefCell<ChaCha12Rng>);

impl UringRng {
    /// A generator with a seed of its own, for what is made before its xstream is.
    pub fn from_system() -> io::Result<Self> {
        let mut seed = [0_u8; 32];
        let mut filled = 0;
        while filled < seed.len() {
            match getrandom(&mut seed[filled..], GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(RefCell::new(ChaCha12Rng::from_seed(seed))))
    }
}

impl Rng for UringRng {
    fn next_u64(&self) -> u64 {
        self.0.borrow_mut().next_u64()
    }
}
