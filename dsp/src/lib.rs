//! POSIX namespace in a container: directories are document objects, small files live in their directory entry, large
//! ones in an array object.
//!
//! This is the private namespace: one client, or a job whose processes co-operate, writes; locking is the client's own.
//!
//! # Invariants
//!
//! * Every change goes into the epoch held at the moment; [`Fs::sync`] moves to the next epoch, waits for what is under
//!   way in the old one, flushes and commits it. So a committed epoch holds whole operations only, and after a crash the
//!   tree is the one of the last sync.
//! * An entry is there if and only if it has a `mode` attribute. A name is 1 to 255 bytes without `/` and NUL, and neither
//!   `.` nor `..`.
//! * An object ID is given to one file or directory only, also across crashes (see [`mod@ids`]).
//! * An operation that fails says so with the errno that POSIX has for it ([`FsError::errno`]).

#![forbid(unsafe_code)]

mod directory;
mod error;
mod file;
mod fs;
pub mod ids;
mod inode;
pub mod layout;
mod locks;
mod path;
mod rename;
mod superblock;

pub use directory::{Directory, Entry};
pub use error::{FsError, errno};
pub use file::File;
pub use fs::{Fs, Options, Store};
pub use inode::{Attributes, FileType, Inode, SetAttributes};
pub use path::{NAME_BYTES_MAX, PATH_BYTES_MAX, SYMLINKS_MAX};
pub use superblock::{FormatOptions, Superblock};
