//! The metrics over HTTP, for Prometheus: `GET /metrics` on a loopback port.
//!
//! A thread of its own, because it only reads cells that xstreams write, and a scraper that is slow or hostile must not
//! touch a core that serves I/O. A thread per connection, a few at a time, each with a time limit for all it does: a slow reader does not keep
//! others out, and many of them end soon.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use daos_xstream::telemetry::Registry;

const REQUEST_BYTES_MAX: usize = 8 << 10;
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(2);
const CONNECTIONS_MAX: usize = 32;

/// Serves `registry` on loopback until the process ends; returns the port. Port 0 lets the system choose.
#[allow(
    clippy::disallowed_methods,
    reason = "the engine binds the real world; this thread touches no service"
)]
pub fn serve(registry: Registry, port: u16) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = listener.local_addr()?.port();
    std::thread::Builder::new().name("telemetry".into()).spawn(move || {
        let open = Arc::new(());
        for connection in listener.incoming() {
            if let Err(error) = &connection {
                // Most likely there is no descriptor left, and the connection waits on: do not ask at once again.
                tracing::debug!("telemetry: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            let (registry, here) = (registry.clone(), open.clone());
            // Everybody who is answered holds a handle, and so does this thread.
            if Arc::strong_count(&open) > CONNECTIONS_MAX + 1 {
                tracing::debug!("telemetry: {CONNECTIONS_MAX} connections already");
                continue;
            }
            let answer = move || {
                let _here = here;
                if let Err(error) = connection.and_then(|connection| answer(connection, &registry)) {
                    tracing::debug!("telemetry: {error}");
                }
            };
            if let Err(error) = std::thread::Builder::new().name("scrape".into()).spawn(answer) {
                tracing::debug!("telemetry: {error}");
            }
        }
    })?;
    Ok(port)
}

#[allow(clippy::disallowed_methods, reason = "a thread that touches no service")]
fn answer(mut connection: TcpStream, registry: &Registry) -> io::Result<()> {
    let end = Instant::now() + CONNECTION_TIME_MAX;
    let left = || match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(Some(left)),
    };
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        connection.set_read_timeout(left()?)?;
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
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        connection.set_write_timeout(left()?)?;
        let length = connection.write(rest)?;
        rest = &rest[length..];
    }
    Ok(())
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

    /// One reader that said nothing kept all others waiting for two seconds, and one that sent a byte a second for hours.
    #[test]
    fn slow_readers_keep_nobody_out() {
        let registry = Registry::default();
        let port = serve(registry, 0).unwrap();
        let served_beside_silent_ones = || {
            let silent: Vec<_> =
                (0..10).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()).collect();
            assert!(get(port, b"GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
            // Nobody has been hung up on meanwhile.
            silent.into_iter().all(|mut connection| {
                connection.set_nonblocking(true).unwrap();
                matches!(connection.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            })
        };
        // A machine that stands still for two seconds gets another chance.
        assert!((0..5).any(|_| served_beside_silent_ones()));
        // A byte now and then does not make the time longer.
        let mut dripping = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        dripping.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let ended = (0..200).any(|_| {
            let _ = dripping.write_all(b"x");
            !matches!(dripping.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        });
        assert!(ended, "answered for ever");
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
