//! Bindings to the system's libfabric, generated from its headers
