//! What both programs can say about a pool.

use daos::{Capabilities, Client, TargetSpace};
use daos_types::show_size;
use serde_json::json;

use crate::{
    output::{Answer, Failure, table},
    system::printed,
};

/// State, space and targets of a pool.
pub async fn query(client: &Client, name: &str) -> Result<Answer, Failure> {
    let pool = client.pool_connect_as(name, Capabilities::READ).await?;
    let reply = pool.query(true).await;
    pool.disconnect().await?;
    let reply = reply?;
    let sum = |of: fn(&TargetSpace) -> u64| reply.space.iter().map(of).sum::<u64>();
    let (scm, scm_free) = (sum(|space| space.scm_bytes), sum(|space| space.scm_bytes_free));
    let (block, block_free) = (sum(|space| space.block_bytes), sum(|space| space.block_bytes_free));
    let states: Vec<_> = reply.map.targets.iter().map(|(_, target)| format!("{:?}", target.state)).collect();
    let mut rows =
        vec![["Rank", "Target", "Memory tier", "free", "Block tier", "free"].map(str::to_owned).to_vec()];
    rows.extend(reply.space.iter().map(|space| {
        let sizes = [space.scm_bytes, space.scm_bytes_free, space.block_bytes, space.block_bytes_free];
        [space.rank.to_string(), space.index.to_string()].into_iter().chain(sizes.map(show_size)).collect()
    }));
    let text = format!(
        "pool {} ({}), map version {}, {} containers, {} handles\n\
         memory tier {}, {} free; block tier {}, {} free\n{}",
        printed(&reply.label),
        reply.uuid,
        reply.map.version,
        reply.containers,
        reply.handles,
        show_size(scm),
        show_size(scm_free),
        show_size(block),
        show_size(block_free),
        table(&rows)
    );
    let response = json!({
        "uuid": reply.uuid, "label": reply.label, "map_version": reply.map.version,
        "containers": reply.containers, "handles": reply.handles, "target_states": states,
        "memory_bytes": scm, "memory_bytes_free": scm_free, "block_bytes": block, "block_bytes_free": block_free,
        "targets": reply.space,
    });
    Ok(Answer::new(response, text))
}
