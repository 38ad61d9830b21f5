//! Removal.

use daos_umem::Transaction;

use super::{
    KeyClass, Path, Probe, Root, Step, Summary, find_in_leaf,
    insert::{entries, summarise},
    is_key,
    node::{Entry, INNER_CAPACITY, Inner, LEAF_CAPACITY, Node, capacity_for, create_leaf},
};
use crate::{Error, memory};

/// Takes the record with the key of `probe` out of the tree whose root word lies at `root_place`; gives it, if it was
/// there. The record itself is the caller's to free.
pub(crate) fn remove<C: KeyClass>(
    tx: &mut Transaction<'_>,
    class: C,
    root_place: u64,
    probe: &Probe<'_>,
) -> Result<Option<u64>, Error> {
    let heap = tx.heap();
    let root: u64 = *memory::read(heap, root_place)?;
    match Root::decode(root)? {
        Root::Empty => return Ok(None),
        Root::Record(record) => {
            if !is_key(heap, class, record, probe)? {
                return Ok(None);
            }
            memory::write(tx, root_place, &Root::Empty.encode())?;
            return Ok(Some(record));
        }
        Root::Node(_) => {}
    }
    let mut path = Path::new();
    path.lead_to::<C>(heap, root, probe)?;
    let leaf = path.leaf(heap)?;
    let Some((index, record)) = find_in_leaf(heap, class, &leaf, probe)? else { return Ok(None) };
    let (offset, used_place, used) = (leaf.offset, leaf.used_offset(), leaf.used() & !(1 << index));
    memory::write(tx, used_place, &used)?;
    if path.steps().is_empty() {
        shrink_root_leaf(tx, root_place, offset)?;
    } else {
        if C::SUMMARIES {
            let (all, count) = entries(&Node::read(tx.heap(), offset)?)?;
            let mut summary = summarise(tx.heap(), class, &all[..count])?;
            for step in path.steps().iter().rev() {
                let node = Node::read(tx.heap(), step.node())?;
                let summary_place = node.summary_offset::<C>(step.index());
                memory::write(tx, summary_place, &summary)?;
                let node = Node::read(tx.heap(), step.node())?;
                summary = node.summaries::<C>()?.iter().fold(Summary::EMPTY, |all, one| all.merge(*one));
            }
        }
        if (used.count_ones() as usize) < LEAF_CAPACITY / 4 {
            merge_leaf::<C>(tx, root_place, &path, offset)?;
        }
    }
    Ok(Some(record))
}

/// Gives a root leaf the size it needs, with room to grow before it changes again.
fn shrink_root_leaf(tx: &mut Transaction<'_>, root_place: u64, leaf: u64) -> Result<(), Error> {
    let node = Node::read(tx.heap(), leaf)?;
    let (capacity, narrow) = (node.capacity(), node.is_narrow());
    let (all, count) = entries(&node)?;
    let root = match count {
        1 => Root::Record(all[0].record),
        _ => {
            let smaller = capacity_for(narrow, count * 2, true);
            if smaller >= capacity {
                return Ok(());
            }
            Root::Node(create_leaf(tx, narrow, smaller, &all[..count])?)
        }
    };
    memory::free(tx, leaf)?;
    memory::write(tx, root_place, &root.encode())
}

/// Merges a leaf of few records with a neighbour, if both fit into 3/4 of one (so that the next insertion does not split
/// it again), or drops it if it is empty.
fn merge_leaf<C: KeyClass>(
    tx: &mut Transaction<'_>,
    root_place: u64,
    path: &Path,
    leaf: u64,
) -> Result<(), Error> {
    let steps = path.steps();
    let last = steps[steps.len() - 1];
    let (parent, index) = (last.node(), last.index());
    let heap = tx.heap();
    let mut inner = Inner::load::<C>(&Node::read(heap, parent)?)?;
    let count = Node::read(heap, leaf)?.count();
    if count == 0 {
        memory::free(tx, leaf)?;
        return drop_child::<C>(tx, root_place, steps, inner, index);
    }
    if inner.count == 1 {
        return Ok(());
    }
    let left_index = if index > 0 { index - 1 } else { 0 };
    let (left, right) = (inner.children[left_index], inner.children[left_index + 1]);
    let (mut all, left_count) = entries(&Node::read(heap, left)?)?;
    let (moved, moved_count) = entries(&Node::read(heap, right)?)?;
    let count = left_count + moved_count;
    if count > LEAF_CAPACITY * 3 / 4 {
        return Ok(());
    }
    all[left_count..count].copy_from_slice(&moved[..moved_count]);
    let merged: &[Entry] = &all[..count];
    let capacity = capacity_for(inner.narrow, count, false);
    inner.children[left_index] = create_leaf(tx, inner.narrow, capacity, merged)?;
    memory::free(tx, left)?;
    memory::free(tx, right)?;
    inner.summaries[left_index] = inner.summaries[left_index].merge(inner.summaries[left_index + 1]);
    drop_child::<C>(tx, root_place, steps, inner, left_index + 1)
}

/// Removes child `index` from `inner`, the last node of `steps`, and repairs what is above.
fn drop_child<C: KeyClass>(
    tx: &mut Transaction<'_>,
    root_place: u64,
    steps: &[Step],
    mut inner: Inner,
    index: usize,
) -> Result<(), Error> {
    let offset = steps[steps.len() - 1].node();
    let above = &steps[..steps.len() - 1];
    inner.remove(index);
    // The separator between the removed child and its left neighbour goes; without one, that to its right, which nobody
    // looks at from now on.
    let tail = Node::read(tx.heap(), offset)?.tails::<C>()?.get(index.max(1)).copied().unwrap_or(0);
    if tail != 0 {
        memory::free(tx, tail)?;
    }
    if index == 0 && inner.count > 0 {
        inner.tails[0] = 0;
    }
    match (inner.count, above.last()) {
        (0, None) => {
            memory::free(tx, offset)?;
            memory::write(tx, root_place, &Root::Empty.encode())
        }
        (0, Some(step)) => {
            memory::free(tx, offset)?;
            let parent = Inner::load::<C>(&Node::read(tx.heap(), step.node())?)?;
            drop_child::<C>(tx, root_place, above, parent, step.index())
        }
        (1, None) => {
            let child = inner.children[0];
            memory::free(tx, offset)?;
            collapse(tx, root_place, child)
        }
        (count, Some(step)) if count < INNER_CAPACITY / 4 => {
            let index = step.index();
            let mut parent = Inner::load::<C>(&Node::read(tx.heap(), step.node())?)?;
            parent.summaries[index] = inner.summary();
            let left_index = if index > 0 { index - 1 } else { 0 };
            if parent.count == 1 {
                return inner.store::<C>(tx, offset);
            }
            let other = parent.children[if index > 0 { index - 1 } else { 1 }];
            let other = Inner::load::<C>(&Node::read(tx.heap(), other)?)?;
            if inner.count + other.count > INNER_CAPACITY * 3 / 4 {
                return inner.store::<C>(tx, offset);
            }
            let (mut left, right) = if index > 0 { (other, inner) } else { (inner, other) };
            for from in 0..right.count {
                let mut child = right.child(from);
                if from == 0 {
                    child.separator = parent.separators[left_index + 1];
                    child.tail = parent.tails[left_index + 1];
                }
                left.insert(left.count, child);
            }
            left.store::<C>(tx, parent.children[left_index])?;
            memory::free(tx, parent.children[left_index + 1])?;
            parent.summaries[left_index] = left.summary();
            // Its tail moved down with the separator: the parent must not free it.
            drop_merged::<C>(tx, root_place, above, parent, left_index + 1)
        }
        _ => inner.store::<C>(tx, offset),
    }
}

/// As [`drop_child`], for a child whose separator moved into its left neighbour.
fn drop_merged<C: KeyClass>(
    tx: &mut Transaction<'_>,
    root_place: u64,
    steps: &[Step],
    inner: Inner,
    index: usize,
) -> Result<(), Error> {
    if C::TAILS {
        // Let the stored node forget the tail, so that the common path frees nothing.
        let node = steps[steps.len() - 1].node();
        let mut stored = Inner::load::<C>(&Node::read(tx.heap(), node)?)?;
        stored.tails[index] = 0;
        stored.store::<C>(tx, node)?;
    }
    drop_child::<C>(tx, root_place, steps, inner, index)
}

/// Makes the only child of the root the root.
fn collapse(tx: &mut Transaction<'_>, root_place: u64, child: u64) -> Result<(), Error> {
    let (mut child, mut node) = (child, Node::read(tx.heap(), child)?);
    while node.level() > 0 && node.count() == 1 {
        let below = node.child(node.children()?[0])?.offset;
        memory::free(tx, child)?;
        child = below;
        node = Node::read(tx.heap(), child)?;
    }
    if node.level() == 0 && node.count() <= 1 {
        return shrink_root_leaf(tx, root_place, child);
    }
    memory::write(tx, root_place, &Root::Node(child).encode())?;
    if node_is_leaf(tx, child)? { shrink_root_leaf(tx, root_place, child) } else { Ok(()) }
}

fn node_is_leaf(tx: &Transaction<'_>, node: u64) -> Result<bool, Error> {
    Ok(Node::read(tx.heap(), node)?.level() == 0)
}
