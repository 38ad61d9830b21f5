//! The system module, which every engine serves on every xstream: what it is, its metrics, and the way to stop it.
//!
//! | Procedure | Body | Reply |
//! |---|---|---|
//! | `NULL` | – | – |
//! | `ECHO` | anything | the same |
//! | `QUERY` | – | [`SystemInfo`], postcard |
//! | `TELEMETRY` | offset, u32 little-endian | a piece of the metrics' text from there; empty at its end |
//! | `STOP` | – | –; the engine shuts down after the reply |
//! | `FORMAT` | one byte, 1 to format over data | – |

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Call, Endpoint, Opcode, Request, Responder, RpcError, Service, Status, module};
use crate::{Credentials, Env, PeerId, telemetry::Registry};

/// Does nothing: measures the way.
pub const NULL: Opcode = Opcode::new(module::SYSTEM, 0);
/// Sends the body back.
pub const ECHO: Opcode = Opcode::new(module::SYSTEM, 1);
/// What the engine is.
pub const QUERY: Opcode = Opcode::new(module::SYSTEM, 2);
/// The metrics, piece by piece.
pub const TELEMETRY: Opcode = Opcode::new(module::SYSTEM, 3);
/// Shut down cleanly. Only for the user who runs the engine, and root, on the same node.
pub const STOP: Opcode = Opcode::new(module::SYSTEM, 4);

/// Format the storage of an engine that waits for it. Who may stop the engine may do this.
pub const FORMAT: Opcode = Opcode::new(module::SYSTEM, 5);

/// What an engine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Name of the system.
    pub system: String,
    /// Its number in the system.
    pub rank: u32,
    /// Identity of its storage.
    pub uuid: Uuid,
    /// Version of the program.
    pub version: String,
    /// Process ID.
    pub pid: u32,
    /// Number of targets.
    pub targets: u32,
    /// Whether the storage is formatted; without that, only formatting is served.
    pub formatted: bool,
    /// TCP port of the metrics on loopback, if they are served there.
    pub telemetry_port: Option<u16>,
}

/// Formats the storage; the argument says whether data may be lost.
type Format = dyn Fn(bool) -> Result<(), String>;

/// The module. One per xstream.
pub struct SystemService {
    info: Rc<RefCell<SystemInfo>>,
    registry: Registry,
    may_stop: Box<dyn Fn(Option<Credentials>) -> bool>,
    stop: Box<dyn Fn()>,
    format: Option<Box<Format>>,
    // What the pieces of a reading are cut from, for each reader: metrics go on changing between two of them.
    texts: RefCell<VecDeque<(PeerId, String)>>,
}

impl SystemService {
    /// The module of one xstream. `stop` begins the shutdown, if `may_stop` allows it to a caller with these credentials.
    pub fn new(
        info: Rc<RefCell<SystemInfo>>,
        registry: Registry,
        may_stop: impl Fn(Option<Credentials>) -> bool + 'static,
        stop: impl Fn() + 'static,
    ) -> Self {
        let (may_stop, stop) = (Box::new(may_stop), Box::new(stop));
        Self { info, registry, may_stop, stop, format: None, texts: RefCell::default() }
    }

    /// The same, with a way to format the storage; its argument says whether data may be lost.
    pub fn with_format(mut self, format: impl Fn(bool) -> Result<(), String> + 'static) -> Self {
        self.format = Some(Box::new(format));
        self
    }

    fn format(&self, body: &[u8]) -> Result<(), (Status, String)> {
        let &[force @ (0 | 1)] = body else {
            return Err((Status::INVALID, "the body is one byte, 0 or 1".into()));
        };
        let refuse = || (Status::NO_SUCH_PROCEDURE, "this engine has no storage to format".into());
        let format = self.format.as_ref().ok_or_else(refuse)?;
        format(force == 1).map_err(|message| (Status::EXISTS, message))
    }
}

impl<E: Env> Service<E> for SystemService {
    fn module(&self) -> u8 {
        module::SYSTEM
    }

    fn name(&self) -> &'static str {
        "system"
    }

    fn call(&self, request: Request<'_>, responder: Responder<E>) {
        match request.header.opcode() {
            NULL => responder.reply(&[]),
            ECHO => responder.reply(&[request.body]),
            QUERY => match postcard::to_stdvec(&*self.info.borrow()) {
                Ok(body) => responder.reply(&[&body]),
                Err(error) => responder.fail(Status::INTERNAL, &error.to_string()),
            },
            TELEMETRY => {
                let Ok(offset) = <[u8; 4]>::try_from(request.body).map(u32::from_le_bytes) else {
                    return responder.fail(Status::INVALID, "the body is an offset of 4 bytes");
                };
                let mut texts = self.texts.borrow_mut();
                if offset == 0 {
                    forget(&mut texts, request.peer);
                    if texts.len() >= READERS_MAX {
                        texts.pop_front();
                    }
                    texts.push_back((request.peer, self.registry.render()));
                }
                let Some((_, text)) = texts.iter().find(|(reader, _)| *reader == request.peer) else {
                    return responder.fail(Status::TRY_AGAIN, "too many read the metrics; begin at 0 again");
                };
                let rest = text.as_bytes().get(offset as usize..).unwrap_or_default();
                let piece = &rest[..rest.len().min(responder.body_bytes_max())];
                responder.reply(&[piece]);
                if piece.is_empty() {
                    forget(&mut texts, request.peer);
                }
            }
            STOP if (self.may_stop)(responder.credentials()) => {
                responder.reply(&[]);
                (self.stop)();
            }
            FORMAT if (self.may_stop)(responder.credentials()) => match self.format(request.body) {
                Ok(()) => responder.reply(&[]),
                Err((status, message)) => responder.fail(status, &message),
            },
            STOP | FORMAT => responder.fail(
                Status::NOT_PERMITTED,
                "only root and the user who runs the engine may do this, from the same node (fabric local)",
            ),
            _ => responder.fail(Status::NO_SUCH_PROCEDURE, "the system module has no such procedure"),
        }
    }

    fn closed(&self, peer: PeerId) {
        forget(&mut self.texts.borrow_mut(), peer);
    }
}

/// Peers whose reading of the metrics is kept; the oldest gives way.
const READERS_MAX: usize = 16;

fn forget(texts: &mut VecDeque<(PeerId, String)>, reader: PeerId) {
    texts.retain(|(other, _)| *other != reader);
}

/// Asks an engine what it is.
pub async fn query<E: Env>(endpoint: &Endpoint<E>, peer: PeerId) -> Result<SystemInfo, RpcError> {
    let reply = endpoint.call(peer, &Call { opcode: QUERY, ..Call::default() }, &[]).await?;
    postcard::from_bytes(reply.body()).map_err(|error| RpcError::Refused {
        status: Status::BAD_PROTOCOL,
        map_version: 0,
        message: format!("the engine's description cannot be read: {error}"),
    })
}

/// Reads the metrics of an engine, in the text format of Prometheus.
pub async fn telemetry<E: Env>(endpoint: &Endpoint<E>, peer: PeerId) -> Result<String, RpcError> {
    let mut text = Vec::new();
    loop {
        let offset = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        let reply = endpoint.call(peer, &Call { opcode: TELEMETRY, ..Call::default() }, &[&offset]).await?;
        if reply.body().is_empty() {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.extend_from_slice(reply.body());
    }
}

/// Has an engine shut down.
pub async fn stop<E: Env>(endpoint: &Endpoint<E>, peer: PeerId) -> Result<(), RpcError> {
    endpoint.call(peer, &Call { opcode: STOP, ..Call::default() }, &[]).await?;
    Ok(())
}

/// Formats the storage of an engine that waits for it; with `force` also over data, which is lost.
pub async fn format<E: Env>(endpoint: &Endpoint<E>, peer: PeerId, force: bool) -> Result<(), RpcError> {
    endpoint.call(peer, &Call { opcode: FORMAT, ..Call::default() }, &[&[u8::from(force)]]).await?;
    Ok(())
}
