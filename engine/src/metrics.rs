//! Copies what an xstream counts for itself to where scrapers read it.

use std::{collections::BTreeMap, time::Duration};

use daos_dsm::service::{ScrubUsage, Target};
use daos_xstream::{
    Class, Clock, CounterKind, Env, Fabric, Spawn,
    rpc::Endpoint,
    telemetry::{Counter, Gauge, Metrics},
};

use crate::fabric::NodeEnv;

/// How old a published number may be.
const INTERVAL: Duration = Duration::from_millis(500);

/// Publishes the counts of the runtime, the RPC layer, the fabrics and the target of `env`'s xstream from now on.
/// Operations and bytes are counted where scrapers read them; everything else is copied every [`INTERVAL`].
pub fn publish(env: &NodeEnv, endpoint: &Endpoint<NodeEnv>, metrics: &Metrics) {
    endpoint.measure(metrics);
    let mut published =
        Published { metrics: metrics.clone(), counters: BTreeMap::new(), gauges: BTreeMap::new() };
    let (env, endpoint) = (env.clone(), endpoint.clone());
    let task_env = env.clone();
    let task = async move {
        loop {
            published.copy(&env, &endpoint);
            published.copy_fabrics(&env);
            if let Some(target) = env.locals().get::<Target<NodeEnv>>() {
                published.copy_target(&target);
            }
            env.clock().sleep_until(env.clock().now() + INTERVAL).await;
        }
    };
    task_env.scheduler().spawn(Class::Background, "publish metrics", task);
}

/// Name and value of one more label.
type Label = (&'static str, &'static str);

struct Published {
    metrics: Metrics,
    counters: BTreeMap<String, Counter>,
    gauges: BTreeMap<String, Gauge>,
}

impl Published {
    fn copy(&mut self, env: &NodeEnv, endpoint: &Endpoint<NodeEnv>) {
        for (name, total) in endpoint.counters().list() {
            self.counter(
                &format!("engine_rpc_{name}_total"),
                "Messages and requests, as the RPC layer counts them.",
                total,
            );
        }
        let world = env.counters();
        self.counter("engine_xstream_task_polls_total", "Polls of tasks.", world.task_polls);
        self.counter(
            "engine_xstream_stalls_total",
            "Tasks that ran longer than 2 ms without yielding.",
            world.stalls,
        );
        self.counter("engine_xstream_rounds_total", "Progress rounds.", world.rounds);
        self.counter("engine_xstream_parks_total", "Times the core went to sleep.", world.parks);
        self.gauge("engine_xstream_tasks", "Tasks alive.", world.tasks);
        let longest = "Longest time a task ran without yielding, in nanoseconds.";
        self.gauge("engine_xstream_stall_max_nanoseconds", longest, world.stall_ns_max);
    }

    /// The fabrics, by name: they all count the same.
    fn copy_fabrics(&mut self, env: &NodeEnv) {
        env.fabric().visit_counters(&mut |fabric, counters| {
            for (name, help, kind, value) in counters.list() {
                let labelled = ("fabric", fabric);
                match kind {
                    CounterKind::Total => {
                        self.labelled_counter(&format!("engine_fabric_{name}_total"), labelled, help, value);
                    }
                    CounterKind::Now => {
                        self.labelled_gauge(&format!("engine_fabric_{name}"), labelled, help, value);
                    }
                }
            }
        });
    }

    fn copy_target(&mut self, target: &Target<NodeEnv>) {
        let usage = target.usage();
        self.gauge("engine_pools", "Pools that the target has a share of.", usage.pools);
        self.gauge("engine_container_handles", "Container handles that the target knows.", usage.handles);
        let log = (usage.log.bytes, usage.log.bytes.saturating_sub(usage.log.bytes_used));
        for (tier, (bytes, free)) in [("memory", usage.space.scm), ("block", usage.space.block), ("log", log)]
        {
            let help = "Bytes of the target's shares of pools: memory tier, block tier and log.";
            self.labelled_gauge("engine_space_bytes", ("tier", tier), help, bytes);
            let used = bytes.saturating_sub(free);
            self.labelled_gauge("engine_space_used_bytes", ("tier", tier), "Of these, used.", used);
            self.labelled_gauge("engine_space_free_bytes", ("tier", tier), "Of these, free.", free);
        }
        let since = "Bytes in the logs since their last checkpoints: what a restart would replay.";
        self.gauge("engine_log_bytes_since_checkpoint", since, usage.log.bytes_used);
        let commits = "Durable writes to the logs; one carries all that was sealed meanwhile.";
        self.counter("engine_log_commits_total", commits, usage.log.commits);
        self.counter("engine_log_bytes_written_total", "Bytes written to the logs.", usage.log.bytes_written);
        self.counter("engine_log_checkpoints_total", "Checkpoints completed.", usage.log.checkpoints);
        self.copy_scrubber(&usage.scrub);
    }

    fn copy_scrubber(&mut self, scrub: &ScrubUsage) {
        for (name, help, total) in [
            ("passes", "Passes of the scrubber over a pool that came to their end.", scrub.passes),
            ("passes_failed", "Passes of the scrubber that media cut short.", scrub.passes_failed),
            ("records", "Records that the scrubber looked at.", scrub.records),
            ("bytes", "Bytes that the scrubber compared with their checksums.", scrub.bytes),
            (
                "faults",
                "Faults that the scrubber found; one that stays is found by every pass.",
                scrub.faults,
            ),
        ] {
            self.counter(&format!("engine_scrub_{name}_total"), help, total);
        }
        let help = "Pools in which the last pass of the scrubber found a fault.";
        self.gauge("engine_scrub_damaged_pools", help, scrub.damaged_pools);
        let took = u64::try_from(scrub.last_pass.as_millis()).unwrap_or(u64::MAX);
        self.gauge("engine_scrub_last_pass_milliseconds", "How long the last whole pass took.", took);
        let help = "When the last whole pass ended, in seconds since 1970 (UTC); 0 if none has.";
        self.gauge("engine_scrub_last_pass_end_seconds", help, scrub.last_pass_end.0 / 1_000_000_000);
    }

    fn labelled_counter(&mut self, name: &str, label: Label, help: &'static str, total: u64) {
        let key = format!("{name} {}", label.1);
        let new = || self.metrics.with(label.0, label.1).counter(name, help);
        self.counters.entry(key).or_insert_with(new).set(total);
    }

    fn labelled_gauge(&mut self, name: &str, label: Label, help: &'static str, value: u64) {
        let key = format!("{name} {}", label.1);
        let new = || self.metrics.with(label.0, label.1).gauge(name, help);
        self.gauges.entry(key).or_insert_with(new).set(value);
    }

    fn counter(&mut self, name: &str, help: &'static str, total: u64) {
        if !self.counters.contains_key(name) {
            self.counters.insert(name.to_owned(), self.metrics.counter(name, help));
        }
        self.counters[name].set(total);
    }

    fn gauge(&mut self, name: &str, help: &'static str, value: u64) {
        if !self.gauges.contains_key(name) {
            self.gauges.insert(name.to_owned(), self.metrics.gauge(name, help));
        }
        self.gauges[name].set(value);
    }
}
