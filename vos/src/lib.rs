//! Versioning object store of one target

#![forbid(unsafe_code)]
