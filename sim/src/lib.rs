//! Cluster simulator: whole engines and clients in one process

#![forbid(unsafe_code)]
