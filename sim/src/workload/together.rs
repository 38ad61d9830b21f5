//! Commits of two containers at once: both are committed, or neither.

use std::rc::Rc;

use daos_dsm::client::{ContainerHandle, OpenOptions, PoolHandle};
use daos_types::Epoch;
use daos_xstream::{Clock, Env, rpc::Status};
use daos_xstream_sim::SimEnv;

use super::{Client, Next, Session, Trouble};
use crate::violation::Rule;

impl Client {
    /// Changes two containers, and commits them together.
    pub(super) async fn round_together(self: &Rc<Self>, pool: &PoolHandle<SimEnv>) -> Result<Next, Trouble> {
        let first = self.open(pool, 0, OpenOptions::NO_TRANSACTION).await?;
        let second = match self.open(pool, 1, OpenOptions::NO_TRANSACTION).await {
            Ok(second) => second,
            Err(trouble) => {
                first.close().await?;
                return Err(trouble);
            }
        };
        let mut worked = self.transact_together(pool, &first, &second).await;
        if let Err(Trouble::Undo | Trouble::Sick) = worked {
            let (one, other) = (first.undo().await, second.undo().await);
            worked = one.and(other);
        }
        // A handle that is gone is closed all the same.
        let (one, other) = (first.close().await, second.close().await);
        worked.and(one).and(other).map(|()| Next::Go).map_err(|_| Trouble::Gone)
    }

    async fn transact_together(
        &self,
        pool: &PoolHandle<SimEnv>,
        first: &Session,
        second: &Session,
    ) -> Result<(), Trouble> {
        let mut commits = Vec::new();
        for session in [first, second] {
            let held = self.shared.model.borrow().handles[session.key].lhe;
            for _ in 0..=self.roll(2) {
                session.changes(held + self.roll(2)).await?;
            }
            commits.push((session, held + 1 + self.roll(3)));
        }
        for (session, epoch) in &commits {
            session.flush(*epoch).await?;
        }
        let parts: Vec<_> = commits.iter().map(|(session, epoch)| (session.key, *epoch)).collect();
        let (commit, befores) = {
            let mut model = self.shared.model.borrow_mut();
            let befores = [model.before(first.key), model.before(second.key)];
            (model.commit(&parts), befores)
        };
        let asked: Vec<_> = commits.iter().map(|(session, epoch)| (&session.handle, Epoch(*epoch))).collect();
        let begun = self.env.clock().now();
        let error = match ContainerHandle::commit_all(pool, &asked).await {
            Ok(states) => {
                self.log(|| format!("handles {} and {} commit together: {states:?}", first.key, second.key));
                let mut model = self.shared.model.borrow_mut();
                model.committed(commit, true);
                for (((session, _), before), state) in commits.iter().zip(befores).zip(&states) {
                    session.contact.set(begun);
                    model.told(session.key, before, state);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        self.log(|| format!("handles {} and {} commit together: {error}", first.key, second.key));
        match error.status() {
            Status::INTERRUPTED => {
                let mut model = self.shared.model.borrow_mut();
                let life = model.engine_life;
                if [first, second].iter().all(|session| model.handles[session.key].clean_since == life) {
                    model.violate(Rule::Refusal, format!("{error}, but the engine has not restarted"));
                }
                model.committed(commit, false);
            }
            // Which of them it is about they tell themselves, and what became of the commit.
            status if status == Status::BAD_HANDLE || self.is_sick(status) => {
                let mut outcome = Ok(());
                for (session, epoch) in &commits {
                    outcome = outcome.and(session.learn_fate(commit, *epoch).await);
                }
                outcome?;
            }
            _ => {
                let story =
                    format!("handles {} and {} cannot commit together: {error}", first.key, second.key);
                self.shared.model.borrow_mut().violate(Rule::Refusal, story);
            }
        }
        Err(Trouble::Undo)
    }
}
