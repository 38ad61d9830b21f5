//! What happens because time passes: keep-alive, deadlines, repeated introductions.

use std::time::Duration;

use daos_xstream::{Sink, Time};

use crate::{
    inner::{Inner, State},
    peers::{Owed, Stage},
    transfers::Phase,
};

/// Polls between looks at the clock while the endpoint is polled without a pause.
const POLLS_PER_LOOK: u32 = 32;
/// Time between walks over all peers.
const TICK: Duration = Duration::from_millis(50);
/// Time between repeated introductions.
const HELLO_AGAIN: Duration = Duration::from_millis(500);
/// How soon to look again when libfabric has no room, or no connection yet.
const RETRY: Duration = Duration::from_millis(1);

impl Inner {
    /// What a poll does before it looks for completions. Returns how many things happened.
    pub(crate) fn before_poll(&self, sink: &mut impl Sink) -> usize {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.polls = state.polls.wrapping_add(1);
        if state.polls.is_multiple_of(POLLS_PER_LOOK) {
            self.look_at_clock(state);
        }
        if !state.owing.is_empty() {
            self.pay(state);
        }
        if !state.queued.is_empty() {
            self.retry_transfers(state);
        }
        let repost = !state.unposted.is_empty();
        let mut happened = 0;
        if !state.closed.is_empty() {
            let closed = std::mem::take(&mut state.closed);
            drop(guard);
            happened = closed.len();
            closed.into_iter().for_each(|peer| sink.closed(peer));
        } else {
            drop(guard);
        }
        if repost {
            self.post_receives();
        }
        happened
    }

    /// Takes the time, and does what it brings.
    pub(crate) fn look_at_clock(&self, state: &mut State) {
        state.now = (self.clock)();
        let passed = state.now.since(state.ticked);
        if passed >= TICK {
            state.ticked = state.now;
            self.tick(state, passed);
        }
    }

    fn retry_transfers(&self, state: &mut State) {
        for _ in 0..state.queued.len() {
            let Some(id) = state.queued.pop_front() else { return };
            if !self.post_transfer(state, id) {
                state.queued.push_back(id);
            }
        }
    }

    fn tick(&self, state: &mut State, passed: Duration) {
        let (now, config) = (state.now, &self.config);
        // Whoever was not looking cannot say that a peer was silent.
        let absent = if passed > config.keep_alive_idle / 2 { passed } else { Duration::ZERO };
        if let Some((own, silence)) = &mut state.silence {
            if absent > Duration::ZERO {
                silence.was_absent(now);
            }
            let ended = silence.look(*own, now, passed);
            if ended > 0 {
                tracing::debug!(ended, "connections that say nothing were ended");
            }
            state.counters.silent_ended += ended;
        }
        let (mut lost, mut callers, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for peer in state.peers.iter_mut() {
            match &mut peer.stage {
                Stage::Introducing { deadline, .. } if now >= *deadline => lost.push(peer.id),
                Stage::Introducing { hello: Some(again), .. } if now >= *again => {
                    *again = now + HELLO_AGAIN;
                    callers.push(peer.id);
                }
                Stage::Introducing { .. } => {}
                Stage::Established => {
                    peer.heard = peer.heard + absent;
                    peer.stalled = peer.stalled.map(|since| since + absent);
                    let idle = now.since(peer.heard);
                    let stalled = peer.stalled.map_or(Duration::ZERO, |since| now.since(since));
                    if idle >= config.keep_alive_idle + config.keep_alive_timeout
                        || stalled >= config.stall_timeout
                    {
                        lost.push(peer.id);
                    } else if (idle >= config.keep_alive_idle && now >= peer.ask_again)
                        || peer.stalled.is_some()
                    {
                        peer.ask_again = now + config.keep_alive_idle / 2;
                        silent.push(peer.id);
                    }
                }
            }
        }
        for id in lost {
            tracing::debug!(peer = id.0, "a peer does not answer");
            self.close_peer(state, id, true, true);
        }
        for id in callers {
            self.owe(state, id, Owed::Hello);
        }
        for id in silent {
            self.owe_ping(state, id);
        }
        self.expire_transfers(state);
    }

    fn expire_transfers(&self, state: &mut State) {
        let now = state.now;
        if state.transfers.count() == 0 && state.fenced.is_empty() {
            return;
        }
        for id in state
            .transfers
            .pick(|transfer| transfer.deadline <= now && !matches!(transfer.phase, Phase::Done(_)))
        {
            let Some(transfer) = state.transfers.get_mut(id) else { continue };
            if state.peers.get(transfer.peer).is_some() {
                let peer = transfer.peer;
                self.close_peer(state, peer, true, true);
            } else {
                // libfabric might still write to the buffer: it stays in the table, and whoever waits gets another.
                transfer.given_up = true;
                transfer.deadline = Time::NEVER;
                if let Some(waker) = transfer.waker.take() {
                    waker.wake();
                }
            }
        }
        // A ping that went down with a connection is not answered.
        let mut doubtful = Vec::new();
        for id in state.transfers.pick(|transfer| matches!(transfer.phase, Phase::Doubtful(_))) {
            doubtful.extend(state.transfers.get_mut(id).map(|transfer| transfer.peer));
        }
        doubtful.dedup();
        for peer in doubtful {
            self.owe_ping(state, peer);
        }
        let mut fencing: Vec<_> = state.fenced.iter().map(|fenced| fenced.peer).collect();
        fencing.dedup();
        for peer in fencing {
            self.owe_ping(state, peer);
        }
    }

    /// When to look again even if nothing arrives.
    pub(crate) fn next_timer(&self, state: &State) -> Time {
        if !state.owing.is_empty()
            || !state.queued.is_empty()
            || !state.closed.is_empty()
            || !state.unposted.is_empty()
        {
            return state.now + RETRY;
        }
        let walking = state.silence.as_ref().is_some_and(|(_, silence)| silence.is_walking());
        if walking || state.transfers.count() > 0 || state.peers.introducing() > 0 || !state.fenced.is_empty()
        {
            return state.now + TICK;
        }
        if state.peers.count() == 0 && state.silence.is_none() {
            return Time::NEVER;
        }
        state.now + (self.config.keep_alive_idle / 4).max(TICK)
    }
}
