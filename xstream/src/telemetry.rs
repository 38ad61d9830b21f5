//! Metrics of a process, in the text format that Prometheus reads.
//!
//! # Invariants
//!
//! * A metric has one writer: the xstream that made it. Recording is a plain load and store on memory that no other core
//!   writes, so counting costs the I/O path no locked instruction.
//! * Whoever renders only reads, and may see a histogram a few records out of step with its own sum; never torn numbers.
//! * Registration takes a lock and allocates: modules make their metrics once, at start-up, and keep them.
//!
//! Format: Prometheus text exposition 0.0.4.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// All metrics of a process. Clones share them; rendering may happen on any thread.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<String, Family>>>);

struct Family {
    help: &'static str,
    kind: &'static str,
    series: Vec<(String, Cells)>,
}

enum Cells {
    Number(Arc<AtomicU64>),
    Histogram(Arc<HistogramCells>),
}

/// A registry as one xstream sees it: it stamps every metric with that xstream's labels.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Registry,
    labels: Vec<(&'static str, String)>,
}

/// Counts upwards.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

/// Goes up and down.
#[derive(Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// Durations in buckets that double, from 0.5 µs to 8 s.
#[derive(Clone, Default)]
pub struct Histogram(Arc<HistogramCells>);

/// Bucket `i` counts durations of at most `BUCKET_FIRST_NS << i`; the last counts what is longer than all.
const BUCKETS: usize = 26;
const BUCKET_FIRST_NS: u64 = 500;

#[derive(Default)]
struct HistogramCells {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

fn add(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
}

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        add(&self.0, amount);
    }

    /// Replaces the count by one that was kept elsewhere.
    pub fn set(&self, total: u64) {
        self.0.store(total, Relaxed);
    }

    /// What has been counted.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = (64 - (nanoseconds.saturating_sub(1) / BUCKET_FIRST_NS).leading_zeros() as usize)
            .min(BUCKETS - 1);
        add(&self.0.buckets[bucket], 1);
        add(&self.0.sum_ns, nanoseconds);
    }
}

impl Registry {
    /// The registry under these labels.
    pub fn scope(&self, labels: &[(&'static str, String)]) -> Metrics {
        Metrics { registry: self.clone(), labels: labels.to_vec() }
    }

    /// Everything, as text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, family) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", family.help, family.kind);
            for (labels, cells) in &family.series {
                render_series(&mut text, name, labels, cells);
            }
        }
        text
    }
}

fn render_series(text: &mut String, name: &str, labels: &str, cells: &Cells) {
    match cells {
        Cells::Number(cell) => {
            let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(text, "{name}{braced} {}", cell.load(Relaxed));
        }
        Cells::Histogram(cells) => {
            let (comma, braced) =
                if labels.is_empty() { ("", String::new()) } else { (",", format!("{{{labels}}}")) };
            let mut total = 0;
            for (index, bucket) in cells.buckets.iter().enumerate() {
                total += bucket.load(Relaxed);
                let bound = if index + 1 == BUCKETS {
                    "+Inf".to_owned()
                } else {
                    format!("{}", (BUCKET_FIRST_NS << index) as f64 / 1e9)
                };
                let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
            }
            let _ = writeln!(text, "{name}_sum{braced} {}", cells.sum_ns.load(Relaxed) as f64 / 1e9);
            let _ = writeln!(text, "{name}_count{braced} {total}");
        }
    }
}

impl Metrics {
    /// The same registry with one more label.
    pub fn with(&self, label: &'static str, value: impl Into<String>) -> Metrics {
        let mut metrics = self.clone();
        metrics.labels.push((label, value.into()));
        metrics
    }

    /// A counter; by convention its name ends in `_total`.
    pub fn counter(&self, name: &str, help: &'static str) -> Counter {
        let cell = Arc::default();
        self.register(name, help, "counter", Cells::Number(Arc::clone(&cell)));
        Counter(cell)
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &'static str) -> Gauge {
        let cell = Arc::default();
        self.register(name, help, "gauge", Cells::Number(Arc::clone(&cell)));
        Gauge(cell)
    }

    /// A histogram of durations; by convention its name ends in `_seconds`.
    pub fn histogram(&self, name: &str, help: &'static str) -> Histogram {
        let cells = Arc::default();
        self.register(name, help, "histogram", Cells::Histogram(Arc::clone(&cells)));
        Histogram(cells)
    }

    fn register(&self, name: &str, help: &'static str, kind: &'static str, cells: Cells) {
        let mut labels = String::new();
        for (label, value) in &self.labels {
            let comma = if labels.is_empty() { "" } else { "," };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(labels, "{comma}{label}=\"{value}\"");
        }
        let mut families = self.registry.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(name.to_owned()).or_insert(Family { help, kind, series: Vec::new() });
        assert_eq!(family.kind, kind, "metric {name} registered as two kinds");
        // A module that is started again in the same process takes its series over.
        family.series.retain(|(existing, _)| *existing != labels);
        family.series.push((labels, cells));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_rendered() {
        let registry = Registry::default();
        let metrics = registry.scope(&[("target", "3".into())]);
        metrics.counter("engine_updates_total", "Updates.").add(5);
        metrics.with("pool", "a\"b").gauge("engine_free_bytes", "Free space.").set(7);
        let latency = metrics.histogram("engine_update_seconds", "Latency of updates.");
        for nanoseconds in [0, 500, 501, 1_000, 1_001, u64::MAX] {
            latency.record(Duration::from_nanos(nanoseconds));
        }
        let text = registry.render();
        for line in [
            "# TYPE engine_updates_total counter",
            "engine_updates_total{target=\"3\"} 5",
            "engine_free_bytes{target=\"3\",pool=\"a\\\"b\"} 7",
            "engine_update_seconds_bucket{target=\"3\",le=\"0.0000005\"} 2",
            "engine_update_seconds_bucket{target=\"3\",le=\"0.000001\"} 4",
            "engine_update_seconds_bucket{target=\"3\",le=\"0.000002\"} 5",
            "engine_update_seconds_bucket{target=\"3\",le=\"+Inf\"} 6",
            "engine_update_seconds_count{target=\"3\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line:?} in:\n{text}");
        }
    }
}
