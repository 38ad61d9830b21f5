//! The cases, over one fabric.

use std::{
    cell::{Cell, RefCell},
    process::Command,
    rc::Rc,
    time::Duration,
};

use anyhow::Context;
use daos::{At, Client, Container, Epoch, FabricChoice, IoBuffer, ObjectType, OpenOptions, random_uuid};
use daos_bench::{limits::durable_write_us, report::Row};
use daos_dsm::{
    client::ObjectAddress,
    rpc::object::{UpdateRecord, flags},
};
use daos_xstream::rpc::{Call, system};

use crate::{Bench, FabricName, echo::Echo, engine::Engine, idle, load};

/// Keys that updates and fetches go over.
const KEYS: u64 = 20_000;
/// Bytes of an array that reads and writes go over.
const ARRAY_BYTES: u64 = 256 << 20;

struct Target<'a> {
    bench: &'a Bench,
    client: Client,
    container: Container,
    epoch: Epoch,
    pid: u32,
    fabric: FabricName,
    echo: &'a Echo,
}

/// Measures the cases that were asked for.
pub fn measure(bench: &Bench, engine: &Engine, fabric: FabricName, echo: &Echo) -> anyhow::Result<()> {
    let choice = match fabric {
        FabricName::Local => FabricChoice::Local,
        FabricName::Tcp => FabricChoice::Network,
    };
    let client = engine.client(choice)?;
    let pid = engine.pid(&client)?;
    let label = format!("perf-{}", random_uuid(&client).simple());
    let (pool, container, epoch) = client.block_on(async {
        let pool = client.pool_connect(engine.pool()).await?;
        pool.container_create(Some(&label), Default::default(), None).await?;
        let container = pool.container_open(&label, OpenOptions::WRITE).await?;
        let epoch = container.hold(Epoch::ZERO).await?;
        anyhow::Ok((pool, container, epoch))
    })?;
    let target = Target { bench, client, container, epoch, pid, fabric, echo };
    if bench.wants("null-rpc") {
        target.null_rpc(engine)?;
    }
    for bytes in [64, 4096] {
        for depth in [1, 16] {
            target.values(bytes, depth)?;
        }
    }
    for bytes in [64 << 10, 1 << 20] {
        for depth in [1, 8] {
            target.arrays(bytes, depth)?;
        }
    }
    if bench.wants_any(&idle::CASES) {
        let null = target.null_call(engine)?;
        idle::measure(bench, &target.client, pid, (fabric, echo), null)?;
    }
    let Target { client, container, .. } = target;
    client.block_on(async {
        container.close().await?;
        pool.container_destroy(&label, true).await?;
        pool.disconnect().await
    })?;
    Ok(())
}

impl Target<'_> {
    fn row(&self, case: &str, bytes: u64, depth: u32) -> Row {
        Row {
            case: case.to_owned(),
            fabric: Some(format!("{:?}", self.fabric).to_lowercase()),
            durable: case.ends_with("durable"),
            value_bytes: bytes,
            depth,
            ..Row::default()
        }
    }

    /// Something that makes a null call.
    fn null_call(
        &self,
        engine: &Engine,
    ) -> anyhow::Result<impl Fn() -> std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>> + use<>>
    {
        let endpoint = self.client.caller().endpoint().clone();
        let wanted = if self.fabric == FabricName::Local { "local" } else { "tcp" };
        let addresses = engine.system()?.service_addresses();
        let address = addresses
            .into_iter()
            .find(|address| address.fabric() == wanted)
            .context("the engine has no address of this fabric")?;
        let peer = self.client.block_on(endpoint.connect(&address))?;
        let call = Rc::new(Call { opcode: system::NULL, timeout: Duration::from_secs(5), ..Call::default() });
        Ok(move || {
            let (endpoint, call) = (endpoint.clone(), call.clone());
            Box::pin(async move {
                endpoint.call(peer, &call, &[]).await?;
                Ok(())
            }) as std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>
        })
    }

    fn null_rpc(&self, engine: &Engine) -> anyhow::Result<()> {
        let goal = if self.fabric == FabricName::Local { 1.5 } else { 1.2 };
        for depth in [1, 16] {
            let null = self.null_call(engine)?;
            self.measure(self.row("null-rpc", 0, depth), 64, Some(goal), move |_| null())?;
        }
        Ok(())
    }

    /// Measures a request beside the echo of a message of `bytes`; with one in flight the goal is a ratio.
    fn measure<F: Future<Output = anyhow::Result<()>> + 'static>(
        &self,
        row: Row,
        bytes: usize,
        goal: Option<f64>,
        operation: impl Fn(u64) -> F + 'static,
    ) -> anyhow::Result<()> {
        let (client, pid, seconds) = (&self.client, self.pid, self.bench.seconds);
        let name = &self.echo.name;
        let row = match goal {
            Some(goal) if row.depth == 1 => {
                let echo = || self.echo.again_us(bytes);
                let (measured, limit, ratio) = load::in_turns(client, pid, seconds, operation, echo)?;
                row.measured(&measured).latency_ratio(name, (limit, ratio), goal)
            }
            _ => {
                let measured =
                    load::run(client, pid, seconds, row.depth, &Rc::default(), &Rc::new(operation))?;
                let row = row.measured(&measured);
                if self.fabric == FabricName::Local && bytes == 64 && row.case == "kv-update" {
                    row.rate_limit("the goal for one core", 600_000.0, 1.0)
                } else {
                    row.rate_beside(name, 1e6 / self.echo.us(bytes))
                }
            }
        };
        self.bench.print(&row);
        Ok(())
    }

    /// Updates, visible and durable, and fetches of a KV.
    fn values(&self, bytes: usize, depth: u32) -> anyhow::Result<()> {
        if !self.bench.wants_any(&["kv-update", "kv-update-durable", "kv-fetch"]) {
            return Ok(());
        }
        let (seconds, epoch) = (self.bench.seconds, self.epoch);
        let id = self.container.new_object_id(ObjectType::KeyValue, Some("S1"))?;
        let kv = Rc::new(self.container.kv(id)?);
        let name = bytes as u64;
        // On `local` 2.5 µs where the echo takes 0.7.
        let goal = if self.fabric == FabricName::Local { 3.6 } else { 1.3 };
        // What is written must differ from what is there: the store answers a repetition without work.
        let salt = Rc::new(Cell::new(0));
        let values = Rc::new(Values::new(bytes));
        let put = {
            let (kv, salt, values) = (kv.clone(), salt.clone(), values.clone());
            move |number: u64| {
                let (kv, salt, values) = (kv.clone(), salt.get(), values.clone());
                async move { Ok(kv.put(epoch, &key(number), values.get(number + salt)).await?) }
            }
        };
        for number in 0..KEYS {
            self.client.block_on(put(number))?;
        }
        if self.bench.wants("kv-update") {
            salt.set(1);
            self.measure(self.row("kv-update", name, depth), bytes, Some(goal), put)?;
            if self.fabric == FabricName::Local && bytes == 64 && depth == 16 {
                print_redis();
            }
        }
        if self.bench.wants("kv-fetch") {
            let get = move |number| {
                let kv = kv.clone();
                async move {
                    let value = kv.get(At::Epoch(epoch), &key(number)).await?.value();
                    anyhow::ensure!(value.is_some_and(|value| value.len() == bytes), "a value is missing");
                    Ok(())
                }
            };
            self.measure(self.row("kv-fetch", name, depth), bytes, Some(goal), get)?;
        }
        if self.bench.wants("kv-update-durable") {
            let io = self.container.handle().objects();
            let map_version = self.container.handle().pool().map().version();
            let at = ObjectAddress { ordinal: 0, map_version, object: id };
            let put = move |number| {
                let (io, values) = (io.clone(), values.clone());
                async move {
                    let records = [UpdateRecord::Value { key: &key(number), value: values.get(number + 77) }];
                    let flags = flags::LAST_WINS | flags::DURABLE;
                    Ok(io.update(at, epoch, flags, b"", &records).await?)
                }
            };
            let (row, limit) = (self.row("kv-update-durable", name, depth), "raw 4 KiB write + fdatasync");
            self.bench.print(&match depth {
                1 => {
                    let raw = || Ok(durable_write_us(&self.bench.scratch, 150)?);
                    let (measured, limit_us, ratio) =
                        load::in_turns(&self.client, self.pid, seconds, put, raw)?;
                    row.measured(&measured).latency_ratio(limit, (limit_us, ratio), 1.3)
                }
                _ => {
                    let put = Rc::new(put);
                    let measured = load::run(&self.client, self.pid, seconds, depth, &Rc::default(), &put)?;
                    row.measured(&measured).rate_beside(limit, 1e6 / self.bench.durable_us)
                }
            });
        }
        Ok(())
    }

    /// Writes and reads of a byte array.
    fn arrays(&self, bytes: usize, depth: u32) -> anyhow::Result<()> {
        if !self.bench.wants_any(&["array-write", "array-read"]) {
            return Ok(());
        }
        let (seconds, epoch, blocks) = (self.bench.seconds, self.epoch, ARRAY_BYTES / bytes as u64);
        let id = self.container.new_object_id(ObjectType::Array, Some("S1"))?;
        let array = Rc::new(self.container.array(id)?);
        for number in 0..ARRAY_BYTES >> 20 {
            let buffer = IoBuffer::copy_of(&vec![number as u8; 1 << 20]);
            self.client.block_on(array.write(epoch, number << 20, buffer)).1?;
        }
        let limit = self.bench.copy_per_s(bytes);
        let buffers: Rc<RefCell<Vec<IoBuffer>>> = Rc::default();
        for writes in [true, false] {
            let case = if writes { "array-write" } else { "array-read" };
            if !self.bench.wants(case) {
                continue;
            }
            let (array, buffers) = (array.clone(), buffers.clone());
            let transfer = move |number| {
                let (array, buffers) = (array.clone(), buffers.clone());
                async move {
                    let buffer = buffers.borrow_mut().pop().unwrap_or_else(|| IoBuffer::zeroed(bytes));
                    let offset = number % blocks * bytes as u64;
                    let (buffer, result) = if writes {
                        array.write(epoch, offset, buffer).await
                    } else {
                        let (buffer, result) = array.read(epoch, offset, buffer).await;
                        (buffer, result.map(drop))
                    };
                    buffers.borrow_mut().push(buffer);
                    Ok(result?)
                }
            };
            let transfer = Rc::new(transfer);
            let measured = load::run(&self.client, self.pid, seconds, depth, &Rc::default(), &transfer)?;
            let row = self.row(case, bytes as u64, depth).measured(&measured);
            self.bench.print(&row.rate_beside("memcpy + CRC32C", limit));
        }
        Ok(())
    }
}

/// Says what redis does with as many in flight, if it is installed. Not to the rows: it is no limit, and no goal.
fn print_redis() {
    let script = include_str!("../../../compare/redis.sh");
    let output = Command::new("bash").args(["-c", script]).output();
    let rate = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if let Ok(rate) = rate
        && !rate.is_empty()
    {
        eprintln!("    beside it: redis-benchmark with pipeline 16: {rate} SET/s");
    }
}

/// Values of which each differs from its neighbours, made beforehand: making one takes as long as storing it.
struct Values {
    pattern: Vec<u8>,
    bytes: usize,
}

impl Values {
    fn new(bytes: usize) -> Self {
        let number = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        Self { pattern: (0..bytes + 256).map(|at| number(at) as u8).collect(), bytes }
    }

    fn get(&self, number: u64) -> &[u8] {
        let start = (number % 256) as usize;
        &self.pattern[start..start + self.bytes]
    }
}

fn key(number: u64) -> [u8; 16] {
    let number = number % KEYS;
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}
