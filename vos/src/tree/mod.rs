//! The B+tree: one implementation for every index of the store.
//!
//! A tree maps keys to **records**: blocks of the arena that hold their own key, so that a tree never copies a key of any
//! length. What it keeps of a key is a 128-bit **prefix**; a [`KeyClass`] says what that is and how records with equal
//! prefixes order (by their **tail**):
//!
//! | class | prefix | tail |
//! |---|---|---|
//! | hashed bytes | 128-bit hash | all bytes (hashes may collide) |
//! | lexical bytes | first 16 bytes, big-endian | all bytes |
//! | integer, epoch, place of an extent, ... | the number | none |
//!
//! # Invariants
//!
//! * Keys of a tree are distinct, and order by (prefix, tail).
//! * A **root** is one word in the structure that owns the tree: nothing, one record (a tree of one record costs no
//!   node), or a node. A root that is a node holds two records at least.
//! * All leaves have the same depth. A node's `level` is its height above the leaves.
//! * The keys below child *i* of an inner node are ≥ its separator *i* and < its separator *i + 1*; separator 0 is not
//!   looked at.
//! * A leaf is not sorted: a bitmap says which slots are in use, one byte of each key's **fingerprint** which may match.
//!   An insertion writes one slot, one byte and one word, whatever the number of keys (a sorted leaf would have to log
//!   half of itself), and a search reads the header and fingerprints (one cache line at full size), one slot, and the record.
//! * A leaf has one of a few sizes and grows from one to the next; the smallest are for roots.
//! * All nodes of a tree are narrow (see [`node`]), or none is.
//! * A separator that needs more than a prefix owns a block with its bytes.
//! * For classes with summaries, the summary of each child covers all records below it.
//!
//! # Cost
//!
//! 10^6 hashed keys make 33,000 leaves of 640 or 896 bytes (21 bytes of each key), 1,000 inner nodes above them (1.3 MB), 30
//! above these: the inner nodes stay in the second-level cache. A search in a large tree asks for all lines of the leaf at
//! once, then for those of the record: it waits for memory twice. (Waiting for the leaf's header first, to ask for one slot only,
//! was a sixth slower.) Capacities were measured: 32, 48 and 64 slots differ by less than noise in searches; 48 keeps header and
//! fingerprints in one line. Half a leaf after a split gets a smaller block, so that a leaf's slots are 5/6 in use.
//!
//! Fingerprints in unsorted leaves are after Oukid and others, "FPTree: A Hybrid SCM-DRAM Persistent and Concurrent B-Tree
//! for Storage Class Memory" (SIGMOD 2016).

mod check;
mod insert;
pub(crate) mod node;
mod remove;
mod scan;

use std::cmp::Ordering;

use daos_umem::Heap;

use crate::{Error, memory};
use node::Node;

pub(crate) use check::check;
pub(crate) use insert::{insert, insert_at};
pub(crate) use remove::remove;
pub(crate) use scan::{Bound, floor, scan, scan_back, summary};

/// Cache lines of a leaf that a search in a class with tails asks for.
const LEAF_LINES: u64 = 13;

/// Levels above the leaves that a tree may have. On average 24 splits of one level make one of the level above, so that more levels
/// would need 24^16 insertions. (Earlier builds left nodes of two children anywhere, not only at the end of a level; what they wrote stays far below, too.)
const DEPTH_MAX: usize = 16;

/// A key as the tree sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe<'k> {
    pub prefix: u128,
    /// A byte that spreads over the keys of a leaf. Depends on the key alone.
    pub fingerprint: u8,
    /// The bytes that order keys of equal prefix, and tell all keys of the tree apart; empty for classes without tails.
    pub tail: &'k [u8],
}

impl Probe<'static> {
    /// The probe of a class without tails.
    #[inline]
    pub fn number(prefix: u128) -> Self {
        let mixed = ((prefix >> 64) as u64 ^ prefix as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Probe { prefix, fingerprint: (mixed >> 56) as u8, tail: &[] }
    }
}

impl Probe<'_> {
    pub fn compare(&self, other: &Probe<'_>) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| self.tail.cmp(other.tail))
    }
}

/// What a tree may know about all records below a node, so that a search can pass it by. For extents: the least start,
/// the greatest end, the greatest epoch.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C)]
pub(crate) struct Summary {
    pub start: u64,
    pub end: u64,
    pub epoch: u64,
}

impl Summary {
    pub const EMPTY: Self = Self { start: u64::MAX, end: 0, epoch: 0 };

    pub fn merge(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
            epoch: self.epoch.max(other.epoch),
        }
    }
}

/// What the keys of a tree are. `record` is the arena offset of a record.
pub(crate) trait KeyClass: Copy {
    /// Whether a tail is the whole key, so that the prefix need not be compared.
    const TAIL_IS_KEY: bool = false;
    /// Whether keys of equal prefix may differ.
    const TAILS: bool;
    /// Whether inner nodes keep summaries of their children.
    const SUMMARIES: bool = false;

    /// Whether new trees keep only the high half of prefixes, which are hashes; see [`node`].
    fn narrow(self) -> bool {
        false
    }

    /// The key of a record.
    fn probe(self, heap: &Heap, record: u64) -> Result<Probe<'_>, Error>;

    /// The tail of a record's key; cheaper than [`probe`](Self::probe).
    fn tail(self, heap: &Heap, record: u64) -> Result<&[u8], Error>;

    /// The summary of one record.
    fn summary(self, _heap: &Heap, _record: u64) -> Result<Summary, Error> {
        Ok(Summary::EMPTY)
    }
}

/// A root word, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Empty,
    Record(u64),
    Node(u64),
}

impl Root {
    pub fn decode(word: u64) -> Result<Self, Error> {
        match (word & 7, word & !7) {
            (0, 0) => Ok(Root::Empty),
            (1, record) => Ok(Root::Record(record)),
            (2, node) => Ok(Root::Node(node)),
            _ => Err(Error::Corrupt { place: "root of a tree", position: word }),
        }
    }

    pub fn encode(self) -> u64 {
        match self {
            Root::Empty => 0,
            Root::Record(record) => record | 1,
            Root::Node(node) => node | 2,
        }
    }
}

/// Whether a record has the key of `probe`, its prefix being equal or unknown.
#[inline(always)]
fn is_key<C: KeyClass>(heap: &Heap, class: C, record: u64, probe: &Probe<'_>) -> Result<bool, Error> {
    let same_tail = !C::TAILS || class.tail(heap, record)? == probe.tail;
    Ok(same_tail && (C::TAIL_IS_KEY || class.probe(heap, record)?.prefix == probe.prefix))
}

/// The record with the key of `probe` in the tree whose root word is `root`.
#[inline]
pub(crate) fn get<C: KeyClass>(
    heap: &Heap,
    class: C,
    root: u64,
    probe: &Probe<'_>,
) -> Result<Option<u64>, Error> {
    match Root::decode(root)? {
        Root::Empty => Ok(None),
        Root::Record(record) => Ok(is_key(heap, class, record, probe)?.then_some(record)),
        Root::Node(node) => {
            let leaf = descend::<C>(heap, node, probe)?;
            Ok(find_in_leaf(heap, class, &leaf, probe)?.map(|(_, record)| record))
        }
    }
}

/// The record with the key of `probe` in the tree whose root word is `root`, at the end of the way to it.
#[inline]
pub(crate) fn get_at<C: KeyClass>(
    heap: &Heap,
    class: C,
    root: u64,
    path: &Path,
    probe: &Probe<'_>,
) -> Result<Option<u64>, Error> {
    match Root::decode(root)? {
        Root::Empty => Ok(None),
        Root::Record(record) => Ok(is_key(heap, class, record, probe)?.then_some(record)),
        Root::Node(_) => {
            let leaf = path.leaf(heap)?;
            let found = find_in_leaf(heap, class, &leaf, probe)?;
            if found.is_none() {
                // Whoever goes to the end of a way does so to insert what is not there.
                leaf.prefetch_free_slot();
            }
            Ok(found.map(|(_, record)| record))
        }
    }
}

/// The leaf in which the key of `probe` is, if it is anywhere below `node`.
#[inline]
pub(crate) fn descend<'h, C: KeyClass>(
    heap: &'h Heap,
    node: u64,
    probe: &Probe<'_>,
) -> Result<Node<'h>, Error> {
    let mut node = Node::read(heap, node)?;
    while node.level() > 0 {
        let child = node.children()?[node.child_index::<C>(probe)?];
        prefetch_child::<C>(heap, &node, child);
        node = node.child(child)?;
    }
    Ok(node)
}

/// Asks for `child` of `node` if it is a leaf. With tails all of it: which slot it will be is known only once the fingerprints are
/// here, and a search waits for both at once.
#[inline]
fn prefetch_child<C: KeyClass>(heap: &Heap, node: &Node<'_>, child: u64) {
    if node.level() == 1 {
        memory::prefetch(heap, child, if C::TAILS { LEAF_LINES } else { 2 });
    }
}

/// Slot and record of the key of `probe` in a leaf.
#[inline]
fn find_in_leaf<C: KeyClass>(
    heap: &Heap,
    class: C,
    leaf: &Node<'_>,
    probe: &Probe<'_>,
) -> Result<Option<(usize, u64)>, Error> {
    let mut candidates = leaf.candidates(probe.fingerprint)?;
    let (slots, wanted) = (leaf.slots()?, leaf.kept(probe.prefix));
    while candidates != 0 {
        let index = candidates.trailing_zeros() as usize;
        let (prefix, record) = slots.get(index);
        if C::TAILS {
            // The record's key is about to be compared, and what follows it read: wait for all of it at once.
            memory::prefetch(heap, record, 3);
        }
        if prefix == wanted && (!C::TAILS || class.tail(heap, record)? == probe.tail) {
            return Ok(Some((index, record)));
        }
        candidates &= candidates - 1;
    }
    Ok(None)
}

/// First step of a batch of searches: asks for the leaf's cache line and returns the leaf (0: the root holds no node).
pub(crate) fn prefetch_leaf<C: KeyClass>(heap: &Heap, root: u64, probe: &Probe<'_>) -> Result<u64, Error> {
    let Root::Node(node) = Root::decode(root)? else { return Ok(0) };
    let mut node = Node::read(heap, node)?;
    while node.level() > 0 {
        let child = node.children()?[node.child_index::<C>(probe)?];
        if node.level() == 1 {
            memory::prefetch(heap, child, 1);
            return Ok(child);
        }
        node = node.child(child)?;
    }
    Ok(node.offset)
}

/// Second step: asks for the cache line of the first slot that may match; returns its index (`None`: no slot may).
pub(crate) fn prefetch_slot(heap: &Heap, leaf: u64, probe: &Probe<'_>) -> Result<Option<u32>, Error> {
    let leaf = Node::read(heap, leaf)?;
    if leaf.level() != 0 {
        return Err(Error::Corrupt { place: "tree node", position: leaf.offset });
    }
    let candidates = leaf.candidates(probe.fingerprint)?;
    if candidates == 0 {
        return Ok(None);
    }
    let index = candidates.trailing_zeros();
    memory::prefetch(heap, leaf.slot_offset(index as usize), 1);
    Ok(Some(index))
}

/// Last step: asks for `lines` cache lines of that slot's record, and gives it. Its key need not be the one that is looked for.
pub(crate) fn prefetch_record(heap: &Heap, leaf: u64, index: u32, lines: u64) -> Result<u64, Error> {
    let (_, record) = Node::read(heap, leaf)?.slots()?.get(index as usize);
    memory::prefetch(heap, record, lines);
    Ok(record)
}

/// The way from the root to the leaf where a key is or would go. Good until the tree changes.
pub(crate) struct Path {
    steps: [Step; DEPTH_MAX],
    depth: usize,
    /// 0 in a tree without nodes.
    leaf: u64,
    /// Whether the tree's nodes are.
    narrow: bool,
}

/// An inner node, and which of its children was taken, in one word: every change clears a few paths.
#[derive(Clone, Copy)]
struct Step(u64);

impl Step {
    #[inline]
    fn node(self) -> u64 {
        self.0 >> 8
    }

    #[inline]
    fn index(self) -> usize {
        (self.0 & 0xff) as usize
    }
}

impl Path {
    #[inline]
    pub fn new() -> Self {
        Self { steps: [Step(0); DEPTH_MAX], depth: 0, leaf: 0, narrow: false }
    }

    /// Makes this, which is new, the way to where the key of `probe` is or would go in the tree whose root word is `root`. The leaf is
    /// asked for but not waited for, so that a caller may do something else before [`get_at`] and [`insert_at`].
    #[inline]
    pub fn lead_to<C: KeyClass>(&mut self, heap: &Heap, root: u64, probe: &Probe<'_>) -> Result<(), Error> {
        let Root::Node(node) = Root::decode(root)? else { return Ok(()) };
        self.leaf = node;
        let mut node = Node::read(heap, node)?;
        self.narrow = node.is_narrow();
        while node.level() > 0 {
            let index = node.child_index::<C>(probe)?;
            self.push(node.offset, index)?;
            self.leaf = node.children()?[index];
            if C::SUMMARIES {
                // An insertion looks whether it must be widened.
                memory::prefetch(heap, node.summary_offset::<C>(index), 1);
            }
            prefetch_child::<C>(heap, &node, self.leaf);
            if node.level() == 1 {
                break;
            }
            node = node.child(self.leaf)?;
        }
        Ok(())
    }

    fn push(&mut self, node: u64, index: usize) -> Result<(), Error> {
        let corrupt = Error::Corrupt { place: "tree", position: node };
        *self.steps.get_mut(self.depth).ok_or(corrupt)? = Step(node << 8 | index as u64);
        self.depth += 1;
        Ok(())
    }

    fn steps(&self) -> &[Step] {
        &self.steps[..self.depth]
    }

    #[inline]
    fn leaf<'h>(&self, heap: &'h Heap) -> Result<Node<'h>, Error> {
        let leaf = Node::read(heap, self.leaf)?;
        if leaf.level() != 0 || leaf.is_narrow() != self.narrow {
            return Err(Error::Corrupt { place: "tree node", position: self.leaf });
        }
        Ok(leaf)
    }
}

#[cfg(test)]
mod tests;
