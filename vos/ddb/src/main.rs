//! `ddb`: looks into a stopped target.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    daos_ddb::main()
}
