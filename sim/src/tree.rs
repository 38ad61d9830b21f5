//! A client with a mounted file system. What it does is done on a naive tree too, kept outside the world: every call must
//! end in the same way, and after a crash, of the engine or of the client, the tree must be that of the last sync.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use daos_dsm::{
    access::Capabilities,
    client::{ContainerHandle, DsmError, OpenOptions},
    rpc::control::Name,
};
use daos_dsp::{Attributes, FileType, FormatOptions, Fs, FsError, Options};
use daos_dsr::client::{Anchor, Container, DsrError, Epochs};
use daos_types::{Epoch, EpochRange};
use daos_xstream::{Clock, Env, Rng, rpc::Status};
use daos_xstream_sim::SimEnv;
use uuid::Uuid;

use crate::{
    cluster::{Shared, pool_name},
    violation::Rule,
    workload::Client,
};

/// Calls that a run makes, over all mounts.
const CALLS: u32 = 60;
/// Where files are written: around the end of the first block, which is stored with the entry.
const OFFSETS: [u64; 3] = [0, 4000, 9000];

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(Vec<u8>),
}

/// By path; the root has none.
type Tree = BTreeMap<String, Node>;

/// What ought to be stored, and what is left to do.
pub struct State {
    /// The container.
    pub container: Option<Uuid>,
    formatted: bool,
    synced: Tree,
    /// What a sync under way would make of it.
    syncing: Option<Tree>,
    calls: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { container: None, formatted: false, synced: Tree::new(), syncing: None, calls: CALLS }
    }
}

/// Lives until all calls are made.
pub(crate) async fn live(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    let user = User { client: Client::new(env, shared.clone(), slot) };
    while shared.tree.borrow().calls > 0 {
        user.mount().await;
    }
    shared.helper_done.set(true);
}

/// Looks at the tree when all is over.
pub(crate) async fn audit(env: SimEnv, shared: Rc<Shared>) {
    let slot = shared.slots.len() - 1;
    User { client: Client::new(env, shared, slot) }.mount().await;
}

struct User {
    client: Rc<Client>,
}

type Mounted = Fs<Container<SimEnv>>;

impl User {
    /// One mount: compares what is there, makes calls, goes.
    async fn mount(&self) {
        let client = &self.client;
        let connect = async || client.service.pool_connect(pool_name(), Capabilities::ALL).await;
        let pool = match client.persist(connect).await {
            Ok(pool) => pool,
            Err(error) => return self.refused("connect", error.status(), &error.to_string()),
        };
        let container = client.shared.tree.borrow().container.expect("the container was made before");
        let open = async || pool.container_open(Name::Uuid(container), OpenOptions::WRITE).await;
        match client.persist(open).await {
            Ok(handle) => {
                match self.use_handle(&handle).await {
                    Ok(()) | Err(FsError::Storage(DsrError::StaleMap { .. })) => {}
                    Err(FsError::Storage(DsrError::Target { status, message, .. })) => {
                        self.refused("a call", Status(status), &message);
                    }
                    Err(other) => self.violate(format!("a mount ends with: {other}")),
                }
                self.end("close", client.persist(async || handle.clone().close().await).await);
            }
            Err(error) => self.refused("open", error.status(), &error.to_string()),
        }
        self.end("disconnect", client.persist(async || pool.clone().disconnect().await).await);
    }

    fn end(&self, what: &str, result: Result<(), DsmError>) {
        if let Err(error) = result {
            self.refused(what, error.status(), &error.to_string());
        }
    }

    /// Judges a refusal. The handle may be evicted: other clients do so, and after a silence the engine does.
    fn refused(&self, what: &str, status: Status, message: &str) {
        self.client.log(|| format!("tree: {what}: {message}"));
        let expected = matches!(status, Status::BAD_HANDLE | Status::STALE_HANDLE | Status::INTERRUPTED);
        if !expected && !self.client.is_sick(status) {
            let story = format!("file system: {what}: {message}");
            self.client.shared.model.borrow_mut().violate(Rule::Refusal, story);
        }
    }

    fn violate(&self, story: String) {
        self.client.shared.model.borrow_mut().violate(Rule::Tree, story);
    }

    fn life(&self) -> u64 {
        self.client.shared.model.borrow().engine_life
    }

    async fn use_handle(&self, handle: &ContainerHandle<SimEnv>) -> Result<(), FsError> {
        let (client, state) = (&self.client, &self.client.shared.tree);
        // What an earlier life of this client has written and not committed is seen until its handle is evicted.
        while handle.query().await.map_err(DsrError::from)?.handles > 1 {
            client.pause(Duration::from_millis(200)).await;
        }
        let targets = Container::new(handle);
        let life = self.life();
        let wall = client.env.clone();
        let options = Options {
            now: Rc::new(move || wall.clock().wall().0),
            random: client.env.rng().next_u64(),
            directory_times: client.roll(2) == 0,
            read_at: None,
            epochs: Epochs::new(handle.held()),
        };
        if !state.borrow().formatted {
            match Fs::format(&targets, FormatOptions::default(), directory(), &options).await {
                // Committed, and the reply was lost.
                Ok(()) | Err(FsError::Exists(_)) => state.borrow_mut().formatted = true,
                Err(error) => {
                    let _ = handle.discard(EpochRange { low: Epoch::ZERO, high: Epoch(u64::MAX - 2) }).await;
                    return Err(error);
                }
            }
        }
        let fs = Fs::mount(&targets, options).await?;
        self.compare(&fs).await?;
        let mut tree = state.borrow().synced.clone();
        for _ in 0..3 + client.roll(20) {
            if state.borrow().calls == 0 || self.life() != life {
                break;
            }
            client.think().await;
            state.borrow_mut().calls -= 1;
            match client.roll(8) {
                0 => {
                    client.log(|| "tree: sync".to_owned());
                    state.borrow_mut().syncing = Some(tree.clone());
                    fs.sync().await?;
                    let state = &mut *state.borrow_mut();
                    state.synced = state.syncing.take().unwrap_or_default();
                }
                _ => self.call(&fs, &mut tree, life).await?,
            }
        }
        Ok(())
    }

    /// Makes one call, here and there.
    async fn call(&self, fs: &Mounted, tree: &mut Tree, life: u64) -> Result<(), FsError> {
        let client = &self.client;
        let (path, other) = (self.path(), self.path());
        let (offset, length) = (OFFSETS[client.roll(3) as usize], 1 + client.roll(6000) as usize);
        let byte = 1 + client.roll(255) as u8;
        let (what, expected, found) = match client.roll(9) {
            0 | 1 => {
                let found = fs.mkdir(&path, directory()).await.map(drop);
                (format!("mkdir {path}"), naive::make(tree, &path, Node::Directory), found)
            }
            2 | 3 => {
                let found = async {
                    let file = fs.create(&path, Attributes::new(0o644, 0, 0)).await?;
                    file.write_at(0, &vec![byte; length]).await?;
                    file.close().await
                };
                let node = Node::File(vec![byte; length]);
                let found = found.await;
                (format!("create {path}, {length} bytes"), naive::make(tree, &path, node), found)
            }
            4 => {
                let found = async {
                    let file = fs.open(&path).await?;
                    file.write_at(offset, &vec![byte; length]).await?;
                    file.close().await
                };
                let found = found.await;
                let written = naive::change(tree, &path, |bytes| {
                    let end = offset as usize + length;
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[offset as usize..end].fill(byte);
                });
                (format!("write {path}, {length} bytes at {offset}"), written, found)
            }
            5 => {
                let found = fs.truncate(&path, offset).await;
                let cut = naive::change(tree, &path, |bytes| bytes.resize(offset as usize, 0));
                (format!("truncate {path} to {offset}"), cut, found)
            }
            6 => {
                let found = fs.unlink(&path).await;
                (format!("unlink {path}"), naive::unlink(tree, &path), found)
            }
            7 => {
                let found = fs.rmdir(&path).await;
                (format!("rmdir {path}"), naive::rmdir(tree, &path), found)
            }
            _ => {
                let found = fs.rename(&path, &other).await;
                (format!("rename {path} to {other}"), naive::rename(tree, &path, &other), found)
            }
        };
        client.log(|| format!("tree: {what}: {found:?}"));
        let found = match found {
            Err(error @ FsError::Storage(_)) => return Err(error),
            found => found,
        };
        // After a crash of the engine what was not synced may be gone, and the mount finds out at its next sync.
        if self.life() == life && found.is_ok() != expected {
            let wanted = if expected { "success" } else { "an error" };
            self.violate(format!("{what}: {found:?}, expected {wanted}"));
        }
        client.shared.model.borrow_mut().operations += 1;
        Ok(())
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for _ in 0..=self.client.roll(3) {
            path += ["/a", "/b", "/c"][self.client.roll(3) as usize];
        }
        path
    }

    /// Compares the whole tree with the last sync, or with one in doubt.
    async fn compare(&self, fs: &Mounted) -> Result<(), FsError> {
        let mut found = Tree::new();
        let mut open = vec![String::new()];
        while let Some(parent) = open.pop() {
            let mut anchor = Some(Anchor::default());
            while let Some(from) = anchor {
                let shown = if parent.is_empty() { "/" } else { &parent };
                let page = fs.list(shown, &from, 2).await?;
                for entry in page.items {
                    let path = format!("{parent}/{}", String::from_utf8_lossy(&entry.name));
                    let node = match entry.inode.file_type {
                        FileType::Directory => {
                            open.push(path.clone());
                            Node::Directory
                        }
                        _ => Node::File(fs.read_file(&path).await?),
                    };
                    if found.insert(path.clone(), node).is_some() {
                        self.violate(format!("{path} is listed twice"));
                    }
                }
                anchor = page.next;
            }
        }
        self.client.shared.model.borrow_mut().comparisons += found.len() as u64 + 1;
        let state = &mut *self.client.shared.tree.borrow_mut();
        if state.syncing.as_ref() == Some(&found) {
            state.synced = found;
        } else if state.synced != found {
            let differ = |path: &&String| state.synced.get(*path) != found.get(*path);
            let paths: Vec<_> = state.synced.keys().chain(found.keys()).filter(differ).collect();
            let doubt = if state.syncing.is_some() { ", and not that of a later one in doubt" } else { "" };
            self.violate(format!("the tree is not that of the last sync{doubt}; {paths:?} differ"));
        }
        state.syncing = None;
        Ok(())
    }
}

fn directory() -> Attributes {
    Attributes::new(0o755, 0, 0)
}

/// Calls on the naive tree. Each says whether it succeeded.
mod naive {
    use super::{Node, Tree};

    fn parent_is_directory(tree: &Tree, path: &str) -> bool {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        parent.is_empty() || tree.get(parent) == Some(&Node::Directory)
    }

    fn below(tree: &Tree, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        tree.keys().filter(|other| other.starts_with(&prefix)).cloned().collect()
    }

    pub fn make(tree: &mut Tree, path: &str, node: Node) -> bool {
        let possible = parent_is_directory(tree, path) && !tree.contains_key(path);
        if possible {
            tree.insert(path.to_owned(), node);
        }
        possible
    }

    pub fn change(tree: &mut Tree, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        match tree.get_mut(path) {
            Some(Node::File(bytes)) => {
                change(bytes);
                true
            }
            _ => false,
        }
    }

    pub fn unlink(tree: &mut Tree, path: &str) -> bool {
        let possible = matches!(tree.get(path), Some(Node::File(_)));
        if possible {
            tree.remove(path);
        }
        possible
    }

    pub fn rmdir(tree: &mut Tree, path: &str) -> bool {
        let possible = tree.get(path) == Some(&Node::Directory) && below(tree, path).is_empty();
        if possible {
            tree.remove(path);
        }
        possible
    }

    pub fn rename(tree: &mut Tree, from: &str, to: &str) -> bool {
        let Some(node) = tree.get(from).cloned() else { return false };
        let into_itself = to.starts_with(&format!("{from}/"));
        let fits = match (&node, tree.get(to)) {
            (_, None) => true,
            (Node::File(_), Some(target)) => matches!(target, Node::File(_)),
            (Node::Directory, Some(target)) => {
                *target == Node::Directory && (from == to || below(tree, to).is_empty())
            }
        };
        if into_itself || !fits || !parent_is_directory(tree, to) {
            return false;
        }
        if from != to {
            for path in below(tree, from) {
                let node = tree.remove(&path).expect("the path was listed");
                tree.insert(format!("{to}{}", &path[from.len()..]), node);
            }
            tree.remove(from);
            tree.insert(to.to_owned(), node);
        }
        true
    }
}
