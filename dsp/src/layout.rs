//! Where things are in a container that holds a file system. Part of the format: nothing here changes its meaning.
//!
//! ```text
//! object (caller's 160 bits)   holds
//! 0.0.0                        superblock: document; dkey "superblock" (see `superblock`), dkey "root": root's attributes
//! 0.0.1                        root directory
//! 0.0.2                        orphans: files that are unlinked while open (reserved)
//! 0.0.3, 0.0.4, 0.0.5          quotas of users, groups, projects (reserved)
//! 0.STAMP.NUMBER               files and directories; STAMP is not 0
//! ```
//!
//! A directory is a document: dkey = name in lexical order, akeys = attributes, named below. A file's bytes up to
//! the superblock's `first_block_bytes` are the value of akey `data`; the rest are in an array at the file's own offsets.

use daos_types::{KeyOrder, ObjectClass, ObjectId, ObjectType};

/// Names of the akeys of an entry. Integers are little-endian.
pub mod akey {
    /// Type and permissions, as in `st_mode`: 4 bytes. An entry without it is none.
    pub const MODE: &[u8] = b"mode";
    /// Owner: 4 bytes.
    pub const UID: &[u8] = b"uid";
    /// Group: 4 bytes.
    pub const GID: &[u8] = b"gid";
    /// Bytes of a file: 8 bytes. Absent is 0.
    pub const SIZE: &[u8] = b"size";
    /// Last access, nanoseconds since 1970: 8 bytes.
    pub const ATIME: &[u8] = b"atime";
    /// Last change of the data.
    pub const MTIME: &[u8] = b"mtime";
    /// Last change of the attributes.
    pub const CTIME: &[u8] = b"ctime";
    /// Object ID of the file's array or of the directory's document: 24 bytes.
    pub const OBJECT: &[u8] = b"oid";
    /// [`super::WRITING`]: 4 bytes. Absent is 0.
    pub const FLAGS: &[u8] = b"flags";
    /// Target of a symbolic link.
    pub const LINK: &[u8] = b"link";
    /// First block of a file; shorter than the file's first block where zeros follow.
    pub const DATA: &[u8] = b"data";
}

/// Flag: somebody may have written beyond the stored size, so that the array has to be asked.
pub const WRITING: u32 = 1;

/// dkey of the superblock object: the file system's parameters.
pub const SUPERBLOCK_DKEY: &[u8] = b"superblock";
/// dkey of the superblock object: attributes of the root directory, which has no entry anywhere.
pub const ROOT_DKEY: &[u8] = b"root";

/// Object of the superblock: its class is fixed, since nothing says another yet.
pub fn superblock_object() -> ObjectId {
    directory_object(daos_dsr::class::S1, 0, 0)
}

/// Object of the root directory.
pub fn root_object(class: ObjectClass) -> ObjectId {
    directory_object(class, 0, 1)
}

/// Object of a directory.
pub fn directory_object(class: ObjectClass, stamp: u64, number: u64) -> ObjectId {
    ObjectId::new(ObjectType::Document, KeyOrder::Lexical, KeyOrder::Lexical, class, (0, stamp, number))
}

/// Object of a file's bytes beyond the first block.
pub fn file_object(class: ObjectClass, stamp: u64, number: u64) -> ObjectId {
    ObjectId::new(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, class, (0, stamp, number))
}
