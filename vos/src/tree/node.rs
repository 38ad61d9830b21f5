//! Nodes as they lie in the arena.
//!
//! ```text
//!  leaf    header 16 | fingerprints: capacity, padded to 8 | slots: capacity × 24 (prefix high, prefix low, record)
//!  inner   header 16 | separators: capacity × 16 | children: capacity × 8 | tails: capacity × 8 (classes with tails)
//!                    | summaries: capacity × 24 (classes with summaries)
//!  header  kind u8 | level u8 | capacity u8 | 0 u8 | 0 u32 | in use u64 (leaf: bitmap of slots; inner: children)
//!  tail    length u32 | 0 u32 | bytes
//! ```

use daos_umem::{Heap, Transaction};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{KeyClass, Probe, Summary};
use crate::{Error, memory};

const LEAF: u8 = 1;
const INNER: u8 = 2;
/// Sizes of leaves. The last is that of every leaf that is not the root.
pub(crate) const LEAF_CAPACITIES: [usize; 3] = [4, 12, 48];
pub(crate) const LEAF_CAPACITY: usize = LEAF_CAPACITIES[2];
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
pub(crate) struct Slot {
    prefix: Prefix,
    pub record: u64,
}

impl Slot {
    pub fn new(prefix: u128, record: u64) -> Self {
        Self { prefix: Prefix::new(prefix), record }
    }

    #[inline]
    pub fn prefix(&self) -> u128 {
        self.prefix.get()
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
        let header: Header = *memory::read(heap, offset)?;
        let capacity = usize::from(header.capacity);
        let sound = match header.kind {
            LEAF => {
                header.level == 0
                    && LEAF_CAPACITIES.contains(&capacity)
                    && header.used >> (capacity - 1) >> 1 == 0
            }
            INNER => {
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

    /// Reads a child, which must be one level lower.
    #[inline]
    pub fn child(&self, offset: u64) -> Result<Self, Error> {
        let child = Self::read(self.heap, offset)?;
        if child.header.level + 1 != self.header.level {
            return Err(Error::Corrupt { place: "tree node", position: offset });
        }
        Ok(child)
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
        if self.header.kind == LEAF {
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

    pub fn slot_offset(&self, index: usize) -> u64 {
        self.slots_start() + (index * size_of::<Slot>()) as u64
    }

    #[inline]
    pub fn slots(&self) -> Result<&'h [Slot], Error> {
        memory::read_slice(self.heap, self.slots_start(), u64::from(self.header.capacity))
    }

    pub fn fingerprints(&self) -> Result<&'h [u8], Error> {
        memory::read_slice(self.heap, self.offset + HEADER_BYTES, u64::from(self.header.capacity))
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

    #[inline]
    pub fn separators(&self) -> Result<&'h [Prefix], Error> {
        memory::read_slice(self.heap, self.offset + HEADER_BYTES, self.header.used)
    }

    fn children_start(&self) -> u64 {
        self.offset + HEADER_BYTES + (INNER_CAPACITY * size_of::<Prefix>()) as u64
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
    #[inline]
    pub fn child_index<C: KeyClass>(&self, probe: &Probe<'_>) -> Result<usize, Error> {
        let separators = &self.separators()?[1..];
        let mut index = separators.partition_point(|separator| separator.get() <= probe.prefix);
        if C::TAILS {
            // Among separators of the same prefix the tail decides; there are few, or the search has to read them anyway.
            let tails = self.tails::<C>()?;
            while index > 0 && separators[index - 1].get() == probe.prefix && tails[index] != 0 {
                if read_tail(self.heap, tails[index])? <= probe.tail {
                    break;
                }
                index -= 1;
            }
        }
        Ok(index)
    }

    /// Places of the words that an insertion into slot `index` of a leaf writes: fingerprint, bitmap.
    pub fn fingerprint_offset(&self, index: usize) -> u64 {
        self.offset + HEADER_BYTES + index as u64
    }

    pub fn used_offset(&self) -> u64 {
        self.offset + std::mem::offset_of!(Header, used) as u64
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

/// Bytes of a leaf.
pub(crate) fn leaf_bytes(capacity: usize) -> u64 {
    HEADER_BYTES + (capacity.next_multiple_of(8) + capacity * size_of::<Slot>()) as u64
}

/// Makes a leaf with these entries.
pub(crate) fn create_leaf(
    tx: &mut Transaction<'_>,
    capacity: usize,
    entries: &[Entry],
) -> Result<u64, Error> {
    debug_assert!(entries.len() <= capacity && LEAF_CAPACITIES.contains(&capacity));
    let leaf = memory::allocate(tx, leaf_bytes(capacity))?;
    // Everything before the slots in one piece, then the slots that are used.
    let mut head = [0u8; 16 + LEAF_CAPACITY];
    let used = if entries.is_empty() { 0 } else { u64::MAX >> (64 - entries.len()) };
    let header = Header { kind: LEAF, level: 0, capacity: capacity as u8, reserved: [0; 5], used };
    head[..16].copy_from_slice(header.as_bytes());
    let mut slots = [Slot::default(); LEAF_CAPACITY];
    for (index, entry) in entries.iter().enumerate() {
        head[16 + index] = entry.fingerprint;
        slots[index] = Slot::new(entry.prefix, entry.record);
    }
    let head_bytes = 16 + capacity.next_multiple_of(8);
    memory::write_slice(tx, leaf, &head[..head_bytes])?;
    memory::write_slice(tx, leaf + head_bytes as u64, &slots[..entries.len()])?;
    Ok(leaf)
}

/// An inner node in memory, with room for one child too many.
#[derive(Clone)]
pub(crate) struct Inner {
    pub level: u8,
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
    pub fn new(level: u8) -> Self {
        Self {
            level,
            count: 0,
            separators: [Prefix::default(); INNER_CAPACITY + 1],
            children: [0; INNER_CAPACITY + 1],
            tails: [0; INNER_CAPACITY + 1],
            summaries: [Summary::EMPTY; INNER_CAPACITY + 1],
        }
    }

    pub fn load<C: KeyClass>(node: &Node<'_>) -> Result<Self, Error> {
        let mut inner = Self::new(node.level());
        inner.count = node.count();
        inner.separators[..inner.count].copy_from_slice(node.separators()?);
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

    pub fn bytes<C: KeyClass>() -> u64 {
        let child = size_of::<Prefix>()
            + 8
            + if C::TAILS { 8 } else { 0 }
            + if C::SUMMARIES { size_of::<Summary>() } else { 0 };
        HEADER_BYTES + (INNER_CAPACITY * child) as u64
    }

    /// Writes the node over the one at `offset`.
    pub fn store<C: KeyClass>(&self, tx: &mut Transaction<'_>, offset: u64) -> Result<(), Error> {
        debug_assert!(self.count >= 1 && self.count <= INNER_CAPACITY);
        let header = Header {
            kind: INNER,
            level: self.level,
            capacity: INNER_CAPACITY as u8,
            reserved: [0; 5],
            used: self.count as u64,
        };
        memory::write(tx, offset, &header)?;
        let mut place = offset + HEADER_BYTES;
        memory::write_slice(tx, place, &self.separators[..self.count])?;
        place += (INNER_CAPACITY * size_of::<Prefix>()) as u64;
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
        let node = memory::allocate(tx, Self::bytes::<C>())?;
        self.store::<C>(tx, node)?;
        Ok(node)
    }
}
