//! Pools of an engine: made, listed, destroyed, connected to.

use std::rc::Rc;

use daos_xstream::{
    Address, Env,
    rpc::{Call, Opcode},
};

use super::{Caller, DsmError, PoolHandle, new_uuid};
use crate::{
    access::{Acl, Capabilities, Identity},
    rpc::{
        control::{
            Label, ManagementQuery, Name, PoolCreate, PoolDestroy, PoolEntry, PoolEvict, PoolList,
            PoolListRequest, PoolLookup, StorageReply,
        },
        management, module, pool,
    },
};

/// What a new pool shall be.
#[derive(Clone, Debug, Default)]
pub struct PoolSpec {
    /// Its label.
    pub label: Option<Label>,
    /// Bytes of all targets together.
    pub bytes: u64,
    /// Of these, bytes for small data and metadata; `None` for a share that suits most uses.
    pub scm_bytes: Option<u64>,
    /// Whom it shall belong to; `None` for who asks.
    pub owner: Option<Identity>,
    /// Who may do what; `None` for [`Acl::initial`].
    pub acl: Option<Acl>,
}

/// The services of an engine, as its address reaches them.
pub struct Service<E: Env> {
    caller: Caller<E>,
    addresses: Rc<[Address]>,
}

impl<E: Env> Service<E> {
    /// The services at `addresses` (of an engine's first target), nearest first.
    pub fn new(caller: Caller<E>, addresses: Vec<Address>) -> Self {
        Self { caller, addresses: addresses.into() }
    }

    /// Makes a pool on every target of the engine.
    pub async fn pool_create(&self, spec: &PoolSpec) -> Result<PoolEntry, DsmError> {
        let request = PoolCreate {
            uuid: new_uuid(self.caller.env()),
            label: spec.label.clone(),
            identity: self.identity(),
            owner: spec.owner,
            acl: spec.acl.clone(),
            bytes: spec.bytes,
            scm_bytes: spec.scm_bytes,
        };
        self.call(module::MANAGEMENT, management::POOL_CREATE, &request).await
    }

    /// Destroys a pool with all it holds; refused while somebody is connected, unless forced.
    pub async fn pool_destroy(&self, pool: Name, force: bool) -> Result<(), DsmError> {
        let pool = match pool {
            Name::Uuid(uuid) => uuid,
            label => {
                let request = PoolLookup { pool: label, identity: self.identity() };
                self.call(module::MANAGEMENT, management::POOL_LOOKUP, &request).await?
            }
        };
        let request = PoolDestroy { pool, identity: self.identity(), force };
        self.call(module::MANAGEMENT, management::POOL_DESTROY, &request).await
    }

    /// All pools of the engine.
    pub async fn pool_list(&self) -> Result<Vec<PoolEntry>, DsmError> {
        let mut pools: Vec<PoolEntry> = Vec::new();
        loop {
            let after = pools.last().map(|pool| pool.uuid);
            let request = PoolListRequest { identity: self.identity(), after };
            let list: PoolList = self.call(module::MANAGEMENT, management::POOL_LIST, &request).await?;
            let advanced = !list.pools.is_empty();
            pools.extend(list.pools);
            if !list.more || !advanced {
                return Ok(pools);
            }
        }
    }

    /// Space of the engine's targets.
    pub async fn storage_query(&self) -> Result<StorageReply, DsmError> {
        let request = ManagementQuery { identity: self.identity() };
        self.call(module::MANAGEMENT, management::STORAGE_QUERY, &request).await
    }

    /// Closes handles of a pool, of whomever they are; returns how many.
    pub async fn pool_evict(&self, pool: Name, handle: Option<uuid::Uuid>) -> Result<u64, DsmError> {
        let request = PoolEvict { pool, identity: self.identity(), handle };
        self.call(module::POOL, pool::EVICT, &request).await
    }

    /// Connects to a pool.
    pub async fn pool_connect(
        &self,
        pool: Name,
        capabilities: Capabilities,
    ) -> Result<PoolHandle<E>, DsmError> {
        PoolHandle::connect(self.caller.clone(), self.addresses.clone(), pool, capabilities).await
    }

    fn identity(&self) -> Identity {
        self.caller.config().identity
    }

    async fn call<Request: serde::Serialize, Answer: serde::de::DeserializeOwned>(
        &self,
        module: u8,
        procedure: u8,
        request: &Request,
    ) -> Result<Answer, DsmError> {
        let call = Call { opcode: Opcode::new(module, procedure), ..Call::default() };
        self.caller.control(&self.addresses, call, request).await
    }
}
