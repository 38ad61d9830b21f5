//! A client that makes containers, fills them, and destroys them, while the engine crashes: one that is being destroyed opens
//! with all it held or not at all, and one that is gone stays gone.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use daos_dsm::{
    access::Capabilities,
    client::{ContainerHandle, DsmError, OpenOptions, PoolHandle},
    rpc::control::{ContainerProperties, Label, Name},
};
use daos_dsr::{
    class::SX,
    client::{Container, DsrError, Kv},
};
use daos_types::{Epoch, KeyOrder, ObjectId, ObjectType};
use daos_xstream::{Clock, Env, rpc::Status, timeout};
use daos_xstream_sim::SimEnv;
use uuid::Uuid;

use crate::{
    cluster::{Shared, pool_name},
    violation::Rule,
    workload::Client,
};

/// Containers made in a run.
const CONTAINERS_MAX: u64 = 4;
/// Values in each, spread over all targets.
const VALUES: u32 = 12;
/// The longest that a destruction is waited for before somebody looks.
const PATIENCE_US: u64 = 20_000;

/// Lives until all brief containers are made and destroyed.
pub(crate) async fn live(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    let containers = BriefContainers { client: Client::new(env, shared.clone(), slot) };
    for number in 0..1 + containers.client.roll(CONTAINERS_MAX) {
        if let Err(error) = containers.live_and_die(number).await {
            let story = format!("container {number}: {error}");
            shared.model.borrow_mut().violate(Rule::Refusal, story);
        }
    }
    shared.brief_containers.destroying.set(false);
    shared.helper_done.set(true);
}

/// When all is over no brief container is listed, and none can be opened.
pub(crate) async fn audit(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    let containers = BriefContainers { client: Client::new(env, shared.clone(), slot) };
    let audited = async {
        let pool = containers.connect().await?;
        let gone = shared.brief_containers.gone.borrow().clone();
        for container in gone {
            containers.is_gone(&pool, container).await?;
        }
        pool.disconnect().await
    };
    if let Err(error) = audited.await {
        let story = format!("what was destroyed cannot be asked for when all is over: {error}");
        shared.model.borrow_mut().violate(Rule::Liveness, story);
    }
}

/// What is known of brief containers outside the world.
#[derive(Default)]
pub struct State {
    /// One is being destroyed.
    pub destroying: std::cell::Cell<bool>,
    /// Those that are gone: it was acknowledged, or seen.
    gone: std::cell::RefCell<BTreeSet<Uuid>>,
}

struct BriefContainers {
    client: Rc<Client>,
}

/// Nobody's fault here: the connection was lost, or media failed, or the engine has restarted.
fn is_interruption(client: &Client, status: Status) -> bool {
    matches!(status, Status::BAD_HANDLE | Status::INTERRUPTED | Status::NOT_FLUSHED) || client.is_sick(status)
}

impl BriefContainers {
    /// Makes a container, fills it, destroys it.
    async fn live_and_die(&self, number: u64) -> Result<(), DsmError> {
        let client = &self.client;
        let label: Label = format!("brief{number}").parse()?;
        let (container, epoch) = loop {
            let pool = self.connect().await?;
            let filled = async {
                let container = self.make(&pool, &label).await?;
                Ok::<_, DsmError>((container, self.fill(&pool, container).await?))
            };
            let filled = filled.await;
            // With the container handle of an attempt that failed: it must not be in the way of the next one.
            client.persist(async || pool.clone().disconnect().await).await?;
            match filled {
                Ok(done) => break done,
                Err(error) if client.is_sick(error.status()) => client.recovery().await,
                Err(error) if is_interruption(client, error.status()) => client.think().await,
                Err(error) => return Err(error),
            }
        };
        client.log(|| format!("{label} is {container}, filled and committed at {epoch}"));
        client.think().await;
        client.shared.brief_containers.destroying.set(true);
        loop {
            let pool = self.connect().await?;
            let looked = self.destroy_and_look(&pool, container, epoch).await;
            client.persist(async || pool.clone().disconnect().await).await?;
            match looked {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if client.is_sick(error.status()) => client.recovery().await,
                Err(error) if is_interruption(client, error.status()) => client.think().await,
                Err(error) => return Err(error),
            }
        }
        client.shared.brief_containers.destroying.set(false);
        Ok(())
    }

    /// One attempt, with or without the patience to wait for the end of it. Returns whether the container is gone.
    async fn destroy_and_look(
        &self,
        pool: &PoolHandle<SimEnv>,
        container: Uuid,
        epoch: Epoch,
    ) -> Result<bool, DsmError> {
        let client = &self.client;
        let clock = client.env.clock();
        let patience = match client.roll(4) {
            0 => Duration::from_secs(3600),
            _ => Duration::from_micros(client.roll(PATIENCE_US)),
        };
        let destroyed = pool.container_destroy(Name::Uuid(container), true);
        if let Ok(result) = timeout(clock, clock.now() + patience, destroyed).await {
            result?;
            client.log(|| format!("container {container} is destroyed"));
            client.shared.brief_containers.gone.borrow_mut().insert(container);
        }
        // Whoever lost patience looks at once, or after a crash.
        if client.roll(2) == 0 {
            client.pause(Duration::from_micros(client.roll(400_000))).await;
        }
        match pool.container_open(Name::Uuid(container), OpenOptions::READ).await {
            Ok(handle) => {
                client.log(|| format!("container {container} can be opened"));
                if client.shared.brief_containers.gone.borrow().contains(&container) {
                    self.violate(
                        Rule::Pools,
                        format!("container {container} was destroyed, and opens again"),
                    );
                }
                self.look(&handle, container, epoch).await?;
                Ok(false)
            }
            Err(error) if error.status() == Status::NOT_FOUND => {
                client.log(|| format!("container {container} is gone"));
                client.shared.brief_containers.gone.borrow_mut().insert(container);
                self.is_gone(pool, container).await?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    async fn connect(&self) -> Result<PoolHandle<SimEnv>, DsmError> {
        let service = &self.client.service;
        self.client.persist(async || service.pool_connect(pool_name(), Capabilities::ALL).await).await
    }

    /// Makes a container, or finds the one that an earlier attempt has made.
    async fn make(&self, pool: &PoolHandle<SimEnv>, label: &Label) -> Result<Uuid, DsmError> {
        match pool.container_create(Some(label.clone()), ContainerProperties::default(), None).await {
            Err(error) if error.status() == Status::EXISTS => {
                let listed = pool.list_containers().await?;
                let found = listed.into_iter().find(|entry| entry.label.as_ref() == Some(label));
                found.map(|entry| entry.uuid).ok_or(error)
            }
            result => result,
        }
    }

    /// Writes all values and commits them. Returns the epoch.
    async fn fill(&self, pool: &PoolHandle<SimEnv>, container: Uuid) -> Result<Epoch, DsmError> {
        let handle = pool.container_open(Name::Uuid(container), OpenOptions::NO_TRANSACTION).await?;
        let (epoch, kv) = (handle.held(), values(&handle));
        for number in 0..VALUES {
            let (key, value) = value(number);
            kv.put(epoch, &key, &value).await.map_err(of_object)?;
        }
        handle.flush(epoch).await?;
        handle.commit(epoch).await?;
        handle.close().await?;
        Ok(epoch)
    }

    /// All that was committed is there.
    async fn look(
        &self,
        handle: &ContainerHandle<SimEnv>,
        container: Uuid,
        epoch: Epoch,
    ) -> Result<(), DsmError> {
        let kv = values(handle);
        for number in 0..VALUES {
            let (key, value) = value(number);
            let found = kv.get(epoch, &key).await.map_err(of_object)?.value();
            let mut model = self.client.shared.model.borrow_mut();
            model.comparisons += 1;
            if found.as_ref() != Some(&value) {
                let story =
                    format!("container {container} opens, and value {number}, committed at {epoch}, is lost");
                model.violate(Rule::CommittedEpochs, story);
            }
        }
        Ok(())
    }

    /// A container that is gone is not listed and does not open.
    async fn is_gone(&self, pool: &PoolHandle<SimEnv>, container: Uuid) -> Result<(), DsmError> {
        self.client.shared.model.borrow_mut().comparisons += 1;
        if pool.list_containers().await?.iter().any(|entry| entry.uuid == container) {
            self.violate(Rule::Pools, format!("container {container} is gone, and is listed"));
        }
        match pool.container_open(Name::Uuid(container), OpenOptions::READ).await {
            Err(error) if error.status() == Status::NOT_FOUND => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                self.violate(Rule::Pools, format!("container {container} is gone, and opens again"));
                Ok(())
            }
        }
    }

    fn violate(&self, rule: Rule, story: String) {
        self.client.shared.model.borrow_mut().violate(rule, story);
    }
}

fn values(handle: &ContainerHandle<SimEnv>) -> Kv<Container<SimEnv>> {
    let object = ObjectId::new(ObjectType::KeyValue, KeyOrder::Lexical, KeyOrder::Hashed, SX, (0, 9, 1));
    Kv::open(&Container::new(handle), object).expect("a KV")
}

fn value(number: u32) -> (Vec<u8>, Vec<u8>) {
    let length = [60, 700, 5000][number as usize % 3];
    (format!("value{number}").into_bytes(), vec![number as u8; length])
}

fn of_object(error: DsrError) -> DsmError {
    match error {
        DsrError::Target { status, message, .. } => DsmError::Refused { status: Status(status), message },
        other => DsmError::Invalid(other.to_string()),
    }
}
