//! Shared handles: they outlive the connection that opened them, and the client. Another life of it goes on with them.

use std::rc::Rc;

use daos_dsm::client::{ContainerHandle, OpenOptions, PoolHandle};
use daos_types::Epoch;
use daos_xstream_sim::SimEnv;
use uuid::Uuid;

use super::{Client, Next, Session, Trouble};
use crate::{cluster::pool_name, model::HandleKey, violation::Rule};

/// A shared handle that is open, as a client has packed it for its next life.
#[derive(Clone)]
pub struct Parked {
    bytes: Vec<u8>,
    container: usize,
    /// The handle.
    pub key: HandleKey,
    /// The pool handle that it was opened with.
    pub pool_handle: Uuid,
}

impl Client {
    /// Opens a shared handle, and uses it for the first time.
    pub(super) async fn round_shared(self: &Rc<Self>, pool: &PoolHandle<SimEnv>) -> Result<Next, Trouble> {
        let container = self.roll(self.shared.plan.containers as u64) as usize;
        let own = self.own();
        own.opening_shared.set(true);
        let opened = self.open(pool, container, OpenOptions { shared: true, ..OpenOptions::WRITE }).await;
        own.opening_shared.set(false);
        let session = opened?;
        // It does not end with this life, as the others do.
        own.handles.borrow_mut().retain(|key| *key != session.key);
        let parked = Parked {
            bytes: session.handle.local_to_global(),
            container,
            key: session.key,
            pool_handle: pool.handle(),
        };
        self.log(|| format!("handle {} is shared", session.key));
        *own.parked.borrow_mut() = Some(parked);
        self.use_shared(session).await
    }

    /// Goes on with a handle that was left open, perhaps in the middle of something.
    pub(super) async fn adopt(self: &Rc<Self>, pool: &PoolHandle<SimEnv>) -> Result<Next, Trouble> {
        let parked = self.own().parked.borrow().clone();
        let Some(parked) = parked else { return Ok(Next::Go) };
        self.log(|| format!("goes on with handle {}", parked.key));
        match ContainerHandle::global_to_local(pool.clone(), &parked.bytes) {
            Ok(handle) => self.use_shared(self.session(parked.container, handle, parked.key)).await,
            Err(error) => {
                let story = format!("handle {} cannot be rebuilt: {error}", parked.key);
                self.shared.model.borrow_mut().violate(Rule::Refusal, story);
                Err(Trouble::Gone)
            }
        }
    }

    async fn use_shared(self: &Rc<Self>, session: Session) -> Result<Next, Trouble> {
        let (own, key) = (self.own(), session.key);
        let stays = own.rounds.get() > 1 && self.roll(2) == 0;
        let outcome = async {
            session.take_stock().await?;
            match session.work().await {
                Err(Trouble::Undo | Trouble::Sick) => session.undo().await?,
                done => done?,
            }
            if !stays {
                return session.close().await;
            }
            // Others may wait for epochs that it holds.
            loop {
                match session.hold(Epoch::MAX).await {
                    Err(Trouble::Sick | Trouble::Undo) => session.undo().await?,
                    done => return done.map(drop),
                }
            }
        };
        let outcome = outcome.await;
        if outcome.is_err() {
            self.end_shared(key).await;
        }
        if !stays || outcome.is_err() {
            own.parked.take();
        }
        outcome.map(|()| Next::Go).map_err(|_| Trouble::Gone)
    }
}

impl Client {
    /// Somebody has begun to evict a shared handle. If a crash comes between it is open again, holds what it held, and
    /// nobody uses it any more (seeds 280, 1094): its owner sees to it that it goes.
    async fn end_shared(&self, key: HandleKey) {
        let parked = self.own().parked.borrow().clone();
        let Some(Parked { pool_handle, .. }) = parked else { return };
        if self.shared.model.borrow().handles[key].revoked {
            return;
        }
        self.threaten(&[key]);
        match self.persist(async || self.service.pool_evict(pool_name(), Some(pool_handle)).await).await {
            Ok(_) => self.revoked(&[key]),
            Err(error) => {
                let story = format!("handle {key} cannot be evicted: {error}");
                self.shared.model.borrow_mut().violate(Rule::Refusal, story);
            }
        }
    }
}

impl Session {
    /// Finds out what an earlier life of the client has left: a commit under way, changes in doubt.
    async fn take_stock(&self) -> Result<(), Trouble> {
        let model = &self.client.shared.model;
        let under_way = model.borrow().commit_under_way(self.key);
        if let Some((commit, epoch)) = under_way {
            self.learn_fate(commit, epoch).await?;
        }
        loop {
            model.borrow_mut().handles[self.key].unsure = true;
            match self.control("query", self.handle.epoch_query(), |_, _, _| {}).await {
                Err(Trouble::Sick) => self.client.recovery().await,
                Err(trouble) => return Err(trouble),
                Ok(_) => break,
            }
        }
        let in_doubt = model.borrow().in_doubt(self.key);
        if in_doubt { self.undo().await } else { Ok(()) }
    }
}
