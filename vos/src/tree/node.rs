//! Nodes as they lie in the arena.
//!
//! ```text
//!  leaf    header 16 | fingerprints: capacity, padded to 8 | slots: capacity × 24 (prefix high, prefix low, record)
//!  inner   header 16 | separators: capacity × 16 | children: capacity × 8 | tails: capacity × 8 (classes with tails)
//!                    | summaries: capacity × 24 (classes with summaries)
//!  header  kind u8 | level u8 | capacity u8 | 0 u8 | 0 u32 | in use u64 (leaf: bitmap of slots; inner: children)
//!  tail    length u32 | 0 u32 | bytes
//! ```
//!
//! Nodes of **narrow** trees (kinds 3 and 4) leave out the low half of prefixes: slots of 16 bytes, separators of 8. For
//! hashes 64 bits are enough, since tails tell apart what collides; they take a third less memory, and fewer cache lines in
//! a search. In memory such a prefix has zeros for its low half. All nodes of one tree are narrow, or none is.

use daos_umem::{Heap, Transaction};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{KeyClass, Probe, Summary};
use crate::{Error, memory};

const LEAF: u8 = 1;
const INNER: u8 = 2;
const NARROW_LEAF: u8 = 3;
const NARROW_INNER: u8 = 4;
/// Sizes of leaves: such that they leave little of the allocator's blocks unused. The first two are for roots only.
const LEAF_CAPACITIES: [usize; 5] = [4, 12, 32, 40, LEAF_CAPACITY];
const NARROW_LEAF_CAPACITIES: [usize; 4] = [4, 12, 36, LEAF_CAPACITY];
pub(crate) const LEAF_CAPACITY: usize = 48;
pub(crate) const INNER_CAPACITY: usize = 48;
const HEADER_BYTES: u64 = size_of::<Header>() as u64;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    kind: u8,
    level: u8,
    capacity: u8,
    reserved: [u8; 5],
    used: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Prefix {
    high: u64,
    low: u64,
}

impl Prefix {
    #[inline]
    pub fn new(prefix: u128) -> Self {
        Self { high: (prefix >> 64) as u64, low: prefix as u64 }
    }

    #[inline]
    pub fn get(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct WideSlot {
    prefix: Prefix,
    record: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct NarrowSlot {
    high: u64,
    record: u64,
}

/// The slots of a leaf.
#[derive(Clone, Copy)]
pub(crate) enum Slots<'h> {
    Wide(&'h [WideSlot]),
    Narrow(&'h [NarrowSlot]),
}

impl Slots<'_> {
    /// Prefix and record in slot `index`.
    #[inline]
    pub fn get(&self, index: usize) -> (u128, u64) {
        match self {
            Slots::Wide(slots) => (slots[index].prefix.get(), slots[index].record),
            Slots::Narrow(slots) => (u128::from(slots[index].high) << 64, slots[index].record),
        }
    }
}

/// The separators of an inner node.
#[derive(Clone, Copy)]
pub(crate) enum Separators<'h> {
    Wide(&'h [Prefix]),
    Narrow(&'h [u64]),
}

impl Separators<'_> {
    #[inline]
    pub fn get(&self, index: usize) -> u128 {
        match self {
            Separators::Wide(separators) => separators[index].get(),
            Separators::Narrow(separators) => u128::from(separators[index]) << 64,
        }
    }
}

/// The sizes that leaves may have.
fn capacities(narrow: bool) -> &'static [usize] {
    if narrow { &NARROW_LEAF_CAPACITIES } else { &LEAF_CAPACITIES }
}

/// Whether leaves have this capacity: asked whenever a node is read, so by a bitmap.
#[inline]
fn is_capacity(narrow: bool, capacity: usize) -> bool {
    const WIDE: u64 = bitmap(&LEAF_CAPACITIES);
    const NARROW: u64 = bitmap(&NARROW_LEAF_CAPACITIES);
    capacity < 64 && (if narrow { NARROW } else { WIDE }) >> capacity & 1 != 0
}

const fn bitmap(numbers: &[usize]) -> u64 {
    let (mut bits, mut index) = (0, 0);
    while index < numbers.len() {
        bits |= 1 << numbers[index];
        index += 1;
    }
    bits
}

/// The smallest leaf that holds `count` records, as the root or below an inner node.
pub(crate) fn capacity_for(narrow: bool, count: usize, is_root: bool) -> usize {
    let sizes = &capacities(narrow)[if is_root { 0 } else { 2 }..];
    sizes.iter().copied().find(|&capacity| capacity >= count).unwrap_or(LEAF_CAPACITY)
}

/// A prefix as a tree keeps it.
#[inline]
pub(crate) fn kept(narrow: bool, prefix: u128) -> u128 {
    if narrow { prefix >> 64 << 64 } else { prefix }
}

/// How many nodes this thread has looked at: what a test of costs counts.
#[cfg(test)]
pub(crate) mod visits {
    use std::cell::Cell;

    thread_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    pub fn add() {
        COUNT.set(COUNT.get() + 1);
    }

    pub fn count() -> u64 {
        COUNT.get()
    }
}

/// A node, its header read and checked.
#[derive(Clone, Copy)]
pub(crate) struct Node<'h> {
    heap: &'h Heap,
    pub offset: u64,
    header: Header,
}

impl<'h> Node<'h> {
    #[inline]
    pub fn read(heap: &'h Heap, offset: u64) -> Result<Self, Error> {
        #[cfg(test)]
        visits::add();
        let header: Header = *memory::read(heap, offset)?;
        let capacity = usize::from(header.capacity);
        let sound = match header.kind {
            LEAF | NARROW_LEAF => {
                header.level == 0
                    && is_capacity(header.kind == NARROW_LEAF, capacity)
                    && header.used >> (capacity - 1) >> 1 == 0
            }
            INNER | NARROW_INNER => {
                header.level > 0
                    && capacity == INNER_CAPACITY
                    && header.used >= 1
                    && header.used <= INNER_CAPACITY as u64
            }
            _ => false,
        };
        if !sound {
            return Err(Error::Corrupt { place: "tree node", position: offset });
        }
        Ok(Self { heap, offset, header })
    }

    /// Reads a child, which must be one level lower and of the same width.
    #[inline]
    pub fn child(&self, offset: u64) -> Result<Self, Error> {
        let child = Self::read(self.heap, offset)?;
        if child.header.level.checked_add(1) != Some(self.header.level)
            || child.is_narrow() != self.is_narrow()
        {
            return Err(Error::Corrupt { place: "tree node", position: offset });
        }
        Ok(child)
    }

    /// Whether the low half of prefixes is left out.
    #[inline]
    pub fn is_narrow(&self) -> bool {
        self.header.kind >= NARROW_LEAF
    }

    /// A prefix as this node keeps it.
    #[inline]
    pub fn kept(&self, prefix: u128) -> u128 {
        kept(self.is_narrow(), prefix)
    }

    /// Height above the leaves.
    #[inline]
    pub fn level(&self) -> u8 {
        self.header.level
    }

    pub fn capacity(&self) -> usize {
        usize::from(self.header.capacity)
    }

    /// Records of a leaf, children of an inner node.
    pub fn count(&self) -> usize {
        if self.header.level == 0 {
            self.header.used.count_ones() as usize
        } else {
            self.header.used as usize
        }
    }

    /// A leaf's bitmap of slots in use.
    #[inline]
    pub fn used(&self) -> u64 {
        self.header.used
    }

    #[inline]
    fn slots_start(&self) -> u64 {
        self.offset + HEADER_BYTES + u64::from(self.header.capacity).next_multiple_of(8)
    }

    #[inline]
    pub fn slot_offset(&self, index: usize) -> u64 {
        self.slots_start() + index as u64 * slot_bytes(self.is_narrow())
    }

    #[inline]
    pub fn slots(&self) -> Result<Slots<'h>, Error> {
        let (start, count) = (self.slots_start(), u64::from(self.header.capacity));
        Ok(if self.is_narrow() {
            Slots::Narrow(memory::read_slice(self.heap, start, count)?)
        } else {
            Slots::Wide(memory::read_slice(self.heap, start, count)?)
        })
    }

    pub fn fingerprints(&self) -> Result<&'h [u8], Error> {
        memory::read_slice(self.heap, self.offset + HEADER_BYTES, u64::from(self.header.capacity))
    }

    /// Asks for the cache line of the slot that an insertion into this leaf would fill, if one is free.
    #[inline]
    pub fn prefetch_free_slot(&self) {
        let free = self.header.used.trailing_ones() as usize;
        if free < self.capacity() {
            memory::prefetch(self.heap, self.slot_offset(free), 1);
        }
    }

    /// Bitmap of the slots in use whose fingerprint is `fingerprint`.
    #[inline]
    pub fn candidates(&self, fingerprint: u8) -> Result<u64, Error> {
        const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        let words = u64::from(self.header.capacity).div_ceil(8);
        let words: &[u64] = memory::read_slice(self.heap, self.offset + HEADER_BYTES, words)?;
        let wanted = u64::from(fingerprint) * 0x0101_0101_0101_0101;
        let mut found = 0;
        for (index, word) in words.iter().enumerate() {
            // The high bit of each byte that is equal (exact: no carry crosses a byte), gathered by a multiplication.
            let difference = word ^ wanted;
            let equal = !(((difference & LOW) + LOW) | difference | LOW);
            found |= ((equal >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (index * 8);
        }
        Ok(found & self.header.used)
    }

    #[inline(always)]
    pub fn separators(&self) -> Result<Separators<'h>, Error> {
        let start = self.offset + HEADER_BYTES;
        Ok(if self.is_narrow() {
            Separators::Narrow(memory::read_slice(self.heap, start, self.header.used)?)
        } else {
            Separators::Wide(memory::read_slice(self.heap, start, self.header.used)?)
        })
    }

    #[inline]
    fn children_start(&self) -> u64 {
        self.offset + HEADER_BYTES + INNER_CAPACITY as u64 * separator_bytes(self.is_narrow())
    }

    /// Where the word that refers to child `index` lies.
    pub fn child_offset(&self, index: usize) -> u64 {
        self.children_start() + index as u64 * 8
    }

    #[inline]
    pub fn children(&self) -> Result<&'h [u64], Error> {
        memory::read_slice(self.heap, self.children_start(), self.header.used)
    }

    pub fn tails<C: KeyClass>(&self) -> Result<&'h [u64], Error> {
        if !C::TAILS {
            return Ok(&[]);
        }
        memory::read_slice(self.heap, self.children_start() + (INNER_CAPACITY * 8) as u64, self.header.used)
    }

    fn summaries_start<C: KeyClass>(&self) -> u64 {
        self.children_start() + (INNER_CAPACITY * if C::TAILS { 16 } else { 8 }) as u64
    }

    pub fn summaries<C: KeyClass>(&self) -> Result<&'h [Summary], Error> {
        if !C::SUMMARIES {
            return Ok(&[]);
        }
        memory::read_slice(self.heap, self.summaries_start::<C>(), self.header.used)
    }

    pub fn summary_offset<C: KeyClass>(&self, index: usize) -> u64 {
        self.summaries_start::<C>() + (index * size_of::<Summary>()) as u64
    }

    /// Which child of an inner node leads to the key of `probe`.
    #[inline(always)]
    pub fn child_index<C: KeyClass>(&self, probe: &Probe<'_>) -> Result<usize, Error> {
        let separators = self.separators()?;
        let index = match separators {
            Separators::Wide(all) => count_not_above(&all[1..], |separator| separator.get() <= probe.prefix),
            Separators::Narrow(all) => {
                let wanted = (probe.prefix >> 64) as u64;
                count_not_above(&all[1..], |&separator| separator <= wanted)
            }
        };
        if C::TAILS && index > 0 && separators.get(index) == self.kept(probe.prefix) {
            return self.child_index_by_tail::<C>(probe, index);
        }
        Ok(index)
    }

    /// As [`child_index`](Self::child_index), where `index` is what the prefixes say and the separator there has the prefix
    /// of `probe`: among separators of the same prefix the tail decides.
    fn child_index_by_tail<C: KeyClass>(&self, probe: &Probe<'_>, index: usize) -> Result<usize, Error> {
        let (separators, tails) = (self.separators()?, self.tails::<C>()?);
        let prefix = self.kept(probe.prefix);
        // Keys with a long beginning in common make many of them, so they are halved, not walked.
        let (mut low, mut high) = (0, index);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let above = separators.get(middle) == prefix
                && tails[middle] != 0
                && read_tail(self.heap, tails[middle])? > probe.tail;
            if above {
                high = middle - 1;
            } else {
                low = middle;
            }
        }
        Ok(low)
    }

    /// Places of the words that an insertion into slot `index` of a leaf writes: fingerprint, bitmap.
    pub fn fingerprint_offset(&self, index: usize) -> u64 {
        self.offset + HEADER_BYTES + index as u64
    }

    pub fn used_offset(&self) -> u64 {
        self.offset + std::mem::offset_of!(Header, used) as u64
    }
}

/// How many of `sorted`, which are in ascending order, are not above what is wanted: first by eighths, then among eight. No branch
/// depends on what is compared, and no comparison waits for another.
#[inline(always)]
fn count_not_above<T>(sorted: &[T], is_not_above: impl Fn(&T) -> bool) -> usize {
    let (groups, rest) = sorted.as_chunks::<8>();
    let whole: usize = groups.iter().map(|group| usize::from(is_not_above(&group[7]))).sum();
    let among = groups.get(whole).map_or(rest, |group| &group[..]);
    whole * 8 + among.iter().map(|value| usize::from(is_not_above(value))).sum::<usize>()
}

#[inline]
const fn slot_bytes(narrow: bool) -> u64 {
    if narrow { size_of::<NarrowSlot>() as u64 } else { size_of::<WideSlot>() as u64 }
}

#[inline]
const fn separator_bytes(narrow: bool) -> u64 {
    if narrow { 8 } else { size_of::<Prefix>() as u64 }
}

/// Writes a slot of a leaf.
pub(crate) fn write_slot(
    tx: &mut Transaction<'_>,
    narrow: bool,
    place: u64,
    prefix: u128,
    record: u64,
) -> Result<(), Error> {
    let Prefix { high, low } = Prefix::new(prefix);
    if narrow {
        memory::write(tx, place, &NarrowSlot { high, record })
    } else {
        memory::write(tx, place, &WideSlot { prefix: Prefix { high, low }, record })
    }
}

/// The bytes of a separator's tail.
pub(crate) fn read_tail(heap: &Heap, tail: u64) -> Result<&[u8], Error> {
    let length: u32 = *memory::read(heap, tail)?;
    memory::read_slice(heap, tail + 8, u64::from(length))
}

/// Stores the bytes of a separator's tail.
pub(crate) fn write_tail(tx: &mut Transaction<'_>, bytes: &[u8]) -> Result<u64, Error> {
    let tail = memory::allocate(tx, 8 + bytes.len() as u64)?;
    memory::write(tx, tail, &(bytes.len() as u64))?;
    memory::write_slice(tx, tail + 8, bytes)?;
    Ok(tail)
}

/// A leaf's entry in memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    pub prefix: u128,
    pub fingerprint: u8,
    pub record: u64,
}

impl Entry {
    /// The entry of a record with the key of `probe` in a tree of that width.
    pub fn new(narrow: bool, probe: &Probe<'_>, record: u64) -> Self {
        Self { prefix: kept(narrow, probe.prefix), fingerprint: probe.fingerprint, record }
    }
}

/// Bytes of a leaf.
pub(crate) fn leaf_bytes(narrow: bool, capacity: usize) -> u64 {
    HEADER_BYTES + capacity.next_multiple_of(8) as u64 + capacity as u64 * slot_bytes(narrow)
}

/// Makes a leaf with these entries.
pub(crate) fn create_leaf(
    tx: &mut Transaction<'_>,
    narrow: bool,
    capacity: usize,
    entries: &[Entry],
) -> Result<u64, Error> {
    debug_assert!(entries.len() <= capacity && capacities(narrow).contains(&capacity));
    let leaf = memory::allocate(tx, leaf_bytes(narrow, capacity))?;
    // Everything before the slots in one piece, then the slots that are used.
    let mut head = [0u8; 16 + LEAF_CAPACITY];
    let used = if entries.is_empty() { 0 } else { u64::MAX >> (64 - entries.len()) };
    let kind = if narrow { NARROW_LEAF } else { LEAF };
    let header = Header { kind, level: 0, capacity: capacity as u8, reserved: [0; 5], used };
    head[..16].copy_from_slice(header.as_bytes());
    for (index, entry) in entries.iter().enumerate() {
        head[16 + index] = entry.fingerprint;
    }
    let head_bytes = 16 + capacity.next_multiple_of(8);
    memory::write_slice(tx, leaf, &head[..head_bytes])?;
    let place = leaf + head_bytes as u64;
    if narrow {
        let mut slots = [NarrowSlot::default(); LEAF_CAPACITY];
        for (slot, entry) in slots.iter_mut().zip(entries) {
            *slot = NarrowSlot { high: (entry.prefix >> 64) as u64, record: entry.record };
        }
        memory::write_slice(tx, place, &slots[..entries.len()])?;
    } else {
        let mut slots = [WideSlot::default(); LEAF_CAPACITY];
        for (slot, entry) in slots.iter_mut().zip(entries) {
            *slot = WideSlot { prefix: Prefix::new(entry.prefix), record: entry.record };
        }
        memory::write_slice(tx, place, &slots[..entries.len()])?;
    }
    Ok(leaf)
}

/// An inner node in memory, with room for one child too many.
#[derive(Clone)]
pub(crate) struct Inner {
    pub level: u8,
    pub narrow: bool,
    pub count: usize,
    pub separators: [Prefix; INNER_CAPACITY + 1],
    pub children: [u64; INNER_CAPACITY + 1],
    pub tails: [u64; INNER_CAPACITY + 1],
    pub summaries: [Summary; INNER_CAPACITY + 1],
}

/// A child with the separator below it.
#[derive(Clone, Copy)]
pub(crate) struct Child {
    pub separator: Prefix,
    pub tail: u64,
    pub node: u64,
    pub summary: Summary,
}

impl Inner {
    pub fn new(level: u8, narrow: bool) -> Self {
        Self {
            level,
            narrow,
            count: 0,
            separators: [Prefix::default(); INNER_CAPACITY + 1],
            children: [0; INNER_CAPACITY + 1],
            tails: [0; INNER_CAPACITY + 1],
            summaries: [Summary::EMPTY; INNER_CAPACITY + 1],
        }
    }

    pub fn load<C: KeyClass>(node: &Node<'_>) -> Result<Self, Error> {
        let mut inner = Self::new(node.level(), node.is_narrow());
        inner.count = node.count();
        match node.separators()? {
            Separators::Wide(all) => inner.separators[..all.len()].copy_from_slice(all),
            Separators::Narrow(all) => {
                for (separator, &high) in inner.separators.iter_mut().zip(all) {
                    *separator = Prefix { high, low: 0 };
                }
            }
        }
        inner.children[..inner.count].copy_from_slice(node.children()?);
        if C::TAILS {
            inner.tails[..inner.count].copy_from_slice(node.tails::<C>()?);
        }
        if C::SUMMARIES {
            inner.summaries[..inner.count].copy_from_slice(node.summaries::<C>()?);
        }
        Ok(inner)
    }

    pub fn child(&self, index: usize) -> Child {
        Child {
            separator: self.separators[index],
            tail: self.tails[index],
            node: self.children[index],
            summary: self.summaries[index],
        }
    }

    pub fn set(&mut self, index: usize, child: Child) {
        self.separators[index] = child.separator;
        self.tails[index] = child.tail;
        self.children[index] = child.node;
        self.summaries[index] = child.summary;
    }

    pub fn insert(&mut self, index: usize, child: Child) {
        for to in (index..self.count).rev() {
            self.set(to + 1, self.child(to));
        }
        self.set(index, child);
        self.count += 1;
    }

    pub fn remove(&mut self, index: usize) -> Child {
        let removed = self.child(index);
        for to in index + 1..self.count {
            self.set(to - 1, self.child(to));
        }
        self.count -= 1;
        removed
    }

    /// The summary of all children.
    pub fn summary(&self) -> Summary {
        self.summaries[..self.count].iter().fold(Summary::EMPTY, |all, one| all.merge(*one))
    }

    pub fn bytes<C: KeyClass>(narrow: bool) -> u64 {
        let child =
            8 + if C::TAILS { 8 } else { 0 } + if C::SUMMARIES { size_of::<Summary>() as u64 } else { 0 };
        HEADER_BYTES + INNER_CAPACITY as u64 * (separator_bytes(narrow) + child)
    }

    /// Writes the node over the one at `offset`.
    pub fn store<C: KeyClass>(&self, tx: &mut Transaction<'_>, offset: u64) -> Result<(), Error> {
        debug_assert!(self.count >= 1 && self.count <= INNER_CAPACITY);
        let header = Header {
            kind: if self.narrow { NARROW_INNER } else { INNER },
            level: self.level,
            capacity: INNER_CAPACITY as u8,
            reserved: [0; 5],
            used: self.count as u64,
        };
        memory::write(tx, offset, &header)?;
        let mut place = offset + HEADER_BYTES;
        if self.narrow {
            let high: [u64; INNER_CAPACITY] = std::array::from_fn(|index| self.separators[index].high);
            memory::write_slice(tx, place, &high[..self.count])?;
        } else {
            memory::write_slice(tx, place, &self.separators[..self.count])?;
        }
        place += INNER_CAPACITY as u64 * separator_bytes(self.narrow);
        memory::write_slice(tx, place, &self.children[..self.count])?;
        place += (INNER_CAPACITY * 8) as u64;
        if C::TAILS {
            memory::write_slice(tx, place, &self.tails[..self.count])?;
            place += (INNER_CAPACITY * 8) as u64;
        }
        if C::SUMMARIES {
            memory::write_slice(tx, place, &self.summaries[..self.count])?;
        }
        Ok(())
    }

    /// Makes a node of it.
    pub fn create<C: KeyClass>(&self, tx: &mut Transaction<'_>) -> Result<u64, Error> {
        let node = memory::allocate(tx, Self::bytes::<C>(self.narrow))?;
        self.store::<C>(tx, node)?;
        Ok(node)
    }
}
