//! The real world, as services see it.

use std::{future::Future, rc::Rc};

use daos_xstream::{CoreId, Env, Fabric, Locals};

use crate::{
    Counters, Park, UringClock, UringMailbox, UringMedia, UringRng, UringSpawn, core_state::Core,
    mesh::MeshEnds,
};

/// The real world of one xstream, over the fabric `F`.
pub struct UringEnv<F: Park + 'static> {
    inner: Rc<Inner<F>>,
}

struct Inner<F: Park + 'static> {
    core: Rc<Core>,
    clock: UringClock,
    rng: UringRng,
    spawn: UringSpawn,
    mailbox: UringMailbox<F>,
    media: UringMedia,
    locals: Locals,
    fabric: F,
}

impl<F: Park + 'static> Clone for UringEnv<F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<F: Park + Fabric> UringEnv<F> {
    pub(crate) fn new(
        core: Rc<Core>,
        rng: UringRng,
        ends: MeshEnds<F>,
        media: UringMedia,
        fabric: F,
    ) -> Self {
        let inner = Inner {
            clock: UringClock::new(core.timers.clone()),
            rng,
            spawn: UringSpawn::new(core.clone()),
            mailbox: UringMailbox::new(core.clone(), ends),
            media,
            locals: Locals::default(),
            fabric,
            core,
        };
        Self { inner: Rc::new(inner) }
    }

    /// Completes when a shutdown has been asked for: the main future of an xstream awaits it, puts its house in order
    /// and returns.
    pub fn stop_requested(&self) -> impl Future<Output = ()> + 'static {
        self.inner.core.clone().stop_requested()
    }

    /// What this xstream has done since it started.
    pub fn counters(&self) -> Counters {
        self.inner.core.counters()
    }

    pub(crate) fn core_state(&self) -> &Rc<Core> {
        &self.inner.core
    }

    pub(crate) fn uring_mailbox(&self) -> &UringMailbox<F> {
        &self.inner.mailbox
    }
}

impl<F: Park + Fabric> Env for UringEnv<F> {
    type Clock = UringClock;
    type Rng = UringRng;
    type Spawn = UringSpawn;
    type Mailbox = UringMailbox<F>;
    type Fabric = F;
    type Media = UringMedia;

    fn clock(&self) -> &UringClock {
        &self.inner.clock
    }

    fn rng(&self) -> &UringRng {
        &self.inner.rng
    }

    fn scheduler(&self) -> &UringSpawn {
        &self.inner.spawn
    }

    fn mailbox(&self) -> &UringMailbox<F> {
        &self.inner.mailbox
    }

    fn fabric(&self) -> &F {
        &self.inner.fabric
    }

    fn media(&self) -> &UringMedia {
        &self.inner.media
    }

    fn locals(&self) -> &Locals {
        &self.inner.locals
    }

    fn core(&self) -> CoreId {
        self.inner.core.id
    }
}
