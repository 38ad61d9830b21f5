//! A connection to a pool.

use std::{cell::RefCell, rc::Rc};

use daos_xstream::{
    Address, Env,
    rpc::{Call, Opcode},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{Caller, ContainerHandle, DsmError, OpenOptions, new_uuid};
use crate::{
    access::{Acl, Capabilities},
    pool_map::{PoolMap, PoolMapError},
    rpc::{
        Malformed, container,
        control::{
            self, ContainerCreate, ContainerDestroy, ContainerEntry, ContainerList, ContainerListRequest,
            ContainerLookup, ContainerProperties, Label, Name, PoolConnect, PoolConnected, PoolQuery,
            PoolQueryReply, SetAcl,
        },
        module, pool,
    },
};

/// An open handle of a pool. Clones are the same handle.
///
/// Dropping it does not close it: [`disconnect`](Self::disconnect) does, and so does the end of the process.
pub struct PoolHandle<E: Env>(Rc<Inner<E>>);

struct Inner<E: Env> {
    caller: Caller<E>,
    service: Rc<[Address]>,
    handle: Uuid,
    pool: Uuid,
    map: RefCell<Rc<PoolMap>>,
}

impl<E: Env> Clone for PoolHandle<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What another process needs to use the handle.
#[derive(Serialize, Deserialize)]
struct Global {
    service: Vec<Address>,
    handle: Uuid,
    map: PoolMap,
}

impl<E: Env> PoolHandle<E> {
    pub(super) async fn connect(
        caller: Caller<E>,
        service: Rc<[Address]>,
        pool: Name,
        capabilities: Capabilities,
    ) -> Result<Self, DsmError> {
        let handle = new_uuid(caller.env());
        let request = PoolConnect { pool, identity: caller.config().identity, capabilities };
        let call = Call { opcode: Opcode::new(module::POOL, pool::CONNECT), handle, ..Call::default() };
        let connected: PoolConnected = caller.control(&service, call, &request).await?;
        let map = PoolMap::from_changes(&connected.map).map_err(bad_map)?;
        Ok(Self(Rc::new(Inner {
            caller,
            service,
            handle,
            pool: connected.uuid,
            map: RefCell::new(Rc::new(map)),
        })))
    }

    /// Packs the handle, so that another process of the group can use it.
    pub fn local_to_global(&self) -> Vec<u8> {
        let (service, map) = (self.0.service.to_vec(), (*self.map()).clone());
        control::encode(&Global { service, handle: self.0.handle, map })
    }

    /// Rebuilds a handle that another process has packed.
    pub fn global_to_local(caller: Caller<E>, bytes: &[u8]) -> Result<Self, DsmError> {
        let Global { service, handle, map } = control::decode(bytes)?;
        let (service, pool) = (service.into(), map.pool());
        Ok(Self(Rc::new(Inner { caller, service, handle, pool, map: RefCell::new(Rc::new(map)) })))
    }

    /// Closes the handle, and the container handles opened with it.
    pub async fn disconnect(self) -> Result<(), DsmError> {
        self.call(module::POOL, pool::DISCONNECT, &()).await
    }

    /// The handle's UUID.
    pub fn handle(&self) -> Uuid {
        self.0.handle
    }

    /// The pool.
    pub fn pool(&self) -> Uuid {
        self.0.pool
    }

    /// The newest pool map that this client knows.
    pub fn map(&self) -> Rc<PoolMap> {
        self.0.map.borrow().clone()
    }

    /// Fetches what is new in the pool map. Returns the map.
    pub async fn refresh_map(&self) -> Result<Rc<PoolMap>, DsmError> {
        self.query(false).await?;
        Ok(self.map())
    }

    /// The pool's state, and the space of its targets if asked for.
    pub async fn query(&self, space: bool) -> Result<PoolQueryReply, DsmError> {
        let request = PoolQuery { map_version: self.map().version(), space };
        let reply: PoolQueryReply = self.call(module::POOL, pool::QUERY, &request).await?;
        let mut map = (*self.map()).clone();
        map.apply(&reply.map).map_err(bad_map)?;
        // Another answer may have come meanwhile.
        if map.version() > self.map().version() {
            *self.0.map.borrow_mut() = Rc::new(map);
        }
        Ok(reply)
    }

    /// Replaces the access control list.
    pub async fn set_acl(&self, acl: Acl) -> Result<(), DsmError> {
        self.call(module::POOL, pool::SET_ACL, &SetAcl { acl }).await
    }

    /// All containers of the pool.
    pub async fn list_containers(&self) -> Result<Vec<ContainerEntry>, DsmError> {
        let mut containers: Vec<ContainerEntry> = Vec::new();
        loop {
            let request = ContainerListRequest { after: containers.last().map(|entry| entry.uuid) };
            let list: ContainerList = self.call(module::POOL, pool::LIST_CONTAINERS, &request).await?;
            let advanced = !list.containers.is_empty();
            containers.extend(list.containers);
            if !list.more || !advanced {
                return Ok(containers);
            }
        }
    }

    /// Makes a container. Returns its UUID.
    pub async fn container_create(
        &self,
        label: Option<Label>,
        properties: ContainerProperties,
        acl: Option<Acl>,
    ) -> Result<Uuid, DsmError> {
        let uuid = new_uuid(self.0.caller.env());
        let request = ContainerCreate { uuid, label, properties, acl };
        let () = self.call(module::CONTAINER, container::CREATE, &request).await?;
        Ok(uuid)
    }

    /// Destroys a container with all it holds; refused while somebody has it open, unless forced.
    pub async fn container_destroy(&self, container: Name, force: bool) -> Result<(), DsmError> {
        let container = match container {
            Name::Uuid(uuid) => uuid,
            label => {
                let request = ContainerLookup { container: label };
                self.call(module::CONTAINER, container::LOOKUP, &request).await?
            }
        };
        self.call(module::CONTAINER, container::DESTROY, &ContainerDestroy { container, force }).await
    }

    /// Opens a container.
    pub async fn container_open(
        &self,
        container: Name,
        options: OpenOptions,
    ) -> Result<ContainerHandle<E>, DsmError> {
        ContainerHandle::open(self.clone(), container, options).await
    }

    pub(super) fn caller(&self) -> &Caller<E> {
        &self.0.caller
    }

    pub(super) async fn call<Request: Serialize, Answer: DeserializeOwned>(
        &self,
        module: u8,
        procedure: u8,
        request: &Request,
    ) -> Result<Answer, DsmError> {
        self.call_with(self.0.handle, module, procedure, request).await
    }

    pub(super) async fn call_with<Request: Serialize, Answer: DeserializeOwned>(
        &self,
        handle: Uuid,
        module: u8,
        procedure: u8,
        request: &Request,
    ) -> Result<Answer, DsmError> {
        let map_version = self.map().version();
        let call = Call { opcode: Opcode::new(module, procedure), handle, map_version, ..Call::default() };
        self.0.caller.control(&self.0.service, call, request).await
    }
}

fn bad_map(_: PoolMapError) -> DsmError {
    DsmError::BadReply(Malformed("its pool map is none"))
}
