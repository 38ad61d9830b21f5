//! Any bytes as the body of a control procedure: read without a panic, and what was read says itself again.
#![no_main]

use daos_dsm::rpc::control::{self, *};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn check<T: Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok(read) = control::decode::<T>(body) {
        let written = control::encode(&read);
        let again = control::decode::<T>(&written).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(control::encode(&again), written);
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, body) = input;
    match kind % 14 {
        0 => check::<PoolCreate>(body),
        1 => check::<PoolDestroy>(body),
        2 => check::<PoolConnect>(body),
        3 => check::<PoolQuery>(body),
        4 => check::<PoolQueryReply>(body),
        5 => check::<ContainerCreate>(body),
        6 => check::<ContainerOpen>(body),
        7 => check::<ContainerOpened>(body),
        8 => check::<EpochRequest>(body),
        9 => check::<EpochCommit>(body),
        10 => check::<AttributesSet>(body),
        11 => check::<PoolLookup>(body),
        12 => check::<ContainerLookup>(body),
        _ => check::<SetAcl>(body),
    }
});
