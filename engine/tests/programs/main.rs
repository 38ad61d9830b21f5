//! The programs as a user meets them: `daos_engine`, `daos` and `dmg` as processes, over real shared memory, TCP and disks.
//!
//! This binary is also `daos` and `dmg`: run with `PROGRAM` set in its environment it is that program, made of what was
//! built with the test. So whichever way the tests are started, no old binary is tested.
//!
//! Nothing here depends on how fast anything is; what waits for another process waits a long time before it gives up.

#![allow(
    clippy::disallowed_methods,
    reason = "tests of real processes: they look again until something is there"
)]

mod engine;
mod input;
mod json;
mod raw;
mod restart;
mod scrub;
mod shutdown;
mod telemetry;

use std::{panic, process::ExitCode};

const TESTS: &[(&str, fn())] = &[
    ("input::storage_that_cannot_be_used_is_refused_and_left_alone", input::storage),
    ("input::wrong_requests_get_one_line_and_lose_nothing", input::requests),
    ("input::garbage_and_foreign_protocols_are_survived", input::garbage),
    ("input::silent_connections_leave_descriptors_for_others", input::silence),
    ("input::more_targets_than_descriptors_are_refused", input::descriptors),
    ("input::lost_output_is_noticed", input::outputs),
    ("json::every_command_answers_in_json", json::every_command),
    ("json::completion_completes", json::completion),
    ("restart::a_client_outlives_its_engine", restart::client),
    ("restart::a_copy_outlives_the_engine", restart::copy),
    ("scrub::damage_is_found_while_others_are_served", scrub::damage),
    ("shutdown::signals_end_it_cleanly_under_load", shutdown::signals),
    ("telemetry::counts_are_exact", telemetry::counts),
];

fn main() -> ExitCode {
    match std::env::var(engine::PROGRAM).as_deref() {
        Ok("daos") => return daos_cli::daos::main(),
        Ok("dmg") => return daos_cli::dmg::main(),
        _ => {}
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().filter(|(name, _)| wanted(name)).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let outcome = panic::catch_unwind(test);
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}
