//! Copies what an xstream counts for itself to where scrapers read it.

use std::{collections::BTreeMap, time::Duration};

use daos_xstream::{
    Class, Clock, Env, Spawn,
    rpc::Endpoint,
    telemetry::{Counter, Gauge, Metrics},
};

use crate::fabric::NodeEnv;

/// How old a published number may be.
const INTERVAL: Duration = Duration::from_millis(500);

/// Publishes the counts of the runtime, the RPC layer and the fabrics of `env`'s xstream from now on.
pub fn publish(env: &NodeEnv, endpoint: &Endpoint<NodeEnv>, metrics: &Metrics) {
    let mut published =
        Published { metrics: metrics.clone(), counters: BTreeMap::new(), gauges: BTreeMap::new() };
    let (env, endpoint) = (env.clone(), endpoint.clone());
    let task_env = env.clone();
    let task = async move {
        loop {
            published.copy(&env, &endpoint);
            env.clock().sleep_until(env.clock().now() + INTERVAL).await;
        }
    };
    task_env.scheduler().spawn(Class::Background, "publish metrics", task);
}

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
