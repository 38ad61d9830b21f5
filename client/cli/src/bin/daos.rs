//! `daos`: work with pools, containers, objects and files.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    daos_cli::daos::main()
}
