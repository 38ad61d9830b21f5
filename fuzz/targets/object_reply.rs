//! Any bytes as an engine's reply: a client walks what parses without a panic.
#![no_main]

use daos_dsm::rpc::object::{EnumerateKind, FetchReply, QueryReply, parse_enumerated};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(reply) = FetchReply::parse(body) {
        let records: Vec<_> = reply.records().collect();
        assert_eq!(records.len(), reply.record_count());
        let data: usize = records.iter().map(|record| record.data.len()).sum();
        assert!(data <= body.len());
    }
    let _ = QueryReply::parse(body);
    use EnumerateKind::{Akeys, Dkeys, Extents, Keys, Objects};
    for kind in [Keys, Dkeys, Akeys, Objects, Extents] {
        let mut entries = 0usize;
        if parse_enumerated(kind, body, |_| entries += 1).is_ok() {
            assert!(entries <= body.len());
        }
    }
});
