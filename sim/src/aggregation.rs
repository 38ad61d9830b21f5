//! Aggregation while clients write and read, and while the engine crashes: on every target, as a service above the store
//! will ask for it one day.
//!
//! What is aggregated is chosen here, because no service does it yet: a range of committed epochs that no snapshot and no
//! read under way needs. The model is told before it begins; nobody reads inside the range from then on (whoever wants to
//! reads at its upper end), and everything outside reads as before, whatever is left of a slice.

use std::{cell::Cell, rc::Weak, time::Duration};

use daos_dsm::service::Target;
use daos_types::{Epoch, EpochRange};
use daos_vos::Error;
use daos_xstream::{Bug, Clock, Env, Rng};
use daos_xstream_sim::SimEnv;
use uuid::Uuid;

use crate::{cluster::Shared, violation::Rule};

/// Longest pause between two aggregations of a target.
const PAUSE_US_MAX: u64 = 200_000;

/// Changes of a slice, at most: a history of the simulator would fit into one.
const SLICE_CHANGES_MAX: u64 = 8;

/// What all targets share.
#[derive(Default)]
pub struct State {
    /// The pool.
    pub pool: Cell<Option<Uuid>>,
    /// Aggregations that came to their end.
    pub done: Cell<u64>,
    /// Aggregations, discards and destructions that a crash cut short between two slices.
    pub cut_short: Cell<u64>,
}

/// Aggregates on one target as long as the engine lives.
pub async fn live(env: SimEnv, shared: Weak<Shared>) {
    let target = Target::of(&env).await;
    loop {
        let pause = Duration::from_micros(env.rng().next_u64() % PAUSE_US_MAX);
        env.clock().sleep_until(env.clock().now() + pause).await;
        let Some(shared) = shared.upgrade() else { return };
        let Some((uuid, range)) = choose(&env, &shared) else { continue };
        let Some(Ok(pool)) = shared.aggregation.pool.get().map(|pool| target.vpool(pool)) else { continue };
        pool.set_slice_changes(1 + (env.rng().next_u64() % SLICE_CHANGES_MAX) as usize);
        let result = match pool.container_open(uuid) {
            Ok(container) => container.aggregate(range).await.map(drop),
            Err(error) => Err(error),
        };
        let model = &mut *shared.model.borrow_mut();
        match result {
            Ok(()) => shared.aggregation.done.set(shared.aggregation.done.get() + 1),
            // Nothing was ever written here.
            Err(Error::NotFound(_)) => {}
            // Nothing that does not match its checksum is merged.
            Err(Error::BadChecksum { .. }) if model.damaged => {}
            Err(_) if model.may_be_sick() => {}
            Err(error) => {
                let story = format!("container {uuid} cannot be aggregated in {range:?}: {error}");
                model.violate(Rule::Refusal, story);
            }
        }
    }
}

/// A container, and a range of its epochs that nobody needs; the model has been told.
fn choose(env: &SimEnv, shared: &Shared) -> Option<(Uuid, EpochRange)> {
    let roll = |bound: u64| env.rng().next_u64() % bound;
    let model = &mut *shared.model.borrow_mut();
    let index = roll(model.containers.len().max(1) as u64) as usize;
    let container = model.containers.get_mut(index)?;
    if container.hce_told == 0 {
        return None;
    }
    let high = if roll(3) == 0 { 1 + roll(container.hce_told) } else { container.hce_told };
    let wanted = if roll(2) == 0 { 1 } else { 1 + roll(high) };
    let snapshots = container.snapshots.iter().filter(|(_, snapshot)| !snapshot.given_up);
    let readers = shared.readers.borrow();
    let reads = readers.keys().filter(|(other, _)| *other == index).map(|(_, epoch)| epoch);
    let needed = snapshots.map(|(epoch, _)| epoch).chain(reads).filter(|epoch| **epoch < high);
    let low = needed.fold(wanted, |low, epoch| low.max(epoch + 1));
    if !env.planted(Bug::AggregatedInUse) {
        container.aggregated.push((low, high));
    }
    Some((container.uuid, EpochRange { low: Epoch(low), high: Epoch(high) }))
}
