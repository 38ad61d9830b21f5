//! Socket addresses in the three forms that are needed: text, Rust's, and the bytes libfabric exchanges.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs, UdpSocket};

use daos_xstream::{Address, FabricError};

/// Longest address of any provider that is accepted from a peer.
pub(crate) const NAME_BYTES_MAX: usize = 64;

const FAMILY_V4: u16 = libc::AF_INET as u16;
const FAMILY_V6: u16 = libc::AF_INET6 as u16;

/// `sockaddr_in` or `sockaddr_in6` of `address`.
pub(crate) fn to_bytes(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(FAMILY_V4.to_ne_bytes());
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(FAMILY_V6.to_ne_bytes());
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The address in `bytes`, which may come from anybody; `None` if it is not exactly one socket address.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match (family, bytes.len()) {
        (FAMILY_V4, 16) => {
            let octets: [u8; 4] = bytes[4..8].try_into().ok()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(octets), port).into())
        }
        (FAMILY_V6, 28) => {
            let flow = u32::from_ne_bytes(bytes[4..8].try_into().ok()?);
            let octets: [u8; 16] = bytes[8..24].try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes[24..28].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, flow, scope).into())
        }
        _ => None,
    }
}

/// Whether a peer may claim `address` as the one it can be reached at: a single host and a port.
pub(crate) fn is_callable(address: SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != Ipv4Addr::BROADCAST
}

/// The socket address that `address` names. Looks a host name up, which may block: names belong into configuration that
/// is read once.
pub(crate) fn resolve(address: &Address) -> Result<SocketAddr, FabricError> {
    let rest = address.rest();
    if let Ok(numeric) = rest.parse() {
        return Ok(numeric);
    }
    let bad = |reason: &str| FabricError::BadAddress(format!("{address}: {reason}"));
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {}
        _ => return Err(bad("not of the form HOST:PORT")),
    }
    rest.to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| bad("the host has no address"))
}

/// The address of this machine from which packets to `peer` leave, with port 0: what a client binds to. Sends nothing.
pub(crate) fn local_toward(peer: SocketAddr) -> Result<SocketAddr, FabricError> {
    let any: SocketAddr =
        if peer.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let route = || -> std::io::Result<SocketAddr> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    let mut local =
        route().map_err(|error| FabricError::Unreachable(format!("{peer}: no route from here ({error})")))?;
    local.set_port(0);
    Ok(local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_families_survive_the_way_to_bytes_and_back() {
        for text in ["127.0.0.1:10416", "0.0.0.0:0", "[::1]:65535", "[fe80::1%3]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_bytes(&to_bytes(address)), Some(address), "{text}");
        }
    }

    proptest! {
        #[test]
        fn bytes_of_a_stranger_are_an_address_that_means_the_same_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(address) = from_bytes(&bytes) {
                prop_assert_eq!(from_bytes(&to_bytes(address)), Some(address));
            }
        }
    }

    #[test]
    fn addresses_of_nobody_are_not_callable() {
        for text in ["0.0.0.0:1", "127.0.0.1:0", "224.0.0.1:5", "255.255.255.255:5", "[::]:5", "[ff02::1]:5"]
        {
            assert!(!is_callable(text.parse().unwrap()), "{text}");
        }
        assert!(is_callable("127.0.0.1:5".parse().unwrap()));
    }

    #[test]
    fn text_that_names_no_port_is_refused() {
        for rest in ["127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", ":5"] {
            let address: Address = format!("tcp://{rest}").parse().unwrap();
            assert!(matches!(resolve(&address), Err(FabricError::BadAddress(_))), "{rest}");
        }
    }
}
