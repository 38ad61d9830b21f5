//! `sim`: runs seeds of the cluster simulator.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use clap::Parser;
use daos_sim::{CANARIES, Canary, Options, Outcome, run};

/// Simulates one engine of two targets and its clients, with faults, and checks what comes of it.
///
/// Exit code 0: no seed broke a rule (with --canary: that of the planted bug). 1: otherwise. 2: wrong arguments.
#[derive(Parser)]
#[command(name = "sim", version)]
struct Arguments {
    /// Runs this seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs so many seeds, from --first on.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Runs every seed twice; both must have the same hash.
    #[arg(long)]
    twice: bool,
    /// Plants a bug, which must be found; without a name, one bug after another.
    #[arg(long, num_args = 0..=1, default_missing_value = "all", value_parser = canary_names())]
    canary: Option<String>,
    /// Prints every operation, and what the services log.
    #[arg(long)]
    log: bool,
    /// Prints one JSON object per seed.
    #[arg(short, long)]
    json: bool,
    /// Seeds that run at one time, each in a thread; 0: as many as there are processors.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
}

/// Sums over seeds.
#[derive(Default)]
struct Totals {
    seeds: u64,
    failures: u64,
    crashes: u64,
    comparisons: u64,
    refused_reads: u64,
    scrub_passes: u64,
    aggregations: u64,
    cut_short: u64,
    virtual_ms: u64,
}

fn canary_names() -> Vec<&'static str> {
    CANARIES.iter().map(|canary| canary.name).chain(["all"]).collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "debug".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    let passed = match &arguments.canary {
        Some(name) => {
            let chosen = CANARIES.iter().filter(|canary| name == "all" || name == canary.name);
            chosen.filter(|canary| !is_noticed(&arguments, canary)).count() == 0
        }
        None => is_flawless(&arguments),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs seeds until the rule that a planted bug breaks is seen to be broken.
#[allow(clippy::print_stdout, reason = "a program for people and scripts")]
fn is_noticed(arguments: &Arguments, canary: &Canary) -> bool {
    let (mut seeds, mut others, mut noticed) = (0u64, 0u64, false);
    let options = Options { log: arguments.log, planted: Some(canary.bug) };
    let _ = each_seed(arguments, options, |outcome| {
        seeds += 1;
        let Some(violation) = &outcome.violation else { return true };
        noticed = violation.rule == canary.rule;
        others += u64::from(!noticed);
        if noticed || arguments.seed.is_some() {
            println!("seed {}: {:?}: {}", outcome.seed, violation.rule, violation.story);
        }
        !noticed
    });
    let (name, rule) = (canary.name, canary.rule);
    let how = if noticed { "noticed" } else { "NOT NOTICED" };
    println!("canary {name}: {how} by {rule:?} after {seeds} seeds; {others} broke other rules");
    noticed
}

/// Runs seeds; none may break a rule.
#[allow(clippy::print_stdout, reason = "a program for people and scripts")]
#[allow(clippy::disallowed_methods, reason = "how fast it is, is for people; runs know virtual time only")]
fn is_flawless(arguments: &Arguments) -> bool {
    let begun = Instant::now();
    let mut totals = Totals::default();
    let options = Options { log: arguments.log, planted: None };
    let complete = each_seed(arguments, options, |outcome| {
        totals.seeds += 1;
        totals.crashes += outcome.crashes;
        totals.comparisons += outcome.comparisons;
        totals.refused_reads += outcome.refused_reads;
        totals.scrub_passes += outcome.scrub_passes;
        totals.aggregations += outcome.aggregations;
        totals.cut_short += outcome.cut_short;
        totals.virtual_ms += outcome.virtual_ms;
        totals.failures += u64::from(outcome.violation.is_some());
        report(&outcome, arguments);
        true
    });
    if !arguments.json {
        let twice = if arguments.twice { ", every seed twice with the same hash" } else { "" };
        let Totals { seeds, failures, crashes, comparisons, refused_reads, virtual_ms, .. } = totals;
        let Totals { scrub_passes, aggregations, cut_short, .. } = totals;
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{seeds} seeds, {crashes} engine crashes, {comparisons} comparisons, {refused_reads} reads refused for \
             damage, {failures} failures{twice}"
        );
        println!(
            "{scrub_passes} passes of scrubbers, {aggregations} aggregations; {cut_short} crashes between slices of long \
             work"
        );
        println!(
            "{} s of virtual time in {seconds:.1} s: {:.0} seeds/s",
            virtual_ms / 1000,
            seeds as f64 / seconds
        );
    }
    complete && totals.failures == 0
}

/// Runs all seeds, and hands their outcomes on in the order of the seeds, until `next` has seen enough. False if two runs
/// of one seed were not the same.
#[allow(clippy::print_stdout, reason = "a program for people and scripts")]
fn each_seed(arguments: &Arguments, options: Options, mut next: impl FnMut(Outcome) -> bool) -> bool {
    let seeds = match arguments.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => arguments.first..arguments.first.saturating_add(arguments.seeds),
    };
    let jobs = match arguments.jobs {
        0 => thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    let unclaimed = AtomicU64::new(seeds.start);
    let (sender, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.min((seeds.end - seeds.start) as usize).max(1) {
            let (sender, unclaimed) = (sender.clone(), &unclaimed);
            scope.spawn(move || {
                loop {
                    let seed = unclaimed.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, options);
                    let again =
                        (arguments.twice && outcome.violation.is_none()).then(|| run(seed, options).hash);
                    if sender.send((outcome, again)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut early, mut wanted) = (BTreeMap::new(), seeds.start);
        for (outcome, again) in outcomes {
            early.insert(outcome.seed, (outcome, again));
            while let Some((outcome, again)) = early.remove(&wanted) {
                wanted += 1;
                if let Some(again) = again.filter(|again| *again != outcome.hash) {
                    println!(
                        "seed {}: two runs of one seed: {:016x} and {again:016x}",
                        outcome.seed, outcome.hash
                    );
                    return false;
                }
                if !next(outcome) {
                    return false;
                }
            }
        }
        true
    })
}

#[allow(clippy::print_stdout, reason = "a program for people and scripts")]
fn report(outcome: &Outcome, arguments: &Arguments) {
    if arguments.json {
        println!("{}", serde_json::to_string(outcome).expect("plain data"));
        return;
    }
    if let Some(violation) = &outcome.violation {
        println!(
            "seed {}: {:?}: {}\n  replay: cargo run -q -p daos-sim --bin sim -- --seed {} --log",
            outcome.seed, violation.rule, violation.story, outcome.seed
        );
    } else if arguments.seed.is_some() {
        println!(
            "seed {}: hash {:016x}, {} steps, {} ms of virtual time, {} operations, {} comparisons, {} crashes",
            outcome.seed,
            outcome.hash,
            outcome.steps,
            outcome.virtual_ms,
            outcome.operations,
            outcome.comparisons,
            outcome.crashes
        );
    }
}
