//! Any bytes as the body of an object procedure: what parses is consistent, so walking it cannot fail.
#![no_main]

use daos_dsm::rpc::object::{Enumerate, ObjectRequest, Procedure, REQUEST_DATA_BYTES_MAX, RecordKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for procedure in [Procedure::Update, Procedure::Fetch, Procedure::Punch, Procedure::Query] {
        let Ok(request) = ObjectRequest::parse(procedure, body) else { continue };
        let (mut records, mut data, mut inline) = (0, 0, 0);
        for record in request.records() {
            records += 1;
            assert_eq!(record.data_offset, data, "data lies in the order of the records");
            if matches!(procedure, Procedure::Update) {
                if !request.is_bulk() {
                    assert_eq!(record.data.len() as u64, record.length);
                }
                data += record.length;
                inline += record.data.len();
            } else {
                let has_data = matches!(record.kind, RecordKind::Value | RecordKind::Extent);
                data += if has_data { record.length } else { 0 };
            }
            assert!(record.offset.checked_add(record.length).is_some());
        }
        assert_eq!(records, request.record_count());
        assert!(request.data_length() <= REQUEST_DATA_BYTES_MAX && inline <= body.len());
    }
    let _ = Enumerate::parse(body);
});
