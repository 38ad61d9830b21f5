//! Verification of a tree's invariants, for the scrubber, tools and tests.

use daos_umem::Heap;

use super::{
    KeyClass, Probe, Root, Summary,
    insert::{entries, sort, summarise},
    node::{Inner, Node, capacity_for, leaf_bytes, read_tail},
};
use crate::Error;

/// Told offset and bytes of each block of the arena that a tree consists of.
type Reach<'r> = &'r mut dyn FnMut(u64, u64) -> Result<(), Error>;

/// Checks every invariant of the tree with this root word; calls `visit` for each record in order of keys, and `reach` for
/// each block that the tree itself takes.
pub(crate) fn check<C: KeyClass>(
    heap: &Heap,
    class: C,
    root: u64,
    reach: Reach<'_>,
    visit: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    match Root::decode(root)? {
        Root::Empty => Ok(()),
        Root::Record(record) => visit(record),
        Root::Node(node) => {
            check_node(heap, class, &Node::read(heap, node)?, true, (None, None), reach, visit)?;
            Ok(())
        }
    }
}

fn check_node<C: KeyClass>(
    heap: &Heap,
    class: C,
    node: &Node<'_>,
    is_root: bool,
    (low, high): (Option<Probe<'_>>, Option<Probe<'_>>),
    reach: Reach<'_>,
    visit: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<Summary, Error> {
    let wrong = |place| Error::Corrupt { place, position: node.offset };
    reach(
        node.offset,
        if node.level() == 0 {
            leaf_bytes(node.is_narrow(), node.capacity())
        } else {
            Inner::bytes::<C>(node.is_narrow())
        },
    )?;
    if node.is_narrow() && !class.narrow() {
        return Err(wrong("node that is too narrow for its keys"));
    }
    if is_root && node.count() < 2 {
        return Err(wrong("tree root with less than two records"));
    }
    if node.level() == 0 {
        if !is_root && (node.capacity() < capacity_for(node.is_narrow(), 0, false) || node.count() == 0) {
            return Err(wrong("small leaf below an inner node"));
        }
        let (mut all, count) = entries(node)?;
        sort(heap, class, &mut all[..count])?;
        let mut before = low;
        for (index, entry) in all[..count].iter().enumerate() {
            let probe = class.probe(heap, entry.record)?;
            let probe = Probe { prefix: node.kept(probe.prefix), ..probe };
            if (probe.prefix, probe.fingerprint) != (entry.prefix, entry.fingerprint) {
                return Err(wrong("leaf slot that is not its record's"));
            }
            // The first key may equal the separator; keys differ.
            if before.is_some_and(|before| {
                let order = before.compare(&probe);
                order.is_gt() || (index > 0 && order.is_eq())
            }) || high.is_some_and(|high| probe.compare(&high).is_ge())
            {
                return Err(wrong("leaf with a key out of order"));
            }
            before = Some(probe);
            visit(entry.record)?;
        }
        return if C::SUMMARIES { summarise(heap, class, &all[..count]) } else { Ok(Summary::EMPTY) };
    }
    let (children, separators, tails) = (node.children()?, node.separators()?, node.tails::<C>()?);
    let bound = |index: usize| -> Result<Option<Probe<'_>>, Error> {
        let tail = tails.get(index).copied().unwrap_or(0);
        let tail = if tail == 0 { &[][..] } else { read_tail(heap, tail)? };
        Ok(Some(Probe { prefix: separators.get(index), fingerprint: 0, tail }))
    };
    for &tail in tails.iter().filter(|&&tail| tail != 0) {
        reach(tail, 8 + read_tail(heap, tail)?.len() as u64)?;
    }
    let mut whole = Summary::EMPTY;
    for (index, &child) in children.iter().enumerate() {
        let low = if index == 0 { low } else { bound(index)? };
        let high = if index + 1 == children.len() { high } else { bound(index + 1)? };
        let summary = check_node(heap, class, &node.child(child)?, false, (low, high), reach, visit)?;
        if C::SUMMARIES && summary != node.summaries::<C>()?[index] {
            return Err(wrong("inner node with a wrong summary"));
        }
        whole = whole.merge(summary);
    }
    Ok(whole)
}
