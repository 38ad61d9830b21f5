//! What the tests of the name space share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    cell::Cell,
    collections::BTreeMap,
    future::Future,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use daos_dsp::{Attributes, FileType, FormatOptions, Fs, Options};
use daos_dsr::{
    client::{Anchor, Epochs},
    memory::MemoryTargets,
    placement::hash::mix,
};
use daos_types::Epoch;

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("a future that never ends");
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = mix(self.0.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.0 % bound
    }
}

pub fn options(random: u64) -> Options {
    let time = Rc::new(Cell::new(1_000_000));
    let now = move || {
        time.set(time.get() + 1);
        time.get()
    };
    Options {
        now: Rc::new(now),
        random,
        directory_times: true,
        read_at: None,
        epochs: Epochs::new(Epoch::MAX),
    }
}

pub fn attributes() -> Attributes {
    Attributes::new(0o644, 1, 2)
}

pub fn new_fs(targets: u32, seed: u64) -> (MemoryTargets, Fs<MemoryTargets>) {
    let pool = MemoryTargets::new(targets, seed);
    let options = options(seed);
    block_on(Fs::format(&pool, FormatOptions::default(), Attributes::new(0o755, 0, 0), &options))
        .expect("format");
    let fs = block_on(Fs::mount(&pool, options)).expect("mount");
    (pool, fs)
}

/// What a path holds: type, permissions, and bytes of a file or a link.
pub type Tree = BTreeMap<Vec<u8>, (FileType, u32, Vec<u8>)>;

pub fn dump(fs: &Fs<MemoryTargets>) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let mut anchor = Some(Anchor::default());
        while let Some(from) = anchor {
            let page = block_on(fs.list([&b"/"[..], &path].concat(), &from, 16)).expect("list");
            for entry in page.items {
                let below = [&path[..], b"/", &entry.name].concat();
                let bytes = match entry.inode.file_type {
                    FileType::File => block_on(fs.read_file(&below)).expect("read"),
                    FileType::Symlink => block_on(fs.readlink(&below)).expect("readlink"),
                    FileType::Directory => {
                        pending.push(below.clone());
                        Vec::new()
                    }
                };
                tree.insert(below, (entry.inode.file_type, entry.inode.permissions, bytes));
            }
            anchor = page.next;
        }
    }
    tree
}
