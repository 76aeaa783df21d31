//! What a thread that handles requests has of its own for each service: made before its first job, dropped when it ends.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use super::Served;
use super::erased::{self, WorkerState};
use crate::service::ServiceId;

/// Of one thread, on which it is made and dropped.
#[derive(Default)]
pub(crate) struct WorkerStates(Vec<Option<WorkerState>>);

impl WorkerStates {
    /// None yet: each is made when it is first needed.
    pub(crate) fn none() -> WorkerStates {
        WorkerStates::default()
    }

    /// Of all services, less those that handle nothing. One that cannot be made is tried again when it is needed.
    pub(crate) fn of(services: &[Served]) -> WorkerStates {
        let mut states = WorkerStates::none();
        for (service, _) in (0..).zip(services).filter(|(_, service)| !service.joins) {
            states.get(services, service);
        }
        states
    }

    /// That of one service. `None`: it panicked while it was made.
    pub(crate) fn get(&mut self, services: &[Served], service: ServiceId) -> Option<&mut WorkerState> {
        let place = service as usize;
        match self.0.get(place) {
            Some(Some(_)) => self.0[place].as_mut(),
            _ => self.make(services, place),
        }
    }

    /// The same for the first time, and where it could not be made before.
    #[cold]
    fn make(&mut self, services: &[Served], place: usize) -> Option<&mut WorkerState> {
        if self.0.len() <= place {
            self.0.resize_with(services.len(), || None);
        }
        if self.0[place].is_none() {
            self.0[place] = erased::start_worker(&*services[place].service);
            if self.0[place].is_none() {
                tracing::error!(
                    service = services[place].name,
                    "a worker's state could not be made: it panicked"
                );
            }
        }
        self.0[place].as_mut()
    }
}

impl Drop for WorkerStates {
    fn drop(&mut self) {
        for state in self.0.drain(..) {
            // Unwind safety: nothing of it is used any more.
            if let Err(value) = panic::catch_unwind(AssertUnwindSafe(|| drop(state))) {
                erased::discard(value);
                tracing::error!("a worker's state panicked while it was dropped");
            }
        }
    }
}

impl fmt::Debug for WorkerStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerStates").finish_non_exhaustive()
    }
}
