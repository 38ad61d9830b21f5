//! A client that makes and destroys pools while others work.

use std::{collections::BTreeSet, rc::Rc};

use daos_dsm::{
    access::Capabilities,
    client::{DsmError, PoolSpec},
    rpc::control::{ContainerProperties, Label, Name},
};
use daos_xstream::rpc::Status;
use daos_xstream_sim::SimEnv;
use uuid::Uuid;

use crate::{cluster::Shared, violation::Rule, workload::Client};

/// Pools made in a run.
const POOLS_MAX: u64 = 4;
/// Bytes of a pool: as few as possible.
const POOL_BYTES: u64 = 32 << 20;

/// Lives until all brief pools are made and destroyed.
pub(crate) async fn live(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    let pools = BriefPools { client: Client::new(env, shared.clone(), slot) };
    for number in 0..1 + pools.client.roll(POOLS_MAX) {
        if let Err(error) = pools.live_and_die(number).await {
            let story = format!("pool {number}: {error}");
            shared.model.borrow_mut().violate(Rule::Refusal, story);
        }
    }
    shared.helper_done.set(true);
}

/// Lists the pools, and notes them.
pub(crate) async fn audit(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    let client = Client::new(env, shared.clone(), slot);
    match client.service.pool_list().await {
        Ok(pools) => *shared.pools.borrow_mut() = pools.into_iter().map(|pool| pool.uuid).collect(),
        Err(error) => {
            let story = format!("the pools cannot be listed when all is over: {error}");
            shared.model.borrow_mut().violate(Rule::Liveness, story);
        }
    }
}

struct BriefPools {
    client: Rc<Client>,
}

impl BriefPools {
    /// Makes a pool with a container, uses it, destroys it.
    async fn live_and_die(&self, number: u64) -> Result<(), DsmError> {
        let (client, service) = (&self.client, &self.client.service);
        let label: Label = format!("brief{number}").parse()?;
        let spec = PoolSpec { label: Some(label.clone()), bytes: POOL_BYTES, ..PoolSpec::default() };
        client.log(|| format!("makes {label}"));
        // Where media fail an attempt may be undone, or be found done once they are sound again.
        let pool = loop {
            match service.pool_create(&spec).await {
                Ok(entry) => break entry.uuid,
                Err(error) if client.is_sick(error.status()) => client.recovery().await,
                Err(error) if error.status() == Status::EXISTS => {
                    let pools = client.persist(async || service.pool_list().await).await?;
                    match pools.into_iter().find(|pool| pool.label.as_ref() == Some(&label)) {
                        Some(entry) => break entry.uuid,
                        None => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        };
        self.is_listed(pool, true).await?;
        client.think().await;
        let name = || Name::Uuid(pool);
        let connected =
            client.persist(async || service.pool_connect(name(), Capabilities::ALL).await).await?;
        let make = async || connected.container_create(None, ContainerProperties::default(), None).await;
        // An evicted handle is nobody's fault here: the connection was lost, and the client was silent for too long.
        match client.persist(make).await {
            Ok(container) => match client.persist(async || connected.list_containers().await).await {
                Ok(listed) if listed.iter().any(|entry| entry.uuid == container) => {}
                Ok(listed) => self.violate(format!("container {container} is not listed in {listed:?}")),
                Err(error) if error.status() == Status::BAD_HANDLE => {}
                Err(error) => return Err(error),
            },
            Err(error) if error.status() == Status::BAD_HANDLE => {}
            Err(error) => return Err(error),
        }
        client.think().await;
        client.log(|| format!("destroys {label}"));
        if client.roll(2) == 0 {
            client.persist(async || connected.clone().disconnect().await).await?;
        }
        // With its handles, if there are any.
        client.persist(async || service.pool_destroy(name(), true).await).await?;
        self.is_listed(pool, false).await
    }

    async fn is_listed(&self, pool: Uuid, expected: bool) -> Result<(), DsmError> {
        let client = &self.client;
        let pools = client.persist(async || client.service.pool_list().await).await?;
        let pools: BTreeSet<Uuid> = pools.into_iter().map(|pool| pool.uuid).collect();
        let mut model = client.shared.model.borrow_mut();
        model.comparisons += 1;
        // A pool that cannot be opened, because media fail, is not listed.
        if pools.contains(&pool) != expected && !model.may_be_sick() {
            let how = if expected { "was made and is not listed" } else { "was destroyed and is listed" };
            drop(model);
            self.violate(format!("pool {pool} {how}"));
        }
        Ok(())
    }

    fn violate(&self, story: String) {
        self.client.shared.model.borrow_mut().violate(Rule::Pools, story);
    }
}
