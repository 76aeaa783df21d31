//! A shortcut for a turn that has sent out the only job there is: its reply is often back before a look at poll would be.
//!
//! Where a worker on this CPU takes over, the reply is there when this thread runs again; so where jobs are short the worker is
//! given the CPU, which costs less than a sleep until it wakes this thread. Measured with one connection and one request at a
//! time, server and client on one CPU: a third of the server's CPU time per request. Where the worker runs on another CPU, or
//! somebody else takes this one, it is in vain, and tried less often. On the reactor's thread only.

use std::thread;
use std::time::Duration;

use super::backoff::Backoff;
use crate::clock::Nanos;
use crate::hub::Hub;
use crate::pool::JobPool;
use crate::replies::Wake;

/// For a lone job as short as this on average the reactor lets a worker have its CPU before it goes to sleep. For a long one it
/// would come back late to others.
const SHORT_JOB: Duration = Duration::from_micros(20);
/// It did not pay to give way if that took longer, in nanoseconds.
const MAX_GIVEN_WAY_NANOS: Nanos = 100_000;
/// Whether giving way has paid of late.
#[derive(Debug, Default)]
pub(super) struct LoneJob(Backoff);

impl LoneJob {
    /// Whether the only job that is out, just submitted, is back already. Gives way to its worker where that may pay.
    pub(super) fn is_back<W: Wake>(&mut self, hub: &Hub<W>, pool: &JobPool) -> bool {
        if !hub.replies.is_empty() {
            return true;
        }
        if pool.time_per_job() >= SHORT_JOB || !self.0.is_due() {
            return false;
        }
        let before = hub.clock.now();
        thread::yield_now();
        let back = !hub.replies.is_empty();
        self.0.tried(back && hub.clock.now().saturating_sub(before) < MAX_GIVEN_WAY_NANOS);
        back
    }
}
