//! One simulated core: its tasks, and the polling of its sources.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker},
};

use daos_xstream::Class;

use crate::{
    env::{Mail, SimEnv},
    world::{Happening, TaskKey, World},
};

type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;
type Source = Box<dyn FnMut() -> usize>;

struct Task {
    name: &'static str,
    class: Class,
    /// Away while it is being polled.
    future: Option<BoxedTask>,
    handle: Arc<TaskWaker>,
}

/// Waking is the one thing that code may do from anywhere, so it is thread-safe, although nobody makes use of that.
struct TaskWaker {
    key: TaskKey,
    queued: AtomicBool,
    woken: Arc<Mutex<Vec<TaskKey>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.woken.lock().expect("no code panics while it holds the list").push(self.key);
        }
    }
}

/// A core of one life of a node.
pub(crate) struct Core {
    pub id: u64,
    pub node: u32,
    pub number: u32,
    pub alive: Cell<bool>,
    pub busy_until: Cell<u64>,
    /// Work from each core of the node, in order.
    pub mailbox: RefCell<Vec<VecDeque<Mail>>>,
    pub env: RefCell<Option<SimEnv>>,
    poked: Cell<bool>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: RefCell<[Vec<u64>; Class::ALL.len()]>,
    sources: RefCell<Vec<Source>>,
    next_task: Cell<u64>,
}

impl Core {
    pub fn new(id: u64, node: u32, number: u32, cores: u32) -> Self {
        Self {
            id,
            node,
            number,
            alive: Cell::new(true),
            busy_until: Cell::new(0),
            mailbox: RefCell::new((0..cores).map(|_| VecDeque::new()).collect()),
            env: RefCell::default(),
            poked: Cell::new(false),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            sources: RefCell::default(),
            next_task: Cell::new(1),
        }
    }

    pub fn spawn(
        &self,
        world: &World,
        class: Class,
        name: &'static str,
        task: impl Future<Output = ()> + 'static,
    ) {
        if !self.alive.get() {
            return;
        }
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let handle = Arc::new(TaskWaker {
            key: (self.id, id),
            queued: AtomicBool::new(true),
            woken: world.woken.clone(),
        });
        self.tasks.borrow_mut().insert(id, Task { name, class, future: Some(Box::pin(task)), handle });
        self.ready(id);
    }

    pub fn add_source(&self, source: Source) {
        self.sources.borrow_mut().push(source);
        self.poke();
    }

    /// Something has come for this core: it looks at its sources again.
    pub fn poke(&self) {
        self.poked.set(true);
    }

    /// Puts a task on its ready list.
    pub fn ready(&self, id: u64) {
        if let Some(task) = self.tasks.borrow().get(&id) {
            self.ready.borrow_mut()[task.class as usize].push(id);
        }
    }

    pub fn has_work(&self) -> bool {
        self.poked.get() || self.ready.borrow().iter().any(|list| !list.is_empty())
    }

    /// Tasks that wait, by name; for reports.
    pub fn waiting(&self) -> Vec<&'static str> {
        self.tasks.borrow().values().map(|task| task.name).collect()
    }

    /// Polls one thing: the sources, or a task.
    pub fn step(&self, world: &World) {
        match self.choose(world) {
            Some(id) => self.poll_task(world, id),
            None => self.poll_sources(world),
        }
        self.busy_until.set(world.now.get() + world.schedule.latency(world.config.poll_ns));
    }

    /// Which task is next; `None` for the sources, which count as one foreground task.
    fn choose(&self, world: &World) -> Option<u64> {
        let mut ready = self.ready.borrow_mut();
        let poked = self.poked.get();
        let wants = |ready: &[Vec<u64>; 4], class: Class| {
            !ready[class as usize].is_empty() || (poked && class == Class::Foreground)
        };
        let shares = |ready: &[Vec<u64>; 4]| {
            Class::ALL
                .into_iter()
                .filter(|class| wants(ready, *class))
                .map(|class| class.shares() as u64)
                .sum()
        };
        let mut point = world.schedule.below(shares(&ready));
        let class = Class::ALL
            .into_iter()
            .filter(|class| wants(&ready, *class))
            .find(|class| {
                let hit = point < class.shares() as u64;
                point = point.saturating_sub(class.shares() as u64);
                hit
            })
            .expect("the point lies within the sum of the shares");
        let list = &mut ready[class as usize];
        let extra = usize::from(poked && class == Class::Foreground);
        let at = world.schedule.below((list.len() + extra) as u64) as usize;
        // `remove` and not `swap_remove`: what is left keeps its order, which is easier to follow in a trace.
        (at < list.len()).then(|| list.remove(at))
    }

    fn poll_task(&self, world: &World, id: u64) {
        let (mut future, handle) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(&id) else { return };
            let Some(future) = task.future.take() else { return };
            task.handle.queued.store(false, Ordering::Relaxed);
            (future, task.handle.clone())
        };
        world.record(Happening::Task, self.id, id);
        let done = future.as_mut().poll(&mut Context::from_waker(&Waker::from(handle))).is_ready();
        // A running core looks at its sources between tasks.
        self.poke();
        let finished = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get_mut(&id) {
                Some(task) if !done => {
                    task.future = Some(future);
                    return;
                }
                // Done, or the node was killed by this very task.
                _ => tasks.remove(&id),
            }
        };
        drop(future);
        drop(finished);
    }

    fn poll_sources(&self, world: &World) {
        self.poked.set(false);
        world.record(Happening::Progress, self.id, 0);
        let mut done = self.run_mail(world);
        let mut sources = std::mem::take(&mut *self.sources.borrow_mut());
        for source in &mut sources {
            if self.alive.get() {
                done += source();
            }
        }
        if !self.alive.get() {
            return;
        }
        sources.append(&mut self.sources.borrow_mut());
        *self.sources.borrow_mut() = sources;
        if done > 0 {
            self.poke();
        }
    }

    /// Runs one piece of work from the mailbox, of a core of the seed's choice.
    fn run_mail(&self, world: &World) -> usize {
        let mail = {
            let mut mailbox = self.mailbox.borrow_mut();
            let full: Vec<usize> = (0..mailbox.len()).filter(|from| !mailbox[*from].is_empty()).collect();
            if full.is_empty() {
                return 0;
            }
            let from = full[world.schedule.below(full.len() as u64) as usize];
            world.record(Happening::Mailbox, self.id, from as u64);
            mailbox[from].pop_front()
        };
        let env = self.env.borrow().clone();
        if let (Some(mail), Some(env)) = (mail, env) {
            (mail.work)(&env);
        }
        1
    }

    /// Ends everything on this core.
    pub fn kill(&self) {
        self.alive.set(false);
        // Dropping a task may drop, wake or spawn others; nothing is borrowed meanwhile.
        loop {
            let Some((_, task)) = self.tasks.borrow_mut().pop_first() else { break };
            drop(task);
        }
        let sources = std::mem::take(&mut *self.sources.borrow_mut());
        drop(sources);
        let mail = std::mem::take(&mut *self.mailbox.borrow_mut());
        drop(mail);
        let env = self.env.borrow_mut().take();
        if let Some(env) = env {
            env.clear_locals();
        }
    }
}
