//! Starting and stopping the xstreams of a process.
//!
//! # The end of a world
//!
//! An xstream lives until the main futures of *all* xstreams have ended, so that they can call each other while they put
//! their houses in order. Then each closes its mailbox, drops every task that is left, waits for media operations in
//! flight, and ends its thread.

use std::{
    cell::RefCell,
    fmt,
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use daos_xstream::{Class, CoreId, Env, Fabric};
use glommio::{
    Latency, LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement, Shares, TaskQueueHandle,
    executor, spawn_local_into,
};

use crate::{
    Config, Park, Shutdown, UringEnv, UringMedia, UringRng, WorldError,
    config::{Place, ensure_locked_memory},
    core_state::{Core, FailStop, yield_queue},
    media::Root,
    mesh::{MeshEnds, Shared, mesh, wait_for_all},
    notify::Notify,
    progress::Progress,
    ring::Ring,
};

/// How often glommio interrupts a queue that stays busy. It costs system calls, and nothing here waits for it: queues
/// give way when a progress round is due ([`crate::core_state`]).
const PREEMPT: Duration = Duration::from_millis(10);

/// Runs `main` on every xstream and returns what they return, in their order.
///
/// `fabric` makes the endpoint of an xstream, on its thread. `main` gets the xstream's world; it sets up services,
/// awaits [`UringEnv::stop_requested`], puts things in order and returns. A panic anywhere in an xstream aborts the
/// process.
pub fn run<F, E, M, T>(
    config: &Config,
    shutdown: &Shutdown,
    fabric: impl Fn(CoreId) -> Result<F, E> + Sync,
    main: impl Fn(UringEnv<F>) -> M + Sync,
) -> Result<Vec<T>, WorldError>
where
    F: Park + Fabric,
    E: fmt::Display,
    M: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let places = config.places()?;
    ensure_locked_memory(config.xstreams)?;
    let root = Root::open(&config.media_root)
        .map_err(|source| WorldError::Media { path: config.media_root.clone(), source })?;
    let shared = Shared::new(config.xstreams).map_err(|source| system("making the doorbells", source))?;
    let shared = Arc::new(shared);
    let start = Start { barrier: Barrier::new(places.len()), failed: AtomicBool::new(false) };
    let _attached = shutdown.attach(&shared);

    let (fabric, main, start, root, shared) = (&fabric, &main, &start, &root, &shared);
    thread::scope(|scope| {
        let threads: Vec<_> = places
            .iter()
            .zip(mesh(config.xstreams, config.mailbox_capacity))
            .zip(0..)
            .map(|((place, ends), xstream)| {
                let id = CoreId(xstream);
                let body = move || {
                    let _fail_stop = FailStop("xstream");
                    let prepared = Xstream::prepare(id, *place, config, shared, root, ends, fabric);
                    match start.all_ready(prepared) {
                        Some(Ok(xstream)) => Some(Ok(xstream.run(main))),
                        Some(Err(error)) => Some(Err(error)),
                        None => None,
                    }
                };
                thread::Builder::new().name(format!("xstream-{xstream}")).spawn_scoped(scope, body)
            })
            .collect();
        join(threads, start)
    })
}

/// Lets all xstreams start, or none.
struct Start {
    barrier: Barrier,
    failed: AtomicBool,
}

impl Start {
    /// Waits until all are prepared. `None`: another one failed.
    fn all_ready<X>(&self, prepared: Result<X, WorldError>) -> Option<Result<X, WorldError>> {
        if prepared.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        self.barrier.wait();
        match prepared {
            Ok(_) if self.failed.load(Ordering::SeqCst) => None,
            prepared => Some(prepared),
        }
    }
}

type Thread<'scope, T> = io::Result<thread::ScopedJoinHandle<'scope, Option<Result<T, WorldError>>>>;

fn join<T>(threads: Vec<Thread<'_, T>>, start: &Start) -> Result<Vec<T>, WorldError> {
    let mut results = Vec::with_capacity(threads.len());
    let mut first_error = None;
    if threads.iter().any(Result::is_err) {
        start.failed.store(true, Ordering::SeqCst);
        // Those that did start wait for as many as were to be.
        for _ in threads.iter().filter(|thread| thread.is_err()) {
            start.barrier.wait();
        }
    }
    for thread in threads {
        match thread {
            Ok(thread) => match thread.join().expect("a panic in an xstream aborts the process") {
                Some(Ok(result)) => results.push(result),
                Some(Err(error)) => first_error = first_error.or(Some(error)),
                None => {}
            },
            Err(source) => first_error = first_error.or(Some(system("starting a thread", source))),
        }
    }
    first_error.map_or(Ok(results), Err)
}

fn system(what: &str, source: io::Error) -> WorldError {
    WorldError::System { what: what.into(), source }
}

/// Everything of an xstream that can fail to come about.
struct Xstream<F: Park + Fabric> {
    id: CoreId,
    place: Place,
    shared: Arc<Shared>,
    executor: LocalExecutor,
    ring: Rc<Ring>,
    media: UringMedia,
    rng: UringRng,
    fabric: F,
    ends: MeshEnds<F>,
}

impl<F: Park + Fabric> Xstream<F> {
    fn prepare<E: fmt::Display>(
        id: CoreId,
        place: Place,
        config: &Config,
        shared: &Arc<Shared>,
        root: &Arc<Root>,
        ends: MeshEnds<F>,
        fabric: &impl Fn(CoreId) -> Result<F, E>,
    ) -> Result<Self, WorldError> {
        let executor = LocalExecutorBuilder::new(Placement::Fixed(place.cpu))
            .name(&format!("xstream-{}", id.0))
            // Media has a ring of its own: glommio does no I/O here.
            .io_memory(64 * 1024)
            .ring_depth(32)
            .preempt_timer(PREEMPT)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .make()
            .map_err(|error| WorldError::Executor { xstream: id.0, reason: error.to_string() })?;
        let fabric =
            fabric(id).map_err(|error| WorldError::Fabric { xstream: id.0, reason: error.to_string() })?;
        let doorbell = shared.cores[id.0 as usize].doorbell();
        let ring = Ring::new(config.media_depth, doorbell, &fabric.descriptors())
            .map_err(|source| system("making the media ring", source))?;
        let ring = Rc::new(ring);
        let media = UringMedia::new(ring.clone(), root.clone());
        let rng = UringRng::from_system().map_err(|source| system("seeding randomness", source))?;
        Ok(Self { id, place, shared: shared.clone(), executor, ring, media, rng, fabric, ends })
    }

    fn run<M, T>(self, main: &impl Fn(UringEnv<F>) -> M) -> T
    where
        M: Future<Output = T> + 'static,
        T: 'static,
    {
        let Self { id, place, shared, executor, ring, media, rng, fabric, ends } = self;
        tracing::debug!(xstream = id.0, cpu = place.cpu, "xstream starts");
        let result = executor.run(async move {
            let core = Rc::new(Core::new(id, shared, ring, make_queues()));
            let env = UringEnv::new(core.clone(), rng, ends, media, fabric);
            core.readiness.track(live(env, core.clone(), place.idle_budget, main)).await
        });
        tracing::debug!(xstream = id.0, "xstream ended");
        result
    }
}

/// One queue per class, in the order of [`Class::ALL`].
fn make_queues() -> [TaskQueueHandle; Class::ALL.len()] {
    Class::ALL.map(|class| {
        // No class asks glommio for a latency: it would buy interrupts of a busy queue with timers, that is with
        // system calls, and rounds and yields already come every few microseconds.
        executor().create_task_queue(
            Shares::Static(class.shares()),
            Latency::NotImportant,
            &format!("{class:?}"),
        )
    })
}

async fn live<F, M, T>(
    env: UringEnv<F>,
    core: Rc<Core>,
    idle_budget: Duration,
    main: &impl Fn(UringEnv<F>) -> M,
) -> T
where
    F: Park + Fabric,
    M: Future<Output = T> + 'static,
    T: 'static,
{
    let progress = Rc::new(Progress::new(env.clone(), idle_budget));
    let idle_queue = executor().create_task_queue(Shares::Static(1), Latency::NotImportant, "idle");
    let pacer_queue = executor().create_task_queue(Shares::Static(1000), Latency::NotImportant, "pacer");
    let spinner = spawn_local_into(progress.clone().spin(), idle_queue).expect("the idle queue exists");
    let pace = core.readiness.track(progress.clone().pace());
    let pacer = spawn_local_into(pace, pacer_queue).expect("the pacer's queue exists");

    let result = Rc::new(RefCell::new(None));
    let ended = Rc::new(Notify::default());
    let main = {
        let (result, ended, main) = (result.clone(), ended.clone(), main(env.clone()));
        let progress = progress.clone();
        async move {
            let mut main = pin!(main);
            // What the main future sets up before it waits first is there for the first work of other cores.
            let first = poll_fn(|context| Poll::Ready(main.as_mut().poll(context))).await;
            progress.main_has_begun();
            *result.borrow_mut() = Some(match first {
                Poll::Ready(value) => value,
                Poll::Pending => main.await,
            });
            ended.notify();
        }
    };
    core.spawn(Class::Service, "main", main);
    ended.notified().await;
    core.shared.main_ended();
    wait_for_all(&core, &progress.ended).await;

    core.shared.cores[core.id.0 as usize].close();
    core.close();
    while core.has_tasks() {
        // Each task sees the end when it is polled; dropping one may wake others, which does no harm.
        core.wake_tasks();
        yield_queue().await;
    }
    progress.stop();
    spinner.await;
    pacer.await;
    // Buffers in flight belong to the kernel until it gives them back.
    core.ring.drain();
    // Services hold the world, and the world holds services: cut both ties.
    core.drop_sources();
    env.locals().clear();
    let result = result.borrow_mut().take();
    result.expect("the main future has ended")
}
