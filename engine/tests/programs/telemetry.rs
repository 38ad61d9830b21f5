//! The metrics of an engine, read before and after operations whose number is known.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
};

use daos::{At, Epoch, FabricChoice, ObjectType, OpenOptions};
use rustix::process::Signal;

use crate::engine::{Engine, wait_for};

/// The metrics as they were at one moment.
pub struct Metrics(String);

impl Metrics {
    /// What reads those of an engine that runs.
    pub fn of(engine: &Engine) -> impl Fn() -> Self + use<> {
        let query = engine.dmg(&["-j", "system", "query"]).ok();
        let query: serde_json::Value = serde_json::from_str(&query).expect("JSON");
        let port = query["response"]["members"][0]["telemetry_port"].as_u64().expect("a port") as u16;
        move || Self::scrape(port)
    }

    /// Over HTTP, as Prometheus reads them.
    fn scrape(port: u16) -> Self {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connected");
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("asked");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("answered");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Self(text.to_owned())
    }

    /// The sum of the series of this name that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let values = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{')?;
            let there = found == name && labels.iter().all(|label| rest.contains(label));
            there.then(|| value.parse::<f64>().expect("a number") as u64)
        });
        let values: Vec<u64> = values.collect();
        assert!(!values.is_empty(), "no {name} with {labels:?} in\n{}", self.0);
        values.iter().sum()
    }

    /// How many requests for an operation of a module were answered, by the histogram of their times.
    fn operations(&self, module: &str, operation: &str) -> u64 {
        let labels = [format!("module=\"{module}\""), format!("operation=\"{operation}\"")];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        let count = self.sum("engine_operations_seconds_count", &labels);
        let all = [labels[0], labels[1], "le=\"+Inf\""];
        assert_eq!(self.sum("engine_operations_seconds_bucket", &all), count);
        count
    }
}

pub fn counts() {
    let mut engine = Engine::start();
    engine.make("256MiB");
    let read = Metrics::of(&engine);
    let client = engine.client(FabricChoice::Local);
    client.block_on(async {
        let pool = client.pool_connect("tank").await.expect("connected");
        let container = pool.container_open("box", OpenOptions::WRITE).await.expect("opened");
        let other = pool.container_open("box", OpenOptions::WRITE).await.expect("opened");
        let kv = container
            .kv(container.new_object_id(ObjectType::KeyValue, Some("SX")).expect("an ID"))
            .expect("a KV");

        let before = read();
        let epoch = container.hold(Epoch(0)).await.expect("held");
        for number in 0..100u64 {
            kv.put(epoch, &number.to_le_bytes(), &[7; 50]).await.expect("written");
        }
        for number in 0..40u64 {
            let value = kv.get(At::Auto, &number.to_le_bytes()).await.expect("read").value();
            assert_eq!(value.map(|value| value.len()), Some(50));
        }
        assert_eq!(kv.get(At::Auto, b"absent").await.expect("read").value(), None);
        // Somebody else's write in the same epoch is refused.
        other.hold(epoch).await.expect("held");
        other.kv(kv.id()).expect("a KV").put(epoch, &5u64.to_le_bytes(), b"x").await.expect_err("a conflict");
        for _ in 0..3 {
            container.flush(epoch).await.expect("flushed");
        }
        container.commit(epoch).await.expect("committed");
        // Copied now and then, and so behind by up to half a second.
        let counted =
            |metrics: &Metrics| metrics.sum("engine_fabric_messages_received_total", &["fabric=\"local\""]);
        let least = counted(&before) + 101 + 41 + 2 + 3 + 1;
        wait_for("messages of the local fabric", || (counted(&read()) >= least).then_some(()));
        let after = read();
        let more = |name: &str, labels: &[&str]| after.sum(name, labels) - before.sum(name, labels);
        let done = |module: &str, operation: &str| {
            after.operations(module, operation) - before.operations(module, operation)
        };
        assert_eq!(done("object", "update"), 101);
        assert_eq!(done("object", "fetch"), 41);
        assert_eq!((done("object", "punch"), done("object", "query")), (0, 0));
        assert_eq!(more("engine_operations_failed_total", &["module=\"object\""]), 1);
        assert_eq!(more("engine_operations_failed_total", &["module=\"container\""]), 0);
        assert_eq!((done("container", "epoch_hold"), done("container", "epoch_flush")), (2, 3));
        assert_eq!((done("container", "epoch_commit"), done("container", "open")), (1, 0));
        assert_eq!(more("engine_bytes_written_total", &[]), 100 * 50);
        assert_eq!(more("engine_bytes_read_total", &[]), 40 * 50);
        for target in ["target=\"0\"", "target=\"1\""] {
            let share = more("engine_operations_seconds_count", &[target, "operation=\"update\""]);
            assert!(share > 10 && share < 91, "keys are spread over targets: {share} on {target}");
        }
        assert_eq!(after.sum("engine_container_handles", &[]), 4, "two handles on two targets");

        // What is copied now and then is there after a while: the log, and the space of each tier.
        let commits = before.sum("engine_log_commits_total", &[]);
        wait_for("commit of the log", || {
            (read().sum("engine_log_commits_total", &[]) >= commits + 2).then_some(())
        });
        assert!(read().sum("engine_log_bytes_since_checkpoint", &[]) > 100 * 50);
        let used = |tier: &str| read().sum("engine_space_used_bytes", &[tier]);
        let blocks = used("tier=\"block\"");
        let array = container.new_object_id(ObjectType::Array, Some("SX")).expect("an ID");
        let array = container.array(array).expect("an array");
        let epoch = container.handle().held();
        let written = read().sum("engine_bytes_written_total", &[]);
        array.write_at(epoch, 0, &vec![3; 8 << 20]).await.expect("written");
        assert_eq!(read().sum("engine_bytes_written_total", &[]) - written, 8 << 20);
        wait_for("use of the block tier", || (used("tier=\"block\"") >= blocks + (8 << 20)).then_some(()));
        let now = read();
        for tier in ["tier=\"memory\"", "tier=\"block\"", "tier=\"log\""] {
            let all = now.sum("engine_space_bytes", &[tier]);
            let parts =
                now.sum("engine_space_used_bytes", &[tier]) + now.sum("engine_space_free_bytes", &[tier]);
            assert!(all > 0 && all == parts, "{tier}: {all} bytes, {parts} in parts");
        }
        let got = read().sum("engine_bytes_read_total", &[]);
        assert_eq!(array.read_at(At::Auto, 0, 8 << 20).await.expect("read"), vec![3; 8 << 20]);
        assert_eq!(read().sum("engine_bytes_read_total", &[]) - got, 8 << 20);
        pool.disconnect().await.expect("disconnected");
    });
    // The same by `dmg`, and what belongs to no target of ours is not in the way of a filter.
    let printed = engine.dmg(&["telemetry", "metrics", "--filter", "engine_bytes"]).ok();
    assert!(printed.lines().all(|line| line.contains("engine_bytes_")), "{printed}");
    assert_eq!(
        Metrics(printed).sum("engine_bytes_written_total", &[]),
        read().sum("engine_bytes_written_total", &[])
    );
    let text = read().0;
    for name in ["engine_xstream_stalls_total", "engine_rpc_requests_total", "engine_log_checkpoints_total"] {
        assert!(text.contains(&format!("# TYPE {name} counter")), "no {name}");
    }
    engine.dmg(&["pool", "destroy", "--force", "tank"]).ok();
    wait_for("end of the pool", || (read().sum("engine_pools", &[]) == 0).then_some(()));
    wait_for("end of its space", || (read().sum("engine_space_bytes", &[]) == 0).then_some(()));
    assert!(engine.signal(Signal::TERM).success());
}
