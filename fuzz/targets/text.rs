//! Any text where people write identifiers, sizes, addresses and labels: refused or understood, never a panic; what is
//! understood prints as something that is understood the same.
#![no_main]

use daos_dsm::rpc::control::Label;
use daos_types::{ObjectId, parse_size, show_size};
use daos_xstream::Address;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<ObjectId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(bytes) = parse_size(text) {
        assert!(parse_size(&show_size(bytes)).is_ok() || bytes > u64::MAX - (1 << 58));
    }
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string(), text);
        assert!(!address.fabric().is_empty() && !address.rest().is_empty());
    }
    if let Ok(label) = Label::try_from(text.to_owned()) {
        assert_eq!(label.as_str(), text);
    }
});
