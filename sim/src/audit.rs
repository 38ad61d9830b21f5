//! What is looked at when all clients are done and every dead one has been evicted.

use std::{rc::Rc, time::Duration};

use daos_dsm::{access::Capabilities, client::OpenOptions, epochs::EPOCH_LAST};
use daos_xstream::{Clock, Env};
use daos_xstream_sim::SimEnv;

use crate::{
    cluster::{Shared, pool_name},
    model::check::View,
    objects::parts,
    violation::Rule,
    workload::{Client, Session},
};

/// Committed epochs that are read in full, beside the newest and the snapshots.
const EPOCHS_MAX: usize = 3;

/// Compares everything that is stored with the model.
pub(crate) async fn audit(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    let client = Client::new(env, shared.clone(), slot);
    if shared.orphans.take() {
        // Only an administrator can end a shared handle that nobody uses.
        if let Err(error) = client.service.pool_evict(pool_name(), None).await {
            let story = format!("handles cannot be evicted when all is over: {error}");
            return shared.model.borrow_mut().violate(Rule::Liveness, story);
        }
    }
    let pool = match client.service.pool_connect(pool_name(), Capabilities::ALL).await {
        Ok(pool) => pool,
        Err(error) => {
            let story = format!("the pool cannot be connected to when all is over: {error}");
            return shared.model.borrow_mut().violate(Rule::Liveness, story);
        }
    };
    for container in 0..shared.plan.containers {
        let Ok(session) = client.open(&pool, container, OpenOptions::READ).await else {
            let story = format!("container {container} cannot be opened when all is over");
            return shared.model.borrow_mut().violate(Rule::Liveness, story);
        };
        // What goes wrong is noted where it goes wrong.
        let _ = session.audit().await;
        let _ = session.handle.clone().close().await;
    }
    if let Err(error) = pool.disconnect().await {
        let story = format!("the pool cannot be disconnected from when all is over: {error}");
        shared.model.borrow_mut().violate(Rule::Liveness, story);
    }
}

impl Session {
    async fn audit(&self) -> Result<(), crate::workload::Trouble> {
        self.wait_for_evictions().await?;
        let shared = &self.client.shared;
        let state = self.control("query", self.handle.epoch_query(), |_, _, _| {}).await?;
        let hce = state.container_hce.0;
        shared.model.borrow_mut().at_rest(self.container, hce);
        let snapshots = match self.handle.snapshots().await {
            Ok(snapshots) => snapshots.into_iter().map(|epoch| epoch.0).collect::<Vec<_>>(),
            Err(error) => return Err(self.dsm_trouble("list snapshots", &error)),
        };
        self.check_snapshots(&snapshots);
        // Every committed epoch can be read that was not aggregated away. Above the HCE there must be nothing.
        let mut epochs = vec![hce, EPOCH_LAST.0];
        epochs.extend(&snapshots);
        let claims: Vec<u64> =
            shared.model.borrow().containers[self.container].claims.iter().copied().collect();
        for _ in 0..EPOCHS_MAX.min(claims.len()) {
            epochs.push(claims[self.client.roll(claims.len() as u64) as usize].min(hce));
        }
        epochs.sort_unstable();
        epochs.dedup();
        for epoch in epochs {
            for part in (0..shared.plan.clients).flat_map(parts) {
                self.read(&part, epoch, View::Committed).await?;
            }
            self.list_objects(epoch).await?;
        }
        Ok(())
    }

    /// Handles of clients that died, or never closed them, go by themselves.
    async fn wait_for_evictions(&self) -> Result<(), crate::workload::Trouble> {
        let env = &self.client.env;
        let patience = self.client.shared.plan.grace * 8 + Duration::from_secs(60);
        let until = env.clock().now() + patience;
        loop {
            let handles = match self.handle.query().await {
                Ok(reply) => reply.handles,
                Err(error) => return Err(self.dsm_trouble("query", &error)),
            };
            if handles == 1 {
                return Ok(());
            }
            if env.clock().now() > until {
                let story = format!(
                    "container {}: {handles} handles are still open {patience:?} after all clients were done",
                    self.container
                );
                self.client.shared.model.borrow_mut().violate(Rule::Liveness, story);
                return Err(crate::workload::Trouble::Gone);
            }
            env.clock().sleep_until(env.clock().now() + Duration::from_millis(500)).await;
        }
    }

    fn check_snapshots(&self, listed: &[u64]) {
        let mut model = self.client.shared.model.borrow_mut();
        model.comparisons += 1;
        let known = model.containers[self.container].snapshots.clone();
        let lost = known
            .iter()
            .find(|(epoch, snapshot)| snapshot.taken && !snapshot.given_up && !listed.contains(epoch));
        if let Some((epoch, _)) = lost {
            let story = format!("container {}: the snapshot of {epoch} is lost", self.container);
            model.violate(Rule::Snapshots, story);
        }
        if let Some(epoch) = listed.iter().find(|epoch| !known.contains_key(epoch)) {
            let story = format!("container {}: nobody took the snapshot of {epoch}", self.container);
            model.violate(Rule::Snapshots, story);
        }
    }
}
