//! Generates the bindings from the installed headers and compiles libfabric's inline functions into callable ones.

use std::{env, path::PathBuf};

/// What is called. libfabric's data path consists of inline functions over tables of pointers; bindgen writes a C
/// wrapper for each of these, so that no table layout is trusted by hand-written code. The few functions that are symbols of
/// the library are in `src/load.rs`.
const FUNCTIONS: &[&str] = &[
    "fi_allocinfo",
    "fi_domain",
    "fi_close",
    "fi_control",
    "fi_trywait",
    "fi_cq_open",
    "fi_cq_read",
    "fi_cq_readfrom",
    "fi_cq_readerr",
    "fi_cq_strerror",
    "fi_av_open",
    "fi_av_insert",
    "fi_av_remove",
    "fi_av_lookup",
    "fi_av_straddr",
    "fi_endpoint",
    "fi_ep_bind",
    "fi_enable",
    "fi_cancel",
    "fi_getname",
    "fi_recv",
    "fi_send",
    "fi_inject",
    "fi_read",
    "fi_writemsg",
    "fi_mr_reg",
    "fi_mr_desc",
    "fi_mr_key",
    "fi_mr_bind",
    "fi_mr_enable",
];

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    // Nothing is linked: `src/load.rs` loads the library when it is wanted, by symbol versions that fit these headers.
    let library = pkg_config::Config::new()
        .range_version("1.14".."1.18")
        .cargo_metadata(false)
        .probe("libfabric")
        .expect("development files of libfabric 1.14 to 1.17 (Debian 12: apt-get install libfabric-dev)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wrappers = out.join("wrappers.c");

    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(library.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers)
        .generate_comments(false)
        .derive_default(true)
        .allowlist_recursively(true)
        // Flag and error macros; types come along with the functions that use them.
        .allowlist_var("FI_[A-Z0-9_]+")
        .blocklist_function("fi_dupinfo")
        .allowlist_type(
            "fi_(info|fabric_attr|cq_(msg|data|err)_entry|wait_obj|cq_format|av_type|ep_type|threading|resource_mgmt)",
        );
    for function in FUNCTIONS {
        builder = builder.allowlist_function(format!("^{function}$"));
    }
    builder
        .generate()
        .expect("bindings of libfabric's headers (needs libclang)")
        .write_to_file(out.join("bindings.rs"))
        .expect("the bindings in OUT_DIR");

    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    // The data path goes through these wrappers: a few instructions each, so they are optimised in every profile.
    cc::Build::new()
        .file(&wrappers)
        .include(manifest)
        .includes(&library.include_paths)
        .opt_level(2)
        .warnings(false)
        .compile("daos_libfabric_wrappers");
}
