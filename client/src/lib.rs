//! Client API of DAOS: pools, containers, objects and files

#![forbid(unsafe_code)]
