//! `dmg`: administer a DAOS system.

mod arguments;

use std::process::ExitCode;

use clap::CommandFactory;
use daos::{Client, PoolSpec, TargetSpace};
use daos_types::show_size;
use daos_xstream::rpc::system::{self, SystemInfo};
use serde_json::json;

use self::arguments::{
    Command, Dmg, PoolCommand, PoolSize, StorageCommand, StorageQuery, SystemCommand, TelemetryCommand,
};
use crate::{
    output::{Answer, Failure, completion, finish, parse, table},
    pools,
    system::{TIMEOUT, printed},
};

/// The program.
pub fn main() -> ExitCode {
    let arguments: Dmg = match parse("dmg") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    if let Command::Completion { shell } = arguments.command {
        return finish("dmg", false, Ok(completion(shell, &mut Dmg::command(), "dmg")));
    }
    let json = arguments.system.json;
    let outcome =
        arguments.system.connect().and_then(|client| client.block_on(run(&client, arguments.command)));
    finish("dmg", json, outcome)
}

async fn run(client: &Client, command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Storage(StorageCommand::Format { force }) => {
            client.system_call(system::FORMAT, &[u8::from(force)], TIMEOUT).await?;
            Ok(Answer::new(json!({}), "formatted"))
        }
        Command::Storage(StorageCommand::Query(StorageQuery::Usage)) => usage(client).await,
        Command::System(SystemCommand::Query) => system_query(client).await,
        Command::System(SystemCommand::Stop) => {
            client.system_call(system::STOP, &[], TIMEOUT).await?;
            Ok(Answer::new(json!({}), "stopping"))
        }
        Command::Pool(PoolCommand::Create { size, label }) => pool_create(client, size, label).await,
        Command::Pool(PoolCommand::List) => pool_list(client).await,
        Command::Pool(PoolCommand::Query { pool }) => pools::query(client, &pool).await,
        Command::Pool(PoolCommand::Destroy { pool, force }) => {
            client.pool_destroy(&pool, force).await?;
            Ok(Answer::new(json!({ "pool": pool }), format!("pool {pool} destroyed")))
        }
        Command::Telemetry(TelemetryCommand::Metrics { filter }) => metrics(client, filter.as_deref()).await,
        Command::Completion { .. } => unreachable!("handled before the system is asked"),
    }
}

async fn usage(client: &Client) -> Result<Answer, Failure> {
    let storage = client.storage_query().await?;
    let head = ["Rank", "Target", "Memory tier", "free", "Block tier", "free"].map(str::to_owned).to_vec();
    let row = |space: &TargetSpace| {
        let sizes = [space.scm_bytes, space.scm_bytes_free, space.block_bytes, space.block_bytes_free];
        [space.rank.to_string(), space.index.to_string()].into_iter().chain(sizes.map(show_size)).collect()
    };
    let rows: Vec<_> = std::iter::once(head).chain(storage.targets.iter().map(row)).collect();
    let text = format!(
        "{} for pools, {} of it in pools\n{}",
        show_size(storage.bytes),
        show_size(storage.bytes_in_pools),
        table(&rows)
    );
    Ok(Answer::new(&storage, text))
}

async fn system_query(client: &Client) -> Result<Answer, Failure> {
    let body = client.system_call(system::QUERY, &[], TIMEOUT).await?;
    let info: SystemInfo = postcard::from_bytes(&body).map_err(|error| {
        Failure::new(71, format!("the engine's answer cannot be read: {error}; use programs of its version"))
    })?;
    let state = if info.formatted { "joined" } else { "awaits format (dmg storage format)" };
    let rows = [
        ["Rank", "UUID", "State", "Targets", "PID", "Version"].map(str::to_owned).to_vec(),
        vec![
            info.rank.to_string(),
            info.uuid.to_string(),
            state.to_owned(),
            info.targets.to_string(),
            info.pid.to_string(),
            info.version.clone(),
        ],
    ];
    let metrics = info
        .telemetry_port
        .map_or(String::new(), |port| format!("metrics: http://127.0.0.1:{port}/metrics\n"));
    Ok(Answer::new(json!({ "members": [info], "state": state }), table(&rows) + &metrics))
}

async fn pool_create(client: &Client, size: PoolSize, label: String) -> Result<Answer, Failure> {
    let bytes = match size {
        PoolSize::Bytes(bytes) => bytes,
        PoolSize::Percent(percent) => {
            let storage = client.storage_query().await?;
            (storage.bytes - storage.bytes_in_pools.min(storage.bytes)) / 100 * u64::from(percent)
        }
    };
    let parsed = label.parse().map_err(|error| Failure::new(22, format!("label {label:?}: {error}")))?;
    let spec = PoolSpec { label: Some(parsed), bytes, ..PoolSpec::default() };
    let pool = client.pool_create(&spec).await?;
    let text =
        format!("pool {label} ({}) of {} over {} targets", pool.uuid, show_size(pool.bytes), pool.targets);
    Ok(Answer::new(&pool, text))
}

async fn pool_list(client: &Client) -> Result<Answer, Failure> {
    let pools = client.pool_list().await?;
    let head = ["Label", "UUID", "Size", "Targets"].map(str::to_owned).to_vec();
    let rows = pools.iter().map(|pool| {
        vec![printed(&pool.label), pool.uuid.to_string(), show_size(pool.bytes), pool.targets.to_string()]
    });
    let text = if pools.is_empty() {
        "no pool; make one with dmg pool create --size SIZE LABEL".into()
    } else {
        table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    };
    Ok(Answer::new(json!({ "pools": pools }), text))
}

async fn metrics(client: &Client, filter: Option<&str>) -> Result<Answer, Failure> {
    let mut text = Vec::new();
    loop {
        let offset = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        match client.system_call(system::TELEMETRY, &offset, TIMEOUT).await? {
            piece if piece.is_empty() => break,
            piece => text.extend(piece),
        }
    }
    let text = String::from_utf8_lossy(&text);
    let wanted = |line: &&str| {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        filter.is_none_or(|filter| name.split([' ', '{']).next().unwrap_or_default().contains(filter))
    };
    let lines: Vec<&str> = text.lines().filter(wanted).collect();
    let samples: serde_json::Map<_, _> = lines
        .iter()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, value)| {
            (series.to_owned(), value.parse::<f64>().map_or(json!(null), |value| json!(value)))
        })
        .collect();
    Ok(Answer::new(json!({ "metrics": samples }), lines.join("\n")))
}
