//! The suite that every fabric has to pass, over two endpoints on two threads, alone and as half of a [`Pair`].

#![allow(clippy::disallowed_methods, reason = "a world of its own, in real time")]

use std::{path::Path, sync::mpsc, time::Instant};

use daos_xstream::{Address, Fabric, Pair, Time, conformance};
use daos_xstream_local::{LocalFabric, LocalOptions, LocalServer};

fn clock() -> impl Fn() -> Time {
    let start = Instant::now();
    move || Time(start.elapsed().as_nanos() as u64)
}

/// Runs the suite between the fabrics that `serve` and `call` make; `pick` chooses the address to call.
fn run<S: Fabric, C: Fabric>(
    serve: impl FnOnce(&Path) -> S + Send + 'static,
    call: impl FnOnce(&Path) -> C,
    pick: fn(&Address) -> bool,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let (tell, told) = mpsc::channel();
    let engine = std::thread::spawn(move || {
        conformance::serve(serve(&path), clock(), |addresses| tell.send(addresses).unwrap());
    });
    let address = told.recv().unwrap().into_iter().find(pick).expect("an address of the fabric under test");
    conformance::call(call(&folder.path().join("caller.sock")), clock(), &address).unwrap();
    engine.join().unwrap();
}

fn engine_fabric(path: &Path) -> LocalFabric {
    LocalServer::bind(path, 1, LocalOptions::default()).unwrap().fabric(0).unwrap()
}

#[test]
fn alone() {
    run(engine_fabric, |_| LocalFabric::client().unwrap(), |_| true);
}

#[test]
fn an_engine_may_call_another_one() {
    run(engine_fabric, engine_fabric, |_| true);
}

#[test]
fn as_the_second_of_a_pair() {
    let engine = |path: &Path| {
        let other = path.with_extension("other");
        Pair::new(engine_fabric(&other), "nothing", engine_fabric(path))
    };
    let client =
        |_: &Path| Pair::new(LocalFabric::client().unwrap(), "nothing", LocalFabric::client().unwrap());
    run(engine, client, |address| address.rest().ends_with("engine.sock#0"));
}
