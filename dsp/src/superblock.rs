//! The superblock: what a file system says of itself.

use daos_dsr::class::{S1, SX, Schema};
use daos_types::ObjectClass;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{FsError, file::FIRST_BLOCK_BYTES_MAX};

/// akey: the record below.
pub(crate) const PARAMETERS: &[u8] = b"parameters";
/// akey: first object number that was given to nobody, 8 bytes.
pub(crate) const NEXT_NUMBER: &[u8] = b"next";

const MAGIC: [u8; 8] = *b"DAOS-DSP";
const VERSION: u16 = 1;
/// Features that a reader must know to read the file system. None exists yet.
const FEATURES_KNOWN: u64 = 0;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Stored {
    magic: [u8; 8],
    version: U16,
    directory_class: U16,
    file_class: U16,
    reserved: U16,
    features: U64,
    chunk_bytes: U32,
    first_block_bytes: U32,
    created: U64,
    crc: U32,
}

const _: () = assert!(size_of::<Stored>() == 44);

/// What a new file system shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// Bytes that programs should read and write at once.
    pub chunk_bytes: u32,
    /// Bytes of a file that are stored with its entry.
    pub first_block_bytes: u32,
    /// Class of directories.
    pub directory_class: ObjectClass,
    /// Class of files' arrays.
    pub file_class: ObjectClass,
}

impl Default for FormatOptions {
    /// Directories on one target each (listing one asks one target), files on all of them.
    fn default() -> Self {
        Self { chunk_bytes: 1 << 20, first_block_bytes: 4096, directory_class: S1, file_class: SX }
    }
}

/// Parameters of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// What it is like.
    pub options: FormatOptions,
    /// When it was made, nanoseconds since 1970.
    pub created: u64,
}

impl FormatOptions {
    /// Refuses what cannot be.
    pub(crate) fn check(&self) -> Result<(), FsError> {
        for class in [self.directory_class, self.file_class] {
            Schema::served(class).map_err(|error| FsError::Invalid(error.to_string()))?;
        }
        if !self.chunk_bytes.is_power_of_two() || self.chunk_bytes < 4096 {
            let chunk_bytes = self.chunk_bytes;
            return Err(FsError::Invalid(format!(
                "chunks of {chunk_bytes} bytes: a power of two from 4096 on"
            )));
        }
        if self.first_block_bytes > FIRST_BLOCK_BYTES_MAX {
            let bytes = self.first_block_bytes;
            return Err(FsError::Invalid(format!(
                "first blocks of {bytes} bytes: at most {FIRST_BLOCK_BYTES_MAX}"
            )));
        }
        Ok(())
    }
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut stored = Stored {
            magic: MAGIC,
            version: VERSION.into(),
            directory_class: self.options.directory_class.0.into(),
            file_class: self.options.file_class.0.into(),
            reserved: 0.into(),
            features: FEATURES_KNOWN.into(),
            chunk_bytes: self.options.chunk_bytes.into(),
            first_block_bytes: self.options.first_block_bytes.into(),
            created: self.created.into(),
            crc: 0.into(),
        };
        stored.crc = crc32c::crc32c(stored.as_bytes()).into();
        stored.as_bytes().to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FsError> {
        let no = |why: &str| FsError::NotMountable(why.to_owned());
        let (stored, _) = Stored::read_from_prefix(bytes).map_err(|_| no("the superblock is too short"))?;
        if stored.magic != MAGIC {
            return Err(no("the superblock is not one of a file system"));
        }
        if stored.version.get() != VERSION {
            let version = stored.version.get();
            return Err(no(&format!("its format is version {version}, and this program knows {VERSION}")));
        }
        let mut unsigned = stored;
        unsigned.crc = 0.into();
        if bytes.len() != size_of::<Stored>() || crc32c::crc32c(unsigned.as_bytes()) != stored.crc.get() {
            return Err(no("the superblock is damaged"));
        }
        let unknown = stored.features.get() & !FEATURES_KNOWN;
        if unknown != 0 {
            return Err(no(&format!("it uses features {unknown:#x} that this program does not know")));
        }
        let options = FormatOptions {
            chunk_bytes: stored.chunk_bytes.get(),
            first_block_bytes: stored.first_block_bytes.get(),
            directory_class: ObjectClass(stored.directory_class.get()),
            file_class: ObjectClass(stored.file_class.get()),
        };
        options.check().map_err(|error| no(&error.to_string()))?;
        Ok(Self { options, created: stored.created.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_every_flipped_bit_is_seen() {
        let superblock = Superblock { options: FormatOptions::default(), created: 12345 };
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes), Ok(superblock));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Superblock::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
