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
use daos_sim::{Options, Outcome, run};

/// Simulates one engine of two targets and its clients, with faults, and checks what comes of it.
///
/// Exit code 0: no seed broke a rule (with --canary: one did). 1: otherwise. 2: wrong arguments.
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
    /// Plants a bug, which must be found: the engine's disk acknowledges flushes before they are durable.
    #[arg(long)]
    canary: bool,
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
    virtual_ms: u64,
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people and scripts")]
#[allow(clippy::disallowed_methods, reason = "how fast it is, is for people; runs know virtual time only")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "debug".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    let begun = Instant::now();
    let mut totals = Totals::default();
    let mut found = false;
    let complete = each_seed(&arguments, |outcome| {
        totals.seeds += 1;
        totals.crashes += outcome.crashes;
        totals.comparisons += outcome.comparisons;
        totals.virtual_ms += outcome.virtual_ms;
        totals.failures += u64::from(outcome.violation.is_some());
        report(&outcome, &arguments);
        found = arguments.canary && outcome.violation.is_some();
        !found
    });
    if !complete && !found {
        return ExitCode::FAILURE;
    }
    if found {
        println!("canary: the planted bug was found after {} seeds", totals.seeds);
        return ExitCode::SUCCESS;
    }
    if !arguments.json {
        let twice = if arguments.twice { ", every seed twice with the same hash" } else { "" };
        let Totals { seeds, failures, crashes, comparisons, virtual_ms } = totals;
        println!(
            "{seeds} seeds, {crashes} engine crashes, {comparisons} comparisons, {failures} failures{twice}"
        );
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{} s of virtual time in {seconds:.1} s: {:.0} seeds/s",
            virtual_ms / 1000,
            seeds as f64 / seconds
        );
    }
    match (arguments.canary, totals.failures) {
        (true, _) => {
            println!("canary: the planted bug was not found");
            ExitCode::FAILURE
        }
        (false, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Runs all seeds, and hands their outcomes on in the order of the seeds, until `next` has seen enough. False if two runs
/// of one seed were not the same.
#[allow(clippy::print_stdout, reason = "a program for people and scripts")]
fn each_seed(arguments: &Arguments, mut next: impl FnMut(Outcome) -> bool) -> bool {
    let options = Options { log: arguments.log, canary: arguments.canary };
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
        let canary = if arguments.canary { " --canary" } else { "" };
        println!(
            "seed {}: {:?}: {}\n  replay: cargo run -q -p daos-sim --bin sim -- --seed {}{canary} --log",
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
