//! `dmg`: administer a DAOS system.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    daos_cli::dmg::main()
}
