//! Same-node fabric: shared-memory rings between a client and an engine
