//! The suite that every fabric has to pass, over two endpoints: on two threads, and in two processes. This program is also the
//! other process.

#![allow(clippy::disallowed_methods, reason = "a world of its own, in real time")]

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
};

use common::RealClock;
use daos_xstream::{Address, conformance};

const ENGINE: &str = "OFI_CONFORMANCE_ENGINE";

/// Serves the suite until the caller says stop; tells the address first.
fn serve(tell: impl FnOnce(Address)) {
    let tell = |mut addresses: Vec<Address>| tell(addresses.remove(0));
    conformance::serve(common::server(), RealClock::start().reader(), tell);
}

fn call(address: &Address) {
    conformance::call(common::client_of(address), RealClock::start().reader(), address).unwrap();
}

fn main() -> ExitCode {
    if std::env::var_os(ENGINE).is_some() {
        serve(|address| println!("\naddress {address}"));
        return ExitCode::SUCCESS;
    }
    conformance::run_tests(&[("in_one_process", in_one_process), ("in_two_processes", in_two_processes)])
}

fn in_one_process() {
    let (tell, told) = mpsc::channel();
    let engine = std::thread::spawn(move || serve(|address| tell.send(address).unwrap()));
    call(&told.recv().unwrap());
    engine.join().unwrap();
}

fn in_two_processes() {
    let mut engine = Command::new(std::env::current_exe().unwrap())
        .env(ENGINE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Read to the end, so that the engine can write to the end.
    let mut lines = BufReader::new(engine.stdout.take().unwrap()).lines();
    let address =
        lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("address ")?.parse().ok());
    call(&address.expect("the engine tells its address"));
    lines.for_each(drop);
    assert!(engine.wait().unwrap().success());
}
