//! Bindings to the system's libfabric, generated from its headers at build time; the library itself is loaded when it is
//! first wanted ([`load()`]).
//!
//! # Invariants
//!
//! * Nothing is written by hand except constants that are casts in C, which bindgen cannot evaluate, and the six functions
//!   that are symbols of the library.
//! * Functions that libfabric defines inline go through C wrappers compiled with the same headers, so an operation table
//!   whose layout changes between versions is never read by Rust.
//!
//! Every function is as unsafe as its manual page (`man 7 fabric`, `man 3 fi_endpoint`, …) says.

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

mod load;

pub use bindings::*;
pub use load::*;

/// "No address": receives from anybody, and the source of a message from a sender that is not in the address vector.
pub const FI_ADDR_UNSPEC: fi_addr_t = fi_addr_t::MAX;

/// The version of the headers that these bindings were generated from, as [`fi_version`] would say it.
pub const HEADER_VERSION: u32 = (FI_MAJOR_VERSION << 16) | FI_MINOR_VERSION;
