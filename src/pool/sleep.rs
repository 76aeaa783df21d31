//! Who parks and who is unparked.
//!
//! The state is one packed atomic (parked workers, searching workers) and a mutex-protected stack of the parked ones, most
//! recent on top, so that surplus workers stay cold and can be let go from its bottom. For short work the one is taken, of
//! the few on top, that was last on the CPU of who unparks it: the work's data is in that cache, and no other CPU has to be
//! interrupted, which on a virtual machine costs more than such work. A worker is *searching* from
//! the moment it was unparked or started until it finds a job or parks again; while somebody searches, nobody else
//! need be unparked, because every searcher looks once more after it stops counting as one.
//!
//! Why no job is stranded: a pusher pushes, fences, then reads the state; a worker counts itself as parked, fences, then
//! looks for jobs. Of two such sequences at least one sees the other's write (store buffering with `SeqCst` fences),
//! so either the pusher sees a worker to unpark, or the worker sees the job. Held by `loom_tests` of the pool. The idea is that
//! of rayon-core's `sleep` module.

use crate::sync::atomic::{AtomicU8, AtomicUsize, Ordering::*, fence};
use crate::sync::{Arc, Mutex, Parker, current_cpu, lock};

/// One searching worker; the low half of the state.
const SEARCHING: usize = 1;
/// One parked worker; the high half.
const PARKED: usize = 1 << (usize::BITS / 2);

/// Parked workers among which one on the same CPU is looked for.
const MAX_LOOKED_AT: usize = 8;

/// Takes the packed state apart.
fn parked(state: usize) -> usize {
    state / PARKED
}

fn searching(state: usize) -> usize {
    state % PARKED
}

/// Why a worker went on after [`Sleep::park`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unparked {
    /// To look for a job; it counts as searching.
    Search,
    /// It is surplus, and ends. It counts as nothing.
    Exit,
}

/// Which parked workers to unpark. A hint: none is passed over if only others are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that parked last.
    Latest,
    /// One that was last on the caller's CPU.
    Near,
}

/// A worker's place to park.
#[derive(Debug)]
pub(super) struct Bed {
    parker: Parker,
    /// Written under the lock of the stack, and read by the parked worker: pairs release with acquire.
    order: AtomicU8,
    /// Where it parked. Written and read under the lock of the stack, and only a hint.
    cpu: std::sync::atomic::AtomicUsize,
}

const STAY: u8 = 0;
const SEARCH: u8 = 1;
const EXIT: u8 = 2;

impl Bed {
    /// For the calling thread.
    pub(super) fn new() -> Arc<Bed> {
        Arc::new(Bed { parker: Parker::new(), order: AtomicU8::new(STAY), cpu: Default::default() })
    }
}

/// The parked workers of a pool, and how many search.
#[derive(Debug)]
pub(super) struct Sleep {
    /// Decides who is unparked. `PARKED` changes under the lock of `stack` only; `SEARCHING` anywhere.
    state: AtomicUsize,
    stack: Mutex<Vec<Arc<Bed>>>,
}

impl Sleep {
    pub(super) fn new() -> Sleep {
        Sleep { state: AtomicUsize::new(0), stack: Mutex::new(Vec::new()) }
    }

    /// How many workers are parked. May be old by the time it is used.
    pub(super) fn parked(&self) -> usize {
        parked(self.state.load(Relaxed))
    }

    /// How many search. May be old by the time it is used.
    pub(super) fn searching(&self) -> usize {
        searching(self.state.load(Relaxed))
    }

    /// A worker is going to start, and looks for a job first. Counted before its thread exists, so that no one is
    /// unparked for work that it will find.
    pub(super) fn starts(&self) {
        self.state.fetch_add(SEARCHING, Relaxed);
    }

    /// After a push: unparks one worker, if nobody searches and `worth(parked)` says so.
    pub(super) fn unpark_one(&self, worth: impl FnOnce(usize) -> bool) {
        self.unpark(1, Which::Latest, worth);
    }

    /// After a push: unparks workers until `count` search, if `worth(parked)` says so.
    ///
    /// One is enough for the jobs to be found, as whoever searches last looks for more. Several at once are for jobs so
    /// long that each is worth a worker, where a chain in which each wakes the next takes its time.
    pub(super) fn unpark(&self, count: usize, which: Which, worth: impl FnOnce(usize) -> bool) {
        fence(SeqCst);
        let state = self.state.load(Relaxed);
        if parked(state) == 0 || searching(state) >= count || !worth(parked(state)) {
            return;
        }
        let near = (which == Which::Near).then(current_cpu);
        for _ in 0..count {
            let bed = {
                let mut stack = lock(&self.stack);
                if searching(self.state.load(Relaxed)) >= count {
                    return;
                }
                let Some(bed) = take(&mut stack, near) else { return };
                // One addition, so that nobody sees it in neither count: parked one less, searching one more.
                self.state.fetch_sub(PARKED - SEARCHING, Relaxed);
                bed.order.store(SEARCH, Release);
                bed
            };
            bed.parker.unpark();
        }
    }

    /// Unparks one worker, also while others search: they may have been unparked and have no CPU yet.
    pub(super) fn unpark_another(&self) {
        fence(SeqCst);
        self.unpark(searching(self.state.load(Relaxed)) + 1, Which::Latest, |_| true);
    }

    /// A searching worker found a job, or ends. `true` if it was the last one that searched: it then has to look
    /// whether more is there, and unpark another for it, as a pusher may have counted on it.
    ///
    /// Between the two there must be a fence, and there is one, the first thing in [`Sleep::unpark`]: all who call this look by that.
    /// A pusher that counted on the searcher has pushed, fenced, and read a state from before this subtraction. So its fence comes
    /// before the one behind the subtraction, and what it pushed is seen behind that. Whoever is not the last leaves it to the
    /// last: subtractions are made one after the other. Without the fence in `unpark` when a worker calls it, the pusher's left as it
    /// is, `a_job_that_blocks_keeps_no_other_from_being_taken` and three more models deadlock; a second one here changes nothing.
    pub(super) fn stops_searching(&self) -> bool {
        searching(self.state.fetch_sub(SEARCHING, Relaxed)) == 1
    }

    /// Parks the calling worker, whose bed this is, until it is unparked, unless `work` finds something after it
    /// counted itself as parked.
    pub(super) fn park(&self, bed: &Arc<Bed>, searching: bool, work: impl FnOnce() -> bool) -> Unparked {
        {
            let mut stack = lock(&self.stack);
            bed.order.store(STAY, Relaxed);
            bed.cpu.store(current_cpu(), Relaxed);
            stack.push(Arc::clone(bed));
            self.state.fetch_add(if searching { PARKED - SEARCHING } else { PARKED }, Relaxed);
        }
        fence(SeqCst);
        if work() {
            let mut stack = lock(&self.stack);
            if let Some(place) = stack.iter().rposition(|other| Arc::ptr_eq(other, bed)) {
                stack.remove(place);
                self.state.fetch_sub(PARKED - SEARCHING, Relaxed);
                return Unparked::Search;
            }
            // Somebody took it out already and has counted it; the order is there.
        }
        loop {
            match bed.order.load(Acquire) {
                SEARCH => return Unparked::Search,
                EXIT => return Unparked::Exit,
                _ => bed.parker.park(),
            }
        }
    }

    /// Lets up to `count` parked workers end, those that have been parked longest. Returns how many.
    ///
    /// A worker that enters the stack after this sees what the caller wrote before it: the lock orders the two.
    pub(super) fn release(&self, count: usize) -> usize {
        let released: Vec<_> = {
            let mut stack = lock(&self.stack);
            let count = count.min(stack.len());
            self.state.fetch_sub(PARKED * count, Relaxed);
            stack.drain(..count).inspect(|bed| bed.order.store(EXIT, Release)).collect()
        };
        for bed in &released {
            bed.parker.unpark();
        }
        released.len()
    }
}

/// Takes the worker to unpark from the stack: the one that parked last, on CPU `near` if there is one among the last few.
fn take(stack: &mut Vec<Arc<Bed>>, near: Option<usize>) -> Option<Arc<Bed>> {
    let is_near = |bed: &Arc<Bed>| Some(bed.cpu.load(Relaxed)) == near;
    let below = near.and_then(|_| stack.iter().rev().take(MAX_LOOKED_AT).position(is_near));
    let place = stack.len().checked_sub(1 + below.unwrap_or(0))?;
    Some(stack.remove(place))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn parked_on(cpus: &[usize]) -> Vec<Arc<Bed>> {
        let bed = |cpu: &usize| {
            let bed = Bed::new();
            bed.cpu.store(*cpu, Relaxed);
            bed
        };
        cpus.iter().map(bed).collect()
    }

    fn taken(cpus: &[usize], near: Option<usize>) -> Option<usize> {
        let mut stack = parked_on(cpus);
        let before = stack.clone();
        let bed = take(&mut stack, near)?;
        assert_eq!(stack.len() + 1, before.len());
        before.iter().position(|other| Arc::ptr_eq(other, &bed))
    }

    #[test]
    fn the_worker_that_parked_last_is_taken_or_one_near_by() {
        assert_eq!(taken(&[1, 1, 2], None), Some(2));
        assert_eq!(taken(&[1, 1, 2], Some(1)), Some(1));
        assert_eq!(taken(&[1, 1, 2], Some(3)), Some(2), "nobody is near");
        assert_eq!(taken(&[], Some(1)), None);
        assert_eq!(taken(&[1, 2, 2, 2, 2, 2, 2, 2, 2], Some(1)), Some(8), "too far down");
    }
}
