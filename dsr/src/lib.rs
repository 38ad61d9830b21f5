//! Sharding and resilience: objects over many targets

#![forbid(unsafe_code)]
