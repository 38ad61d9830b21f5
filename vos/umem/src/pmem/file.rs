//! Files on persistent memory, through libpmem.
//!
//! The `pmem` crate gives flushing, draining and messages. Its `PersistentMap` keeps nothing of the mapping that it makes
//! (its buffer is an empty vector, which it hands to `pmem_unmap`), so mapping and unmapping are declared here.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::NonNull,
};

use super::{LINE_BYTES, Persistence};
use crate::{PAGE_BYTES, arena::Arena, store::StoreError};
use daos_xstream::MediaError;

const PMEM_FILE_CREATE: c_int = 1;
const PMEM_FILE_EXCL: c_int = 2;

// Linked by the crate `pmem`.
unsafe extern "C" {
    fn pmem_map_file(
        path: *const c_char,
        length: usize,
        flags: c_int,
        mode: u32,
        mapped_length: *mut usize,
        is_pmem: *mut c_int,
    ) -> *mut c_void;
    fn pmem_unmap(address: *mut c_void, length: usize) -> c_int;
}

/// A mapping, and the lock that keeps other processes out of the file.
struct Mapping {
    address: NonNull<u8>,
    length: usize,
    _lock: std::fs::File,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and the arena that used it is being dropped with it.
        unsafe { pmem_unmap(self.address.as_ptr().cast(), self.length) };
    }
}

/// Makes a file of `bytes` zeros on persistent memory, its blocks allocated, and maps it.
pub(crate) fn create_file(path: &Path, bytes: u64) -> Result<(Arena, LibPmem), StoreError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed(path, &error.to_string()))?;
    }
    map(path, bytes, PMEM_FILE_CREATE | PMEM_FILE_EXCL)
}

/// Maps a file.
pub(crate) fn open_file(path: &Path) -> Result<(Arena, LibPmem), StoreError> {
    if !path.exists() {
        return Err(MediaError::NotFound(path.display().to_string()).into());
    }
    map(path, 0, 0)
}

/// A copy of a file that holds an arena, taken while nobody else uses it. It need not lie on persistent memory.
pub(crate) fn read_file(path: &Path) -> Result<Arena, StoreError> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(MediaError::NotFound(path.display().to_string()).into());
        }
        Err(error) => return Err(failed(path, &error.to_string())),
    };
    let mut copy = || {
        lock(&file)?;
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let mut arena = Arena::reserve(length).map_err(|error| error.to_string())?;
        std::io::Read::read_exact(&mut file, arena.as_mut_slice()).map_err(|error| error.to_string())?;
        Ok(arena)
    };
    copy().map_err(|reason: String| failed(path, &reason))
}

/// Keeps others out of the file for as long as it is open, or says that they are in.
fn lock(file: &std::fs::File) -> Result<(), String> {
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(file, exclusive).map_err(|_| "another process uses it".to_owned())
}

fn map(path: &Path, bytes: u64, flags: c_int) -> Result<(Arena, LibPmem), StoreError> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(path, &error.to_string()))?;
    let bytes = usize::try_from(bytes).map_err(|error| failed(path, &error.to_string()))?;
    let (mut mapped, mut is_pmem) = (0, 0);
    // SAFETY: the path is a C string and the results go to variables of this frame. A new mapping touches nothing in use.
    let address = unsafe { pmem_map_file(name.as_ptr(), bytes, flags, 0o600, &mut mapped, &mut is_pmem) };
    let Some(address) = NonNull::new(address.cast::<u8>()) else {
        return Err(failed(path, &pmem::errormsg().unwrap_or_else(|| "libpmem refused".to_owned())));
    };
    let unmap = || {
        // SAFETY: the mapping was made above and nothing refers to it.
        unsafe { pmem_unmap(address.as_ptr().cast(), mapped) };
    };
    let locked = std::fs::File::open(path)
        .map_err(|error| error.to_string())
        .and_then(|file| lock(&file).map(|()| file));
    let lock = match locked {
        Ok(lock) => lock,
        Err(reason) => {
            unmap();
            return Err(failed(path, &reason));
        }
    };
    if is_pmem == 0 || !(mapped as u64).is_multiple_of(PAGE_BYTES) {
        unmap();
        return Err(failed(
            path,
            "it is not on persistent memory (for tests, PMEM_IS_PMEM_FORCE=1 pretends)",
        ));
    }
    let mapping = Mapping { address, length: mapped, _lock: lock };
    // SAFETY: `mapped` bytes from `address` are mapped from a page boundary, initialised by the file, until `mapping` is
    // dropped; the lock keeps other users of this library out, and nothing in this process refers to the range.
    let arena = unsafe { Arena::adopt(address, mapped as u64, Box::new(mapping)) };
    Ok((arena, LibPmem))
}

fn failed(path: &Path, reason: &str) -> StoreError {
    MediaError::Failed(format!("{}: {reason}", path.display())).into()
}

/// Makes stores durable with the processor's instructions, as libpmem chooses them.
pub(crate) struct LibPmem;

impl Persistence for LibPmem {
    fn flush(&mut self, arena: &[u8], offset: u64, length: u64) {
        // The arena is in whole pages and begins on one, so lines of the arena are lines of the processor.
        let first = offset / LINE_BYTES;
        let end = (offset + length).div_ceil(LINE_BYTES);
        let (lines, _) = arena.as_chunks::<{ LINE_BYTES as usize }>();
        for line in &lines[first as usize..end as usize] {
            pmem::flush(line);
        }
    }

    fn fence(&mut self, _: &[u8]) {
        pmem::drain();
    }
}
