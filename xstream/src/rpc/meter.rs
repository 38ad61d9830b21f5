//! How long requests take and how many fail, by procedure.
//!
//! A request's time runs from the poll that took it off the fabric to its answer. Both ends of it are readings of the
//! clock that a poll makes once for all of its requests: one that is answered in the poll that brought it counts as long
//! as that poll took. So measuring costs a request two stores, and nothing at all in a module that names no procedures.

use std::cell::{OnceCell, RefCell};

use super::{Opcode, Status};
use crate::{
    Time,
    telemetry::{Counter, Histogram, Metrics},
};

/// The meters of an endpoint.
pub(super) struct Meters {
    metrics: OnceCell<Metrics>,
    modules: Box<[OnceCell<Module>]>,
    /// What the poll under way has answered.
    answered: RefCell<Vec<Opcode>>,
}

/// The meters of one module, by procedure.
type Module = Box<[Option<Meter>]>;

struct Meter {
    seconds: Histogram,
    failed: Counter,
}

impl Meters {
    pub fn new(answers_per_poll: usize) -> Self {
        Self {
            metrics: OnceCell::new(),
            modules: (0..=u8::MAX).map(|_| OnceCell::new()).collect(),
            answered: RefCell::new(Vec::with_capacity(answers_per_poll)),
        }
    }

    /// Where the meters are read from now on. What was measured before, if anything, stays where it is.
    pub fn set_metrics(&self, metrics: &Metrics) {
        let _ = self.metrics.set(metrics.clone());
    }

    /// Measures the procedures of a module, if it is known where to, and if they are not measured yet.
    pub fn measure(&self, module: u8, name: &'static str, procedures: &[(u8, &'static str)]) {
        let Some(metrics) = self.metrics.get() else { return };
        self.modules[usize::from(module)].get_or_init(|| {
            let places = procedures.iter().map(|(number, _)| usize::from(*number) + 1).max().unwrap_or(0);
            let mut meters: Vec<Option<Meter>> = (0..places).map(|_| None).collect();
            for (number, operation) in procedures {
                let metrics = metrics.with("module", name).with("operation", *operation);
                meters[usize::from(*number)] = Some(Meter {
                    seconds: metrics.histogram(
                        "engine_operations_seconds",
                        "Time from the arrival of a request to its answer.",
                    ),
                    failed: metrics.counter(
                        "engine_operations_failed_total",
                        "Requests that were answered with an error; they are among the operations too.",
                    ),
                });
            }
            meters.into_boxed_slice()
        });
    }

    fn meter(&self, opcode: Opcode) -> Option<&Meter> {
        self.modules[usize::from(opcode.module())].get()?.get(usize::from(opcode.procedure()))?.as_ref()
    }

    /// Counts an answer to a request of the poll under way; its time is known when [`poll_ended`](Self::poll_ended).
    pub fn answered_in_poll(&self, opcode: Opcode, status: Status) {
        if let Some(meter) = self.meter(opcode) {
            meter.note(status);
            self.answered.borrow_mut().push(opcode);
        }
    }

    /// Counts an answer to a request that came some time ago.
    pub fn answered(&self, opcode: Opcode, status: Status, arrived: Time, now: impl FnOnce() -> Time) {
        if let Some(meter) = self.meter(opcode) {
            meter.note(status);
            meter.seconds.record(now().since(arrived));
        }
    }

    /// A poll that began at `began` has ended.
    pub fn poll_ended(&self, began: Time, now: impl FnOnce() -> Time) {
        let answered = &mut *self.answered.borrow_mut();
        if answered.is_empty() {
            return;
        }
        let took = now().since(began);
        for opcode in answered.drain(..) {
            if let Some(meter) = self.meter(opcode) {
                meter.seconds.record(took);
            }
        }
    }
}

impl Meter {
    fn note(&self, status: Status) {
        if !status.is_ok() {
            self.failed.add(1);
        }
    }
}
