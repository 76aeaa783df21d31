//! A shortcut for a turn that has sent out the only job there is: its reply is often back before a look at poll would be.
//!
//! Where a worker on this CPU takes over, the reply is there when this thread runs again; so where jobs are short the worker is
//! given the CPU, which costs less than a sleep until it wakes this thread. Measured with one connection and one request at a
//! time, server and client on one CPU: a third of the server's CPU time per request. Where the worker runs on another CPU, or
//! somebody else takes this one, it is in vain, and tried less often. On the reactor's thread only.

use std::thread;
use std::time::Duration;

use crate::clock::Nanos;
use crate::hub::Hub;
use crate::pool::JobPool;
use crate::replies::Wake;

/// For a lone job as short as this on average the reactor lets a worker have its CPU before it goes to sleep. For a long one it
/// would come back late to others.
const SHORT_JOB: Duration = Duration::from_micros(20);
/// It did not pay to give way if that took longer, in nanoseconds.
const MAX_GIVEN_WAY_NANOS: Nanos = 100_000;
/// After so many times in a row in which it did not pay, and after more, it is tried for one lone job in 2 to the power of this.
const MAX_VAIN: u32 = 6;

/// Whether giving way has paid of late.
#[derive(Debug, Default)]
pub(super) struct LoneJob {
    /// Times in a row that it did not, and for how many lone jobs it is not tried.
    vain: u32,
    again_after: u32,
}

impl LoneJob {
    /// Whether the only job that is out, just submitted, is back already. Gives way to its worker where that may pay.
    pub(super) fn is_back<W: Wake>(&mut self, hub: &Hub<W>, pool: &JobPool) -> bool {
        if !hub.replies.is_empty() {
            return true;
        }
        if pool.time_per_job() >= SHORT_JOB {
            return false;
        }
        if self.again_after > 0 {
            self.again_after -= 1;
            return false;
        }
        let before = hub.clock.now();
        thread::yield_now();
        let back = !hub.replies.is_empty();
        let paid = back && hub.clock.now().saturating_sub(before) < MAX_GIVEN_WAY_NANOS;
        self.vain = if paid { 0 } else { (self.vain + 1).min(MAX_VAIN) };
        self.again_after = (1 << self.vain) - 1;
        back
    }
}
