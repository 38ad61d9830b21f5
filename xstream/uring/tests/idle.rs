//! What an idle world costs. Alone in its process: it looks at the processor time of all threads.

mod common;

use std::time::Duration;

use daos_xstream::{Clock, Env};

use common::{TestEnv, alone, cpu_time};

async fn sleep(env: &TestEnv, duration: Duration) {
    let deadline = env.clock().now() + duration;
    env.clock().sleep_until(deadline).await;
}

#[test]
fn an_idle_world_uses_almost_no_processor_and_wakes_in_time() {
    let (idle, parks) = alone(|env| async move {
        sleep(&env, Duration::from_millis(50)).await;
        let before = cpu_time();
        for _ in 0..10 {
            sleep(&env, Duration::from_millis(100)).await;
        }
        (cpu_time() - before, env.counters().parks)
    });
    assert!(idle < Duration::from_millis(20), "idle for 1 s cost {idle:?} of processor time: more than 2 %");
    assert!(parks >= 10, "parked {parks} times");
}
