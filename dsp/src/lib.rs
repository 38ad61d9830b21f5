//! POSIX namespace in a container

#![forbid(unsafe_code)]
