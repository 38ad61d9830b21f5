//! `daos container`.

use daos::{Client, ContainerEntry, ContainerProperties, Epoch, FormatOptions, OpenOptions};
use serde_json::json;

use super::{
    Opened,
    arguments::{ContainerCommand, Layout},
};
use crate::{
    output::{Answer, Failure, table},
    system::printed,
};

pub async fn run(client: &Client, command: ContainerCommand) -> Result<Answer, Failure> {
    match command {
        ContainerCommand::Create { pool, label, layout } => create(client, &pool, &label, layout).await,
        ContainerCommand::List { pool } => list(client, &pool).await,
        ContainerCommand::Query { container } => {
            let opened = Opened::open_path(client, &container, OpenOptions::READ).await?;
            let outcome = query(&opened).await;
            opened.close(outcome).await
        }
        ContainerCommand::Destroy { container, force } => {
            let pool = client.pool_connect(&container.pool).await?;
            let outcome = pool.container_destroy(&container.container, force).await;
            pool.disconnect().await?;
            outcome?;
            let name = &container.container;
            Ok(Answer::new(json!({ "container": name }), format!("container {name} destroyed")))
        }
        ContainerCommand::CreateSnap { container, epoch } => {
            let opened = Opened::open_path(client, &container, OpenOptions::WRITE).await?;
            let outcome = opened.container.snapshot_create(epoch.map(Epoch)).await.map_err(Failure::from);
            let epoch = opened.close(outcome).await?;
            Ok(Answer::new(json!({ "epoch": epoch }), format!("snapshot of epoch {epoch}")))
        }
        ContainerCommand::ListSnaps { container } => {
            let opened = Opened::open_path(client, &container, OpenOptions::READ).await?;
            let outcome = opened.container.snapshots().await.map_err(Failure::from);
            let snapshots = opened.close(outcome).await?;
            let lines: Vec<_> = snapshots.iter().map(Epoch::to_string).collect();
            let text = if lines.is_empty() { "no snapshot".into() } else { lines.join("\n") };
            Ok(Answer::new(json!({ "snapshots": snapshots }), text))
        }
        ContainerCommand::DestroySnap { container, epoch } => {
            let opened = Opened::open_path(client, &container, OpenOptions::WRITE).await?;
            let outcome = opened.container.snapshot_destroy(Epoch(epoch)).await.map_err(Failure::from);
            opened.close(outcome).await?;
            Ok(Answer::new(json!({ "epoch": epoch }), format!("snapshot of epoch {epoch} destroyed")))
        }
    }
}

async fn create(client: &Client, pool_name: &str, label: &str, layout: Layout) -> Result<Answer, Failure> {
    let pool = client.pool_connect(pool_name).await?;
    let outcome = match layout {
        Layout::Posix => pool.container_create_posix(Some(label), FormatOptions::default()).await,
        Layout::Unknown => pool.container_create(Some(label), ContainerProperties::default(), None).await,
    };
    pool.disconnect().await?;
    let uuid = outcome?;
    let text = format!("container {label} ({uuid}) in pool {pool_name}");
    Ok(Answer::new(json!({ "uuid": uuid, "label": label }), text))
}

/// Containers of a pool.
pub async fn list(client: &Client, pool_name: &str) -> Result<Answer, Failure> {
    let pool = client.pool_connect(pool_name).await?;
    let outcome = pool.container_list().await;
    pool.disconnect().await?;
    let containers = outcome?;
    let head = vec!["Label".to_owned(), "UUID".to_owned()];
    let row = |entry: &ContainerEntry| vec![printed(&entry.label), entry.uuid.to_string()];
    let text = if containers.is_empty() {
        format!("no container; make one with daos container create {pool_name} LABEL")
    } else {
        table(&std::iter::once(head).chain(containers.iter().map(row)).collect::<Vec<_>>())
    };
    Ok(Answer::new(json!({ "containers": containers }), text))
}

async fn query(opened: &Opened) -> Result<Answer, Failure> {
    let reply = opened.container.handle().query().await.map_err(daos::DaosError::from)?;
    let layout = match reply.properties.layout.as_str() {
        "" => "none (made without --type)",
        layout => layout,
    };
    let text = format!(
        "container {} ({})\nlayout {layout}, owner {}:{}\nhighest committed epoch {}, lowest referenced epoch {}\n{} handles, {} snapshots",
        printed(&reply.label),
        reply.uuid,
        reply.owner.uid,
        reply.owner.gid,
        reply.epochs.container_hce,
        reply.epochs.container_lre,
        reply.handles,
        reply.snapshots
    );
    Ok(Answer::new(&reply, text))
}
