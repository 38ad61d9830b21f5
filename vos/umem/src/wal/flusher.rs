//! Group commit: one write at a time; what gathers meanwhile goes in the next.

use std::{rc::Rc, time::Duration};

use daos_xstream::{Clock, Env, Spawn};

use crate::wal::Wal;

/// A sealed transaction goes to the log after this time even if nobody waits for it.
const AGE_MAX: Duration = Duration::from_millis(10);

/// Writes frames until the store closes or the device fails.
pub(crate) async fn run<E: Env>(wal: Rc<Wal<E>>) {
    loop {
        wal.flush.wait().await;
        if wal.check().is_err() {
            return;
        }
        if !is_urgent(&wal) {
            if wal.with_log(|log| log.is_empty()) {
                continue;
            }
            let deadline = wal.env.clock().now() + AGE_MAX;
            wal.flush.wait_or(wal.env.clock().sleep_until(deadline)).await;
        }
        // Let those who are about to seal do so: their transactions ride along.
        wal.env.scheduler().yield_now().await;
        loop {
            if wal.check().is_err() {
                return;
            }
            let Some((position, end, buffer)) = wal.with_log(|log| log.take()) else { break };
            let bytes = buffer.len() as u64;
            let (buffer, result) = wal.log.write(position, buffer).await;
            if let Err(error) = result {
                wal.fail(&format_args!("writing the log: {error}"));
                return;
            }
            wal.count(|counters| {
                counters.log_writes += 1;
                counters.log_bytes += bytes;
            });
            wal.with_log(|log| log.recycle(buffer));
            wal.persisted.set(end);
            wal.persisted_waiters.wake(end);
            wal.room_waiters.wake(u64::MAX);
            if !is_urgent(&wal) {
                // What is left can wait for its age, or for somebody who wants it.
                if wal.with_log(|log| !log.is_empty()) {
                    wal.flush.raise();
                }
                break;
            }
        }
    }
}

fn is_urgent<E: Env>(wal: &Wal<E>) -> bool {
    wal.wanted.get() > wal.persisted.get() || wal.with_log(|log| log.is_eager())
}
