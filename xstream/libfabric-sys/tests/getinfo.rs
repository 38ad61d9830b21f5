//! The library that is loaded is the one that the headers describe, and it answers.

use std::{ffi::CStr, ptr};

use daos_libfabric_sys as fi;

#[test]
fn library_is_at_least_the_headers_version() {
    // SAFETY: takes no arguments and reads a constant of the library.
    let loaded = unsafe { fi::fi_version() };
    assert!(loaded >= fi::HEADER_VERSION, "loaded {loaded:#x}, headers {:#x}", fi::HEADER_VERSION);
}

#[test]
fn getinfo_finds_a_provider_with_reliable_datagrams() {
    // SAFETY: fi_allocinfo returns null or a zeroed tree of attributes whose sub-structures are allocated; fi_getinfo
    // accepts null for node and service and writes one pointer; the list is freed once and not used afterwards.
    unsafe {
        let hints = fi::fi_allocinfo();
        assert!(!hints.is_null());
        (*hints).caps = u64::from(fi::FI_MSG);
        (*(*hints).ep_attr).type_ = fi::fi_ep_type_FI_EP_RDM;
        let mut list = ptr::null_mut();
        let result = fi::fi_getinfo(fi::HEADER_VERSION, ptr::null(), ptr::null(), 0, hints, &mut list);
        assert_eq!(result, 0, "{}", CStr::from_ptr(fi::fi_strerror(-result)).to_string_lossy());
        let mut providers = Vec::new();
        let mut info = list;
        while !info.is_null() {
            assert_eq!((*(*info).ep_attr).type_, fi::fi_ep_type_FI_EP_RDM);
            providers.push(CStr::from_ptr((*(*info).fabric_attr).prov_name).to_string_lossy().into_owned());
            info = (*info).next;
        }
        fi::fi_freeinfo(list);
        fi::fi_freeinfo(hints);
        assert!(providers.iter().any(|name| name.contains("ofi_rxm")), "{providers:?}");
    }
}
