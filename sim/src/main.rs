//! `sim`: runs seeds of the cluster simulator.

#![forbid(unsafe_code)]

use std::process::ExitCode;

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
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people and scripts")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "debug".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    let options = Options { log: arguments.log, canary: arguments.canary };
    let seeds = match arguments.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => arguments.first..arguments.first.saturating_add(arguments.seeds),
    };
    let (mut ran, mut failures, mut crashes, mut comparisons) = (0u64, 0u64, 0u64, 0u64);
    for seed in seeds {
        let mut outcome = run(seed, options);
        if arguments.twice && outcome.violation.is_none() {
            let again = run(seed, options);
            if again.hash != outcome.hash {
                let story = format!("two runs of one seed: {:016x} and {:016x}", outcome.hash, again.hash);
                println!("seed {seed}: {story}");
                return ExitCode::FAILURE;
            }
        }
        ran += 1;
        crashes += outcome.crashes;
        comparisons += outcome.comparisons;
        failures += u64::from(outcome.violation.is_some());
        report(&mut outcome, &arguments);
        if arguments.canary && outcome.violation.is_some() {
            println!("canary: the planted bug was found after {ran} seeds");
            return ExitCode::SUCCESS;
        }
    }
    let twice = if arguments.twice { ", every seed twice with the same hash" } else { "" };
    if !arguments.json {
        println!(
            "{ran} seeds, {crashes} engine crashes, {comparisons} comparisons, {failures} failures{twice}"
        );
    }
    match (arguments.canary, failures) {
        (true, _) => {
            println!("canary: the planted bug was not found");
            ExitCode::FAILURE
        }
        (false, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[allow(clippy::print_stdout, reason = "a program for people and scripts")]
fn report(outcome: &mut Outcome, arguments: &Arguments) {
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
