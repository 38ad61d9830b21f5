//! `daos kv`, `daos array`, `daos object`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use daos::{
    Anchor, Array, At, Client, Epoch, Fetched, KeyOrder, Kv, ObjectId, ObjectType, OpenOptions, ParseError,
    class,
};
use serde_json::json;

use super::{
    Opened,
    arguments::{ArrayCommand, KvCommand, ObjectCommand, ObjectPath},
};
use crate::output::{Answer, Failure, print};

/// Entries that one request lists.
const PAGE_ENTRIES: u32 = 512;
/// Bytes that one request of an array moves.
const PIECE_BYTES: usize = 1 << 20;

pub async fn kv(client: &Client, command: KvCommand, json_wanted: bool) -> Result<Answer, Failure> {
    match command {
        KvCommand::Put { object, key, value, epoch } => {
            let value = if value == "-" { read_all(&mut io::stdin())? } else { value.into_bytes() };
            let written = write(client, &object, epoch, async |opened: &Opened, at| {
                open_kv(opened, &object)?.put(at, key.as_bytes(), &value).await.map_err(Failure::from)
            });
            done(written.await?)
        }
        KvCommand::Del { object, key, epoch } => {
            let written = write(client, &object, epoch, async |opened: &Opened, at| {
                open_kv(opened, &object)?.remove(at, &[key.as_bytes()]).await.map_err(Failure::from)
            });
            done(written.await?)
        }
        KvCommand::Get { object, key, epoch } => {
            let fetched = read(client, &object, async |opened: &Opened| {
                Ok(open_kv(opened, &object)?.get(read_at(epoch), key.as_bytes()).await?)
            });
            match fetched.await? {
                Fetched::Value(value) => value_answer(&value, json_wanted),
                Fetched::Punched => {
                    Err(Failure::new(2, format!("key {key:?} was removed; an older --epoch may show it")))
                }
                _ => Err(Failure::new(2, format!("key {key:?} is not there; daos kv list shows what is"))),
            }
        }
        KvCommand::List { object, epoch } => {
            let keys = read(client, &object, async |opened: &Opened| {
                let (kv, mut keys, mut anchor) =
                    (open_kv(opened, &object)?, Vec::new(), Some(Anchor::default()));
                while let Some(from) = anchor {
                    let page = kv.list(read_at(epoch), &from, PAGE_ENTRIES).await?;
                    keys.extend(page.items.iter().map(|key| String::from_utf8_lossy(key).into_owned()));
                    anchor = page.next;
                }
                Ok(keys)
            });
            let keys = keys.await?;
            let text = keys.join("\n");
            Ok(Answer::new(json!({ "keys": keys }), text))
        }
    }
}

pub async fn array(client: &Client, command: ArrayCommand, json_wanted: bool) -> Result<Answer, Failure> {
    match command {
        ArrayCommand::Write { object, offset, input, epoch } => {
            let data = match &input {
                Some(path) => read_all(&mut File::open(path).map_err(|error| at_path(path, error))?)?,
                None => read_all(&mut io::stdin())?,
            };
            let written = write(client, &object, epoch, async |opened: &Opened, at| {
                let array = open_array(opened, &object)?;
                for (place, piece) in (offset..).step_by(PIECE_BYTES).zip(data.chunks(PIECE_BYTES)) {
                    array.write_at(at, place, piece).await?;
                }
                Ok(())
            });
            done(written.await?)
        }
        ArrayCommand::Read { object, offset, length, output, epoch } => {
            let data = read(client, &object, async |opened: &Opened| {
                let array = open_array(opened, &object)?;
                let end = array.size(read_at(epoch)).await?.max(offset);
                let end = length.map_or(end, |length| end.min(offset.saturating_add(length)));
                let mut data = Vec::new();
                let mut place = offset;
                while place < end {
                    let piece = (end - place).min(PIECE_BYTES as u64);
                    data.extend(array.read_at(read_at(epoch), place, piece as usize).await?);
                    place += piece;
                }
                Ok(data)
            });
            let data = data.await?;
            match output {
                None => value_answer(&data, json_wanted),
                Some(path) => {
                    std::fs::write(&path, &data).map_err(|error| at_path(&path, error))?;
                    let text = format!("{} bytes in {}", data.len(), path.display());
                    Ok(Answer::new(json!({ "bytes": data.len() }), text))
                }
            }
        }
    }
}

pub async fn list(client: &Client, command: ObjectCommand) -> Result<Answer, Failure> {
    let ObjectCommand::List { container, epoch } = command;
    let opened = Opened::open_path(client, &container, OpenOptions::READ).await?;
    let listed = async {
        let (mut objects, mut anchor) = (Vec::new(), Some(Anchor::default()));
        while let Some(from) = anchor {
            let page = opened.container.list_objects(read_at(epoch), &from, PAGE_ENTRIES).await?;
            objects.extend(page.items);
            anchor = page.next;
        }
        Ok(objects)
    };
    let outcome = listed.await;
    let mut objects = opened.close(outcome).await?;
    objects.sort_unstable();
    objects.dedup();
    let describe = |id: &ObjectId| format!("{id}  {:?} {}", id.object_type(), class::class_name(id.class()));
    let text = objects.iter().map(describe).collect::<Vec<_>>().join("\n");
    let entries: Vec<_> = objects
        .iter()
        .map(|id| json!({ "oid": id, "type": id.object_type(), "class": class::class_name(id.class()) }))
        .collect();
    Ok(Answer::new(json!({ "objects": entries }), text))
}

/// Opens the container for writing, has `work` write in an epoch, and commits it. Returns the epoch.
async fn write(
    client: &Client,
    object: &ObjectPath,
    epoch: Option<u64>,
    work: impl AsyncFnOnce(&Opened, At) -> Result<(), Failure>,
) -> Result<Epoch, Failure> {
    let opened = Opened::open_path(client, &object.container, OpenOptions::WRITE).await?;
    let written = async {
        let wanted = Epoch(epoch.unwrap_or(0));
        let held = opened.container.hold(wanted).await?;
        if epoch.is_some() && held != wanted {
            let what = format!("epoch {wanted} cannot be written any more: the first that can is {held}");
            return Err(Failure::new(22, what));
        }
        work(&opened, At::Epoch(held)).await?;
        opened.container.flush(held).await?;
        opened.container.commit(held).await?;
        Ok(held)
    };
    let outcome = written.await;
    opened.close(outcome).await
}

/// Opens the container for reading and has `work` read.
async fn read<T>(
    client: &Client,
    object: &ObjectPath,
    work: impl AsyncFnOnce(&Opened) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let opened = Opened::open_path(client, &object.container, OpenOptions::READ).await?;
    let outcome = work(&opened).await;
    opened.close(outcome).await
}

fn open_kv(opened: &Opened, object: &ObjectPath) -> Result<Kv, Failure> {
    Ok(opened.container.kv(object_id(&object.object, ObjectType::KeyValue)?)?)
}

fn open_array(opened: &Opened, object: &ObjectPath) -> Result<Array, Failure> {
    Ok(opened.container.array(object_id(&object.object, ObjectType::Array)?)?)
}

/// The object that a text names: an object ID, or N for the N-th object of this type over all targets.
fn object_id(text: &str, object_type: ObjectType) -> Result<ObjectId, Failure> {
    if let Ok(number) = text.parse::<u64>() {
        return Ok(ObjectId::new(object_type, KeyOrder::Hashed, KeyOrder::Hashed, class::SX, (0, 0, number)));
    }
    let id: ObjectId = text.parse().map_err(|error: ParseError| {
        Failure::new(22, format!("{error}; a plain number N stands for the N-th object of this type"))
    })?;
    if id.object_type() != object_type {
        let what =
            format!("object {id} is of type {:?}, this command works on {object_type:?}", id.object_type());
        return Err(Failure::new(22, what));
    }
    Ok(id)
}

fn read_at(epoch: Option<u64>) -> At {
    epoch.map_or(At::Auto, |epoch| At::Epoch(Epoch(epoch)))
}

fn done(epoch: Epoch) -> Result<Answer, Failure> {
    Ok(Answer::new(json!({ "epoch": epoch }), format!("committed as epoch {epoch}")))
}

/// Bytes: as they are for people, who may pipe them on; as text where that is possible, else as numbers, for programs.
fn value_answer(value: &[u8], json_wanted: bool) -> Result<Answer, Failure> {
    if !json_wanted {
        print(value)?;
        if io::IsTerminal::is_terminal(&io::stdout()) {
            print(b"\n")?;
        }
    }
    Ok(match std::str::from_utf8(value) {
        Ok(text) => Answer::new(json!({ "value": text, "bytes": value.len() }), ""),
        Err(_) => Answer::new(json!({ "value": value, "bytes": value.len() }), ""),
    })
}

fn read_all(source: &mut impl Read) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn at_path(path: &Path, error: io::Error) -> Failure {
    Failure::new(error.raw_os_error().unwrap_or(5), format!("{}: {error}", path.display()))
}
