//! Persistent heap: arena, allocator, transactions and their media
