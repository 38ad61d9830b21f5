//! An engine that had libfabric loaded after it had set up its signals lost them: libraries that libfabric brings along put
//! handlers of their own in place.

use daos_libfabric_sys as fi;

extern "C" fn ours(_: libc::c_int) {}

#[test]
fn loading_leaves_the_handlers_of_signals_as_they_were() {
    let handler = ours as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGSEGV] {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(signal, handler) };
    }
    fi::load().expect("libfabric is installed");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGSEGV] {
        // SAFETY: zeros are a valid `sigaction`, and the call only fills it in.
        let found = unsafe {
            let mut found: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut found);
            found.sa_sigaction
        };
        assert_eq!(found, handler, "signal {signal}");
    }
}
