//! The metrics over HTTP, for Prometheus: `GET /metrics` on a loopback port.
//!
//! A thread of its own, because it only reads cells that xstreams write, and a scraper that is slow or hostile must not
//! touch a core that serves I/O. One connection at a time, each with a time limit: a scraper comes every few seconds.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use daos_xstream::telemetry::Registry;

const REQUEST_BYTES_MAX: usize = 8 << 10;
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(2);

/// Serves `registry` on loopback until the process ends; returns the port. Port 0 lets the system choose.
#[allow(
    clippy::disallowed_methods,
    reason = "the engine binds the real world; this thread touches no service"
)]
pub fn serve(registry: Registry, port: u16) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = listener.local_addr()?.port();
    std::thread::Builder::new().name("telemetry".into()).spawn(move || {
        for connection in listener.incoming() {
            if let Err(error) = connection.and_then(|connection| answer(connection, &registry)) {
                tracing::debug!("telemetry: {error}");
            }
        }
    })?;
    Ok(port)
}

fn answer(mut connection: TcpStream, registry: &Registry) -> io::Result<()> {
    connection.set_read_timeout(Some(CONNECTION_TIME_MAX))?;
    connection.set_write_timeout(Some(CONNECTION_TIME_MAX))?;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = connection.read(&mut piece)?;
        request.extend_from_slice(&piece[..length]);
        if length == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", registry.render())
    } else {
        ("404 Not Found", "the metrics are at /metrics\n".to_owned())
    };
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(port: u16, request: &[u8]) -> String {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        connection.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = connection.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn metrics_are_served_and_nonsense_does_no_harm() {
        let registry = Registry::default();
        registry.scope(&[]).counter("engine_tests_total", "Tests.").add(3);
        let port = serve(registry, 0).unwrap();
        assert!(get(port, b"GET /secrets HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert_eq!(get(port, &[0xff; 20_000]), "");
        let answer = get(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("engine_tests_total 3\n"), "{answer}");
    }
}
