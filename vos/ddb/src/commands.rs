//! The commands.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use daos_vos::{
    ExtentInfo, Inspection, MediaInspection, Pool, Record, VersionInfo, WalInspection, Where, Written,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{Answer, Arguments, Command, Failure, ToolWorld, block_on, lock};

/// Runs one command on a target that nobody uses.
pub(crate) fn run(arguments: &Arguments) -> Result<Answer, Failure> {
    let _held = lock::take(&arguments.target)?;
    let _held_too = arguments.blocks.as_deref().map(lock::take).transpose()?;
    let target = Target::find(&arguments.target, arguments.blocks.as_deref())?;
    if let Command::Upgrade = arguments.command {
        return Ok(Answer { value: upgrade(&target)?, sound: true });
    }
    let (pool, inspection) = target.inspect()?;
    let value = match &arguments.command {
        Command::Superblock => superblock(&pool, &inspection)?,
        Command::Space => space(&pool)?,
        Command::Log => log(&inspection)?,
        Command::Ls { container: None, .. } => containers(&pool)?,
        Command::Ls { container: Some(container), object: None, .. } => objects(&pool, *container)?,
        Command::Ls { container: Some(container), object: Some(object), key, akey } => {
            history(&pool, *container, object, (key.as_deref(), akey.as_deref()))?
        }
        Command::Dump { container } => dump(&pool, *container)?,
        Command::Verify | Command::Upgrade => return verify(&pool),
    };
    Ok(Answer { value, sound: true })
}

/// Where a target is. A folder is one on `wal` media, a file one on persistent memory.
struct Target {
    /// The folder of its block tier, and on `wal` media of all its files.
    folder: PathBuf,
    /// The heap on persistent memory.
    file: Option<PathBuf>,
}

impl Target {
    /// `blocks` is where a target on persistent memory has its block tier, if that is not the folder of the file.
    fn find(target: &Path, blocks: Option<&Path>) -> Result<Self, Failure> {
        let absolute =
            |path: &Path| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
        let target = absolute(target)?;
        Ok(match (target.is_file(), blocks) {
            (false, Some(_)) => {
                return Err(Failure(format!(
                    "{}: --blocks is for a target on persistent memory, which is a file; this is a folder",
                    target.display()
                )));
            }
            (false, None) => Self { folder: target, file: None },
            (true, Some(blocks)) => Self { folder: absolute(blocks)?, file: Some(target) },
            (true, None) => {
                Self { folder: target.parent().unwrap_or(Path::new("/")).to_owned(), file: Some(target) }
            }
        })
    }

    /// The folder above, and the name of the target's folder in it.
    fn place(&self) -> Result<(&Path, &str), Failure> {
        match (self.folder.parent(), self.folder.file_name().and_then(|name| name.to_str())) {
            (Some(parent), Some(name)) => Ok((parent, name)),
            _ => Err(Failure(format!("{}: not a target's folder", self.folder.display()))),
        }
    }

    fn failure(&self, error: daos_vos::Error) -> Failure {
        let elsewhere = self.file.is_some() && !self.folder.join("blocks").exists();
        let hint = if elsewhere { " (if it has a block tier, --blocks FOLDER says where)" } else { "" };
        Failure(format!("{}: {error}{hint}", self.file.as_ref().unwrap_or(&self.folder).display()))
    }

    fn inspect(&self) -> Result<(Pool<ToolWorld>, Inspection), Failure> {
        let (parent, name) = self.place()?;
        let world = ToolWorld::new(parent.to_owned());
        let opened = match &self.file {
            None => block_on(Pool::inspect(&world, name)),
            Some(file) => block_on(Pool::inspect_pmem(&world, name, file)),
        };
        opened.map_err(|error| self.failure(error))
    }
}

fn superblock(pool: &Pool<ToolWorld>, of: &Inspection) -> Result<Value, Failure> {
    let mut fields = Map::new();
    let mut add = |part: Value| {
        if let Value::Object(part) = part {
            fields.extend(part);
        }
    };
    add(json!({
        "pool": pool.uuid(),
        "heap": of.uuid,
        "media": match of.media {
            MediaInspection::Wal(_) => "wal",
            MediaInspection::Pmem { .. } => "pmem",
        },
        "format_version": of.format_version,
        "pool_version": pool.format_version()?,
        "super_block": of.super_block_sequence,
        "generation": of.generation,
        "heap_bytes": of.heap_bytes,
        "arena_bytes": of.arena_bytes,
    }));
    add(match &of.media {
        MediaInspection::Wal(wal) => json!({
            "log_bytes": wal.log_bytes,
            "double_write": {
                "blocks": wal.batch_blocks,
                "newest_at_home": wal.batch_sequence,
                "blocks_pending": wal.batch_blocks_pending,
            },
            "pages_written": wal.pages_written,
            "replay_position": wal.replay_position,
            "replay_sequence": wal.replay_sequence,
            "valid_position": wal.valid_position,
            "log_end": wal.log_end,
        }),
        MediaInspection::Pmem { undo_bytes, committed, entries_to_undo } => json!({
            "undo_bytes": undo_bytes,
            "transactions_committed": committed,
            "entries_to_undo": entries_to_undo,
        }),
    });
    Ok(Value::Object(fields))
}

fn space(pool: &Pool<ToolWorld>) -> Result<Value, Failure> {
    let usage = pool.usage()?;
    let mut containers = Vec::new();
    for uuid in pool.containers()? {
        let held = pool.container_open(uuid)?.usage()?;
        containers.push(json!({
            "container": uuid,
            "objects": held.objects,
            "records": held.records,
            "data_bytes": held.data_bytes,
        }));
    }
    Ok(json!({
        "arena_bytes": usage.arena_bytes,
        "arena_bytes_free": usage.arena_bytes_free,
        "block_bytes": usage.block_bytes,
        "block_bytes_free": usage.block_bytes_free,
        "containers": containers,
    }))
}

fn log(of: &Inspection) -> Result<Value, Failure> {
    match &of.media {
        MediaInspection::Wal(wal) => Ok(frames(wal)),
        MediaInspection::Pmem { .. } => Err(Failure(
            "a target on persistent memory has no log; `superblock` tells of the transaction that was cut short"
                .to_owned(),
        )),
    }
}

fn frames(of: &WalInspection) -> Value {
    let frames = of.frames.iter().map(|frame| {
        json!({
            "position": frame.position,
            "sequence": frame.sequence,
            "generation": frame.generation,
            "transactions": frame.transactions,
            "payload_bytes": frame.payload_bytes,
        })
    });
    json!({
        "replay_position": of.replay_position,
        "log_end": of.log_end,
        "bytes_to_replay": of.log_end - of.replay_position,
        "log_bytes": of.log_bytes,
        "frames": frames.collect::<Vec<_>>(),
    })
}

fn containers(pool: &Pool<ToolWorld>) -> Result<Value, Failure> {
    let containers = pool.containers()?.into_iter().map(|uuid| json!({ "container": uuid }));
    Ok(Value::Array(containers.collect()))
}

fn objects(pool: &Pool<ToolWorld>, container: Uuid) -> Result<Value, Failure> {
    let mut objects: Vec<Value> = Vec::new();
    let (mut keys, mut records) = (0u64, 0u64);
    let close = |objects: &mut Vec<Value>, keys: &mut u64, records: &mut u64| {
        if let Some(Value::Object(last)) = objects.last_mut() {
            last.insert("keys".into(), json!(std::mem::take(keys)));
            last.insert("records".into(), json!(std::mem::take(records)));
        }
    };
    pool.walk(container, &mut |record| {
        match record {
            Record::Object(id, metadata) => {
                close(&mut objects, &mut keys, &mut records);
                objects.push(json!({
                    "object": id.to_string(),
                    "type": format!("{:?}", id.object_type()),
                    "class": id.class().0,
                    "metadata": metadata.escape_ascii().to_string(),
                }));
            }
            Record::Key(_) | Record::Akey(_) => keys += 1,
            _ => records += 1,
        }
        ControlFlow::Continue(())
    })?;
    close(&mut objects, &mut keys, &mut records);
    Ok(Value::Array(objects))
}

fn stamp(written: &Written) -> Map<String, Value> {
    let fields = json!({
        "epoch": written.epoch.0,
        "cookie": format!("{:#x}", written.cookie.0),
        "map_version": written.map_version,
        "rebuild": written.rebuild,
        "aggregated": written.aggregated,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn place(place: Where) -> Value {
    match place {
        Where::Punched => json!("punched"),
        Where::Arena => json!("arena"),
        Where::Shared => json!("shared"),
        Where::BlockTier(position) => json!(format!("blocks {position:#x}")),
    }
}

fn version(of: &VersionInfo) -> Value {
    let mut fields = stamp(&of.written);
    fields.insert("where".into(), place(of.place));
    fields.insert("bytes".into(), json!(of.length));
    fields.insert("crc32c".into(), json!(format!("{:08x}", of.checksum.0)));
    Value::Object(fields)
}

fn extent(of: &ExtentInfo) -> Value {
    let mut fields = stamp(&of.written);
    fields.insert("where".into(), place(of.place));
    fields.insert("start".into(), json!(of.range.start));
    fields.insert("end".into(), json!(of.range.end));
    Value::Object(fields)
}

/// The records of an object, each with the keys that lead to it.
fn history(
    pool: &Pool<ToolWorld>,
    container: Uuid,
    object: &str,
    (key, akey): (Option<&str>, Option<&str>),
) -> Result<Value, Failure> {
    let mut rows = Vec::new();
    let (mut within, mut met) = (false, false);
    let mut at = (String::new(), String::new());
    pool.walk(container, &mut |record| {
        if let Record::Object(id, _) = &record {
            if within {
                return ControlFlow::Break(());
            }
            within = id.to_string() == object;
            met |= within;
        }
        if !within {
            return ControlFlow::Continue(());
        }
        let (kind, fields) = match &record {
            Record::Object(..) => return ControlFlow::Continue(()),
            Record::Key(bytes) => {
                at = (bytes.escape_ascii().to_string(), String::new());
                return ControlFlow::Continue(());
            }
            Record::Akey(bytes) => {
                at.1 = bytes.escape_ascii().to_string();
                return ControlFlow::Continue(());
            }
            Record::ObjectPunch(written) => ("object punched", Value::Object(stamp(written))),
            Record::KeyPunch(written) => ("dkey punched", Value::Object(stamp(written))),
            Record::Version(of) => ("value", version(of)),
            Record::Extent(of) => ("extent", extent(of)),
        };
        let wanted = key.is_none_or(|key| key == at.0) && akey.is_none_or(|akey| akey == at.1);
        if wanted && let Value::Object(fields) = fields {
            let mut row = Map::new();
            row.insert("key".into(), json!(at.0));
            row.insert("akey".into(), json!(at.1));
            row.insert("record".into(), json!(kind));
            row.extend(fields);
            rows.push(Value::Object(row));
        }
        ControlFlow::Continue(())
    })?;
    if !met {
        return Err(Failure(format!(
            "container {container} has no object {object}; list them with `ls {container}`"
        )));
    }
    Ok(Value::Array(rows))
}

/// Everything that is recorded: containers → objects → keys → akeys → records.
fn dump(pool: &Pool<ToolWorld>, only: Option<Uuid>) -> Result<Value, Failure> {
    let mut dumped = BTreeMap::new();
    for uuid in pool.containers()?.into_iter().filter(|uuid| only.is_none_or(|only| only == *uuid)) {
        let mut objects: Vec<Value> = Vec::new();
        pool.walk(uuid, &mut |record| {
            add(&mut objects, &record);
            ControlFlow::Continue(())
        })?;
        dumped.insert(uuid.to_string(), objects);
    }
    Ok(json!({ "pool": pool.uuid(), "containers": dumped }))
}

fn add(objects: &mut Vec<Value>, record: &Record<'_>) {
    if let Record::Object(id, metadata) = record {
        objects.push(json!({ "object": id.to_string(), "metadata": metadata.escape_ascii().to_string() }));
        return;
    }
    let Some(object) = objects.last_mut() else { return };
    match record {
        Record::Object(..) => {}
        Record::ObjectPunch(written) => push(object, "punches", Value::Object(stamp(written))),
        Record::Key(bytes) => push(object, "keys", json!({ "key": bytes.escape_ascii().to_string() })),
        Record::KeyPunch(written) => push(last(object, "keys"), "punches", Value::Object(stamp(written))),
        Record::Akey(bytes) => {
            push(last(object, "keys"), "akeys", json!({ "akey": bytes.escape_ascii().to_string() }));
        }
        Record::Version(of) => push(innermost(object), "versions", version(of)),
        Record::Extent(of) => push(innermost(object), "extents", extent(of)),
    }
}

fn push(value: &mut Value, list: &str, item: Value) {
    if let Value::Object(fields) = value
        && let Value::Array(items) = fields.entry(list).or_insert_with(|| json!([]))
    {
        items.push(item);
    }
}

/// The last item of a list of `value`; `value` itself if it has none.
fn last<'v>(value: &'v mut Value, list: &str) -> &'v mut Value {
    let has = value.get(list).and_then(Value::as_array).is_some_and(|items| !items.is_empty());
    if !has {
        return value;
    }
    value[list].as_array_mut().and_then(|items| items.last_mut()).expect("it has one")
}

fn innermost(object: &mut Value) -> &mut Value {
    last(last(object, "keys"), "akeys")
}

fn upgrade(target: &Target) -> Result<Value, Failure> {
    // What is damaged is not written to.
    let (pool, _) = target.inspect()?;
    if !block_on(pool.verify())?.is_sound() {
        return Err(Failure("damaged, as `verify` tells in detail; nothing was changed".to_owned()));
    }
    drop(pool);
    let (parent, name) = target.place()?;
    let world = ToolWorld::writing(parent.to_owned());
    let found = match &target.file {
        None => world.block_on(Pool::upgrade(&world, name)),
        Some(file) => world.block_on(Pool::upgrade_pmem(&world, name, file)),
    };
    let found = found.map_err(|error| target.failure(error))?;
    let now = target.inspect()?.0.format_version()?;
    Ok(json!({ "found": found, "now": now, "changed": now != found }))
}

fn verify(pool: &Pool<ToolWorld>) -> Result<Answer, Failure> {
    let report = block_on(pool.verify())?;
    let faults: Vec<Value> =
        report.faults.iter().map(|fault| json!({ "place": fault.place, "what": fault.what })).collect();
    let value = json!({
        "sound": report.is_sound(),
        "containers": report.containers,
        "objects": report.objects,
        "keys": report.keys,
        "versions": report.versions,
        "extents": report.extents,
        "punches": report.punches,
        "groups": report.groups,
        "entries": report.entries,
        "arena_blocks": report.arena_blocks,
        "arena_bytes_verified": report.arena_bytes_verified,
        "tier_bytes_verified": report.tier_bytes_verified,
        "faults": faults,
        "more_faults": report.more_faults,
    });
    Ok(Answer { value, sound: report.is_sound() })
}
