//! The real world: glommio executors, the ring mesh between cores, io_uring media
