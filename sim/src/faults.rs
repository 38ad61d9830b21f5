//! What goes wrong in the safety phase.

use std::time::Duration;

use daos_xstream_sim::{Loss, Stopped};

use crate::{
    cluster::Cluster,
    plan::{Helper, Storage},
};

impl Cluster {
    /// Causes a fault of the seed's choice.
    pub(crate) fn fault(&self) -> Result<(), Stopped> {
        let slot = self.sim.choose(self.clients.len() as u64) as usize;
        let loss = if self.sim.choose(4) == 0 { Loss::Process } else { Loss::Power };
        if self.shared.plan.helper == Some(Helper::BriefContainers) && self.sim.choose(2) == 0 {
            return self.crash_while_destroying(loss);
        }
        if self.shared.plan.aggregates && self.sim.choose(3) == 0 {
            return self.crash_between_slices(loss);
        }
        let kinds = if self.shared.plan.storage == Storage::Sound { 10 } else { 15 };
        match self.sim.choose(kinds) {
            0..5 => {
                if self.engine.is_alive() {
                    self.crash_engine(loss);
                }
                self.run_for(self.some(Duration::from_millis(300)))?;
                self.start_engine();
                if self.sim.choose(4) == 0 {
                    // Again, while it starts.
                    self.run_for(self.some(Duration::from_millis(30)))?;
                    self.crash_engine(loss);
                    self.start_engine();
                }
            }
            5..8 => {
                self.shared.log(|| format!("{:?} -- client {slot} is cut off", self.sim.elapsed()));
                self.sim.partition(&self.clients[slot], &self.engine);
                if self.sim.choose(3) > 0 {
                    self.run_for(self.some(Duration::from_secs(6)))?;
                    self.sim.heal(&self.clients[slot], &self.engine);
                }
            }
            8 => self.new_life_of_client(slot)?,
            9 if self.shared.plan.helper == Some(Helper::Tree) => {
                self.shared.log(|| format!("{:?} -- the helper dies", self.sim.elapsed()));
                self.helper.kill(Loss::Process);
                self.run_for(self.some(Duration::from_secs(1)))?;
                self.start_helper();
            }
            9 => self.new_life_of_client(slot)?,
            _ => match self.shared.plan.storage {
                Storage::Sound => {}
                Storage::Failing => self.media_fail(slot, loss)?,
                Storage::Full => self.media_are_full(loss)?,
                Storage::Decaying => self.media_decay(),
                Storage::Tampered => self.heap_is_tampered_with(loss)?,
            },
        }
        Ok(())
    }

    /// The engine crashes while a container is being destroyed, or soon before or after.
    fn crash_while_destroying(&self, loss: Loss) -> Result<(), Stopped> {
        let until = Duration::from_millis(500);
        match self.sim.run_until(until, || self.shared.brief_containers.destroying.get() || self.is_broken())
        {
            Ok(()) | Err(Stopped::TimeLimit(_)) => {}
            other => return other,
        }
        let most = [2, 20, 200][self.sim.choose(3) as usize];
        self.run_for(self.some(Duration::from_millis(most)))?;
        if self.engine.is_alive() {
            self.crash_engine(loss);
        }
        self.run_for(self.some(Duration::from_millis(50)))?;
        self.start_engine();
        Ok(())
    }

    /// The engine crashes between two slices of an aggregation, a discard or a destruction.
    fn crash_between_slices(&self, loss: Loss) -> Result<(), Stopped> {
        let slice = self.slices_waiting().1 + 1 + self.sim.choose(24);
        let found = self.sim.run_until(Duration::from_secs(1), || {
            let (waiting, waits) = self.slices_waiting();
            (waiting > 0 && waits >= slice) || self.is_broken()
        });
        match found {
            Ok(()) | Err(Stopped::TimeLimit(_)) => {}
            other => return other,
        }
        if self.engine.is_alive() {
            self.crash_engine(loss);
        }
        self.run_for(self.some(Duration::from_millis(50)))?;
        self.start_engine();
        Ok(())
    }

    /// A part of `most`, of the seed's choice.
    fn some(&self, most: Duration) -> Duration {
        Duration::from_micros(self.sim.choose(most.as_micros() as u64))
    }

    fn new_life_of_client(&self, slot: usize) -> Result<(), Stopped> {
        self.kill_client(slot);
        self.run_for(self.some(Duration::from_secs(1)))?;
        self.start_client(slot);
        Ok(())
    }

    /// All accesses fail, or some do. The engine may stop to write, and must not make anything up. It is restarted once
    /// media are sound again, and at times before.
    fn media_fail(&self, slot: usize, loss: Loss) -> Result<(), Stopped> {
        let rate = [1_000_000, 300_000, 20_000][self.sim.choose(3) as usize];
        self.shared.log(|| format!("{:?} -- {rate} of a million accesses to media fail", self.sim.elapsed()));
        self.shared.model.borrow_mut().sicken();
        self.engine.disk().set_failure_rate(rate);
        self.run_for(self.some(Duration::from_secs(2)))?;
        match self.sim.choose(4) {
            0 => {
                self.crash_engine(loss);
                self.start_engine();
                self.shared.model.borrow_mut().sicken();
                self.run_for(self.some(Duration::from_secs(1)))?;
            }
            1 => self.new_life_of_client(slot)?,
            _ => {}
        }
        self.engine.disk().set_failure_rate(0);
        self.recover(loss);
        Ok(())
    }

    /// Nothing that is larger than a few blocks can be stored.
    fn media_are_full(&self, loss: Loss) -> Result<(), Stopped> {
        let disk = self.engine.disk();
        let room = self.sim.choose(1 << 18);
        self.shared.log(|| format!("{:?} -- media are full but for {room} bytes", self.sim.elapsed()));
        self.shared.model.borrow_mut().sicken();
        disk.set_capacity(disk.used() + room);
        self.run_for(self.some(Duration::from_secs(4)))?;
        disk.set_capacity(u64::MAX);
        // A heap that could not write its checkpoint stays read-only until then.
        self.recover(loss);
        Ok(())
    }

    fn recover(&self, loss: Loss) {
        self.crash_engine(loss);
        self.shared.model.borrow_mut().sick = false;
        self.start_engine();
    }

    /// Stored data of the block tier changes: it must never be returned.
    fn media_decay(&self) {
        let disk = self.engine.disk();
        for path in self.files("/blocks") {
            for _ in 0..self.sim.choose(4) {
                let Some(byte) = disk.written_byte(&path, 1) else { continue };
                self.shared.model.borrow_mut().damaged = true;
                self.shared.log(|| format!("{:?} -- byte {byte} of {path} changes", self.sim.elapsed()));
                match self.sim.choose(4) {
                    0 => disk.break_sector(&path, byte),
                    _ => disk.flip_bit(&path, byte * 8 + self.sim.choose(8)),
                };
            }
        }
    }

    /// One bit of a heap's file, or of the first half of its log, flips while the engine is down. It finds that out, or the
    /// bit did not matter. If it did not touch the file, the bit flips back, and nothing must be lost. (Damage to the newest
    /// frame of the log looks like a torn write, as `docs/format.md` says.)
    fn heap_is_tampered_with(&self, loss: Loss) -> Result<(), Stopped> {
        let disk = self.engine.disk();
        let (kind, part) = if self.sim.choose(3) == 0 { ("/heap", 1) } else { ("/log", 2) };
        let files = self.files(kind);
        let path = files[self.sim.choose(files.len() as u64) as usize].clone();
        self.crash_engine(loss);
        let Some(byte) = disk.written_byte(&path, part) else {
            self.start_engine();
            return Ok(());
        };
        let bit = byte * 8 + self.sim.choose(8);
        self.shared.log(|| format!("{:?} -- bit {bit} of {path} flips", self.sim.elapsed()));
        disk.flip_bit(&path, bit);
        let digest = disk.digest(&path);
        self.start_engine();
        self.shared.model.borrow_mut().sicken();
        self.run_for(self.some(Duration::from_secs(2)))?;
        if self.engine.is_alive() {
            self.engine.kill(loss);
        }
        if disk.digest(&path) == digest {
            self.shared.log(|| format!("{:?} -- it flips back", self.sim.elapsed()));
            disk.flip_bit(&path, bit);
        }
        self.recover(loss);
        Ok(())
    }

    /// Files of the engine with this end of their names.
    fn files(&self, end: &str) -> Vec<String> {
        let files = self.engine.disk().files();
        files.into_iter().map(|(path, _)| path).filter(|path| path.ends_with(end)).collect()
    }
}
