//! What a benchmark says: one row per case, with the limit or peer that was measured in the same run beside it.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::meter::Measured;

/// One case. Fields that a case does not have are left out of its JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// What was done, such as `kv-update`.
    pub case: String,
    /// Which fabric carried it: `local` or `tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<String>,
    /// Which media it went to: `heap`, `wal` or `pmem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<String>,
    /// Whether every operation was durable before it counted.
    pub durable: bool,
    /// Bytes of a value.
    pub value_bytes: u64,
    /// Operations in flight.
    pub depth: u32,
    /// Operations per second.
    pub ops_per_s: f64,
    /// Median latency of an operation, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, in microseconds.
    pub p999_us: f64,
    /// The slowest operation, in microseconds.
    pub max_us: f64,
    /// CPU time per operation, in microseconds; of the engine where there is one, else of this process.
    pub cpu_us_per_op: f64,
    /// Heap allocations per operation in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocations_per_op: Option<f64>,
    /// What a case measures that is a share: percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Bytes that the store takes per record beyond key and value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_bytes_per_record: Option<f64>,
    /// Records that the case writes or finds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    /// The limit beside it.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    pub limit: Option<Limit>,
    /// The peer beside it: the same, in rows of the store by itself.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    pub peer: Option<Peer>,
}

/// What a case is held against, measured in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    /// What was measured.
    #[serde(rename = "limit_name")]
    pub name: String,
    /// What came out, in `limit_unit`.
    #[serde(rename = "limit_value")]
    pub value: f64,
    /// `us` (a latency: a ratio below 1 is better than the limit), `ops_per_s` and `ops_per_cpu_s` (rates: above 1 is
    /// better) or `percent`.
    #[serde(rename = "limit_unit")]
    pub unit: &'static str,
    /// The case over the limit, both in `limit_unit`.
    pub ratio: f64,
    /// The ratio aimed at, if there is a goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Whether the goal was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
}

/// A [`Limit`] under the names that rows of the store have.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// What was measured.
    pub peer: String,
    /// What came out, in `peer_unit`.
    pub peer_value: f64,
    /// See [`Limit`].
    pub peer_unit: &'static str,
    /// The case over the peer, both in `peer_unit`.
    pub ratio: f64,
    /// The ratio aimed at, if there is a goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Whether the goal was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
}

impl From<Limit> for Peer {
    fn from(limit: Limit) -> Self {
        let Limit { name, value, unit, ratio, goal, reached } = limit;
        Self { peer: name, peer_value: value, peer_unit: unit, ratio, goal, reached }
    }
}

impl Row {
    /// Fills in rate and percentiles from latencies in nanoseconds over `elapsed_s` seconds.
    pub fn timed(mut self, latencies: &Histogram<u64>, elapsed_s: f64) -> Self {
        let microseconds = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        self.ops_per_s = latencies.len() as f64 / elapsed_s;
        self.p50_us = microseconds(0.5);
        self.p99_us = microseconds(0.99);
        self.p999_us = microseconds(0.999);
        self.max_us = latencies.max() as f64 / 1e3;
        self
    }

    /// Fills in what a meter has measured.
    pub fn measured(self, measured: &Measured) -> Self {
        let mut row = self.timed(&measured.latencies, measured.elapsed_s);
        row.ops_per_s = measured.operations as f64 / measured.elapsed_s;
        row.cpu_us_per_op = measured.cpu_s * 1e6 / measured.operations as f64;
        row.allocations_per_op =
            measured.allocations.map(|allocations| allocations as f64 / measured.operations as f64);
        row
    }

    /// Holds the median latency against `limit_us`; the goal is a ratio of at most `at_most`.
    pub fn latency_limit(mut self, name: &str, limit_us: f64, at_most: f64) -> Self {
        let ratio = self.p50_us / limit_us;
        self.limit = Some(Limit {
            name: name.to_owned(),
            value: limit_us,
            unit: "us",
            ratio,
            goal: Some(format!("<= {at_most}")),
            reached: Some(ratio <= at_most),
        });
        self
    }

    /// As [`latency_limit`](Self::latency_limit), with a ratio that was measured otherwise than by the medians of all.
    pub fn latency_ratio(self, name: &str, (limit_us, ratio): (f64, f64), at_most: f64) -> Self {
        let mut row = self.latency_limit(name, limit_us, at_most);
        if let Some(limit) = &mut row.limit {
            (limit.ratio, limit.reached) = (ratio, Some(ratio <= at_most));
        }
        row
    }

    /// Holds the rate against `limit` operations per second; the goal is a ratio of at least `at_least`.
    pub fn rate_limit(mut self, name: &str, limit: f64, at_least: f64) -> Self {
        let ratio = self.ops_per_s / limit;
        self.limit = Some(Limit {
            name: name.to_owned(),
            value: limit,
            unit: "ops_per_s",
            ratio,
            goal: Some(format!(">= {at_least}")),
            reached: Some(ratio >= at_least),
        });
        self
    }

    /// Holds the rate per second of CPU time against `limit`, likewise per second of CPU time: for work that never waits,
    /// so that what else the machine does meanwhile changes neither.
    pub fn cpu_rate_limit(mut self, name: &str, limit: f64, at_least: f64) -> Self {
        let ratio = 1e6 / self.cpu_us_per_op / limit;
        self.limit = Some(Limit {
            name: name.to_owned(),
            value: limit,
            unit: "ops_per_cpu_s",
            ratio,
            goal: Some(format!(">= {at_least}")),
            reached: Some(ratio >= at_least),
        });
        self
    }

    /// Puts `limit` operations per second beside the rate, without a goal.
    pub fn rate_beside(mut self, name: &str, limit: f64) -> Self {
        self.limit = Some(Limit {
            name: name.to_owned(),
            value: limit,
            unit: "ops_per_s",
            ratio: self.ops_per_s / limit,
            goal: None,
            reached: None,
        });
        self
    }

    /// Holds a share in percent against what it may be.
    pub fn percent_limit(mut self, name: &str, percent: f64, at_most: f64) -> Self {
        self.percent = Some(percent);
        self.limit = Some(Limit {
            name: format!("{name}: {at_most} % at most"),
            value: at_most,
            unit: "percent",
            ratio: percent / at_most,
            goal: Some("<= 1".to_owned()),
            reached: Some(percent <= at_most),
        });
        self
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let place = self.fabric.as_deref().or(self.media.as_deref()).unwrap_or("-");
        let durable = if self.durable { "durable" } else { "" };
        let mut line = format!(
            "{:<22} {place:<6} {durable:<7} {:>8} B x{:<3} {:>10.0}/s  p50 {:>8.2}  p99 {:>8.2}  p99.9 {:>8.2}  max {:>8.0} us  cpu {:>6.2} us",
            self.case,
            self.value_bytes,
            self.depth,
            self.ops_per_s,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.max_us,
            self.cpu_us_per_op
        );
        if let Some(allocations) = self.allocations_per_op {
            line += &format!("  {allocations:.2} allocations");
        }
        if let Some(percent) = self.percent {
            line += &format!("  {percent:.2} %");
        }
        if let Some(bytes) = self.metadata_bytes_per_record {
            line += &format!("  {bytes:.0} B/record");
        }
        if let Some(limit) = &self.limit {
            line += &format!("\n    {:.2} x {} ({:.2} {})", limit.ratio, limit.name, limit.value, limit.unit);
            if let (Some(goal), Some(reached)) = (&limit.goal, limit.reached) {
                line += &format!("; goal {goal}: {}", if reached { "reached" } else { "MISSED" });
            }
        }
        line
    }
}

/// Prints rows as they come: lines for people, or with `json` one object per line for programs.
pub struct Printer {
    /// One JSON object per line.
    pub json: bool,
}

impl Printer {
    /// Prints one row.
    pub fn print(&self, row: &Row) {
        if self.json {
            println!("{}", serde_json::to_string(row).expect("a row is plain data"));
        } else {
            println!("{}", row.line());
        }
    }
}

/// A histogram of latencies from 1 ns to 100 s with three significant digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("these bounds are valid")
}
