//! Loads libfabric when it is first wanted, not when the program starts.
//!
//! Debian's libfabric pulls in the libraries of two Intel fabrics. Each of them measures a clock for 100 ms when it is
//! loaded, pins the thread meanwhile, and replaces handlers of signals, whether or not the machine has such a fabric. A
//! program that talks to an engine of its own node over shared memory needs none of this, and starts 200 ms sooner without.
//!
//! # Invariants
//!
//! * Symbols are taken by the versions that belong to the headers' structures ([`VERSIONS`]), as a linker would bind them;
//!   `build.rs` refuses headers that these versions do not fit.
//! * The library stays loaded until the process ends: function pointers into it stay valid.
//! * Loading leaves the process's signal handlers as they were.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt, mem, ptr,
    sync::OnceLock,
};

use crate::bindings::{fi_fabric_attr, fi_info, fid_fabric};

const LIBRARY: &CStr = c"libfabric.so.1";

/// The versions of the symbols that belong to the structures in the headers of libfabric 1.14 to 1.17.
const VERSIONS: [&CStr; 3] = [c"FABRIC_1.0", c"FABRIC_1.1", c"FABRIC_1.3"];

/// Signals whose handlers libraries that come along are known to replace.
const SIGNALS: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGABRT, libc::SIGINT, libc::SIGTERM];

type GetInfo =
    unsafe extern "C" fn(u32, *const c_char, *const c_char, u64, *const fi_info, *mut *mut fi_info) -> c_int;

/// What is called of the library itself; the rest goes through tables that it hands out.
struct Library {
    version: unsafe extern "C" fn() -> u32,
    strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    getinfo: GetInfo,
    freeinfo: unsafe extern "C" fn(*mut fi_info),
    dupinfo: unsafe extern "C" fn(*const fi_info) -> *mut fi_info,
    fabric: unsafe extern "C" fn(*mut fi_fabric_attr, *mut *mut fid_fabric, *mut c_void) -> c_int,
}

/// Why libfabric cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError(String);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libfabric cannot be loaded: {} (Debian: apt-get install libfabric1)", self.0)
    }
}

impl std::error::Error for LoadError {}

static LOADED: OnceLock<Result<Library, LoadError>> = OnceLock::new();

/// Loads libfabric if that has not happened yet. Takes 200 ms where Intel's libraries come along. Every other function of this
/// crate needs it; one that is called before loads by itself, and panics if that fails.
pub fn load() -> Result<(), LoadError> {
    LOADED.get_or_init(open).as_ref().map(drop).map_err(LoadError::clone)
}

fn library() -> &'static Library {
    match LOADED.get_or_init(open) {
        Ok(library) => library,
        Err(error) => panic!("{error}"),
    }
}

fn open() -> Result<Library, LoadError> {
    let handlers = SIGNALS.map(|signal| {
        // SAFETY: zeros are a valid `sigaction`, and the call only fills it in.
        unsafe {
            let mut handler: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut handler);
            handler
        }
    });
    // SAFETY: the name ends with a zero byte. The initialisers of the library and of what it needs run now, as they would have
    // at the start of a program that is linked with it.
    let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    for (signal, handler) in SIGNALS.iter().zip(&handlers) {
        // SAFETY: sets what was there before.
        unsafe { libc::sigaction(*signal, handler, ptr::null_mut()) };
    }
    if handle.is_null() {
        return Err(last_error());
    }
    let [v1_0, v1_1, v1_3] = VERSIONS;
    let symbol = |name: &CStr, version: &CStr| {
        // SAFETY: the handle is open, and the strings end with a zero byte.
        let address = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
        if address.is_null() { Err(last_error()) } else { Ok(address) }
    };
    // SAFETY: each symbol, by its version, has the type that the headers declare, which `Library` repeats (bindgen's
    // structures are the same ones).
    unsafe {
        Ok(Library {
            version: mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(symbol(
                c"fi_version",
                v1_0,
            )?),
            strerror: mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> *const c_char>(symbol(
                c"fi_strerror",
                v1_0,
            )?),
            getinfo: mem::transmute::<*mut c_void, GetInfo>(symbol(c"fi_getinfo", v1_3)?),
            freeinfo: mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut fi_info)>(symbol(
                c"fi_freeinfo",
                v1_3,
            )?),
            dupinfo: mem::transmute::<*mut c_void, unsafe extern "C" fn(*const fi_info) -> *mut fi_info>(
                symbol(c"fi_dupinfo", v1_3)?,
            ),
            fabric: mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut fi_fabric_attr, *mut *mut fid_fabric, *mut c_void) -> c_int,
            >(symbol(c"fi_fabric", v1_1)?),
        })
    }
}

fn last_error() -> LoadError {
    // SAFETY: the answer is null or a text that stays until the next call of this thread.
    let text = unsafe {
        let text = libc::dlerror();
        if text.is_null() { c"no reason given" } else { CStr::from_ptr(text) }
    };
    LoadError(text.to_string_lossy().into_owned())
}

/// See `fi_version(3)`.
///
/// # Safety
/// As the manual page says.
pub unsafe fn fi_version() -> u32 {
    // SAFETY: as the caller promised.
    unsafe { (library().version)() }
}

/// See `fi_strerror(3)`.
///
/// # Safety
/// As the manual page says.
pub unsafe fn fi_strerror(code: c_int) -> *const c_char {
    // SAFETY: as the caller promised.
    unsafe { (library().strerror)(code) }
}

/// See `fi_getinfo(3)`.
///
/// # Safety
/// As the manual page says.
pub unsafe fn fi_getinfo(
    version: u32,
    node: *const c_char,
    service: *const c_char,
    flags: u64,
    hints: *const fi_info,
    info: *mut *mut fi_info,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { (library().getinfo)(version, node, service, flags, hints, info) }
}

/// See `fi_freeinfo(3)`.
///
/// # Safety
/// As the manual page says.
pub unsafe fn fi_freeinfo(info: *mut fi_info) {
    // SAFETY: as the caller promised.
    unsafe { (library().freeinfo)(info) }
}

/// See `fi_dupinfo(3)`. A symbol of its own name, because libfabric's inline `fi_allocinfo` calls it.
///
/// # Safety
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fi_dupinfo(info: *const fi_info) -> *mut fi_info {
    // SAFETY: as the caller promised.
    unsafe { (library().dupinfo)(info) }
}

/// See `fi_fabric(3)`.
///
/// # Safety
/// As the manual page says.
pub unsafe fn fi_fabric(
    attributes: *mut fi_fabric_attr,
    fabric: *mut *mut fid_fabric,
    context: *mut c_void,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { (library().fabric)(attributes, fabric, context) }
}
