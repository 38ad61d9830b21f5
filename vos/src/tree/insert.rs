//! Insertion.

use std::cmp::Ordering;

use daos_umem::{Heap, Transaction};

use super::{
    DEPTH_MAX, KeyClass, Path, Probe, Root, Step, Summary,
    node::{
        Child, Entry, INNER_CAPACITY, Inner, LEAF_CAPACITY, Node, Prefix, capacity_for, create_leaf,
        write_slot, write_tail,
    },
};
use crate::{Error, memory};

/// Puts `record`, whose key is `probe`, into the tree whose root word lies at `root_place`. The key must not be there.
pub(crate) fn insert<C: KeyClass>(
    tx: &mut Transaction<'_>,
    class: C,
    root_place: u64,
    probe: &Probe<'_>,
    record: u64,
) -> Result<(), Error> {
    let mut path = Path::new();
    path.lead_to::<C>(tx.heap(), *memory::read(tx.heap(), root_place)?, probe)?;
    insert_at(tx, class, root_place, &path, probe, record)
}

/// As [`insert`], at the end of the way to it; the tree has not changed since.
pub(crate) fn insert_at<C: KeyClass>(
    tx: &mut Transaction<'_>,
    class: C,
    root_place: u64,
    path: &Path,
    probe: &Probe<'_>,
    record: u64,
) -> Result<(), Error> {
    debug_assert!(record != 0 && record.is_multiple_of(8));
    match Root::decode(*memory::read::<u64>(tx.heap(), root_place)?)? {
        Root::Empty => memory::write(tx, root_place, &Root::Record(record).encode()),
        Root::Record(other) => {
            let other_probe = class.probe(tx.heap(), other)?;
            let narrow = class.narrow();
            let entries = [Entry::new(narrow, &other_probe, other), Entry::new(narrow, probe, record)];
            let leaf = create_leaf(tx, narrow, capacity_for(narrow, 2, true), &entries)?;
            memory::write(tx, root_place, &Root::Node(leaf).encode())
        }
        Root::Node(_) => {
            let leaf = path.leaf(tx.heap())?;
            let (offset, free) = (leaf.offset, leaf.used().trailing_ones() as usize);
            if free < leaf.capacity() {
                fill_slot(tx, offset, free, probe, record)?;
            } else if leaf.capacity() < LEAF_CAPACITY {
                grow(tx, root_place, path, offset, probe, record)?;
            } else {
                return split_leaf(tx, class, root_place, path, offset, probe, record);
            }
            if C::SUMMARIES {
                let summary = class.summary(tx.heap(), record)?;
                widen::<C>(tx, path, summary)?;
            }
            Ok(())
        }
    }
}

/// Adds `summary` to those of all nodes on the way to a leaf.
fn widen<C: KeyClass>(tx: &mut Transaction<'_>, path: &Path, summary: Summary) -> Result<(), Error> {
    for step in path.steps() {
        widen_step::<C>(tx, *step, summary)?;
    }
    Ok(())
}

fn widen_step<C: KeyClass>(tx: &mut Transaction<'_>, step: Step, summary: Summary) -> Result<(), Error> {
    let node = Node::read(tx.heap(), step.node())?;
    let corrupt = Error::Corrupt { place: "tree node", position: step.node() };
    let old = *node.summaries::<C>()?.get(step.index()).ok_or(corrupt)?;
    let place = node.summary_offset::<C>(step.index());
    if old.merge(summary) != old {
        memory::write(tx, place, &old.merge(summary))?;
    }
    Ok(())
}

fn fill_slot(
    tx: &mut Transaction<'_>,
    leaf: u64,
    index: usize,
    probe: &Probe<'_>,
    record: u64,
) -> Result<(), Error> {
    let leaf = Node::read(tx.heap(), leaf)?;
    let (slot, fingerprint, used_place) =
        (leaf.slot_offset(index), leaf.fingerprint_offset(index), leaf.used_offset());
    let (narrow, used) = (leaf.is_narrow(), leaf.used() | 1 << index);
    memory::announce(tx, &[(used_place, 8), (fingerprint, 1), (slot, if narrow { 16 } else { 24 })])?;
    write_slot(tx, narrow, slot, probe.prefix, record)?;
    memory::write(tx, fingerprint, &probe.fingerprint)?;
    memory::write(tx, used_place, &used)
}

/// The entries of a leaf, in the order of its slots.
pub(super) fn entries(leaf: &Node<'_>) -> Result<([Entry; LEAF_CAPACITY + 1], usize), Error> {
    let mut entries = [Entry::default(); LEAF_CAPACITY + 1];
    let (slots, fingerprints) = (leaf.slots()?, leaf.fingerprints()?);
    let (mut used, mut count) = (leaf.used(), 0);
    while used != 0 {
        let index = used.trailing_zeros() as usize;
        let (prefix, record) = slots.get(index);
        entries[count] = Entry { prefix, fingerprint: fingerprints[index], record };
        count += 1;
        used &= used - 1;
    }
    Ok((entries, count))
}

/// Replaces a leaf by a larger one with one more record.
fn grow(
    tx: &mut Transaction<'_>,
    root_place: u64,
    path: &Path,
    leaf: u64,
    probe: &Probe<'_>,
    record: u64,
) -> Result<(), Error> {
    let node = Node::read(tx.heap(), leaf)?;
    let narrow = node.is_narrow();
    let (mut all, count) = entries(&node)?;
    all[count] = Entry::new(narrow, probe, record);
    let capacity = capacity_for(narrow, count + 1, path.steps().is_empty());
    let larger = create_leaf(tx, narrow, capacity, &all[..=count])?;
    memory::free(tx, leaf)?;
    match path.steps().last() {
        None => memory::write(tx, root_place, &Root::Node(larger).encode()),
        Some(step) => {
            let place = Node::read(tx.heap(), step.node())?.child_offset(step.index());
            memory::write(tx, place, &larger)
        }
    }
}

/// Order of two entries; tails are read where prefixes are equal.
pub(super) fn compare<C: KeyClass>(heap: &Heap, class: C, a: &Entry, b: &Entry) -> Result<Ordering, Error> {
    match a.prefix.cmp(&b.prefix) {
        Ordering::Equal if C::TAILS => Ok(class.tail(heap, a.record)?.cmp(class.tail(heap, b.record)?)),
        order => Ok(order),
    }
}

/// Sorts entries by key.
pub(super) fn sort<C: KeyClass>(heap: &Heap, class: C, entries: &mut [Entry]) -> Result<(), Error> {
    let mut failure = None;
    entries.sort_unstable_by(|a, b| {
        compare(heap, class, a, b).unwrap_or_else(|error| {
            failure = Some(error);
            Ordering::Equal
        })
    });
    failure.map_or(Ok(()), Err)
}

fn split_leaf<C: KeyClass>(
    tx: &mut Transaction<'_>,
    class: C,
    root_place: u64,
    path: &Path,
    leaf: u64,
    probe: &Probe<'_>,
    record: u64,
) -> Result<(), Error> {
    let heap = tx.heap();
    let node = Node::read(heap, leaf)?;
    let narrow = node.is_narrow();
    let (mut all, count) = entries(&node)?;
    if C::SUMMARIES {
        // All of them are about to be read.
        all[..count].iter().for_each(|entry| memory::prefetch(heap, entry.record, 1));
    }
    all[count] = Entry::new(narrow, probe, record);
    // Records that arrive in order fill their leaves: only the newest moves on.
    let appends = is_last(heap, path.steps())? && is_greatest(heap, class, &all[count], &all[..count])?;
    let middle = if appends { count } else { all.len() / 2 };
    if !appends {
        part(heap, class, &mut all, middle)?;
    }
    let (left, right) = all.split_at(middle);
    let (separator, tail_bytes) = separate(heap, class, left, &right[0])?;
    let (mut left_summary, mut right_summary) = (Summary::EMPTY, Summary::EMPTY);
    if C::SUMMARIES {
        left_summary = summarise(heap, class, left)?;
        right_summary = summarise(heap, class, right)?;
    }
    let tail_bytes = tail_bytes.map(<[u8]>::to_vec);
    let tail = tail_bytes.map_or(Ok(0), |bytes| write_tail(tx, &bytes))?;
    let new = create_leaf(tx, narrow, capacity_for(narrow, right.len(), false), right)?;
    let mut kept_leaf = leaf;
    if !appends {
        // Half a leaf takes less than a whole one.
        kept_leaf = create_leaf(tx, narrow, capacity_for(narrow, left.len(), false), left)?;
        memory::free(tx, leaf)?;
    }
    let child = Child { separator, tail, node: new, summary: right_summary };
    add_child::<C>(tx, root_place, path, (kept_leaf, narrow), left_summary, child)
}

/// Whether the key of `entry` is above those of all `others`.
fn is_greatest<C: KeyClass>(heap: &Heap, class: C, entry: &Entry, others: &[Entry]) -> Result<bool, Error> {
    for other in others {
        if compare(heap, class, entry, other)?.is_lt() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Moves the entries with the least keys before `middle`, and the least of the others there.
fn part<C: KeyClass>(heap: &Heap, class: C, entries: &mut [Entry], middle: usize) -> Result<(), Error> {
    let mut failure = None;
    entries.select_nth_unstable_by(middle, |a, b| {
        compare(heap, class, a, b).unwrap_or_else(|error| {
            failure = Some(error);
            Ordering::Equal
        })
    });
    failure.map_or(Ok(()), Err)
}

/// Whether a way leads to the last node of its level.
fn is_last(heap: &Heap, steps: &[Step]) -> Result<bool, Error> {
    for step in steps {
        if step.index() + 1 != Node::read(heap, step.node())?.count() {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn summarise<C: KeyClass>(heap: &Heap, class: C, entries: &[Entry]) -> Result<Summary, Error> {
    entries.iter().try_fold(Summary::EMPTY, |all, entry| Ok(all.merge(class.summary(heap, entry.record)?)))
}

/// The shortest separator between the entries of a leaf and the least of the next: a prefix, and the tail's bytes where
/// that is not enough.
fn separate<'h, C: KeyClass>(
    heap: &'h Heap,
    class: C,
    left: &[Entry],
    right: &Entry,
) -> Result<(Prefix, Option<&'h [u8]>), Error> {
    let duplicate = Error::Corrupt { place: "tree with a key twice", position: right.record };
    let mut low: Option<&[u8]> = None;
    for entry in left.iter().filter(|entry| entry.prefix == right.prefix) {
        if !C::TAILS {
            return Err(duplicate);
        }
        low = low.max(Some(class.tail(heap, entry.record)?));
    }
    let Some(low) = low else { return Ok((Prefix::new(right.prefix), None)) };
    // `left` < `right`, so `right` goes on where they part.
    let high = class.tail(heap, right.record)?;
    let common = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    Ok((Prefix::new(right.prefix), Some(high.get(..=common).ok_or(duplicate)?)))
}

/// Adds `child`, split off from `left` (at the end of `path`), to the tree, whose width is told.
fn add_child<C: KeyClass>(
    tx: &mut Transaction<'_>,
    root_place: u64,
    path: &Path,
    (left, narrow): (u64, bool),
    left_summary: Summary,
    child: Child,
) -> Result<(), Error> {
    let (mut left, mut left_summary, mut child) = (left, left_summary, child);
    let mut level = 0;
    for (depth, step) in path.steps().iter().enumerate().rev() {
        let (offset, index) = (step.node(), step.index());
        let node = Node::read(tx.heap(), offset)?;
        let mut inner = Inner::load::<C>(&node)?;
        inner.children[index] = left;
        inner.summaries[index] = left_summary;
        inner.insert(index + 1, child);
        level = inner.level;
        if inner.count <= INNER_CAPACITY {
            let summary = inner.summary();
            inner.store::<C>(tx, offset)?;
            if C::SUMMARIES {
                for step in path.steps()[..depth].iter().rev() {
                    widen_step::<C>(tx, *step, summary)?;
                }
            }
            return Ok(());
        }
        // Nodes that fill in order are left nearly full: only the last of its level, or splits of one node could follow each other.
        let appends = index + 2 == inner.count && is_last(tx.heap(), &path.steps()[..depth])?;
        let middle = if appends { inner.count - 2 } else { inner.count / 2 };
        let mut right = Inner::new(inner.level, narrow);
        for from in middle..inner.count {
            right.insert(from - middle, inner.child(from));
        }
        inner.count = middle;
        // The separator before the right half moves up; within the half nobody looks at it.
        let first = right.child(0);
        right.set(0, Child { separator: Prefix::default(), tail: 0, ..first });
        inner.store::<C>(tx, offset)?;
        let node = right.create::<C>(tx)?;
        left_summary = inner.summary();
        left = offset;
        child = Child { separator: first.separator, tail: first.tail, node, summary: right.summary() };
    }
    if usize::from(level) >= DEPTH_MAX {
        return Err(Error::Corrupt { place: "depth of a tree", position: root_place });
    }
    let mut root = Inner::new(level + 1, narrow);
    root.insert(0, Child { separator: Prefix::default(), tail: 0, node: left, summary: left_summary });
    root.insert(1, child);
    let node = root.create::<C>(tx)?;
    memory::write(tx, root_place, &Root::Node(node).encode())
}
