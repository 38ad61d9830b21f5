//! Any bytes as a message: taken apart without a panic, and what is accepted is what its header says.
#![no_main]

use daos_xstream::rpc::{HEADER_BYTES, Header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    if let Ok((header, body)) = Header::parse(message) {
        assert_eq!(body.len() + HEADER_BYTES, message.len());
        let _ = (header.opcode(), header.status(), header.handle());
    }
    // The same with checksums that hold, so that what lies behind them is reached.
    let mut sealed = message.to_vec();
    if let Some(body) = message.get(HEADER_BYTES..) {
        sealed[..2].copy_from_slice(&0xda05u16.to_le_bytes());
        sealed[52..56].copy_from_slice(&(body.len() as u32).to_le_bytes());
        sealed[56..60].copy_from_slice(&crc32c(body).to_le_bytes());
        let checksum = crc32c(&sealed[..60]).to_le_bytes();
        sealed[60..64].copy_from_slice(&checksum);
        match Header::parse(&sealed) {
            Ok((header, parsed)) => assert_eq!((header.handle().as_bytes().as_slice(), parsed), (&sealed[32..48], body)),
            Err(rejected) => {
                let _ = rejected.reason.status();
            }
        }
    }
});

/// CRC32C, bit by bit: nothing shared with what is tested.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (crc & 1) * 0x82f6_3b78;
        }
        crc
    })
}
