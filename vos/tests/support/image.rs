//! Files of a pool in one small file: rows of zeros are left out.
//!
//! ```text
//! file    length of its name u32 | name | size u64 | pieces u32
//! piece   offset u64 | length u32 | bytes
//! ```

use daos_xstream::{BLOCK_BYTES, Durability, Env, IoBuffer, Media, MediaFile, OpenOptions};

/// Zeros in a row that end a piece.
const ZEROS: usize = 24;

/// Packs the contents of files.
pub fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (name, content) in files {
        packed.extend_from_slice(&(name.len() as u32).to_le_bytes());
        packed.extend_from_slice(name.as_bytes());
        packed.extend_from_slice(&(content.len() as u64).to_le_bytes());
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        for (at, _) in content.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            match pieces.last_mut() {
                Some((_, end)) if at < *end + ZEROS => *end = at + 1,
                _ => pieces.push((at, at + 1)),
            }
        }
        packed.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
        for (start, end) in pieces {
            packed.extend_from_slice(&(start as u64).to_le_bytes());
            packed.extend_from_slice(&((end - start) as u32).to_le_bytes());
            packed.extend_from_slice(&content[start..end]);
        }
    }
    packed
}

/// The files of a packed image.
pub fn unpack(mut packed: &[u8]) -> Vec<(String, Vec<u8>)> {
    fn take<'p>(packed: &mut &'p [u8], length: usize) -> &'p [u8] {
        let (head, rest) = packed.split_at(length);
        *packed = rest;
        head
    }
    fn number(packed: &mut &[u8], length: usize) -> usize {
        take(packed, length).iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
    }
    let mut files = Vec::new();
    while !packed.is_empty() {
        let length = number(&mut packed, 4);
        let name = String::from_utf8(take(&mut packed, length).to_vec()).expect("a name");
        let mut content = vec![0; number(&mut packed, 8)];
        for _ in 0..number(&mut packed, 4) {
            let (start, length) = (number(&mut packed, 8), number(&mut packed, 4));
            content[start..start + length].copy_from_slice(take(&mut packed, length));
        }
        files.push((name, content));
    }
    files
}

/// The contents of the files in a folder of a world.
pub async fn read_files<E: Env>(env: &E, directory: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for name in env.media().list(directory).await.expect("a folder") {
        let path = format!("{directory}/{name}");
        let file = env.media().open(&path, OpenOptions::default()).await.expect("a file");
        let (content, result) = file.read(0, IoBuffer::zeroed(file.size() as usize)).await;
        result.expect("a read");
        files.push((name, content.as_slice().to_vec()));
    }
    files
}

/// Makes the files in a folder of a world.
pub async fn write_files<E: Env>(env: &E, directory: &str, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = format!("{directory}/{name}");
        let open = OpenOptions {
            create_new: true,
            size: content.len() as u64,
            preallocate: false,
            ..OpenOptions::default()
        };
        let file = env.media().open(&path, open).await.expect("a new file");
        for (index, block) in content.chunks(BLOCK_BYTES).enumerate() {
            // Compared as a whole: a loop over bytes is most of the time of a fuzzer's run.
            if block != &[0; BLOCK_BYTES][..block.len()] {
                let at = (index * BLOCK_BYTES) as u64;
                let (_, result) = file.write(at, IoBuffer::copy_of(block), Durability::Durable).await;
                result.expect("a write");
            }
        }
    }
}
